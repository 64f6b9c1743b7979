"""Training with push_to_hub=True: releases at the top of the repository, checkpoints below, nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_model
from support.data import arguments, logits_of, make_data
from support.hub_server import HubServer
from support.kind_cases import word_tokenizer
from support.quick import learn_quickly
from transformers import Trainer, TrainerCallback

from eidetic_hf import CheckpointError, EideticCallback, EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.model.hub import PushConflict

REPO = "someone/model"
SMALL = {"config.json", "model.safetensors.index.json", "README.md"}
RELEASE = {*SMALL, *(f"eidetic-{name}.safetensors" for name in ("base", "pool", "trunk", "task-first"))}
STRATEGIES = ["end", "every_save", "checkpoint", "all_checkpoints"]


@pytest.fixture(scope="module")
def made() -> EideticModel:
    model = tiny_model(growth="copy")
    model.add_task("first", labels=["x", "y", "z"])
    return model


def trainer_for(model: EideticModel, folder: Path, task: str = "first", **kwargs: Any) -> EideticTrainer:
    """A trainer of four steps that pushes, with a checkpoint after every second one."""
    given = {name: kwargs.pop(name) for name in ("callbacks", "processing_class") if name in kwargs}
    chosen = {"push_to_hub": True, "hub_model_id": REPO, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    return EideticTrainer(
        model=model,
        task=task,
        args=arguments(folder, **{**chosen, **kwargs}),
        pruning=PruningConfig(own=0.2),
        train_dataset=make_data(7, rows=16),
        eval_dataset=make_data(8, rows=8),
        **given,
    )


def top(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if "/" not in name}


def has_own_card(files: dict[str, bytes]) -> bool:
    """Whether the card is the model's, with a row for the task, and not the Trainer's."""
    sha256 = json.loads(files["config.json"])["files"]["eidetic-task-first.safetensors"]["sha256"]
    return sha256.encode() in files["README.md"] and b"Training procedure" not in files["README.md"]


def below(files: dict[str, bytes]) -> set[str]:
    return {name.split("/")[0] for name in files if "/" in name}


class Watch(TrainerCallback):
    """Notes the top of the repository after every save."""

    def __init__(self, hub: HubServer) -> None:
        self.hub, self.seen = hub, []

    def on_save(self, *args: object, **kwargs: object) -> None:
        self.seen.append(top(self.hub.files(REPO)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_top_of_the_repository_holds_nothing_but_the_release(
    hub: HubServer, made: EideticModel, tmp_path: Path, strategy: str
) -> None:
    model, watch = copy.deepcopy(made), Watch(hub)
    trainer = trainer_for(
        model,
        tmp_path,
        hub_strategy=strategy,
        callbacks=[watch],
        hub_always_push=True,
        processing_class=word_tokenizer(),
    )
    trainer.train()
    assert watch.seen == [set(), set()]
    by_itself = hub.files(REPO)
    assert bool(top(by_itself)) == (strategy != "end")
    assert (
        below(by_itself)
        == {
            "end": set(),
            "every_save": set(),
            "checkpoint": {"last-checkpoint"},
            "all_checkpoints": {"checkpoint-2", "checkpoint-4"},
        }[strategy]
    )
    commit = trainer.push_to_hub()
    files = hub.files(REPO)
    assert commit.oid == hub.repository(REPO).resolve("main") and len(hub.history(REPO)) == 2 + len(below(files)) + (
        strategy == "checkpoint"
    )
    assert {name for name in top(files) if "token" not in name} == RELEASE
    assert {"tokenizer.json", "tokenizer_config.json"} <= top(files)
    assert not [name for name in files if ".eidetic" in name]
    assert hub.repository(REPO).tags == {"first": next(iter(hub.repository(REPO).tags.values()))}
    assert has_own_card(files)
    loaded = EideticModel.from_pretrained(REPO)
    assert loaded.verify().ok and torch.equal(logits_of(loaded, "first"), logits_of(model, "first"))


def test_a_run_is_resumed_from_the_checkpoint_on_the_hub(hub: HubServer, made: EideticModel, tmp_path: Path) -> None:
    whole = copy.deepcopy(made)
    trainer_for(whole, tmp_path / "one", hub_strategy="all_checkpoints", hub_always_push=True).train()
    for name, content in hub.files(REPO).items():
        if name.startswith("checkpoint-2/"):
            (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "two" / name).write_bytes(content)
    model = copy.deepcopy(made)
    trainer_for(model, tmp_path / "two").train(resume_from_checkpoint=True)
    assert torch.equal(logits_of(model, "first"), logits_of(whole, "first"))


def test_a_second_task_is_added_to_the_first(hub: HubServer, made: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(made)
    trainer_for(model, tmp_path / "first").train()
    model.add_task("second", labels=["x", "y", "z"])
    hub.reset()
    trainer_for(model, tmp_path / "second", task="second").train()
    assert set(hub.uploaded) == {*SMALL, "eidetic-task-second.safetensors"}
    assert set(hub.repository(REPO).tags) == {"first", "second"}
    assert EideticModel.from_pretrained(REPO).tasks == ["first", "second"]


def test_save_model_pushes_as_in_transformers(hub: HubServer, made: EideticModel, tmp_path: Path) -> None:
    trainer = trainer_for(copy.deepcopy(made), tmp_path, hub_strategy="end")
    trainer.train()
    trainer.save_model()
    assert top(hub.files(REPO)) == RELEASE and hub.history(REPO)[-1] == "Model save"


def test_a_run_that_was_stopped_pushes_nothing_and_says_what_to_do(
    hub: HubServer, made: EideticModel, tmp_path: Path
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    trainer = trainer_for(copy.deepcopy(made), tmp_path, callbacks=[Stop()])
    trainer.train()
    assert trainer.model.learning == "first"
    for push in (trainer.push_to_hub, trainer.save_model):
        with pytest.raises(CheckpointError, match=r"'first' is being learned.*commit_task.*abandon_task"):
            push()
    assert hub.files(REPO) == {}


def test_what_others_pushed_meanwhile_is_not_lost_and_neither_is_the_run(
    hub: HubServer, made: EideticModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, theirs = copy.deepcopy(made), tiny_model(growth="copy")
    learn_quickly(theirs, "theirs", 3)
    trainer = trainer_for(model, tmp_path)
    theirs.push_to_hub(REPO)
    assert trainer.train().global_step == 4
    assert "'first' is committed, but not pushed; trainer.push_to_hub(...) does." in caplog.text
    assert EideticModel.from_pretrained(REPO).tasks == ["theirs"]
    with pytest.raises(CheckpointError, match=r"\['theirs'\].*merge=True"):
        trainer.push_to_hub()
    trainer.push_to_hub(merge=True)
    assert EideticModel.from_pretrained(REPO).tasks == ["first", "theirs"]


def test_a_push_in_between_is_told_by_the_trainer_too(hub: HubServer, made: EideticModel, tmp_path: Path) -> None:
    trainer = trainer_for(copy.deepcopy(made), tmp_path, hub_strategy="end")
    trainer.train()
    hub.before("POST", "/commit/", lambda: hub.commit(REPO, {"notes.md": "in between"}))
    with pytest.raises(PushConflict, match="Push again"):
        trainer.push_to_hub()
    trainer.push_to_hub()
    assert top(hub.files(REPO)) == {*RELEASE, "notes.md"}


def test_what_would_fail_after_the_run_fails_before_it(hub: HubServer, made: EideticModel, tmp_path: Path) -> None:
    hub.create(REPO)
    hub.commit(REPO, {"model.safetensors": b"somebody's"})
    with pytest.raises(CheckpointError, match=f"{REPO} holds model.safetensors of a model of another kind"):
        trainer_for(copy.deepcopy(made), tmp_path)
    hub.create("someone/public")
    with pytest.raises(CheckpointError, match="someone/public is there, and public"):
        trainer_for(copy.deepcopy(made), tmp_path, hub_model_id="someone/public", hub_private_repo=True)
    with pytest.raises(CheckpointError, match=r"^another/one may not be written to with this token"):
        trainer_for(copy.deepcopy(made), tmp_path, hub_model_id="another/one")


def test_a_branch_a_token_and_the_background_are_as_the_arguments_have_them(
    hub: HubServer, made: EideticModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    chosen = {"hub_revision": "next", "hub_token": hub.token, "hub_private_repo": True}
    trainer = trainer_for(copy.deepcopy(made), tmp_path, hub_strategy="checkpoint", **chosen)
    trainer.train()
    assert top(hub.files(REPO, "next")) == RELEASE and below(hub.files(REPO, "next")) == {"last-checkpoint"}
    assert hub.files(REPO) == {} and hub.repository(REPO).private and hub.repository(REPO).tags == {}
    commit = trainer.push_to_hub("In the background", blocking=False).result()
    assert commit.oid == hub.repository(REPO).resolve("next")


def test_metadata_that_is_given_comes_into_the_models_own_card(
    hub: HubServer, made: EideticModel, tmp_path: Path
) -> None:
    trainer = trainer_for(copy.deepcopy(made), tmp_path, hub_strategy="end")
    trainer.train()
    with pytest.raises(FileNotFoundError, match="save_model"):
        trainer.create_model_card(license="mit")
    trainer.push_to_hub(
        language="en", license="mit", tags="mine", dataset_tags=["ag_news"], model_name="A model", finetuned_from="x"
    )
    card = hub.files(REPO)["README.md"].decode()
    front = card.split("---")[1]
    assert "language: en" in front and "license: mit" in front and "- mine" in front and "- ag_news" in front
    assert "- eidetic" in front and has_own_card(hub.files(REPO))


def test_a_plain_trainer_that_would_push_is_refused_at_once(
    hub: HubServer, made: EideticModel, tmp_path: Path
) -> None:
    def plain(**kwargs: Any) -> Trainer:
        model = copy.deepcopy(made)
        return Trainer(
            model=model,
            args=arguments(tmp_path, max_steps=4, **kwargs),
            train_dataset=make_data(7, rows=16),
            callbacks=[EideticCallback("first", PruningConfig(own=0.2))],
        )

    for strategy in STRATEGIES:
        with pytest.raises(
            CheckpointError, match=r"Use EideticTrainer .*push_to_hub=True.*model.push_to_hub\(repo_id\)"
        ):
            plain(push_to_hub=True, hub_model_id=REPO, hub_strategy=strategy)
    trainer = plain(hub_model_id=REPO)
    trainer.train()
    with pytest.raises(CheckpointError, match="Use EideticTrainer"):
        trainer.push_to_hub()
    assert hub.files(REPO) == {}
    trainer.model.push_to_hub(REPO)
    assert json.loads(hub.files(REPO)["config.json"])["tasks"][0]["name"] == "first"
