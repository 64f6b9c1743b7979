"""Recipes: what they may say, and what a run of one leaves behind."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.backbones import tiny_model
from support.recipe_files import (  # noqa: F401
    COLORS,
    color_rows,
    finished,
    private_dataset_cache,
    unlike,
    write_backbone,
    write_recipe,
    write_task,
)
from transformers import AutoTokenizer, EvalPrediction

from eidetic_hf import EideticModel, EideticTrainer, TaskRecord
from eidetic_hf.model.checkpoint import sha256_of
from eidetic_hf.recipe.kinds import RECIPE_KINDS, lower_is_better, recipe_kind_of
from eidetic_hf.recipe.kinds.base import TaskScore
from eidetic_hf.recipe.kinds.questions import QuestionSettings
from eidetic_hf.recipe.recipe import Recipe, RecipeError, TaskRecipe
from eidetic_hf.recipe.recipe_file import NO_KEYS, read_recipe
from eidetic_hf.recipe.results import continual_metrics
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.starting_point import longest_sequence, resolve_backbone


def run(path: Path) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    return run_recipe(read_recipe(path), lines.append), lines


def changed(path: Path, **values: Any) -> Path:
    """A recipe with other values at its top level."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}, sort_keys=False))
    return path


def refusal(path: Path) -> str:
    """The message with which a recipe is refused, before or while its data is loaded."""
    with pytest.raises(RecipeError) as error:
        run(path)
    assert not (path.parent / "output" / "model").exists(), "training had begun"
    return str(error.value)


# -- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_learns_every_task_and_writes_the_matrix(finished: Path) -> None:  # noqa: F811
    results = json.loads((finished / "output" / "results.json").read_text())
    assert [row["task"] for row in results["matrix"]] == ["first", "second"]
    assert list(results["matrix"][0]["scores"]) == ["first"]
    assert list(results["matrix"][1]["scores"]) == ["first", "second"]
    assert results["matrix"][1]["scores"]["first"] == results["matrix"][0]["scores"]["first"] >= 0.9
    assert results["matrix"][1]["scores"]["second"] >= 0.9
    assert results["backward_transfer"] == 0.0
    assert results["forgetting"] == 0.0
    assert results["average_accuracy"] == sum(results["matrix"][1]["scores"].values()) / 2
    assert results["metrics"] == {"first": "accuracy", "second": "accuracy"}
    assert results["verify"]["ok"] is True
    assert results["verify"]["text"].endswith("verified: no committed task has changed")


def test_results_hold_what_the_model_says_of_itself(finished: Path) -> None:  # noqa: F811
    results = json.loads((finished / "output" / "results.json").read_text())
    model = EideticModel.from_pretrained(finished / "output" / "model")
    assert model.tasks == ["first", "second"]
    assert [step["units"] for step in results["steps"]] == [model.record(name).units for name in model.tasks]
    assert results["steps"][1]["capacity"] == model.capacity()
    assert [task["labels"] for task in results["tasks"]] == [COLORS, COLORS]
    assert results["recipe"] == (finished / "colors.yaml").read_text()
    assert results["environment"]["torch"] == torch.__version__


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


def test_the_first_shard_has_the_same_sha256_after_the_second_task(finished: Path) -> None:  # noqa: F811
    first, second = json.loads((finished / "output" / "results.json").read_text())["steps"]
    for file in ("eidetic-trunk.safetensors", "eidetic-task-first.safetensors"):
        on_disk = sha256_of(finished / "output" / "model" / file)
        assert first["shards"][file]["sha256"] == second["shards"][file]["sha256"] == on_disk
    assert "eidetic-task-second.safetensors" not in first["shards"]
    assert first["shards"]["eidetic-pool.safetensors"] != second["shards"]["eidetic-pool.safetensors"]


def test_the_model_card_names_the_backbone_as_the_recipe_does(finished: Path) -> None:  # noqa: F811
    assert "on `backbone` with" in (finished / "output" / "model" / "README.md").read_text()


