"""What lies where in a checkpoint folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file
from support.backbones import tiny_model
from support.data import logits_of
from support.folders import (
    FIRST,
    INDEX,
    LEARNING,
    POOL,
    REST,
    SECOND,
    SHARDS,
    THIRD,
    TRUNK,
    answers,
    hashes,
    is_whole,
    same,
    shards,
)

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model.checkpoint.folder import COMMITTED, LOCK, REMOVALS
from eidetic_hf.model.checkpoint.layout import (
    by_owner,
    changing,
    finish_interrupted_save,
    owners_in,
    sha256_of,
    shard_file,
)
from eidetic_hf.model.checkpoint.read import read_config
from eidetic_hf.model.checkpoint.source import source_of
from eidetic_hf.views import owner_of


def test_folder_holds_one_shard_per_owner_and_no_model_safetensors(saved: Path) -> None:
    assert set(hashes(saved)) == SHARDS | REST
    assert {path.name for path in saved.iterdir() if path.is_dir()} == set()


def test_index_names_every_tensor_of_every_shard_and_no_other(saved: Path, trained: EideticModel) -> None:
    index = json.loads((saved / INDEX).read_text())
    held = {}
    for name in SHARDS:
        with safe_open(saved / name, framework="pt") as file:
            held.update(dict.fromkeys(file.keys(), name))
    assert index["weight_map"] == held
    assert set(held) == set(trained.state_dict())
    assert index["metadata"]["total_size"] == sum((saved / name).stat().st_size for name in SHARDS)


def test_every_tensor_lies_in_its_owners_shard(saved: Path) -> None:
    for task, file in (("first", FIRST), ("second", SECOND)):
        names = set(load_file(saved / file))
        assert all(f"@{task}" in name.split(".") for name in names)
        assert {f"heads.@{task}.classifier.weight", f"probes.@{task}.units_digests"} <= names
    assert not any("@" in name for name in [*load_file(saved / TRUNK), *load_file(saved / POOL)])


def test_every_shard_has_exactly_one_metadata_key(grown_saved: Path) -> None:
    for name in SHARDS | {THIRD}:
        with safe_open(grown_saved / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}, name


def test_config_records_size_and_sha256_of_every_shard(saved: Path) -> None:
    files = json.loads((saved / "config.json").read_text())["files"]
    found = hashes(saved)
    assert files == {n: {"sha256": found[n], "bytes": (saved / n).stat().st_size} for n in SHARDS}


@pytest.mark.parametrize(
    "name", ["a", "a.b.c", "-", "_x", "pool", "trunk", "learning", "keys", "weight", "9", "n" * 64]
)
def test_every_allowed_task_name_survives_saving_and_loading(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    model.add_task(name, labels=["x", "y"])
    model.begin_task(name)
    model.commit_task()
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / f"eidetic-task-{name}.safetensors").is_file()
    loaded = EideticModel.from_pretrained(tmp_path / "model", tasks=[name])
    assert loaded.tasks == [name] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, name), logits_of(model, name))


# -- names, owners and what both sides read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "file"),
    [
        ("trunk", TRUNK),
        ("pool", POOL),
        ("learning", LEARNING),
        ("@first", FIRST),
        ("@mail%2Ev2", "eidetic-task-mail.v2.safetensors"),
        ("@trunk", "eidetic-task-trunk.safetensors"),
    ],
)
def test_an_owner_has_a_file_of_its_own(owner: str, file: str) -> None:
    assert shard_file(owner) == file


def test_tensors_are_sorted_by_owner_without_a_copy(trained: EideticModel) -> None:
    state = trained.state_dict()
    owned = by_owner(state)
    assert set(owned) == {"trunk", "pool", "@first", "@second"}
    assert {name: owner for owner, tensors in owned.items() for name in tensors} == {n: owner_of(n) for n in state}
    assert all(tensor is state[name] for tensors in owned.values() for name, tensor in tensors.items())
    assert [name for name in state if name in owned["@first"]] == list(owned["@first"])


def test_a_released_checkpoint_holds_trunk_tasks_and_pool_in_this_order(saved: Path) -> None:
    config = read_config(source_of(saved, {}))
    assert owners_in(config) == ["trunk", "@first", "@second", "pool"]
    config.pool = False
    assert owners_in(config) == ["trunk", "@first", "@second"]


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * (1 << 15)  # longer than what is read at once
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_change_of_a_folder_that_is_held_is_a_checkpoint_error_and_a_reader_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eidetic_hf.model.checkpoint.folder.LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr("eidetic_hf.model.checkpoint.folder.PATIENCE_SECONDS", 0.1)
    (tmp_path / COMMITTED).mkdir()
    with FileLock(tmp_path / LOCK):
        with pytest.raises(CheckpointError, match="Another process has been saving"), changing(tmp_path):
            raise AssertionError("entered")
        finish_interrupted_save(tmp_path)
    assert (tmp_path / COMMITTED).is_dir()


def interrupted(model: EideticModel, folder: Path, with_pool: bool, removals: bool) -> None:
    """Leave a save of the model in the folder, cut off after its moment of change; with a list of removals or not."""
    model.save_pretrained(folder / COMMITTED, include_pool=with_pool)
    (folder / COMMITTED / LOCK).unlink()
    if removals:
        (folder / COMMITTED / REMOVALS).write_text("".join(f"{name}\n" for name in (POOL, LEARNING)[with_pool:]))


@pytest.mark.parametrize("removals", [False, True], ids=["as earlier code left it", "with a list"])
@pytest.mark.parametrize("with_pool", [True, False])
@pytest.mark.parametrize("moved", [False, True])
def test_an_interrupted_save_is_finished_with_or_without_a_list_of_removals(
    model: EideticModel, folder: Path, with_pool: bool, removals: bool, moved: bool
) -> None:
    (folder / LEARNING).write_bytes(b"of a task that is committed now")
    interrupted(model, folder, with_pool, removals)
    if moved:
        for name in [path.name for path in (folder / COMMITTED).glob("[!.]*")]:
            os.replace(folder / COMMITTED / name, folder / name)
    loaded = EideticModel.from_pretrained(folder)
    assert same(answers(loaded), answers(model)) and loaded.config.pool == with_pool
    assert is_whole(folder) and set(shards(folder)) == (SHARDS if with_pool else SHARDS - {POOL})


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}'])
def test_an_index_that_is_none_deletes_no_shard(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    (folder / COMMITTED).mkdir()
    finish_interrupted_save(folder)
    assert set(shards(folder)) == SHARDS and not (folder / COMMITTED).exists()
