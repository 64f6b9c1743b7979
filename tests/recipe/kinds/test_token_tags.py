"""Tags of words in a recipe, and entities found in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipe_files import (  # noqa: F401
    predictor,
    prepared,
    private_dataset_cache,
    reading,
    refused,
    run,
    tag_rows,
)

from eidetic_hf.configuration import TaskRecord
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.kinds.token_tags import find_words, tag_scheme, word_answer, word_spans, words_of_tokens


def test_the_first_sub_token_of_each_word_gets_its_tag(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["red-blue", "w1", "green"], "tags": ["B-color", "O", "B-color"]},
        {"tokens": ["w1", "w2"], "tags": ["O", "O"]},
    ]
    data, tokenizer = prepared(tmp_path, rows, type="token-classification")
    first = data.splits["test"][0]
    assert tokenizer.convert_ids_to_tokens(first["input_ids"]) == [
        "[CLS]", "red", "[UNK]", "blue", "w1", "green", "[SEP]",
    ]  # fmt: skip
    assert data.labels == ["O", "B-color", "I-color"]
    assert first["labels"] == [-100, 1, -100, -100, 0, 1, -100]


def test_tags_are_cut_with_their_words(tmp_path: Path) -> None:
    rows = [{"tokens": ["red", *["w1"] * 30], "tags": ["B-color", *["O"] * 30]}] * 2
    data, _ = prepared(tmp_path, rows, type="token-classification")
    assert data.splits["test"][0]["labels"] == [-100, 1, *[0] * 13, -100], "16 tokens"


def test_tags_may_be_numbers_of_the_labels_of_the_recipe(tmp_path: Path) -> None:
    rows = [{"tokens": ["red", "w1"], "tags": [2, 0]}] * 2
    labels = ["O", "B-size", "B-color"]
    data, _ = prepared(tmp_path, rows, type="token-classification", labels=labels)
    assert data.labels == labels
    assert data.splits["test"][0]["labels"] == [-100, 2, 0, -100]


def test_each_type_of_entity_has_a_tag_for_its_first_and_its_other_words() -> None:
    assert tag_scheme(["B-b", "I-a", "O"]) == ["O", "B-a", "I-a", "B-b", "I-b"]
    assert tag_scheme(["NOUN", "O", "VERB"]) == ["NOUN", "O", "VERB"]


def test_a_token_that_begins_with_the_blank_before_a_word_is_the_words() -> None:
    text, spans = "ab cd", word_spans(["ab", "cd"])
    assert spans == [(0, 2), (3, 5)]
    assert words_of_tokens(text, [(0, 0), (0, 1), (1, 2), (2, 4), (4, 5), (0, 0)], spans) == [
        None, 0, None, 1, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["O"]}, "row 1 of the train split has 1 tags for 2 words"),
        ({"tags": ["O", "B-size"]}, "row 1 of the train split has the label 'B-size', which is not among its labels"),
        ({"tokens": ["red", " "]}, "row 1 of the train split has no words, or empty ones"),
        ({"tokens": [], "tags": []}, "row 1 of the train split has no words"),
        ({"tags": ["O", None]}, "row 1 of the train split has a word without a tag"),
    ],
)
def test_tags_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"tokens": ["red", "w1"], "tags": ["B-color", "O"]}
    rows = [row, {**row, **change}, row]
    text = refused(tmp_path, rows, type="token-classification", labels=["O", "B-color", "I-color"])
    assert f"Task 'task': {message}" in text


def test_tags_of_whole_texts_are_refused(tmp_path: Path) -> None:
    rows = [{"tokens": "red w1", "tags": ["O", "O"]}] * 3
    assert "expected lists of words, one for each word" in refused(tmp_path, rows, type="token-classification")


def test_entities_have_places_in_the_text_and_the_mean_score_of_their_words() -> None:
    record = TaskRecord("ner", "token-classification", labels=["O", "B-x", "I-x", "B-y", "I-y"])
    text = "big red cat, blue"
    chances = torch.full((5, 5), 0.1)
    for word, label in enumerate([0, 1, 2, 0, 3]):
        chances[word, label] = 0.6 if word == 1 else 0.8
    words = [((0, 3), chances[0]), ((4, 7), chances[1]), ((8, 11), chances[2]), ((11, 12), chances[3])]
    answer = word_answer(record, text, [*words, ((13, 17), chances[4])])
    assert [list(entity) for entity in answer["entities"]] == [["entity", "text", "start", "end", "score"]] * 2
    assert [tuple(entity.values())[:4] for entity in answer["entities"]] == [
        ("x", "red cat", 4, 11),
        ("y", "blue", 13, 17),
    ]
    assert [entity["score"] for entity in answer["entities"]] == pytest.approx([0.7, 0.8])


def test_tags_that_mark_no_entities_are_given_for_each_word() -> None:
    record = TaskRecord("pos", "token-classification", labels=["NOUN", "VERB"])
    answer = word_answer(record, "dogs run", [((0, 4), torch.tensor([0.9, 0.1])), ((5, 8), torch.tensor([0.2, 0.8]))])
    assert [(word["text"], word["label"]) for word in answer["words"]] == [("dogs", "NOUN"), ("run", "VERB")]
    assert [word["score"] for word in answer["words"]] == pytest.approx([0.9, 0.8])


def test_marks_around_words_are_words_of_their_own() -> None:
    text = 'Said @bob_1: "it\'s New-York (U.S.)!" #now'
    words = [text[start:end] for start, end in find_words(text)]
    assert words == ["Said", "@bob_1", ":", '"', "it's", "New-York", "(", "U.S", ".", ")", "!", '"', "#now"]


def test_entities_of_words_are_those_of_the_text_that_they_make(reading: Path) -> None:  # noqa: F811
    asks, rows = predictor(reading), tag_rows(7, 6)
    texts = [" ".join(row["tokens"]) for row in rows]
    from_words = list(
        asks.answers([Query(t, tokens=tuple(r["tokens"])) for t, r in zip(texts, rows, strict=True)], "names")
    )
    from_texts = list(asks.answers([Query(text) for text in texts], "names"))
    assert [line["entities"] for line in from_words] == [line["entities"] for line in from_texts]
    found = [entity for line in from_texts for entity in line["entities"]]
    assert found and {entity["entity"] for entity in found} == {"color"}
    for line in from_texts:
        assert all(line["text"][e["start"] : e["end"]] == e["text"] for e in line["entities"])
