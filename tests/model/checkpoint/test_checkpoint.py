"""The checkpoint folder: what lies in it, what never changes, and what a crash, a full disk or a rival may do."""

from __future__ import annotations

import copy
import errno
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from support.backbones import CONFIGS, tiny_backbone, tiny_model
from support.data import learn, logits_of, make_batch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig

import eidetic_hf
from eidetic_hf import CheckpointError, EideticConfig, EideticModel, PruningConfig, TaskError
from eidetic_hf.model import checkpoint
from eidetic_hf.network.layers import TaskLinear

TRUNK, POOL, INDEX = "eidetic-trunk.safetensors", "eidetic-pool.safetensors", "model.safetensors.index.json"
LEARNING = "eidetic-learning.safetensors"
FIRST, SECOND, THIRD = (f"eidetic-task-{name}.safetensors" for name in ("first", "second", "third"))
SHARDS = {TRUNK, FIRST, SECOND, POOL}
REST = {"config.json", INDEX, "README.md"}


# -- what the tests share ---------------------------------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but hidden ones."""
    return {path.name: checkpoint.sha256_of(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of every shard of a folder."""
    return {name: sha256 for name, sha256 in hashes(folder).items() if name.endswith(".safetensors")}


def answers(model: EideticModel) -> dict[str, Tensor]:
    """Logits of every task that the model answers for."""
    return {name: logits_of(model, name) for name in model.tasks}


def same(answers_now: dict[str, Tensor], answers_then: dict[str, Tensor]) -> bool:
    """Whether both answer for the same tasks, bit for bit."""
    return list(answers_now) == list(answers_then) and all(
        torch.equal(logits, answers_then[name]) for name, logits in answers_now.items()
    )


def changed(now: dict[str, Tensor], then: dict[str, Tensor]) -> list[str]:
    """Names of the tensors whose bytes differ (NaN equals NaN)."""

    def content(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    assert set(now) == set(then)
    return [name for name in now if not torch.equal(content(now[name]), content(then[name]))]


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds exactly one complete checkpoint, and nothing of an interrupted save."""
    files = json.loads((folder / "config.json").read_text())["files"]
    found = hashes(folder)
    left = {name for name in os.listdir(folder) if name.startswith(".")} - {checkpoint.LOCK}
    return set(found) == {*files, *REST} and not left and all(found[n] == f["sha256"] for n, f in files.items())


@pytest.fixture(scope="module")
def trainer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Trainer leaves its checkpoints while `grown` learns its third task."""
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def grown(trained: EideticModel, trainer_folder: Path) -> EideticModel:
    """A copy of `trained` that has learned `third`, too."""
    model = copy.deepcopy(trained)
    learn(model, "third", trainer_folder, seed=2, save_strategy="steps", save_steps=6)
    return model


@pytest.fixture(scope="module")
def saved(trained: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `trained`. Shared: use `folder` to change it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    copy.deepcopy(trained).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def grown_saved(grown: EideticModel, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `grown`, saved over a copy of `saved`."""
    path = Path(shutil.copytree(saved, tmp_path_factory.mktemp("grown") / "model"))
    copy.deepcopy(grown).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture
def model(trained: EideticModel) -> EideticModel:
    """A copy of `trained` of the test's own."""
    return copy.deepcopy(trained)


# -- the folder -------------------------------------------------------------------------------------------------------


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
        assert {f"heads.@{task}.classifier.weight", f"probes.@{task}.digests"} <= names
    assert not any("@" in name for name in [*load_file(saved / TRUNK), *load_file(saved / POOL)])


def test_every_shard_has_exactly_one_metadata_key(grown_saved: Path) -> None:
    for name in SHARDS | {THIRD}:
        with safe_open(grown_saved / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}, name


def test_config_records_size_and_sha256_of_every_shard(saved: Path) -> None:
    files = json.loads((saved / "config.json").read_text())["files"]
    found = hashes(saved)
    assert files == {n: {"sha256": found[n], "bytes": (saved / n).stat().st_size} for n in SHARDS}


def test_saving_the_same_model_twice_changes_no_byte(model: EideticModel, folder: Path, saved: Path) -> None:
    model.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


def test_old_shards_keep_their_bytes_when_tasks_are_learned_and_saved_to_the_same_folder(
    grown_saved: Path, saved: Path
) -> None:
    then, now = hashes(saved), hashes(grown_saved)
    assert {name: now[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: then[name] for name in (TRUNK, FIRST, SECOND)
    }
    assert set(now) == SHARDS | REST | {THIRD}
    assert now[POOL] != then[POOL]


def test_old_shards_are_not_written_again_in_the_same_folder(grown: EideticModel, folder: Path) -> None:
    before = {name: (folder / name).stat() for name in (TRUNK, FIRST, SECOND)}
    copy.deepcopy(grown).save_pretrained(folder)
    for name, stat in before.items():
        now = (folder / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), name


def test_a_fresh_folder_gets_the_same_bytes(grown: EideticModel, grown_saved: Path, tmp_path: Path) -> None:
    copy.deepcopy(grown).save_pretrained(tmp_path / "fresh")
    assert hashes(tmp_path / "fresh") == hashes(grown_saved)


def test_old_shards_keep_their_bytes_when_a_loaded_model_learns_on(saved: Path, folder: Path, tmp_path: Path) -> None:
    loaded = EideticModel.from_pretrained(folder)
    learn(loaded, "third", tmp_path / "run", seed=2)
    loaded.save_pretrained(folder)
    loaded.save_pretrained(tmp_path / "fresh")
    then, now, fresh = hashes(saved), hashes(folder), hashes(tmp_path / "fresh")
    for name in (TRUNK, FIRST, SECOND):
        assert then[name] == now[name] == fresh[name]
    assert now == fresh


def test_learning_on_a_loaded_model_gives_the_same_third_shard_as_learning_on_in_memory(
    grown_saved: Path, saved: Path, tmp_path: Path
) -> None:
    loaded = EideticModel.from_pretrained(saved)
    learn(loaded, "third", tmp_path / "run", seed=2)
    loaded.save_pretrained(tmp_path / "fresh")
    then, now = load_file(grown_saved / THIRD), load_file(tmp_path / "fresh" / THIRD)
    assert changed(now, then) == []


def test_a_missing_shard_is_written_again_with_the_same_bytes(model: EideticModel, folder: Path, saved: Path) -> None:
    (folder / FIRST).unlink()
    model.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_folder_with_a_damaged_shard_loads_after_a_save_that_succeeded(
    grown: EideticModel, folder: Path, damage: str
) -> None:
    content = bytearray((folder / FIRST).read_bytes())
    content[-1] ^= 1
    (folder / FIRST).write_bytes(content[:-8] if damage == "truncated" else content)
    try:
        copy.deepcopy(grown).save_pretrained(folder)
    except CheckpointError as error:
        assert FIRST in str(error)
    else:
        assert same(answers(EideticModel.from_pretrained(folder)), answers(grown))


def test_an_untrained_model_can_be_saved_loaded_and_replaced(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.tasks == []
    assert changed(loaded.state_dict(), model.state_dict()) == []
    learn(loaded, "first", tmp_path / "run")
    loaded.save_pretrained(tmp_path / "model")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "model")), answers(loaded))


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


def test_config_names_no_folder_of_this_machine(folder: Path, tmp_path: Path) -> None:
    EideticModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    assert hashes(tmp_path / "again") == hashes(folder)


# -- loading ----------------------------------------------------------------------------------------------------------


def test_loaded_model_equals_the_saved_one(saved: Path, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(saved)
    state = trained.state_dict()
    assert changed(loaded.state_dict(), state) == []
    assert same(answers(loaded), answers(trained))
    assert loaded.verify().ok and not loaded.training and list(loaded.parameters()) == []
    assert loaded.capacity() == trained.capacity()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_backbone_given_as_a_model_can_be_loaded_again(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.verify().ok
    assert torch.equal(logits_of(loaded, "only"), logits_of(model, "only"))


def test_a_backbone_given_as_a_folder_can_be_loaded_again(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "bert")
    model = EideticModel.from_backbone(tmp_path / "bert", trunk_layers=1)
    learn(model, "only", tmp_path / "run")
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "bert")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "model")), answers(model))


