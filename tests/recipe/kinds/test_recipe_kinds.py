"""Recipes with tasks of every kind, run to the end on tiny backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.recipe_files import (  # noqa: F401
    SPLIT_SIZES,
    color_rows,
    pair_rows,
    private_dataset_cache,
    reading,
    splits_of,
    verse_rows,
    write_recipe,
    write_task,
    writing,
)
from transformers import AutoTokenizer

from eidetic_hf import EideticModel
from eidetic_hf.kinds.collators import TextCollator
from eidetic_hf.recipe.predicting import Predictor, Query
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.scoring import evaluate_recipe
from eidetic_hf.recipe.task_data import load_task_data


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "output" / "results.json").read_text())


def test_every_kind_that_an_encoder_has_is_learned_and_measured_by_its_own_metric(reading: Path) -> None:  # noqa: F811
    results = results_of(reading)
    assert results["metrics"] == {
        "color": "accuracy",
        "names": "f1",
        "where": "f1",
        "which": "accuracy",
        "gaps": "perplexity",
        "alike": "spearman",
    }
    scores = results["matrix"][-1]["scores"]
    assert scores["color"] >= 0.9 and scores["where"] >= 0.8 and scores["alike"] >= 0.5
    assert scores["names"] >= 0.3 and scores["which"] >= 0.4, "chance is 0.05 and 0.33"
    assert scores["gaps"] < 90, "of 120 tokens"
    assert list(results["steps"][-1]["scores"]["where"]) == ["loss", "exact_match", "f1"]
    assert [task["type"] for task in results["tasks"]][1:3] == ["token-classification", "question-answering"]
    assert results["verify"]["ok"] is True


def test_no_score_changes_when_tasks_of_other_kinds_are_learned(reading: Path, writing: Path) -> None:  # noqa: F811
    for folder in (reading, writing):
        steps = results_of(folder)["steps"]
        for step in steps:
            own = step["scores"][step["task"]]
            assert all(later["scores"][step["task"]] == own for later in steps[steps.index(step) :])


def test_perplexities_are_averaged_apart_from_shares(reading: Path, writing: Path) -> None:  # noqa: F811
    results = results_of(reading)
    assert results["averaged_tasks"] == ["color", "names", "where", "which", "alike"]
    gaps = results["by_metric"]["perplexity"]
    assert gaps["tasks"] == ["gaps"] and gaps["average"] == results["matrix"][-1]["scores"]["gaps"]
    assert gaps["forgetting"] == 0.0
    language = results_of(writing)
    assert language["average_accuracy"] is None and language["averaged_tasks"] == []
    found = language["by_metric"]["perplexity"]
    assert found["tasks"] == ["low", "high", "answer"]
    assert found["average"] == pytest.approx(sum(language["matrix"][-1]["scores"].values()) / 3)


def test_the_first_task_trains_a_random_backbone_and_later_ones_share_it(writing: Path) -> None:  # noqa: F811
    results = results_of(writing)
    scores = results["matrix"][-1]["scores"]
    assert scores["low"] < 20, "of 261 tokens"
    assert max(scores["high"], scores["answer"]) < 200, "tokens that the first task never saw kept random embeddings"
    assert results["backbone"] == "llama (random)"
    model = EideticModel.from_pretrained(writing / "output" / "model")
    assert not model.config.trunk_pretrained
    tokenizer = AutoTokenizer.from_pretrained(writing / "output" / "model")
    assert len(tokenizer) == 261 == model.config.base_config.vocab_size
    assert tokenizer.decode(tokenizer("Ärger: 12")["input_ids"]) == "Ärger: 12"


def test_a_run_from_a_random_backbone_continues_where_it_stopped(writing: Path) -> None:  # noqa: F811
    lines: list[str] = []
    before = results_of(writing)
    again = run_recipe(read_recipe(writing / "colors.yaml"), lines.append)
    assert lines == [f"{name}: already committed, skipped" for name in ("low", "high", "answer")]
    assert again["steps"] == before["steps"]


def test_routing_is_counted_for_all_kinds_and_answers_for_those_with_labels_of_texts(reading: Path) -> None:  # noqa: F811
    found = results_of(reading)["routing"]
    assert found["tasks"] == ["color", "names", "where", "which", "gaps", "alike"]
    assert all(sum(sent.values()) == SPLIT_SIZES["test"] for sent in found["confusion"].values()), "windows count once"
    assert found["scores"]["where"]["routing_accuracy"] >= 0.9
    assert found["scores"]["color"]["oracle_accuracy"] == results_of(reading)["matrix"][-1]["scores"]["color"]
    for name in found["tasks"][1:]:
        assert found["scores"][name]["routed_accuracy"] is None
    assert found["mean"]["routed_accuracy"] == found["scores"]["color"]["routed_accuracy"]


def test_evaluate_finds_the_scores_of_the_run(reading: Path) -> None:  # noqa: F811
    model = EideticModel.from_pretrained(reading / "output" / "model")
    tokenizer = AutoTokenizer.from_pretrained(reading / "output" / "model")
    found = evaluate_recipe(model, tokenizer, read_recipe(reading / "colors.yaml"))
    results = results_of(reading)
    assert found["oracle"] == results["steps"][-1]["scores"]
    assert found["routing"] == results["routing"]


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
    kept = model.router.sums_of("answer")
    assert kept.count.tolist() == [len(texts)]
    assert torch.equal(kept.total, expected.total) and torch.equal(kept.moment, expected.moment)


def test_pairs_without_scores_are_learned_from_each_other(tmp_path: Path) -> None:
    rows = {
        split: [{"a": f"{r['text']}", "b": r["text"]} for r in verse]
        for split, verse in splits_of(verse_rows, "red w1 w2 w3 w4 w5").items()
    }
    task = write_task(
        tmp_path,
        "alike",
        rows,
        type="feature-extraction",
        columns={"text": "a", "text_pair": "b"},
        temperature=0.1,
        training={"max_steps": 4},
    )
    results = run_recipe(read_recipe(write_recipe(tmp_path, [task])), lambda line: None)
    assert results["metrics"] == {"alike": "loss"}
    assert 0 < results["matrix"][0]["scores"]["alike"] < 2.5
    record = EideticModel.from_pretrained(tmp_path / "output" / "model").record("alike")
    assert record.temperature == 0.1 and record.normalize is True


@pytest.mark.parametrize(("type_", "family"), [("causal-lm", "a decoder"), ("seq2seq-lm", "an encoder-decoder")])
def test_a_kind_that_the_backbone_has_no_head_for_is_refused_before_any_training(
    tmp_path: Path, type_: str, family: str
) -> None:
    rows = {"train": [{"text": "red w1", "source": "red", "target": "w1"} for _ in range(20)]}
    tasks = [write_task(tmp_path, "first"), write_task(tmp_path, "second", rows, type=type_)]
    with pytest.raises(RecipeError) as error:
        run_recipe(read_recipe(write_recipe(tmp_path, tasks)), lambda line: None)
    assert f"Task 'second' cannot be {type_}: it needs {family} as backbone" in str(error.value)
    assert "'masked-lm'" in str(error.value), "which kinds it can have"
    assert not (tmp_path / "output").exists()


def test_a_masked_language_model_needs_a_token_for_gaps(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, [write_task(tmp_path, "gaps", splits_of(verse_rows, "red w1"), type="masked-lm")])
    file = tmp_path / "backbone" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["mask_token"]
    file.write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="has no mask token"):
        run_recipe(read_recipe(path), lambda line: None)


def test_masks_are_the_same_each_time_a_split_is_measured(reading: Path) -> None:  # noqa: F811
    from eidetic_hf.recipe.task_data import load_task_data

    recipe = read_recipe(reading / "colors.yaml")
    tokenizer = AutoTokenizer.from_pretrained(reading / "output" / "model")
    torch.manual_seed(1)
    one = load_task_data(recipe, recipe.task("gaps"), tokenizer).splits
    torch.manual_seed(2)
    other = load_task_data(recipe, recipe.task("gaps"), tokenizer).splits
    assert one["test"]["input_ids"][:] == other["test"]["input_ids"][:]
    assert all(any(label != -100 for label in row) for row in one["test"]["labels"]), "at least one in each"
    assert "labels" not in one["train"].column_names, "masked anew in each batch"


def test_examples_of_pairs_are_similar_as_the_data_says(reading: Path) -> None:  # noqa: F811
    from eidetic_hf.recipe.task_data import load_task_data

    recipe = read_recipe(reading / "colors.yaml")
    tokenizer = AutoTokenizer.from_pretrained(reading / "output" / "model")
    labels = load_task_data(recipe, recipe.task("alike"), tokenizer).splits["train"]["labels"][:]
    assert labels == [row["score"] / 5 for row in pair_rows(0, SPLIT_SIZES["train"])]
