"""A checkpoint on the Hub as its users load it: whole, in part, by Auto classes and pipelines, offline, damaged."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from support.backbones import tiny_backbone
from support.data import learn, logits_of
from support.folders import FIRST, INDEX, POOL, SECOND, THIRD, TRUNK, answers, same
from support.hub_server import HubServer
from support.kind_cases import word_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, pipeline

from eidetic_hf import CheckpointError, EideticModel, PruningConfig

REPOSITORY = "someone/model"
TEXT = "w010 w020 w030"


@pytest.fixture
def pushed(hub: HubServer, trained: EideticModel) -> HubServer:
    """A Hub that has `trained`; nothing of the push is counted."""
    copy.deepcopy(trained).push_to_hub(REPOSITORY)
    hub.reset()
    return hub


def downloaded(hub: HubServer) -> set[str]:
    """Names of the files that were downloaded, wherever they lie in the repository."""
    return {path.rpartition("/")[2] for path, size in hub.downloaded.items() if size}


@pytest.mark.parametrize("auto", [EideticModel, AutoModel, AutoModelForSequenceClassification])
def test_a_repository_is_loaded_as_the_folder_is(auto: Any, pushed: HubServer, trained: EideticModel) -> None:
    loaded = auto.from_pretrained(REPOSITORY)
    assert type(loaded) is EideticModel and loaded.config.name_or_path == REPOSITORY
    assert same(answers(loaded), answers(trained)) and loaded.verify().ok


def test_the_configuration_of_a_repository_is_loaded(pushed: HubServer) -> None:
    config = AutoConfig.from_pretrained(REPOSITORY)
    assert [task.name for task in config.tasks] == ["first", "second"]
    assert downloaded(pushed) == {"config.json"}


def test_one_task_downloads_what_it_needs_and_nothing_twice(pushed: HubServer, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(REPOSITORY, tasks=["first"])
    assert torch.equal(logits_of(loaded, "first"), logits_of(trained, "first"))
    assert downloaded(pushed) == {"config.json", INDEX, TRUNK, FIRST}
    pushed.reset()
    EideticModel.from_pretrained(REPOSITORY)
    assert downloaded(pushed) == {SECOND, POOL}


def test_a_push_between_two_downloads_changes_nothing_of_what_is_loaded(
    pushed: HubServer, trained: EideticModel, tmp_path: Path
) -> None:
    other = copy.deepcopy(trained)
    learn(other, "third", tmp_path / "run", seed=2)
    then = answers(trained)
    pushed.before("HEAD", INDEX, lambda: other.push_to_hub(REPOSITORY))
    loaded = EideticModel.from_pretrained(REPOSITORY)
    assert THIRD in json.loads(pushed.files(REPOSITORY)["config.json"])["files"], "the push came in between"
    assert loaded.tasks == ["first", "second"] and same(answers(loaded), then)
    assert EideticModel.from_pretrained(REPOSITORY).tasks == ["first", "second", "third"]


def test_a_task_names_the_revision_at_which_it_came(pushed: HubServer, trained: EideticModel, tmp_path: Path) -> None:
    model = EideticModel.from_pretrained(REPOSITORY)
    learn(model, "third", tmp_path / "run", seed=2)
    model.push_to_hub(REPOSITORY)
    assert EideticModel.from_pretrained(REPOSITORY, revision="second").tasks == ["first", "second"]
    assert EideticModel.from_pretrained(REPOSITORY, revision="third").tasks == ["first", "second", "third"]
    assert AutoModel.from_pretrained(REPOSITORY, revision="first", tasks=["first"]).tasks == ["first"]
    with pytest.raises(OSError, match="nowhere is not a valid git identifier"):
        EideticModel.from_pretrained(REPOSITORY, revision="nowhere")


def test_what_was_downloaded_is_loaded_without_a_network(
    pushed: HubServer, trained: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    EideticModel.from_pretrained(REPOSITORY, tasks=["first"])
    pushed.reset()
    loaded = EideticModel.from_pretrained(REPOSITORY, tasks=["first"], local_files_only=True)
    assert torch.equal(logits_of(loaded, "first"), logits_of(trained, "first")) and not pushed.requests
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert EideticModel.from_pretrained(REPOSITORY, tasks=["first"]).tasks == ["first"]
    with pytest.raises(OSError, match=f"({SECOND}|{POOL}) of {REPOSITORY} is not in the cache, and nothing may"):
        EideticModel.from_pretrained(REPOSITORY)


def test_a_cache_of_ones_own_is_used(pushed: HubServer, tmp_path: Path) -> None:
    EideticModel.from_pretrained(REPOSITORY, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").glob(f"**/snapshots/*/{FIRST}"))


def test_a_snapshot_is_loaded_as_a_folder(pushed: HubServer, trained: EideticModel) -> None:
    folder = huggingface_hub.snapshot_download(REPOSITORY)
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_a_damaged_file_in_the_cache_names_the_way_out_which_works(
    name: str, pushed: HubServer, trained: EideticModel
) -> None:
    folder = Path(huggingface_hub.snapshot_download(REPOSITORY))
    (folder / name).resolve().write_bytes(b"damage")
    with pytest.raises(CheckpointError, match="force_download=True"):
        EideticModel.from_pretrained(REPOSITORY)
    loaded = EideticModel.from_pretrained(REPOSITORY, force_download=True)
    assert same(answers(loaded), answers(trained))


def test_a_model_in_a_subfolder_of_a_repository_is_loaded(
    hub: HubServer, trained: EideticModel, tmp_path: Path
) -> None:
    copy.deepcopy(trained).save_pretrained(tmp_path / "model")
    files = {f"deep/{path.name}": path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    hub.create(REPOSITORY)
    hub.commit(REPOSITORY, files)
    assert same(answers(EideticModel.from_pretrained(REPOSITORY, subfolder="deep")), answers(trained))
    with pytest.raises(CheckpointError, match=r"someone/model on the Hub has no config\.json: there is no whole"):
        EideticModel.from_pretrained(REPOSITORY)


def test_an_empty_repository_and_one_of_something_else_say_so(hub: HubServer) -> None:
    hub.create(REPOSITORY)
    with pytest.raises(CheckpointError, match=r"someone/model on the Hub has no config\.json: there is no whole"):
        EideticModel.from_pretrained(REPOSITORY)
    hub.commit(REPOSITORY, {"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(CheckpointError, match=r"holds a model of type 'bert', not an EideticModel"):
        EideticModel.from_pretrained(REPOSITORY)
    hub.commit(REPOSITORY, {"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"of type None, not an EideticModel"):
        EideticModel.from_pretrained(REPOSITORY)
    with pytest.raises(OSError, match="someone/nothing is not a local folder"):
        EideticModel.from_pretrained("someone/nothing")


def test_a_private_repository_is_loaded_with_a_token_alone(
    hub: HubServer, trained: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.deepcopy(trained).push_to_hub(REPOSITORY, private=True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert EideticModel.from_pretrained(REPOSITORY, token=hub.token).tasks == ["first", "second"]
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
    with pytest.raises(OSError, match=r"private|gated|token"):
        EideticModel.from_pretrained(REPOSITORY, token=False)


# -- tasks from a repository, in a model of one's own -----------------------------------------------------------------


@pytest.fixture
def on_base(hub: HubServer, tmp_path: Path) -> HubServer:
    """A Hub with a backbone, and a repository of two tasks that names it instead of holding it."""
    tiny_backbone("bert").push_to_hub("someone/backbone")
    model = EideticModel.from_backbone("someone/backbone", trunk_layers=1, growth="copy")
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path / name, seed, pruning=PruningConfig(own=0.1))
    model.push_to_hub(REPOSITORY, include_base=False)
    hub.reset()
    return hub


def test_a_repository_that_names_its_base_is_loaded_with_it_from_where_it_is(on_base: HubServer) -> None:
    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)  # of another machine
    files = on_base.files(REPOSITORY)
    assert not {"eidetic-base.safetensors", POOL} & set(files)
    loaded = EideticModel.from_pretrained(REPOSITORY)
    assert loaded.tasks == ["first", "second"] and loaded.verify().ok
    assert {"model.safetensors", FIRST, SECOND} <= downloaded(on_base)


def test_the_base_is_loaded_as_it_was_whatever_is_pushed_there_later(on_base: HubServer) -> None:
    tiny_backbone("bert", seed=1).push_to_hub("someone/backbone")
    assert EideticModel.from_pretrained(REPOSITORY).verify().ok


def test_a_task_of_a_repository_is_brought_into_a_model_of_the_same_base(on_base: HubServer) -> None:
    model = EideticModel.from_backbone("someone/backbone", trunk_layers=1, growth="copy")
    on_base.reset()
    model.load_task(REPOSITORY, "second")
    assert SECOND in downloaded(on_base) and "model.safetensors" not in downloaded(on_base)
    whole = EideticModel.from_pretrained(REPOSITORY)
    assert "second" in model.tasks and torch.equal(logits_of(model, "second"), logits_of(whole, "second"))
    assert model.verify().ok


def test_a_pipeline_answers_from_a_repository(hub: HubServer, trained: EideticModel) -> None:
    copy.deepcopy(trained).push_to_hub(REPOSITORY)
    word_tokenizer().push_to_hub(REPOSITORY)
    expected = pipeline("text-classification", model=copy.deepcopy(trained), tokenizer=word_tokenizer())(
        TEXT, task="second"
    )
    assert pipeline("text-classification", model=REPOSITORY)(TEXT, task="second") == expected
