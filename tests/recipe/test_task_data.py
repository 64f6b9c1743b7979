"""How rows become what a model takes, on known cases; and the rows that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.recipe_files import (  # noqa: F401
    choice_rows,
    pair_rows,
    private_dataset_cache,
    question_rows,
    tag_rows,
    verse_rows,
    write_recipe,
    write_task,
)
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from eidetic_hf.recipe.kinds.choices import split_choices
from eidetic_hf.recipe.kinds.language import encode_prompts
from eidetic_hf.recipe.kinds.questions import OUTSIDE, find_answers, make_windows, token_span
from eidetic_hf.recipe.kinds.token_tags import tag_scheme, word_spans, words_of_tokens
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.starting_point import make_config, train_tokenizer
from eidetic_hf.recipe.task_data import TaskData, load_task_data


def prepared(folder: Path, rows: list[dict[str, Any]], **values: Any) -> tuple[TaskData, PreTrainedTokenizerBase]:
    """The data of a task with these rows in every split, encoded by the word tokenizer."""
    top = {key: values.pop(key) for key in ("max_length",) if key in values}
    task = write_task(folder, "task", {"train": rows, "validation": rows, "test": rows}, **values)
    recipe = read_recipe(write_recipe(folder, [task], **top))
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    return load_task_data(recipe, recipe.tasks[0], tokenizer), tokenizer


def refused(folder: Path, rows: list[dict[str, Any]], **values: Any) -> str:
    """The message with which these rows are refused."""
    with pytest.raises(RecipeError) as error:
        prepared(folder, rows, **values)
    return str(error.value)


# -- tags of words ----------------------------------------------------------------------------------------------------


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


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    write_recipe(tmp_path, [])
    return AutoTokenizer.from_pretrained(tmp_path / "backbone")


def test_windows_overlap_by_the_stride_and_hold_the_whole_question(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(f"w{i}" for i in range(10))
    windows = make_windows(tokenizer, ["same w20"], [context], max_length=10, stride=2)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in windows.tokens["input_ids"]]
    assert [row[:4] for row in words] == [["[CLS]", "same", "w20", "[SEP]"]] * len(words)
    assert [row[4:-1] for row in words] == [
        ["w0", "w1", "w2", "w3", "w4"],
        ["w3", "w4", "w5", "w6", "w7"],
        ["w6", "w7", "w8", "w9"],
    ]
    assert windows.question == [0, 0, 0]
    assert windows.starts[1] == [OUTSIDE] * 4 + [9, 12, 15, 18, 21] + [OUTSIDE]
    assert windows.ends[1] == [OUTSIDE] * 4 + [11, 14, 17, 20, 23] + [OUTSIDE]


def test_an_answer_is_where_a_window_holds_all_of_it() -> None:
    starts, ends = [-1, 3, 6, 9, -1], [-1, 5, 8, 11, -1]
    assert token_span(starts, ends, 6, 11) == (2, 3)
    assert token_span(starts, ends, 7, 8) == (2, 2), "part of a token"
    assert token_span(starts, ends, 0, 5) == (0, 0), "begins before the window"
    assert token_span(starts, ends, 9, 14) == (0, 0), "ends behind it"


def test_places_of_answers_lead_back_to_their_words(tmp_path: Path) -> None:
    rows = question_rows(0, 20)
    data, _ = prepared(tmp_path, rows, type="question-answering", max_length=14, stride=3)
    split = data.splits["test"]
    assert len(split) > len(rows), "some contexts have several windows"
    places = np.array([split["start_positions"][:], split["end_positions"][:]])
    assert (places == 0).any() and (places[0] > 0).sum() >= len(rows)
    width = max(map(len, split["input_ids"]))
    logits = np.zeros((2, len(split), width))
    for end, place in enumerate(places):
        logits[end, np.arange(len(split)), place] = 5.0 * (place > 0)
    score = data.preparation.score(data.rows["test"], "test")
    assert score(EvalPrediction((logits[0], logits[1]), None)) == {"exact_match": 1.0, "f1": 1.0}
    assert len(data.texts_to_route("test")) == len(rows), "the first window of each"


def test_the_best_span_of_all_windows_is_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join(f"w{i}" for i in range(10))
    windows = make_windows(tokenizer, ["same"], [context], max_length=9, stride=2)
    assert [len(ids) for ids in windows.tokens["input_ids"]] == [9, 9, 8]
    start, end = np.zeros((2, 3, 9))
    start[0, 1] = 9.0  # a token of the question: no place for an answer
    start[1, 4], end[1, 5] = 3.0, 4.0  # w4 w5
    start[2, 3], end[2, 3] = 3.0, 3.0
    (answer,) = find_answers(windows, [context], start, end, longest=5)
    assert (answer.text, answer.start, answer.end) == ("w4 w5", 12, 17)
    chances = [np.exp(x) / np.exp(row).sum() for x, row in ((3.0, start[1]), (4.0, end[1]))]
    assert answer.score == pytest.approx(chances[0] * chances[1])
    (short,) = find_answers(windows, [context], start, end, longest=1)
    assert short.text == context[windows.starts[2][3] : windows.ends[2][3]], "two tokens are too many"


def test_no_answer_is_given_where_none_is_likelier(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = make_windows(tokenizer, ["same"], ["w1 w2"], max_length=9, stride=2)
    start, end = np.zeros((2, 1, 7))
    start[0, 0], end[0, 0] = 2.0, 2.0
    start[0, 3], end[0, 3] = 1.0, 1.0
    assert find_answers(windows, ["w1 w2"], start, end, 5)[0].text == "w1"
    (answer,) = find_answers(windows, ["w1 w2"], start, end, 5, may_be_missing=True)
    assert (answer.text, answer.start, answer.end) == ("", 0, 0)


def test_questions_without_an_answer_stand_for_the_first_token(tmp_path: Path) -> None:
    rows = [
        {"question": "same", "context": "w1 w2", "answers": {"text": [], "answer_start": []}},
        *question_rows(0, 3),
    ]
    data, _ = prepared(tmp_path, rows, type="question-answering", stride=2)
    assert data.splits["test"][0]["start_positions"] == data.splits["test"][0]["end_positions"] == 0
    assert data.preparation.recorded == {
        "max_length": 16, "stride": 2, "max_answer_length": 30, "may_be_unanswered": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": {"text": ["red"], "answer_start": [4]}},
            "has the answer 'red' at 4 of a context of 6 characters",
        ),
        ({"answers": {"text": ["red"], "answer_start": [400]}}, "the answer is in the context at 0"),
        ({"answers": {"text": ["blue"], "answer_start": [0]}}, "the answer is not in the context"),
        ({"answers": {"text": ["red"], "answer_start": [-1]}}, "has the answer 'red' at -1"),
        ({"answers": {"text": ["red", "red"], "answer_start": [0]}}, "expected as many texts as whole numbers"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "has an empty answer"),
        ({"question": "w1 " * 9}, "has a question of 9 tokens, which leaves no room for its context in windows of 16"),
    ],
)
def test_answers_outside_of_their_contexts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"question": "same", "context": "red w1", "answers": {"text": ["red"], "answer_start": [0]}}
    text = refused(tmp_path, [row, {**row, **change}], type="question-answering", stride=4)
    assert "Task 'task': row 1 of the train split " in text
    assert message in text


def test_answers_without_places_are_refused(tmp_path: Path) -> None:
    rows = [{"question": "same", "context": "red w1", "answers": "red"}] * 2
    assert "expected {'text': [...], 'answer_start': [...]}" in refused(tmp_path, rows, type="question-answering")


# -- choices ----------------------------------------------------------------------------------------------------------


def test_choices_are_read_from_lists_columns_and_marked_texts_alike(tmp_path: Path) -> None:
    rows = choice_rows(0, 6)
    columns = [{"text": r["text"], **dict(zip("xyz", r["choices"], strict=True)), "label": r["label"]} for r in rows]
    texts = [
        {
            "text": row["text"],
            "all": " ".join(
                f"{mark} {choice}" for mark, choice in zip(("A:", "B:", "C:"), row["choices"], strict=True)
            ),
            "label": "ABC"[row["label"]],
        }
        for row in rows
    ]
    found = [
        prepared(tmp_path / "a", rows, type="multiple-choice")[0],
        prepared(tmp_path / "b", columns, type="multiple-choice", columns={"choices": ["x", "y", "z"]})[0],
        prepared(
            tmp_path / "c", texts, type="multiple-choice", columns={"choices": "all"}, choice_marks=["A:", "B:", "C:"]
        )[0],
    ]
    for data in found:
        assert data.splits["test"]["labels"][:] == [row["label"] for row in rows]
        assert data.splits["test"]["input_ids"][:] == found[0].splits["test"]["input_ids"][:]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "backbone")
    first = found[0].splits["test"][0]["input_ids"]
    assert [tokenizer.decode(ids) for ids in first] == [
        f"[CLS] {rows[0]['text']} [SEP] {choice} [SEP]" for choice in rows[0]["choices"]
    ]


def test_a_question_follows_the_text(tmp_path: Path) -> None:
    rows = [{**row, "q": "w7"} for row in choice_rows(0, 4)]
    data, tokenizer = prepared(tmp_path, rows, type="multiple-choice", columns={"question": "q"})
    assert tokenizer.decode(data.splits["test"][0]["input_ids"][0]).startswith(f"[CLS] {rows[0]['text']} w7 [SEP]")


def test_marks_tell_choices_apart_in_their_order() -> None:
    assert split_choices("A: it fell. B: it rose A: little", ["A:", "B:"]) == ["it fell.", "it rose A: little"]
    assert split_choices("B: it fell. A: it rose", ["A:", "B:"]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "has the label 3 for 3 choices; expected a number from 0 to 2"),
        ({"choices": ["red"]}, "has the choices ['red']; expected 3 texts, as in the first row"),
        ({"choices": ["red", "blue", None]}, "expected 3 texts"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"text": "same", "choices": ["red", "blue", "green"], "label": 1}
    text = refused(tmp_path, [row, {**row, **change}], type="multiple-choice")
    assert "Task 'task': row 1 of the train split " in text
    assert message in text


def test_choices_in_a_text_need_marks_and_names_need_labels(tmp_path: Path) -> None:
    rows = [{"text": "same", "choices": "A: red B: blue", "label": "yes"}] * 2
    assert "`choice_marks: ['A:', 'B:']`" in refused(tmp_path / "a", rows, type="multiple-choice")
    marked = {"type": "multiple-choice", "choice_marks": ["A:", "B:"]}
    assert "has the label 'yes' for 2 choices; expected one of ['A', 'B']" in refused(tmp_path / "b", rows, **marked)
    data, _ = prepared(tmp_path / "c", rows, **marked, labels=["no", "yes"])
    assert data.splits["test"]["labels"][:] == [1, 1]
    wrong = [{**rows[0], "choices": "A: red"}] * 2
    assert "not all of ['A:', 'B:'] follow each other" in refused(tmp_path / "d", wrong, **marked)


# -- language ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer("byte", [], "decoder")


def language(folder: Path, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **values: Any) -> TaskData:
    """The data of a language model that reads bytes."""
    task = write_task(folder, "task", {"train": rows, "validation": rows, "test": rows}, type="causal-lm", **values)
    backbone = {"model_type": "gpt2", "n_positions": 64}
    path = write_recipe(folder, [task], backbone=backbone, tokenizer={"train": "byte"}, max_length=8)
    recipe = read_recipe(path)
    return load_task_data(recipe, recipe.tasks[0], tokenizer)


def test_texts_follow_each_other_in_blocks_with_an_end_behind_each(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    data = language(tmp_path, [{"text": "abcde"}, {"text": "fghijkl"}], byte_tokenizer)
    blocks = data.splits["test"]["input_ids"][:]
    end = byte_tokenizer.eos_token
    assert [byte_tokenizer.decode(ids) for ids in blocks] == [f"abcde{end}fg", f"hijkl{end}"]
    assert "labels" not in data.splits["test"].column_names, "every token is to be written"


def test_the_loss_is_on_the_answer_and_its_end_only(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [{"q": "ab", "a": "xy"}, {"q": "c", "a": "uvwxyz"}]
    columns = {"prompt": "q", "answer": "a"}
    data = language(tmp_path, rows, byte_tokenizer, columns=columns, template="{prompt}=")
    ids, labels = (data.splits["test"][name][:] for name in ("input_ids", "labels"))
    end = byte_tokenizer.eos_token
    assert [byte_tokenizer.decode(row) for row in ids] == [f"ab=xy{end}", "c=uvwxyz"], "cut to eight"
    assert labels[0] == [-100] * 3 + ids[0][3:] and labels[1] == [-100] * 2 + ids[1][2:]


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [{"prompt": "ab", "answer": "x"}, {"prompt": "abcdefg", "answer": "x"}]
    columns = {"prompt": "prompt"}
    with pytest.raises(RecipeError, match="row 1 of the train split has a prompt of 8 tokens, which leaves no room"):
        language(tmp_path / "a", rows, byte_tokenizer, columns=columns)
    with pytest.raises(RecipeError, match="row 0 of the train split has an empty answer"):
        language(tmp_path / "b", [{"prompt": "ab", "answer": " "}] * 2, byte_tokenizer, columns=columns)
    with pytest.raises(RecipeError, match="texts of the train split are empty, or too short"):
        language(tmp_path / "c", [{"text": " "}] * 2, byte_tokenizer)


def test_a_prompt_keeps_the_token_that_begins_a_text_and_not_the_one_that_ends_it() -> None:
    ends = train_tokenizer("byte", [], "encoder-decoder")
    assert ends("ab")["input_ids"] == [*encode_prompts(ends, ["ab"])[0], ends.eos_token_id]
    begins = train_tokenizer("byte", [], "encoder")
    assert encode_prompts(begins, ["ab"])[0][0] == begins.cls_token_id


def test_long_texts_with_gaps_become_several(tmp_path: Path) -> None:
    rows = [{"text": " ".join(["w1"] * 30)}, {"text": "red"}]
    data, tokenizer = prepared(tmp_path, rows, type="masked-lm")
    lengths = [len(ids) for ids in data.splits["train"]["input_ids"]]
    assert lengths == [16, 16, 4, 3], "14 words and two special tokens each"
    for ids, labels in zip(data.splits["test"]["input_ids"], data.splits["test"]["labels"], strict=True):
        known = [label for label in labels if label != -100]
        assert known and set(known) <= {tokenizer.convert_tokens_to_ids(word) for word in ("w1", "red")}
        assert all(ids[i] != -100 for i in range(len(ids)))


# -- pairs with scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [6.0, -6.0, float("nan")])
def test_scores_beyond_the_largest_are_refused(tmp_path: Path, score: float) -> None:
    rows = pair_rows(0, 3)
    rows[2] = {**rows[2], "score": score}
    values = {"type": "feature-extraction", "columns": {"score": "score"}, "max_score": 5}
    assert f"row 2 of the train split has the score {score!r}; expected a number from -5 to 5" in refused(
        tmp_path, rows, **values
    )


def test_a_correlation_needs_two_rows(tmp_path: Path) -> None:
    rows = {"train": pair_rows(0, 4), "test": pair_rows(1, 1)}
    task = write_task(tmp_path, "task", rows, type="feature-extraction", columns={"score": "score"}, max_score=5)
    recipe = read_recipe(write_recipe(tmp_path, [task]))
    with pytest.raises(RecipeError, match="the validation split has one row, and a correlation needs two"):
        load_task_data(recipe, recipe.tasks[0], AutoTokenizer.from_pretrained(tmp_path / "backbone"))


# -- missing columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "role"),
    [
        ("token-classification", "tags"),
        ("question-answering", "context"),
        ("multiple-choice", "choices"),
        ("masked-lm", "text"),
        ("feature-extraction", "text_pair"),
        ("seq2seq-lm", "target"),
    ],
)
def test_a_missing_column_is_named_with_what_to_write(tmp_path: Path, type_: str, role: str) -> None:
    whole = {
        "token-classification": tag_rows(0, 3),
        "question-answering": question_rows(0, 3),
        "multiple-choice": choice_rows(0, 3),
        "masked-lm": verse_rows("red", 0, 3),
        "feature-extraction": pair_rows(0, 3),
        "seq2seq-lm": [{"source": "red", "target": "red"}] * 3,
    }[type_]
    rows = [{("other" if key == role else key): value for key, value in row.items()} for row in whole]
    message = refused(tmp_path, rows, type=type_)
    assert f"the train split has no column '{role}'" in message
    assert f"`columns: {{{role}: NAME}}`" in message


# -- random backbones -------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_reads_every_text_and_has_the_size_that_was_asked_for() -> None:
    texts = ["the cat and the hat and the rat", "that cat sat on the mat"] * 3
    tokenizer = train_tokenizer("bpe", texts, "decoder", vocab_size=270)
    assert len(tokenizer) == 270
    ids = tokenizer("the cät\n 猫")["input_ids"]
    assert tokenizer.decode(ids) == "the cät\n 猫"
    assert len(tokenizer("the")["input_ids"]) < 3, "frequent sequences are one token"
    with pytest.raises(RecipeError, match="`vocab_size: 5000` of `tokenizer:`: the training texts give"):
        train_tokenizer("bpe", texts, "decoder", vocab_size=5000)


def test_an_encoders_trained_tokenizer_frames_texts_and_pairs() -> None:
    tokenizer = train_tokenizer("byte", [], "encoder")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", "b")["input_ids"])
    assert tokens == ["<|cls|>", "a", "<|sep|>", "b", "<|sep|>"]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llamma"}, "`model_type: llamma` in `backbone:`: transformers knows no such model"),
        ({"model_type": "llama", "hidden": 3}, "Unknown key 'hidden' in `backbone:`"),
        ({"model_type": "llama", "hidden_size": "big"}, "`backbone:` is no configuration of 'llama'"),
        ({"model_type": "llama", "vocab_size": 10}, "the tokenizer has 261 tokens"),
    ],
)
def test_a_wrong_configuration_is_refused(
    byte_tokenizer: PreTrainedTokenizerBase, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        make_config(values, byte_tokenizer)
    assert message in str(error.value)


def test_a_random_backbone_has_the_tokenizers_vocabulary_and_special_tokens(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    config = make_config({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}, byte_tokenizer)
    assert (config.vocab_size, config.hidden_size) == (261, 32)
    assert config.eos_token_id == byte_tokenizer.eos_token_id and config.pad_token_id == byte_tokenizer.pad_token_id
    seq2seq = make_config({"model_type": "t5", "d_model": 32}, byte_tokenizer)
    assert seq2seq.decoder_start_token_id == byte_tokenizer.pad_token_id


def test_logits_of_padding_do_not_become_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = make_windows(tokenizer, ["same"], ["w1 w2"], max_length=9, stride=2)
    logits = torch.zeros(1, 30)
    logits[0, 20] = 9.0
    assert find_answers(windows, ["w1 w2"], logits, logits, 5)[0].text in ("w1", "w1 w2", "w2")