def test_a_model_whose_first_task_trained_the_trunk_can_be_loaded_again(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1)
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path / "run", seed)
        model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.verify().ok and same(answers(loaded), answers(model))


def test_a_model_without_free_units_and_one_that_was_expanded_can_be_loaded_again(tmp_path: Path) -> None:
    model = tiny_model()
    for seed, (name, on_exhausted) in enumerate([("all", "private"), ("none", "private"), ("new", "expand")]):
        pruning = PruningConfig(keep=1.0, on_exhausted=on_exhausted, expand_by=0.25)
        learn(model, name, tmp_path / "run", seed, pruning)
        model.save_pretrained(tmp_path / "model")
        loaded = EideticModel.from_pretrained(tmp_path / "model")
        assert loaded.verify().ok and same(answers(loaded), answers(model))
        assert loaded.capacity() == model.capacity()
    assert model.config.expanded and model.capacity()["owned"]["none"] == 0


def test_a_model_in_bfloat16_can_be_loaded_again(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16 and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "only"), logits_of(model, "only"))


ANSWER = """
import sys
import torch
from safetensors.torch import load_file, save_file
from eidetic_hf import EideticModel

folder, inputs, outputs, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = EideticModel.from_pretrained(folder)
assert model.verify().ok
with torch.no_grad():
    save_file({name: model(**load_file(inputs), task=name).logits for name in model.tasks}, outputs)
"""


