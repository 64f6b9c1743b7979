"""Where the files of a checkpoint come from: a folder that others save to, links, pipes, and a commit on the Hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from support.data import logits_of
from support.folders import FIRST, INDEX, POOL, SECOND, answers, same

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model import loading
from eidetic_hf.model.checkpoint import read
from eidetic_hf.model.checkpoint.source import Folder, source_of


@pytest.mark.parametrize("where", ["missing", "./missing", "../missing"])
def test_a_path_that_leads_nowhere_is_not_asked_for_on_the_hub(where: str, tmp_path: Path) -> None:
    path = tmp_path / where if where == "missing" else where
    with pytest.raises(CheckpointError, match="does not exist: expected a checkpoint folder, or the id of"):
        EideticModel.from_pretrained(path)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        EideticModel.from_pretrained(folder / "config.json")


def test_a_subfolder_of_a_folder_is_loaded(folder: Path, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(folder.parent, subfolder=folder.name)
    assert same(answers(loaded), answers(trained))


def test_a_checkpoint_that_is_saved_to_while_it_is_read_is_read_anew(
    folder: Path, grown: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all = loading.shards_of_all
    times: list[int] = []

    def save_meanwhile(*arguments: object) -> list[read.Shard]:
        times.append(len(times))
        if len(times) == 1:  # between the configuration and the index
            grown.save_pretrained(folder)
        return read_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "shards_of_all", save_meanwhile)
    loaded = EideticModel.from_pretrained(folder)
    assert len(times) == 2
    assert loaded.tasks == ["first", "second", "third"] and same(answers(loaded), answers(grown))


def test_a_pool_that_is_replaced_while_it_is_read_is_read_anew(
    folder: Path, grown: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = loading.fill
    times: list[int] = []

    def save_meanwhile(*arguments: object) -> None:
        times.append(len(times))
        if len(times) == 1:  # between the headers and the data
            grown.save_pretrained(folder)
        fill(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "fill", save_meanwhile)
    loaded = EideticModel.from_pretrained(folder)
    assert len(times) == 2 and same(answers(loaded), answers(grown))


def test_damage_is_said_at_once_where_nobody_saves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / POOL).write_bytes(b"damage")
    made, before = [], Folder.__init__

    def counted(self: Folder, path: Path, where: str) -> None:
        made.append(path)
        before(self, path, where)

    monkeypatch.setattr(Folder, "__init__", counted)
    with pytest.raises(CheckpointError, match=f"{POOL} is truncated: 6 bytes"):
        EideticModel.from_pretrained(folder)
    assert len(made) == 1


@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file"):
        EideticModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_a_folder_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} (is not a regular file|can not be opened)"):
        EideticModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX, FIRST])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, name: str, tmp_path: Path) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"is a link to .*elsewhere, outside of the checkpoint folder\. Not read"
    ):
        EideticModel.from_pretrained(folder)


def test_a_link_within_the_folder_and_a_link_to_the_folder_are_followed(
    folder: Path, trained: EideticModel, tmp_path: Path
) -> None:
    shutil.move(folder / SECOND, folder / "kept-elsewhere")
    (folder / SECOND).symlink_to("kept-elsewhere")
    (tmp_path / "link").symlink_to(folder)
    assert same(answers(EideticModel.from_pretrained(tmp_path / "link")), answers(trained))


def test_a_snapshot_in_the_cache_of_the_hub_is_a_folder_of_links_to_blobs(
    folder: Path, trained: EideticModel, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    loaded = EideticModel.from_pretrained(snapshot, tasks=["first"])
    assert torch.equal(logits_of(loaded, "first"), logits_of(trained, "first"))


def test_a_folder_has_no_commit(folder: Path) -> None:
    assert source_of(folder, {}).commit is None