def test_two_runs_of_a_recipe_give_the_same_shards(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("output"))
    recipe = read_recipe(tmp_path / "copy" / "colors.yaml", output=tmp_path / "again")
    shards = run_recipe(recipe, lambda line: None)["steps"][-1]["shards"]
    assert shards == json.loads((finished / "output" / "results.json").read_text())["steps"][-1]["shards"]


# -- starting again ---------------------------------------------------------------------------------------------------


def test_a_finished_run_skips_every_task_and_keeps_its_results(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(finished, tmp_path / "copy")
    path = changed(tmp_path / "copy" / "colors.yaml", output=str(tmp_path / "copy" / "output"))
    before = json.loads((finished / "output" / "results.json").read_text())
    results, lines = run(path)
    assert lines == ["first: already committed, skipped", "second: already committed, skipped"]
    assert results["steps"] == before["steps"]
    assert results["matrix"] == before["matrix"]


def test_an_interrupted_run_continues_at_the_first_uncommitted_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path)
    train = EideticTrainer.train

    def fails_on_second(self: EideticTrainer, **kwargs: Any) -> Any:
        if self.task == "second":
            raise RuntimeError("power cut")
        return train(self, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(EideticTrainer, "train", fails_on_second)
        run(path)
    partial = json.loads((tmp_path / "output" / "results.json").read_text())
    assert [row["task"] for row in partial["matrix"]] == ["first"]
    assert partial["forgetting"] is None
    results, lines = run(path)
    assert lines[0] == "first: already committed, skipped"
    assert results["steps"][0] == partial["steps"][0]
    assert [row["task"] for row in results["matrix"]] == ["first", "second"]


def test_a_row_that_was_not_written_before_the_cut_is_measured_again(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(finished, tmp_path / "copy")
    path = changed(tmp_path / "copy" / "colors.yaml", output=str(tmp_path / "copy" / "output"))
    file = tmp_path / "copy" / "output" / "results.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "steps": whole["steps"][:1]}))
    results, _ = run(path)
    assert results["matrix"] == whole["matrix"]
    assert results["steps"][1]["seconds"] is None


def test_a_task_resumes_from_its_last_trainer_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = {"save_strategy": "steps", "save_steps": 8}
    task = write_task(tmp_path, "first", training=saving)
    path = write_recipe(tmp_path, [task])
    step = EideticTrainer.training_step

    def fails_at_20(self: EideticTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 20:
            raise RuntimeError("power cut")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(EideticTrainer, "training_step", fails_at_20)
        run(path)
    checkpoints = tmp_path / "output" / "checkpoints" / "first"
    assert sorted(folder.name for folder in checkpoints.iterdir()) == ["checkpoint-16", "checkpoint-8"]
    resumed, lines = run(path)
    assert lines[1] == f"  resumed from {checkpoints / 'checkpoint-16'}"
    assert not checkpoints.parent.exists()
    whole, _ = run(changed(path, output=str(tmp_path / "uncut")))
    assert resumed["tasks"][0]["sha256"] == whole["tasks"][0]["sha256"], "as if it had never been cut off"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trunk_layers": 0}, "has a trunk of 1 layers, the recipe asks for 0"),
        ({"backbone": "other"}, "was made from another backbone than the recipe's other"),
        ({"tasks": ["second"]}, "has the task 'first', which the recipe lacks"),
        ({"labels": ["red", "green", "blue"]}, "learned the task 'first' with labels"),
    ],
)
def test_a_model_of_another_recipe_is_not_continued(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    values: dict[str, Any],
    message: str,
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    write_backbone(tmp_path / "copy" / "other", seed=1)
    path = tmp_path / "copy" / "colors.yaml"
    tasks = yaml.safe_load(path.read_text())["tasks"]
    if "tasks" in values:
        values = {"tasks": [task for task in tasks if task["name"] in values["tasks"]]}
    if "labels" in values:
        values = {"tasks": [{**tasks[0], **values}, tasks[1]]}
    changed(path, output=str(tmp_path / "copy" / "output"), **values)
    with pytest.raises(RecipeError, match=message):
        run(path)


# -- kinds of tasks ---------------------------------------------------------------------------------------------------


def test_regression_multi_label_and_pairs_are_learned_in_one_recipe(tmp_path: Path) -> None:
    def rows(seed: int, count: int, make: Any) -> list[dict[str, Any]]:
        return [
            make(row, other) for row, other in zip(color_rows(seed, count), color_rows(seed + 50, count), strict=True)
        ]

    def task(name: str, make: Any, **values: Any) -> dict[str, Any]:
        splits = {"train": rows(1, 64, make), "validation": rows(2, 12, make), "test": rows(3, 24, make)}
        return write_task(tmp_path, name, splits, **values)

    tasks = [
        task(
            "brightness",
            lambda row, _: {"text": row["text"], "label": COLORS.index(row["label"]) / 2},
            problem_type="regression",
        ),
        task(
            "colors",
            lambda row, other: {
                "text": f"{row['text']} {other['text']}",
                "names": sorted({row["label"], other["label"]}),
            },
            problem_type="multi_label_classification",
            columns={"label": "names"},
            labels=COLORS,
            training={"max_steps": 60},
        ),
        task(
            "pair",
            lambda row, other: {"a": other["text"], "b": row["text"], "label": row["label"]},
            columns={"text": "a", "text_pair": "b"},
            pooling="first",
            forward_transfer="none",
        ),
    ]
    results, _ = run(write_recipe(tmp_path, tasks))
    scores = results["matrix"][-1]["scores"]
    assert results["metrics"] == {"brightness": "pearson", "colors": "f1", "pair": "accuracy"}
    assert scores["brightness"] > 0.8
    assert scores["colors"] > 0.7
    assert 0 <= scores["pair"] <= 1
    assert {row["scores"]["brightness"] for row in results["matrix"]} == {scores["brightness"]}
    model = EideticModel.from_pretrained(tmp_path / "output" / "model")
    assert model.record("brightness").labels == ["score"]
    assert model.record("pair").pooling == "first"
    assert model.record("pair").ancestors == []
    assert model.record("colors").ancestors == ["brightness"]


def test_a_missing_validation_split_is_a_tenth_of_train_and_a_missing_test_split_is_validation(tmp_path: Path) -> None:
    task = write_task(tmp_path, "first", {"train": color_rows(0, 50)}, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["examples"] == {"train": 45, "validation": 5, "test": 5}


def test_whole_numbers_are_positions_in_the_list_of_labels(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": COLORS.index(row["label"])} for row in color_rows(0, 60)]
    task = write_task(tmp_path, "first", {"train": rows}, labels=COLORS, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["labels"] == COLORS


def test_without_a_list_the_labels_are_the_sorted_ones_of_the_training_split(tmp_path: Path) -> None:
    rows = [{"text": f"w{i}", "label": i % 11} for i in range(44)]
    task = write_task(tmp_path, "first", {"train": rows}, training={"max_steps": 2})
    results, _ = run(write_recipe(tmp_path, [task]))
    assert results["tasks"][0]["labels"] == [str(i) for i in range(11)]


def test_settings_of_a_task_go_over_those_of_the_recipe(tmp_path: Path) -> None:
    tasks = [write_task(tmp_path, "first", pruning={"keep": 0.9}, training={"learning_rate": 1e-3})]
    recipe = read_recipe(write_recipe(tmp_path, tasks, seed=7))
    assert recipe.pruning_config(recipe.tasks[0]).keep == 0.9
    arguments = recipe.training_arguments(recipe.tasks[0])
    assert (arguments.learning_rate, arguments.max_steps, arguments.seed) == (1e-3, 24, 7)
    assert arguments.metric_for_best_model == "accuracy" and arguments.greater_is_better is True


@pytest.mark.parametrize(
    ("values", "metric", "greater"),
    [
        ({"type": "token-classification"}, "f1", True),
        ({"type": "question-answering", "metric": "exact_match"}, "exact_match", True),
        ({"type": "multiple-choice"}, "accuracy", True),
        ({"type": "causal-lm"}, "perplexity", False),
        ({"type": "seq2seq-lm"}, "perplexity", False),
        ({"type": "seq2seq-lm", "metric": "exact_match"}, "exact_match", True),
        ({"type": "masked-lm", "metric": "accuracy"}, "accuracy", True),
        ({"type": "feature-extraction", "columns": {"score": "score"}}, "spearman", True),
        ({"type": "feature-extraction"}, "loss", False),
        ({"problem_type": "regression", "metric": "mse"}, "mse", False),
    ],
)
def test_each_kind_has_a_metric_and_knows_whether_more_is_better(
    tmp_path: Path, values: dict[str, Any], metric: str, greater: bool
) -> None:
    recipe = read_recipe(write_recipe(tmp_path, [write_task(tmp_path, "first", **values)]))
    arguments = recipe.training_arguments(recipe.tasks[0])
    assert recipe.tasks[0].metric == arguments.metric_for_best_model == metric
    assert arguments.greater_is_better is greater


def test_columns_have_the_usual_names_of_the_kind_unless_others_are_given(tmp_path: Path) -> None:
    tasks = [
        write_task(tmp_path, "a", type="question-answering", columns={"context": "passage"}),
        write_task(tmp_path, "b", type="causal-lm"),
        write_task(tmp_path, "c", type="causal-lm", columns={"answer": "reply"}, template="Q: {prompt} A: "),
        write_task(tmp_path, "d", type="multiple-choice", columns={"choices": ["x", "y"]}, max_length=9),
    ]
    recipe = read_recipe(write_recipe(tmp_path, tasks))
    assert [task.columns for task in recipe.tasks] == [
        {"question": "question", "context": "passage", "answers": "answers"},
        {"text": "text"},
        {"prompt": "prompt", "answer": "reply"},
        {"text": "text", "choices": ["x", "y"], "label": "label"},
    ]
    assert [recipe.length_of(task) for task in recipe.tasks] == [16, 16, 16, 9]
    assert recipe.tasks[0].settings == QuestionSettings(stride=None, max_answer_length=30)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("learning_rate: 0.005", "learning_rate: 5e-3"))
    assert read_recipe(path).training["learning_rate"] == 0.005


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"trunk": 1}, ["Unknown key 'trunk' in the recipe", "Did you mean 'trunk_layers'?"]),
        ({"backbone": None}, ["has no `backbone:`"]),
        ({"tasks": []}, ["has no `tasks:`"]),
        ({"tasks": {"first": {}}}, ["`tasks:` is {'first': {}}, expected a list"]),
        ({"trunk_layers": "one"}, ["`trunk_layers: 'one'` in the recipe", "whole number"]),
        ({"trunk_layers": 9}, ["trunk_layers=9", "3 layers"]),
        ({"max_length": 0}, ["`max_length: 0`", ">= 3"]),
        ({"max_length": 1000}, ["`max_length: 1000`", "reads up to 66 tokens"]),
        ({"pooling": "max"}, ["`pooling: 'max'`", "['mean', 'first', 'last']"]),
        ({"forward_transfer": ["third"]}, ["names 'third'", "['first', 'second']"]),
        ({"training": {"learning_rat": 1}}, ["'learning_rat' in `training:` of the recipe", "'learning_rate'"]),
        ({"training": {"learning_rate": "fast"}}, ["`learning_rate: 'fast'`", "expected a number"]),
        ({"training": {"max_steps": 1.5}}, ["`max_steps: 1.5`", "whole number"]),
        ({"training": {"eval_strategy": "sometimes"}}, ["Task 'first', training: sometimes is not a valid"]),
        ({"training": {"output_dir": "x"}}, ["`output_dir`", "`output:`"]),
        ({"pruning": {"kept": 1}}, ["'kept' in `pruning:` of the recipe", "'keep'"]),
        ({"pruning": {"keep": 7}}, ["Task 'first', pruning: PruningConfig(keep=7)", "(0, 1]"]),
        ({"backbone": "./nowhere"}, ["there is no folder", "nowhere"]),
        ({"backbone": "package:no_such_package/model"}, ["'no_such_package'", "pip install no-such-package"]),
        ({"backbone": "package:json/model"}, ["'json' has no folder 'model'"]),
        ({"backbone": ["a"]}, ["`backbone: ['a']`", "{model_type: ...}"]),
        ({"backbone": {"hidden_size": 3}}, ["has no `model_type:`"]),
        ({"backbone": {"model_type": "bert"}}, ["needs a tokenizer", "{train: bpe, vocab_size: 2048}"]),
        ({"tokenizer": {"train": "byte"}}, ["the backbone backbone knows its own tokens only"]),
        (
            {"backbone": {"model_type": "bert"}, "tokenizer": {"train": "words"}},
            ["`train: 'words'`", "['bpe', 'byte']"],
        ),
        ({"backbone": {"model_type": "bert"}, "tokenizer": {"train": "bpe"}}, ["`vocab_size: None`", "at least 300"]),
        (
            {"backbone": {"model_type": "bert"}, "tokenizer": {"train": "byte", "vocab_size": 9}},
            ["`vocab_size: 9`", "one token per byte needs none"],
        ),
    ],
)
def test_a_wrong_value_in_the_recipe_is_named(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    path = changed(write_recipe(tmp_path), **values)
    with pytest.raises(ValueError) as error:
        run(path)
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"nam": "x"}, ["Unknown key 'nam' in task 'first'"]),
        ({"name": "a b"}, ["'a b' cannot name a task"]),
        ({"name": None}, ["Task 1 of the recipe", "None cannot name a task"]),
        ({"name": "second"}, ["2 tasks named 'second'"]),
        ({"data": None}, ["Task 'first' has `data: None`", "datasets.load_dataset"]),
        ({"type": "translation"}, ["`type: 'translation'` in task 'first'", "sequence-classification"]),
        ({"problem_type": "many"}, ["`problem_type: 'many'`"]),
        ({"columns": {"txt": "a"}}, ["'txt' in `columns:` of task 'first'"]),
        ({"columns": {"text": "body"}}, ["no column 'body'", "['text', 'label']", "columns: {text: NAME}"]),
        ({"columns": {"text_pair": "other"}}, ["no column 'other'", "{text_pair: NAME}"]),
        ({"splits": {"test": "exam"}}, ["no split 'exam' for test", "['train', 'validation', 'test']"]),
        ({"labels": [True, False]}, ["`labels: [True, False]`", "quotes"]),
        ({"labels": ["red", "red"]}, ["every label may be given once"]),
        ({"labels": ["red", "green"]}, ["has the label 'blue'", "['red', 'green']"]),
        ({"metric": "pearson"}, ["`metric: pearson`", "['accuracy', 'f1', 'loss']"]),
        ({"metric": "no_such_metric"}, ["`metric: no_such_metric`", "could not be loaded", "accuracy, f1"]),
        ({"problem_type": "regression"}, ["the label ", "regression expects 1 finite number"]),
        ({"problem_type": "multi_label_classification"}, ["expected lists of label names"]),
        ({"forward_transfer": ["second"]}, ["names 'second', which is no task before it"]),
        ({"stride": 3}, ["`stride:` in task 'first' is for question-answering", "sequence-classification"]),
        ({"type": "question-answering", "stride": -1}, ["`stride: -1`", "a whole number of tokens >= 0"]),
        ({"type": "question-answering", "stride": True}, ["`stride: True`"]),
        ({"type": "masked-lm", "mlm_probability": 15}, ["`mlm_probability: 15`", "a share between 0 and 1"]),
        ({"type": "multiple-choice", "choice_marks": ["A"]}, ["`choice_marks: ['A']`", "a list of two or more texts"]),
        ({"type": "multiple-choice", "columns": {"choices": ["a"]}}, ["`choices: ['a']`", "a list of two or more"]),
        ({"type": "causal-lm", "template": "Q"}, ["`template: 'Q'`", "a text with {prompt} in it"]),
        ({"type": "causal-lm", "template": "{prompt}"}, ["`template:` in task 'first' is for prompts"]),
        ({"type": "causal-lm", "columns": {"prompt": "a", "text": "b"}}, ["prompts and a running text"]),
        ({"type": "causal-lm", "metric": "exact_match"}, ["`metric: exact_match`", "no right continuation"]),
        ({"type": "causal-lm", "score_written": 3}, ["`score_written: 3`", "no right continuation"]),
        ({"type": "seq2seq-lm", "score_written": -1}, ["`score_written: -1`", "a whole number of texts >= 0"]),
        ({"type": "seq2seq-lm", "metric": "f1", "score_written": 0}, ["`score_written: 0`", "`metric: f1` needs"]),
        ({"type": "causal-lm", "labels": ["a", "b"]}, ["`labels:` in task 'first': tasks of causal-lm have none"]),
        ({"type": "masked-lm", "problem_type": "regression"}, ["`problem_type:` in task 'first'"]),
        ({"type": "masked-lm", "metric": "f1"}, ["`type: masked-lm`", "['perplexity', 'accuracy', 'loss']"]),
        ({"type": "feature-extraction", "metric": "pearson"}, ["needs scores", "`columns: {score: NAME}`"]),
        ({"max_length": 67}, ["`max_length: 67` of task 'first'", "reads up to 66 tokens"]),
        (
            {"type": "question-answering", "training": {"train_sampling_strategy": "group_by_length"}},
            ["Task 'first', training: grouping by length would shuffle the windows"],
        ),
        ({"data": {"path": "json", "data_files": "nowhere.jsonl"}}, ["could not be loaded", "nowhere.jsonl"]),
    ],
)
def test_a_wrong_value_in_a_task_is_named(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    path = write_recipe(tmp_path)
    first, second = yaml.safe_load(path.read_text())["tasks"]
    message = refusal(changed(path, tasks=[{**first, **values}, second]))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("tasks: [", "no valid YAML"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("just a line", "expected keys and values"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "colors.yaml").write_text(text)
    assert part in refusal(tmp_path / "colors.yaml")


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "can not be read" in refusal(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused(tmp_path: Path, split: str) -> None:
    rows = {"train": color_rows(0), "validation": color_rows(1), "test": color_rows(2)}
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", {**rows, split: []})]))
    assert "a split is empty, every one needs at least one row" in message


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_unknown_label_in_any_split_is_refused(tmp_path: Path, split: str) -> None:
    rows = {"train": color_rows(0), "validation": color_rows(1), "test": color_rows(2)}
    rows[split][3] = {"text": "w1", "label": "pink"}
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", rows, labels=COLORS)]))
    assert f"row 3 of the {split} split has the label 'pink'" in message


def test_a_row_without_text_is_refused(tmp_path: Path) -> None:
    rows = [*color_rows(0, 20), {"text": None, "label": "red"}]
    message = refusal(write_recipe(tmp_path, [write_task(tmp_path, "first", {"train": rows})]))
    assert "1 rows of the train split have no 'text'" in message


def test_a_mistake_in_the_last_tasks_data_shows_before_the_first_is_trained(tmp_path: Path) -> None:
    bad = write_task(tmp_path, "second", {"train": color_rows(0)}, labels=["red", "green"])
    assert "Task 'second'" in refusal(write_recipe(tmp_path, [write_task(tmp_path, "first"), bad]))


# -- small parts ------------------------------------------------------------------------------------------------------


def test_continual_metrics_follow_their_definitions() -> None:
    matrix = [
        {"task": "a", "scores": {"a": 0.8}},
        {"task": "b", "scores": {"a": 0.9, "b": 0.6}},
        {"task": "c", "scores": {"a": 0.7, "b": 0.6, "c": 0.5}},
    ]
    found = continual_metrics(matrix, {"a": "accuracy", "b": "f1", "c": "accuracy"}, ["mse"])
    assert found["average_accuracy"] == pytest.approx(0.6)
    assert found["backward_transfer"] == pytest.approx(-0.05)
    assert found["forgetting"] == pytest.approx(0.1)


def test_an_error_is_not_averaged_with_scores() -> None:
    matrix = [{"task": "a", "scores": {"a": 9.0}}, {"task": "b", "scores": {"a": 9.0, "b": 0.5}}]
    found = continual_metrics(matrix, {"a": "mse", "b": "accuracy"}, ["mse"])
    assert found["average_accuracy"] == 0.5
    assert found["averaged_tasks"] == ["b"]
    assert found["forgetting"] is None
    assert found["by_metric"] == {
        "mse": {"average": 9.0, "backward_transfer": 0.0, "forgetting": 0.0, "tasks": ["a"]},
        "accuracy": {"average": 0.5, "backward_transfer": None, "forgetting": None, "tasks": ["b"]},
    }


def test_what_is_lost_is_positive_where_less_is_better_too() -> None:
    matrix = [
        {"task": "a", "scores": {"a": 12.0}},
        {"task": "b", "scores": {"a": 10.0, "b": 20.0}},
        {"task": "c", "scores": {"a": 15.0, "b": 18.0, "c": 30.0}},
    ]
    found = continual_metrics(matrix, dict.fromkeys("abc", "perplexity"), lower_is_better())
    assert found["average_accuracy"] is found["backward_transfer"] is found["forgetting"] is None
    perplexity = found["by_metric"]["perplexity"]
    assert perplexity["average"] == pytest.approx(21.0)
    assert perplexity["backward_transfer"] == pytest.approx((-3.0 + 2.0) / 2)
    assert perplexity["forgetting"] == pytest.approx((5.0 + 0.0) / 2), "against the best, not against the commit"


def test_the_same_answer_to_everything_has_no_correlation_but_a_score() -> None:
    record = TaskRecord("n", problem_type="regression", labels=["score"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = TaskScore(recipe_kind_of("sequence-classification"), record, "pearson")(EvalPrediction(np.ones((3, 1)), np.arange(3.0)))
    assert scores == {"mse": pytest.approx(2 / 3), "pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("architecture", "longest"), [("bert", 66), ("roberta", 65), ("distilbert", 66), ("t5", None)]
)
def test_the_longest_sequence_is_what_the_backbone_has_positions_for(architecture: str, longest: int | None) -> None:
    model = tiny_model(architecture)
    assert longest_sequence(model) == longest
    if longest is not None:
        ids = torch.full((1, longest), 5)
        model.add_task("a", labels=["x", "y"])
        model.begin_task("a")
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids), task="a").logits.shape == (1, 2)
        with pytest.raises((IndexError, RuntimeError)):
            long = torch.full((1, longest + 1), 5)
            model(input_ids=long, attention_mask=torch.ones_like(long), task="a")


def test_the_documentation_names_every_key_of_a_recipe() -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    keys = {f.name for f in dataclasses.fields(Recipe)} - {"name", "folder", "source"}
    keys |= {f.name for f in dataclasses.fields(TaskRecipe)} - set(NO_KEYS)
    for kind in RECIPE_KINDS.values():
        keys |= {kind.name, *kind.settings.names(), *kind.columns, *kind.metrics}
    assert not {key for key in keys if not re.search(rf"\b{key}\b", text)}


def test_a_package_backbone_is_a_folder_of_an_installed_package(tmp_path: Path) -> None:
    folder = Path(resolve_backbone("package:eidetic_hf/templates", tmp_path))
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("name", ["quickstart", "standard", "kinds", "language", "sentences", "instructions"])
def test_the_recipes_of_the_repository_are_valid(name: str) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    assert recipe.output == Path("runs") / name
    assert len(recipe.tasks) >= 2
