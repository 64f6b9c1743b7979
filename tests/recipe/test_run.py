"""Runs of whole recipes: what they leave behind, and how they go on after a cut."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.recipe_files import (  # noqa: F401
    TRAINING,
    changed,
    color_rows,
    finished,
    private_dataset_cache,
    reading,
    refusal,
    results_of,
    run,
    write_backbone,
    write_recipe,
    write_task,
    writing,
)
from transformers import AutoTokenizer

from eidetic_hf import EideticModel, EideticTrainer
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.recipe import results
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe


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


def test_the_first_shard_has_the_same_sha256_after_the_second_task(finished: Path) -> None:  # noqa: F811
    first, second = json.loads((finished / "output" / "results.json").read_text())["steps"]
    for file in ("eidetic-trunk.safetensors", "eidetic-task-first.safetensors"):
        on_disk = sha256_of(finished / "output" / "model" / file)
        assert first["shards"][file]["sha256"] == second["shards"][file]["sha256"] == on_disk
    assert "eidetic-task-second.safetensors" not in first["shards"]
    assert first["shards"]["eidetic-pool.safetensors"] != second["shards"]["eidetic-pool.safetensors"]


def test_the_model_card_names_the_backbone_as_the_recipe_does(finished: Path) -> None:  # noqa: F811
    assert "on `backbone` with" in (finished / "output" / "model" / "README.md").read_text()


def test_the_model_card_says_how_many_rows_the_tasks_were_learned_from(finished: Path) -> None:  # noqa: F811
    text = (finished / "output" / "model" / "README.md").read_text()
    tasks = json.loads((finished / "output" / "results.json").read_text())["tasks"]
    for name, task in zip(("first", "second"), tasks, strict=True):
        assert re.search(rf"^\| `{name}` .* \| local files, {task['examples']['train']} rows \|", text, re.MULTILINE)
        record = EideticModel.from_pretrained(finished / "output" / "model", tasks=[name]).record(name)
        assert record.data == {"split": "validation", "rows": task["examples"]}


def test_two_runs_of_a_recipe_give_the_same_shards(finished: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("output"))
    recipe = read_recipe(tmp_path / "copy" / "colors.yaml", output=tmp_path / "again")
    shards = run_recipe(recipe, lambda line: None)["steps"][-1]["shards"]
    assert shards == json.loads((finished / "output" / "results.json").read_text())["steps"][-1]["shards"]


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


def test_a_mistake_in_the_last_tasks_data_shows_before_the_first_is_trained(tmp_path: Path) -> None:
    bad = write_task(tmp_path, "second", {"train": color_rows(0)}, labels=["red", "green"])
    assert "Task 'second'" in refusal(write_recipe(tmp_path, [write_task(tmp_path, "first"), bad]))


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


def test_the_folder_is_hashed_once_for_each_time_the_results_are_written(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    hashed: list[str] = []
    monkeypatch.setattr(results, "sha256_of", lambda path: (hashed.append(path.name), sha256_of(path))[1])
    run(changed(tmp_path / "copy" / "colors.yaml", output=str(tmp_path / "copy" / "output")))
    shards = sorted(path.name for path in (tmp_path / "copy" / "output" / "model").glob("*.safetensors"))
    assert len(shards) == 4
    assert hashed == shards * 2, "to find what the earlier run has measured, and for the one time that is written"


def test_a_recipe_may_copy_units_and_build_on_an_earlier_task(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, growth="copy", pruning={"own": 0.3})
    recipe = yaml.safe_load(path.read_text())
    recipe["tasks"][1]["based_on"] = "first"
    recipe["training"]["eval_strategy"] = "epoch"
    recipe["pruning"]["see"] = 0.5  # of base's, and it has copied three tenths
    path.write_text(yaml.safe_dump(recipe))
    _, lines = run(path)
    said = [line for line in lines if line.startswith("  step ")]
    assert "fit, reads 100% of the units" in said[0] and "recover, reads 79% of the units" in said[-1], said
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert results["forgetting"] == 0.0 and results["verify"]["ok"] is True
    model = EideticModel.from_pretrained(tmp_path / "output" / "model")
    assert model.config.growth == "copy" and model.record("second").ancestors == ["first"]
    in_a_pool = {"growth": "fixed", "pruning": {"keep": 0.3}, "tasks": recipe["tasks"][:1]}
    path.write_text(yaml.safe_dump({**recipe, **in_a_pool}))
    with pytest.raises(RecipeError, match=r"has growth='copy', the recipe asks for 'fixed'"):
        run_recipe(read_recipe(path), say=lambda line: None)


def test_a_task_may_say_another_learning_rate_for_its_head_than_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, head_lr_ratio=10)
    recipe = yaml.safe_load(path.read_text())
    recipe["tasks"][1]["head_lr_ratio"] = 3
    path.write_text(yaml.safe_dump(recipe))
    peaks, make = {}, EideticTrainer.create_optimizer

    def noted(trainer: EideticTrainer, model: object = None) -> object:
        optimizer = make(trainer, model)
        peaks[trainer.task] = sorted({group["lr"] for group in optimizer.param_groups})
        return optimizer

    monkeypatch.setattr(EideticTrainer, "create_optimizer", noted)
    run(path)
    rate = TRAINING["learning_rate"]
    assert peaks == {"first": [rate, 10 * rate], "second": [rate, 3 * rate]}
