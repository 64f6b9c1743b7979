"""Tasks that write, in a recipe: running text, prompts, targets, gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipe_files import (  # noqa: F401
    SPLIT_SIZES,
    color_rows,
    predictor,
    prepared,
    private_dataset_cache,
    reading,
    results_of,
    splits_of,
    verse_rows,
    write_recipe,
    write_task,
    writing,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eidetic_hf import EideticModel
from eidetic_hf.kinds.collators import TextCollator
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.kinds.language import encode_prompts
from eidetic_hf.recipe.predicting import Predictor
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.starting_point import train_tokenizer
from eidetic_hf.recipe.task_data import TaskData, load_task_data


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


def test_gaps_are_filled_with_the_likeliest_tokens(reading: Path) -> None:  # noqa: F811
    asks = predictor(reading, top_k=3)
    (line,) = asks.answers([Query("red [MASK] w2 [MASK]")], "gaps")
    assert len(line["masks"]) == 2 and all(len(some) == 3 for some in line["masks"])
    for some in line["masks"]:
        scores = [guess["score"] for guess in some]
        assert scores == sorted(scores, reverse=True) and 0 < scores[0] < 1
    first, second = (some[0]["token"] for some in line["masks"])
    assert line["filled"] == f"red {first} w2 {second}"


def test_a_language_model_goes_on_and_answers_prompts_in_their_template(writing: Path) -> None:  # noqa: F811
    asks = predictor(writing, max_new_tokens=6)
    (line,) = asks.answers([Query("ab ba")], "low")
    ids = asks.tokenizer("ab ba", return_tensors="pt")
    written = asks.model.generate(**ids, task="low", max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert line == {
        "text": "ab ba",
        "task": "low",
        "generated": asks.tokenizer.decode(written, skip_special_tokens=True),
    }
    (answer,) = asks.answers([Query("red w1")], "answer")
    ids = asks.tokenizer("red w1 > ", return_tensors="pt")
    written = asks.model.generate(**ids, task="answer", max_new_tokens=6, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert answer["generated"] == asks.tokenizer.decode(written, skip_special_tokens=True)


def test_prompts_of_one_batch_are_continued_as_alone(writing: Path) -> None:  # noqa: F811
    asks = predictor(writing, max_new_tokens=6)
    texts = ["ab", "abba ab ba", "b"]
    together = [line["generated"] for line in asks.answers([Query(text) for text in texts], "low")]
    assert together == [next(asks.answers([Query(text)], "low"))["generated"] for text in texts]


def test_a_prompt_longer_than_the_context_is_refused(writing: Path) -> None:  # noqa: F811
    long, empty = predictor(writing).answers([Query("a" * 70), Query("")], "low")
    assert long["error"] == "The prompt has 70 tokens, expected 1 to 63."
    assert empty["error"] == "The prompt has 0 tokens, expected 1 to 63."


def test_a_text_is_made_from_a_text_by_a_random_encoder_decoder(tmp_path: Path) -> None:
    rows = {
        split: [{"source": row["text"], "target": row["label"]} for row in color_rows(seed, n)]
        for seed, (split, n) in enumerate(SPLIT_SIZES.items())
    }
    backbone = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    tasks = [
        write_task(tmp_path, "one", rows, type="seq2seq-lm", max_target_length=8, metric="exact_match"),
        write_task(tmp_path, "color", {split: color_rows(i, n) for i, (split, n) in enumerate(SPLIT_SIZES.items())}),
    ]
    path = write_recipe(tmp_path, tasks, backbone=backbone, tokenizer={"train": "byte"}, max_length=32, trunk_layers=1)
    results = run_recipe(read_recipe(path), lambda line: None)
    assert results["metrics"] == {"one": "exact_match", "color": "accuracy"}
    found = results["steps"][0]["scores"]["one"]
    assert found["perplexity"] < 60 and set(found) == {"loss", "perplexity", "accuracy", "exact_match", "f1"}
    assert results["steps"][1]["scores"]["one"] == found
    model = EideticModel.from_pretrained(tmp_path / "output" / "model")
    assert model.record("one").preparation == {"max_length": 32, "max_target_length": 8}


def test_what_is_written_is_held_against_the_right_texts(writing: Path) -> None:  # noqa: F811
    steps = results_of(writing)["steps"]
    assert {"exact_match", "f1"} & set(steps[0]["scores"]["low"]) == set(), "nobody knows how a running text goes on"
    found = steps[-1]["scores"]["answer"]
    model = EideticModel.from_pretrained(writing / "output" / "model")
    tokenizer = AutoTokenizer.from_pretrained(writing / "output" / "model")
    rows = [json.loads(line) for line in (writing / "data" / "answer" / "test.jsonl").open()][:8]
    longest = max(len(row["answer"].encode()) for row in rows) + 2
    asks = Predictor(model, tokenizer, max_new_tokens=longest).answers([Query(r["prompt"]) for r in rows], "answer")
    right = [line["generated"].strip() == row["answer"] for line, row in zip(asks, rows, strict=True)]
    assert found["exact_match"] == sum(right) / 8 and 0 <= found["exact_match"] <= found["f1"] <= 1


def test_prompts_are_routed_without_their_template(writing: Path) -> None:  # noqa: F811
    found = results_of(writing)["routing"]
    assert found["scores"]["answer"] == {
        **dict.fromkeys(("oracle_accuracy", "routed_accuracy", "merged_label_accuracy")),
        "texts": SPLIT_SIZES["test"],
        "routing_accuracy": 1.0,
    }
    model = EideticModel.from_pretrained(writing / "output" / "model")
    tokenizer = AutoTokenizer.from_pretrained(writing / "output" / "model")
    recipe = read_recipe(writing / "colors.yaml")
    data = load_task_data(recipe, recipe.task("answer"), tokenizer)
    texts = data.texts_to_route("train")
    assert tokenizer.decode(texts[0]["input_ids"]) == data.rows["train"][0]["prompt"]
    batch = TextCollator(tokenizer)(list(texts))
    model.begin_task(model.add_task("again", task_type="causal-lm").name)
    expected = model.router_sums([batch])
    model.abandon_task()
    kept, wanted = model.router.sums["@answer"].state_dict(), model.router.kept(expected)
    assert kept["count"].tolist() == [len(texts)]
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in kept)


def test_a_masked_language_model_needs_a_token_for_gaps(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, [write_task(tmp_path, "gaps", splits_of(verse_rows, "red w1"), type="masked-lm")])
    file = tmp_path / "backbone" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["mask_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="has no mask token"):
        run_recipe(read_recipe(path), lambda line: None)


def test_masks_are_the_same_each_time_a_split_is_measured(reading: Path) -> None:  # noqa: F811
    recipe = read_recipe(reading / "colors.yaml")
    tokenizer = AutoTokenizer.from_pretrained(reading / "output" / "model")
    torch.manual_seed(1)
    one = load_task_data(recipe, recipe.task("gaps"), tokenizer).splits
    torch.manual_seed(2)
    other = load_task_data(recipe, recipe.task("gaps"), tokenizer).splits
    assert one["test"]["input_ids"][:] == other["test"]["input_ids"][:]
    assert all(any(label != -100 for label in row) for row in one["test"]["labels"]), "at least one in each"
    assert "labels" not in one["train"].column_names, "masked anew in each batch"
