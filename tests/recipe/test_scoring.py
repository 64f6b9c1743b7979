"""What tasks score, and what the router chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.recipe_files import (  # noqa: F401
    SPLIT_SIZES,
    color_rows,
    finished,
    private_dataset_cache,
    reading,
    results_of,
    unlike,
    write_recipe,
    write_task,
)
from transformers import AutoTokenizer

from eidetic_hf import EideticModel
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.scoring import evaluate_recipe


def test_routing_is_counted_text_by_text(unlike: Path) -> None:  # noqa: F811
    found = json.loads((unlike / "output" / "results.json").read_text())["routing"]
    model = EideticModel.from_pretrained(unlike / "output" / "model")
    tokenizer = AutoTokenizer.from_pretrained(unlike / "output" / "model")
    assert found["tasks"] == model.tasks == ["color", "size"]
    for name in model.tasks:
        rows = [json.loads(line) for line in (unlike / "data" / name / "test.jsonl").read_text().splitlines()]
        sent, right = {"color": 0, "size": 0}, {"oracle": 0, "routed": 0}
        for row in rows:
            batch = tokenizer(row["text"], return_tensors="pt")
            routed = model(**batch)
            sent[routed.tasks[0]] += 1
            right["routed"] += model.config.id2label[int(routed.logits.argmax())] == f"{name}/{row['label']}"
            answer = int(model(**batch, task=name).logits.argmax())
            right["oracle"] += model.record(name).labels[answer] == row["label"]
        assert found["confusion"][name] == sent
        assert found["scores"][name] == {
            "texts": 20,
            "routing_accuracy": sent[name] / 20,
            "oracle_accuracy": right["oracle"] / 20,
            "routed_accuracy": right["routed"] / 20,
            "merged_label_accuracy": right["routed"] / 20,  # the tasks have no label in common
        }
    assert found["mean"]["routing_accuracy"] >= 0.9
    accuracies = [row["routed_accuracy"] for row in found["scores"].values()]
    assert found["mean"]["routed_accuracy"] == pytest.approx(sum(accuracies) / 2)


def test_a_wrong_route_to_a_label_of_the_same_name_counts_as_merged(finished: Path) -> None:  # noqa: F811
    found = json.loads((finished / "output" / "results.json").read_text())["routing"]
    mean = found["mean"]
    assert mean["routing_accuracy"] < 0.9, "two tasks of the same kind of text"
    assert mean["routed_accuracy"] <= mean["routing_accuracy"]
    assert mean["merged_label_accuracy"] > mean["routed_accuracy"] + 0.1


def test_routing_counts_many_labels_whole_and_leaves_numbers_out(tmp_path: Path) -> None:
    rows = [{"text": r["text"], "label": [r["label"]], "value": i} for i, r in enumerate(color_rows(0, 20))]
    common = {"rows": {"train": rows}, "training": {"max_steps": 2}}
    tasks = [
        write_task(tmp_path, "many", problem_type="multi_label_classification", **common),
        write_task(tmp_path, "number", problem_type="regression", columns={"label": "value"}, **common),
    ]
    results = run_recipe(read_recipe(write_recipe(tmp_path, tasks)), lambda line: None)
    found = results["routing"]
    row = found["scores"]["many"]
    assert row["routed_accuracy"] <= row["oracle_accuracy"] == results["steps"][-1]["scores"]["many"]["accuracy"]
    number = found["scores"]["number"]
    assert number["routing_accuracy"] + found["confusion"]["number"]["many"] / number["texts"] == 1
    assert number["oracle_accuracy"] is number["routed_accuracy"] is number["merged_label_accuracy"] is None
    assert found["mean"]["routed_accuracy"] == row["routed_accuracy"]


def test_one_task_has_no_routing(tmp_path: Path) -> None:
    results = run_recipe(read_recipe(write_recipe(tmp_path, [write_task(tmp_path, "only")])), lambda line: None)
    assert results["routing"] is None


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