@pytest.mark.slow
def test_a_new_process_answers_with_the_same_bits(grown: EideticModel, grown_saved: Path, tmp_path: Path) -> None:
    save_file(make_batch(), tmp_path / "inputs.safetensors")
    arguments = [
        grown_saved,
        tmp_path / "inputs.safetensors",
        tmp_path / "outputs.safetensors",
        torch.get_num_threads(),
    ]
    subprocess.run([sys.executable, "-c", ANSWER, *map(str, arguments)], check=True, env=child_environment())
    logits = load_file(tmp_path / "outputs.safetensors")
    assert same({name: logits[name] for name in grown.tasks}, answers(grown))


def child_environment() -> dict[str, str]:
    """The environment for a process that imports the same package."""
    source = str(Path(eidetic_hf.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_the_auto_classes_load_the_folder(auto: Any, saved: Path, trained: EideticModel) -> None:
    loaded = auto.from_pretrained(saved)
    assert type(loaded) is EideticModel
    assert same(answers(loaded), answers(trained))


def test_auto_config_loads_the_folder(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert type(config) is EideticConfig and [task.name for task in config.tasks] == ["first", "second"]
    assert isinstance(config.base_config, BertConfig)
    assert [config.id2label[index] for index in range(6)] == [f"{t}/{x}" for t in ("first", "second") for x in "xyz"]


@pytest.mark.parametrize(
    "auto",
    [
        EideticModel,
        AutoModel,
        AutoModelForSequenceClassification,
    ],
)
def test_loading_one_task_reads_only_the_shards_that_it_needs(auto: Any, trained: EideticModel, folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / POOL).write_bytes(b"poison")
    loaded = auto.from_pretrained(folder, tasks=["first"])
    assert loaded.tasks == ["first"] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "first"), logits_of(trained, "first"))


def test_loading_a_task_reads_its_ancestors_shards_but_does_not_answer_for_them(
    trained: EideticModel, folder: Path
) -> None:
    (folder / POOL).unlink()
    loaded = EideticModel.from_pretrained(folder, tasks=["second"])
    assert loaded.tasks == ["second"] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "second"), logits_of(trained, "second"))
    assert list(loaded.config.id2label.values()) == ["second/x", "second/y", "second/z"]
    with pytest.raises(TaskError, match=r"no task 'first'. Committed are \['second'\]"):
        loaded(**make_batch(), task="first")
    (folder / FIRST).unlink()
    with pytest.raises(CheckpointError, match=f"no {FIRST}: the checkpoint is incomplete"):
        EideticModel.from_pretrained(folder, tasks=["second"])


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_task_without_forward_transfer_needs_no_other_tasks_shard(tmp_path: Path, name: str) -> None:
    model = tiny_model(forward_transfer="none")
    for seed, task in enumerate(("first", "second")):
        learn(model, task, tmp_path / "run", seed)
    model.save_pretrained(tmp_path / "model")
    for file in {FIRST, SECOND, POOL} - {f"eidetic-task-{name}.safetensors"}:
        (tmp_path / "model" / file).unlink()
    loaded = EideticModel.from_pretrained(tmp_path / "model", tasks=[name])
    assert loaded.tasks == [name] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, name), logits_of(model, name))


@pytest.mark.parametrize("names", [["first"], ["second"], ["first", "second"]])
def test_a_model_of_some_tasks_learns_nothing_and_is_not_saved_over_the_whole(
    folder: Path, saved: Path, names: list[str], tmp_path: Path
) -> None:
    loaded = EideticModel.from_pretrained(folder, tasks=names)
    with pytest.raises(TaskError, match="Load the whole checkpoint to learn a new task"):
        loaded.add_task("third", labels=["x", "y"])
    with pytest.raises(CheckpointError, match="another folder"):
        loaded.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)
    loaded.save_pretrained(tmp_path / "part")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "part")), answers(loaded))
    for task, file in (("first", FIRST), ("second", SECOND)):
        if task in names:
            assert hashes(tmp_path / "part")[file] == hashes(saved)[file]


def test_loading_a_read_only_folder_works_and_changes_nothing(folder: Path, trained: EideticModel) -> None:
    (folder / checkpoint.LOCK).unlink()
    before = hashes(folder)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        loaded = EideticModel.from_pretrained(folder)
        names = set(os.listdir(folder))
    finally:
        folder.chmod(0o755)
    assert same(answers(loaded), answers(trained))
    assert hashes(folder) == before and names == SHARDS | REST


def test_a_loaded_model_does_not_depend_on_the_files_any_more(folder: Path, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(folder)
    for name in SHARDS:  # in place, as a memory map would see it
        with open(folder / name, "r+b") as file:
            file.write(b"\xff" * (folder / name).stat().st_size)
    assert same(answers(loaded), answers(trained))
    assert loaded.verify().ok


# -- inference-only releases ------------------------------------------------------------------------------------------


def test_a_release_without_the_pool_infers_the_same_and_learns_nothing(
    model: EideticModel, saved: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    found = hashes(tmp_path / "release")
    assert set(found) == SHARDS - {POOL} | REST
    assert {name: found[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: hashes(saved)[name] for name in (TRUNK, FIRST, SECOND)
    }
    loaded = EideticModel.from_pretrained(tmp_path / "release")
    assert same(answers(loaded), answers(model))
    assert loaded.verify().ok and loaded.capacity()["free"] == 0
    with pytest.raises(TaskError, match=r"no pool.*Load the whole checkpoint"):
        loaded.add_task("third", labels=["x", "y"])
    loaded.save_pretrained(tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "release")
    assert model.config.pool  # the model itself goes on learning
    model.add_task("third", labels=["x", "y"])


@pytest.mark.parametrize("loaded", [False, True])
def test_a_release_without_the_pool_is_not_saved_over_the_whole(
    model: EideticModel, folder: Path, saved: Path, tmp_path: Path, loaded: bool
) -> None:
    if loaded:
        model.save_pretrained(tmp_path / "release", include_pool=False)
        model = EideticModel.from_pretrained(tmp_path / "release")
    with pytest.raises(
        CheckpointError, match=r"pool of free units.*Save the inference-only release to another folder"
    ):
        model.save_pretrained(folder, include_pool=False)
    assert hashes(folder) == hashes(saved)


def test_the_whole_model_can_be_saved_over_its_release(model: EideticModel, saved: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    model.save_pretrained(tmp_path / "release")
    assert hashes(tmp_path / "release") == hashes(saved)


def test_a_model_of_some_tasks_is_not_saved_over_a_release_that_answers_for_more(
    model: EideticModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    part = EideticModel.from_pretrained(tmp_path / "release", tasks=["second"])
    with pytest.raises(CheckpointError, match="another folder"):
        part.save_pretrained(tmp_path / "release")
    assert EideticModel.from_pretrained(tmp_path / "release").tasks == ["first", "second"]


# -- crashes ----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops: no `except Exception` tidies up."""


STEPS: list[tuple[Any, str]] = [
    (checkpoint, "save_file"),
    (EideticConfig, "to_json_file"),
    (Path, "write_text"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (os, "replace"),
    (os, "rename"),
    (os, "fsync"),
]
WRITES = STEPS[:3]
WAYS = pytest.mark.parametrize(("mode", "steps"), [("before", STEPS), ("torn", WRITES)], ids=["stopped", "torn"])


@contextmanager
def failing(
    at: int, error: Callable[[], BaseException], mode: str, steps: list[tuple[Any, str]]
) -> Iterator[list[str]]:
    """Fail at the `at`-th of these calls: before it is done, or after, when half of a file that it writes is there."""
    calls: list[str] = []

    def sabotaged(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 != at:
                return real(*args, **kwargs)
            if mode != "before":
                real(*args, **kwargs)
                if name in ("save_file", "to_json_file", "write_text"):
                    path = Path(args[0] if name == "write_text" else args[1])
                    os.truncate(path, path.stat().st_size // 2)
            raise error()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in steps:
            patch.setattr(owner, name, sabotaged(getattr(owner, name), name))
        yield calls


@WAYS
def test_a_crash_at_any_instruction_leaves_the_old_or_the_new_checkpoint_whole(
    grown: EideticModel, saved: Path, grown_saved: Path, tmp_path: Path, mode: str, steps: list[tuple[Any, str]]
) -> None:
    grown = copy.deepcopy(grown)
    new = answers(grown)
    old, expected = {name: new[name] for name in ("first", "second")}, hashes(grown_saved)
    seen = []
    for at in itertools.count():
        folder = Path(shutil.copytree(saved, tmp_path / str(at)))
        try:
            with failing(at, Crash, mode, steps) as calls:
                grown.save_pretrained(folder)
        except Crash:
            pass
        else:
            break
        loaded = EideticModel.from_pretrained(folder)
        now = answers(loaded)
        assert same(now, old) or same(now, new), (at, calls)
        assert loaded.verify().ok
        seen.append(len(now))
        grown.save_pretrained(folder)
        assert is_whole(folder) and hashes(folder) == expected, (at, calls)
        shutil.rmtree(folder)
    assert is_whole(folder) and hashes(folder) == expected
    assert {"save_file", "write_text", *(("replace", "fsync", "rmdir") if mode == "before" else ())} <= set(calls)
    # One moment of change; the files are written before it.
    assert seen == sorted(seen) and set(seen) == ({2, 3} if mode == "before" else {2})


@WAYS
def test_a_crash_in_the_first_save_leaves_no_checkpoint_or_a_whole_one(
    model: EideticModel, saved: Path, tmp_path: Path, mode: str, steps: list[tuple[Any, str]]
) -> None:
    expected = answers(model)
    seen = []
    for at in itertools.count():
        folder = tmp_path / str(at)
        try:
            with failing(at, Crash, mode, steps):
                model.save_pretrained(folder)
        except Crash:
            pass
        else:
            break
        if folder.exists():
            try:
                assert same(answers(EideticModel.from_pretrained(folder)), expected)
                seen.append(True)
            except CheckpointError as error:
                assert "has no config.json: the checkpoint is incomplete" in str(error)
                seen.append(False)
        model.save_pretrained(folder)
        assert is_whole(folder) and hashes(folder) == hashes(saved)
    assert seen == sorted(seen) and set(seen) == ({False, True} if mode == "before" else {False})


def test_a_save_that_crashed_can_be_completed_by_readers_that_crash_too(
    grown: EideticModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(grown)

    def crash(folder: Path) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(checkpoint, "_complete", lambda f: crash(f) if (f / checkpoint.COMMITTED).exists() else None)
        copy.deepcopy(grown).save_pretrained(folder)
    crashes = 0
    while (folder / checkpoint.COMMITTED).exists():
        try:
            with failing(0, Crash, "after", [(os, "replace")]):
                EideticModel.from_pretrained(folder)
        except Crash:
            crashes += 1
    assert crashes == 5  # each reader moved one file: two shards, index, config and card
    assert same(answers(EideticModel.from_pretrained(folder)), expected) and is_whole(folder)


def test_a_save_that_crashed_in_a_folder_that_is_now_read_only_is_read_from_where_it_is(
    grown: EideticModel, folder: Path
) -> None:
    with pytest.raises(Crash), failing(1, Crash, "after", [(os, "replace")]):
        copy.deepcopy(grown).save_pretrained(folder)
    assert (folder / checkpoint.COMMITTED).is_dir()
    with pytest.MonkeyPatch.context() as patch:

        def read_only(*args: Any) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        patch.setattr(os, "replace", read_only)
        loaded = EideticModel.from_pretrained(folder)
    assert same(answers(loaded), answers(grown))
    assert (folder / checkpoint.COMMITTED).is_dir()


# -- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_full_disk_at_any_file_leaves_the_folder_as_it_was_and_says_so(
    grown: EideticModel, folder: Path, mode: str
) -> None:
    grown = copy.deepcopy(grown)
    before = hashes(folder)
    failed = []
    for at in itertools.count():
        try:
            with failing(at, lambda: OSError(errno.ENOSPC, "No space left on device"), mode, WRITES) as calls:
                grown.save_pretrained(folder)
        except OSError as error:
            failed.append(calls[-1])
            assert re.search("No space left on device.*checkpoint there is unchanged", str(error))
            assert error.errno == errno.ENOSPC
            assert hashes(folder) == before and is_whole(folder)
        else:
            break
    assert failed == ["save_file", "save_file", "write_text", "to_json_file", "write_text"]
    assert same(answers(EideticModel.from_pretrained(folder)), answers(grown))


def test_an_error_of_the_safetensors_writer_leaves_the_folder_as_it_was_and_says_so(
    grown: EideticModel, folder: Path
) -> None:
    before = hashes(folder)
    error = SafetensorError("Error while serializing: I/O error: No space left on device")
    with pytest.raises(OSError, match=r"No space left.*unchanged"), failing(1, lambda: error, "after", WRITES):
        copy.deepcopy(grown).save_pretrained(folder)
    assert hashes(folder) == before and is_whole(folder)


# -- several processes ------------------------------------------------------------------------------------------------

SAVE = """
import json, sys, time
from pathlib import Path
from eidetic_hf import CheckpointError, EideticModel

me, other, meeting, jobs = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
results = []
for number, (source, target) in enumerate(jobs):
    model = EideticModel.from_pretrained(source)
    (meeting / f"{number}-{me}").touch()
    while not (meeting / f"{number}-{other}").exists():
        time.sleep(0.0005)
    try:
        model.save_pretrained(target)
        results.append("saved")
    except CheckpointError as error:
        results.append(str(error))
(meeting / f"{me}.json").write_text(json.dumps(results))
"""
ROUNDS = 3


@pytest.fixture(scope="module")
def raced(
    saved: Path, grown_saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[Path, list[str]]]]:
    """Two processes that save at the same time, `ROUNDS` times: to what folder, and what came of it in each."""
    base = tmp_path_factory.mktemp("raced")
    rival = EideticModel.from_pretrained(saved)
    learn(rival, "rival", base / "run", seed=7)
    rival.save_pretrained(base / "rival")
    jobs: list[tuple[str, Path, tuple[Path, Path]]] = []
    for number in range(ROUNDS):
        jobs.append(("same", base / f"same-{number}", (grown_saved, grown_saved)))
        jobs.append(("diverged, fresh folder", base / f"fresh-{number}", (grown_saved, base / "rival")))
        shutil.copytree(saved, base / f"old-{number}")
        jobs.append(("diverged, old folder", base / f"old-{number}", (grown_saved, base / "rival")))
    meeting = tmp_path_factory.mktemp("meeting")
    processes = []
    for me in (0, 1):
        mine = json.dumps([(str(sources[me]), str(target)) for _, target, sources in jobs])
        command = [sys.executable, "-c", SAVE, str(me), str(1 - me), str(meeting), mine]
        processes.append(subprocess.Popen(command, env=child_environment()))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    results = [json.loads((meeting / f"{me}.json").read_text()) for me in (0, 1)]
    outcome: dict[str, list[tuple[Path, list[str]]]] = {}
    for (kind, target, _), *both in zip(jobs, *results, strict=True):
        outcome.setdefault(kind, []).append((target, both))
    return outcome


@pytest.mark.slow
def test_two_processes_can_save_the_same_model_to_one_folder(
    raced: dict[str, list[tuple[Path, list[str]]]], grown: EideticModel, grown_saved: Path
) -> None:
    for target, results in raced["same"]:
        assert results == ["saved", "saved"]
        assert is_whole(target) and shards(target) == shards(grown_saved)
        assert same(answers(EideticModel.from_pretrained(target)), answers(grown))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diverged, fresh folder", "diverged, old folder"])
def test_of_two_processes_that_have_diverged_only_the_first_saves(
    raced: dict[str, list[tuple[Path, list[str]]]], grown: EideticModel, kind: str
) -> None:
    for target, results in raced[kind]:
        assert sorted(result == "saved" for result in results) == [False, True], results
        winner = results.index("saved")
        lost = ("third", "rival")[winner]
        assert re.search(
            f"holds the task '{lost}', which this model does not have.*Load .* again", results[1 - winner]
        )
        loaded = EideticModel.from_pretrained(target)
        assert loaded.tasks == ["first", "second", lost] and loaded.verify().ok and is_whole(target)
        assert torch.equal(logits_of(loaded, "first"), logits_of(grown, "first"))


def test_another_model_with_a_task_of_the_same_name_is_not_saved_over_this_one(
    folder: Path, saved: Path, tmp_path: Path
) -> None:
    other = tiny_model()
    for seed, name in ((5, "first"), (6, "second")):
        learn(other, name, tmp_path / "run", seed)
    with pytest.raises(CheckpointError, match=r"another 'first' than this model.*Save to another folder"):
        other.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)


def test_a_folder_that_another_process_holds_is_not_written_to(
    grown: EideticModel, folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "LOCK_TIMEOUT_SECONDS", 0.2)
    with FileLock(folder / checkpoint.LOCK):
        start = time.monotonic()
        with pytest.raises(
            CheckpointError, match=r"Another process has been saving.*Nothing was written; wait for it"
        ):
            copy.deepcopy(grown).save_pretrained(folder)
        assert time.monotonic() - start < 5
    assert hashes(folder) == hashes(saved)
    copy.deepcopy(grown).save_pretrained(folder)
    assert is_whole(folder)


# -- the model card ---------------------------------------------------------------------------------------------------


def test_the_card_lists_every_task_with_its_sha256(grown_saved: Path, grown: EideticModel) -> None:
    text = (grown_saved / "README.md").read_text()
    found = hashes(grown_saved)
    for name in grown.tasks:
        file, owned = f"eidetic-task-{name}.safetensors", grown.capacity()["owned"][name]
        row = rf"^\| {name} \| sequence-classification \| 3 \| .* \| {owned} \| `{file}` \| `{found[file]}` \|$"
        assert re.search(row, text, re.MULTILINE)
    assert text.startswith("---\n") and "library_name: eidetic_hf" in text
    assert "new tasks can be learned" in text


def test_the_card_of_a_release_says_that_it_only_infers(model: EideticModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "release", include_pool=False)
    assert "inference only" in (tmp_path / "release" / "README.md").read_text()


def test_what_a_person_wrote_around_the_table_stays(grown: EideticModel, folder: Path) -> None:
    path = folder / "README.md"
    _, rest = path.read_text().split(checkpoint.CARD_BEGIN)
    mine, after = "# My model — für alle\n\nKept.\n", "\n## My notes\n\nKept, too.\n"
    path.write_text(mine + checkpoint.CARD_BEGIN + rest + after)
    copy.deepcopy(grown).save_pretrained(folder)
    text = path.read_text()
    assert text.startswith(mine) and text.endswith(after)
    assert "| third |" in text and text.count("| first |") == 1


def test_a_readme_that_a_person_wrote_without_the_markers_stays(model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My own model card\n\nWritten by hand.\n")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Written by hand." in text and "| first |" in text


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, 12])
def test_a_trainer_checkpoint_is_no_release_and_says_how_to_resume(
    grown: EideticModel, trainer_folder: Path, step: int
) -> None:
    folder = trainer_folder / f"checkpoint-{step}"
    assert (folder / LEARNING).is_file()
    with pytest.raises(CheckpointError, match=r"in the middle of learning 'third'.*resume_from_checkpoint="):
        EideticModel.from_pretrained(folder)


def test_a_trainer_checkpoint_holds_the_committed_shards_byte_for_byte(
    grown: EideticModel, trainer_folder: Path, saved: Path
) -> None:
    found = hashes(trainer_folder / "checkpoint-6")
    assert {name: found[name] for name in (TRUNK, FIRST, SECOND)} == {
        name: hashes(saved)[name] for name in (TRUNK, FIRST, SECOND)
    }


def test_saving_while_a_task_is_being_learned_leaves_a_release_loadable(
    model: EideticModel, folder: Path, trained: EideticModel
) -> None:
    model.add_task("third", labels=["x", "y"])
    model.begin_task("third")
    with pytest.raises(CheckpointError):
        model.save_pretrained(folder)
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


@pytest.mark.parametrize("weights", [True, False])
def test_a_folder_of_another_model_is_never_written_to(model: EideticModel, tmp_path: Path, weights: bool) -> None:
    tiny_backbone().save_pretrained(tmp_path / "bert")
    if not weights:
        (tmp_path / "bert" / "model.safetensors").unlink()
    before = hashes(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"another kind.*model_type='bert'.*save to an empty folder"):
        model.save_pretrained(tmp_path / "bert")
    assert hashes(tmp_path / "bert") == before


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_stray_weights_of_another_model_are_never_hidden(model: EideticModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=f"{name} of another model.*Save to an empty folder"):
        model.save_pretrained(tmp_path)
    assert hashes(tmp_path).keys() == {name} and (tmp_path / name).read_bytes() == b"weights"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
    ],
)
def test_a_folder_whose_config_is_no_configuration_is_never_written_to(
    model: EideticModel, folder: Path, content: str
) -> None:
    (folder / "config.json").write_text(content)
    before = hashes(folder)
    with pytest.raises(CheckpointError, match=r"[Ss]ave to an empty folder"):
        model.save_pretrained(folder)
    assert hashes(folder) == before


def test_a_file_in_place_of_the_folder_is_refused(model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="is a file, expected a folder"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


LENGTHS = [int.from_bytes(magic, "little") for magic in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_shard_whose_header_length_looks_like_the_start_of_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / FIRST
    for size in range(length - 200, length):  # a safetensors file starts with the length of its header
        name = "n" * size
        save_file({name: torch.ones(2)}, path, metadata={"format": "pt"})
        if path.read_bytes()[:8] == length.to_bytes(8, "little"):
            break
    recorded = {"bytes": path.stat().st_size, "sha256": checkpoint.sha256_of(path)}
    assert torch.equal(checkpoint._read_shard(path, recorded, {name})[name], torch.ones(2))


@pytest.mark.parametrize("where", ["config.json", INDEX])
def test_a_folder_in_a_future_format_is_not_read(folder: Path, where: str) -> None:
    future = checkpoint.FORMAT_VERSION + 1
    edit_json(folder / where, lambda v: (v if where == "config.json" else v["metadata"]).update(format_version=future))
    with pytest.raises(CheckpointError, match="Upgrade with: pip install -U eidetic-hf"):
        EideticModel.from_pretrained(folder)


def test_a_folder_in_a_future_format_is_not_written_to(grown: EideticModel, folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values.update(format_version=checkpoint.FORMAT_VERSION + 1))
    before = hashes(folder)
    with pytest.raises(CheckpointError, match=r"Upgrade|another folder|empty folder"):
        copy.deepcopy(grown).save_pretrained(folder)
    assert hashes(folder) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "bfloat16"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_model_in_another_dtype_is_not_saved(
    folder: Path, saved: Path, tmp_path: Path, dtype: torch.dtype | str, fresh: bool
) -> None:
    loaded = EideticModel.from_pretrained(folder, dtype=dtype)
    target = tmp_path / "fresh" if fresh else folder
    with pytest.raises(CheckpointError, match=r"committed in float32.*Load the checkpoint with dtype=torch.float32"):
        loaded.save_pretrained(target)
    assert hashes(folder) == hashes(saved)
    assert not (tmp_path / "fresh").exists()


CHANGED = [
    "backbone.embeddings.word_embeddings.weight",
    "backbone.encoder.layer.0.output.dense.bias",
    "backbone.encoder.layer.1.attention.self.query.segments.@first.weight",
    "backbone.encoder.layer.2.output.dense.segments.@second.weight",
    "backbone.encoder.layer.2.output.dense.biases.@second",
    "backbone.encoder.layer.1.output.LayerNorm.tasks.@first.weight",
    "groups.layers_1_neurons.gates.@second",
    "heads.@second.classifier.bias",
]


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_committed_tensor_that_changed_in_memory_is_not_saved(
    model: EideticModel, folder: Path, saved: Path, tmp_path: Path, name: str, fresh: bool
) -> None:
    tensor = model.state_dict()[name]
    tensor.view(-1)[0] += 1
    with pytest.raises(CheckpointError, match=f"changed in memory, first in {re.escape(name)}.*last good checkpoint"):
        model.save_pretrained(tmp_path / "fresh" if fresh else folder)
    assert hashes(folder) == hashes(saved)
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("learning", [False, True])
def test_load_state_dict_never_writes_a_committed_tensor(model: EideticModel, name: str, learning: bool) -> None:
    if learning:
        model.add_task("third", labels=["x", "y"])
        model.begin_task("third")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"another {re.escape(name)} than this model, and it is frozen"):
        model.load_state_dict({**before, name: before[name] + 1})
    assert changed(model.state_dict(), before) == []
    model.abandon_task()
    assert model.verify().ok


def test_load_state_dict_takes_the_models_own_state_and_changes_nothing(model: EideticModel) -> None:
    before, expected = {k: t.clone() for k, t in model.state_dict().items()}, answers(model)
    model.load_state_dict(before)
    assert changed(model.state_dict(), before) == []
    assert same(answers(model), expected) and all(layer.is_packed() for layer in task_linears(model))


# -- copies -----------------------------------------------------------------------------------------------------------


def task_linears(model: EideticModel) -> list[TaskLinear]:
    """All projections above the trunk."""
    return [module for module in model.modules() if isinstance(module, TaskLinear)]


def through_torch(model: EideticModel) -> EideticModel:
    """The model, saved and loaded with `torch.save`."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_torch])
def test_a_copy_answers_with_the_same_bits_and_shares_nothing(
    trained: EideticModel, duplicate: Callable[[EideticModel], EideticModel], tmp_path: Path
) -> None:
    expected = answers(trained)
    twin = duplicate(trained)
    assert same(answers(twin), expected)
    assert twin.verify().ok and all(layer.is_packed() for layer in task_linears(twin))
    learn(twin, "third", tmp_path / "run", seed=2)
    assert same({name: logits_of(twin, name) for name in expected}, expected)
    assert twin.verify().ok
    for tensor in twin.state_dict().values():
        tensor.zero_()
    assert trained.tasks == ["first", "second"] and same(answers(trained), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_torch])
def test_a_copy_made_while_a_task_is_being_learned_is_a_model_of_its_own(
    model: EideticModel, duplicate: Callable[[EideticModel], EideticModel]
) -> None:
    model.add_task("third", labels=["x", "y"])
    model.begin_task("third")
    twin = duplicate(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(7)
    twin.learner.take_snapshot("good")
    kept = twin.learner._snapshot("good")
    assert {float(t.min()) for n, t in kept.items() if t.is_floating_point() and t.numel()} == {7.0}


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.to(torch.float64).to(torch.float32),
        lambda model: model.double().float(),
        lambda model: model.cpu(),
        lambda model: model.to("cpu", torch.float32),
        lambda model: model.train().eval(),
        lambda model: model.requires_grad_(False),
    ],
)
def test_converting_there_and_back_keeps_the_packing_and_the_bits(
    model: EideticModel, convert: Callable[[EideticModel], EideticModel]
) -> None:
    expected = answers(model)
    convert(model)
    assert all(layer.is_packed() for layer in task_linears(model))
    assert same(answers(model), expected) and model.verify().ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_converted_model_is_packed_and_answers_in_the_new_dtype(model: EideticModel, dtype: torch.dtype) -> None:
    expected = answers(model)  # fills the caches of views, which must not outlive the conversion
    model.to(dtype)
    assert model.dtype == dtype and all(layer.is_packed() for layer in task_linears(model))
    for name in model.tasks:
        logits = logits_of(model, name)
        assert logits.dtype == dtype
        assert float((logits - expected[name]).abs().max()) < (1e-5 if dtype == torch.float64 else 0.1)


def test_a_loaded_model_is_packed(saved: Path) -> None:
    layers = task_linears(EideticModel.from_pretrained(saved))
    assert layers and all(layer.is_packed() for layer in layers)


def test_shards_may_be_read_by_whoever_may_read_the_configuration(saved: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved.glob("[!.]*")}
    assert set(modes.values()) == {modes["config.json"]}, modes


def test_no_path_of_this_machine_is_saved(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    model = EideticModel.from_backbone(tmp_path / "backbone", trunk_layers=1)
    model.save_pretrained(tmp_path / "model")
    for name in ("config.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "model" / name).read_text()
    assert "`backbone`" in (tmp_path / "model" / "README.md").read_text()
