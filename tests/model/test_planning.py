"""Budgets for coming tasks: what they say is what tasks take, to the unit and to the byte."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.command_line import call
from support.data import make_data

from eidetic_hf import EideticModel, PruningConfig, TaskError
from eidetic_hf.model.planning import SHARES


def copying(architecture: str = "bert") -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone(architecture), trunk_layers=1, growth="copy")


def commit(model: EideticModel, name: str, pruning: PruningConfig, labels: int = 2) -> None:
    """Commit a task as it begins, with sums for the router."""
    if name not in model.added:
        model.add_task(name, labels=["x", "y", "z"][:labels])
    model.begin_task(name, pruning)
    batch = {key: torch.tensor(value) for key, value in make_data(len(name), labels=labels)[:].items()}
    model.commit_task(router_sums=model.router_sums([batch]))


def shard(model: EideticModel, name: str, folder: Path) -> int:
    model.save_pretrained(folder)
    return (folder / f"eidetic-task-{name}.safetensors").stat().st_size


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "t5", "albert", "opt-projected"])
def test_a_plan_for_copies_says_the_size_of_a_shard_to_the_byte(architecture: str, tmp_path: Path) -> None:
    trunk = 0 if architecture == "albert" else 1
    model = EideticModel.from_backbone(tiny_backbone(architecture), trunk_layers=trunk, growth="copy")
    model.add_task("mails.v2", labels=["x", "y", "z"])
    planned = model.plan(7, like="mails.v2")  # before anything is learned
    assert [row.share for row in planned.rows] == list(SHARES) and planned.copies
    commit(model, "mails.v2", PruningConfig(own=0.2))
    units = model.record("mails.v2").units
    assert planned.rows[-1].units["neurons"] == sum(n for name, n in units.items() if name.endswith("neurons"))
    assert planned.rows[-1].bytes == shard(model, "mails.v2", tmp_path)
    assert planned.total_bytes(planned.rows[-1]) == 7 * planned.rows[-1].bytes
    later = model.plan(7)  # like the last one, whatever else there is now
    assert later.rows == planned.rows and later.like == "'mails.v2'"


@pytest.mark.parametrize(
    "options", [{"task_type": "token-classification", "labels": ["O", "X"]}, {"task_type": "masked-lm"},
                {"task_type": "question-answering"}, {"task_type": "multiple-choice"},
                {"task_type": "feature-extraction"}], ids=lambda options: str(options["task_type"]),
)  # fmt: skip
def test_a_plan_knows_every_kind_of_task(options: dict, tmp_path: Path) -> None:
    model = copying()
    model.add_task("like", **options)
    planned = model.plan(1, like="like").rows[2]
    model.begin_task("like", PruningConfig(own=planned.share))
    text = {name: torch.tensor(make_data(0)[name][:8]) for name in ("input_ids", "attention_mask")}
    if options["task_type"] == "multiple-choice":
        text = {name: torch.stack([value, value], 1) for name, value in text.items()}
    model.commit_task(router_sums=model.router_sums([text]))
    assert planned.bytes == shard(model, "like", tmp_path)


def test_a_plan_counts_the_bytes_of_the_models_own_dtype(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(tiny_backbone("bert").to(torch.bfloat16), trunk_layers=1, growth="copy")
    model.add_task("half", labels=["x", "y", "z"])
    planned = model.plan(1, like="half").rows[-1]
    commit(model, "half", PruningConfig(own=planned.share))
    assert planned.bytes == shard(model, "half", tmp_path)


def test_a_plan_for_a_pool_shares_it_out_evenly(tmp_path: Path) -> None:
    model = tiny_model()
    commit(model, "first", PruningConfig(keep=0.25))
    model.expand(6)
    free = {name: model.capacity()["free"] for name in ["before"]}
    planned = model.plan(3, like="first")
    assert sum(planned.rows[0].units.values()) + sum(planned.rows[0].free.values()) == free["before"]
    neurons = [row.units["neurons"] for row in planned.rows]
    assert max(neurons) - min(neurons) <= 1 and planned.rows[-1].free == {"heads": 0, "neurons": 0}
    for number, row in enumerate(planned.rows):
        name = f"task{number}"  # as long as `first`
        commit(model, name, PruningConfig(keep=row.share, importance="random"))
        found = model.record(name).units
        for unit_type, count in row.units.items():
            assert sum(n for group, n in found.items() if group.endswith(unit_type)) == count
        assert abs(shard(model, name, tmp_path) - row.bytes) <= 64  # digits in the header, by where units lie
    assert planned.total_bytes(planned.rows[0]) == sum(row.bytes for row in planned.rows)


def test_a_plan_as_a_text_is_a_table_and_says_what_does_not_go_round() -> None:
    text = str(tiny_model().plan(9))
    title, head, *lines = text.splitlines()
    assert title == "9 more tasks like sequence-classification, 2 labels, growth='fixed', on a backbone of 127 kB"
    assert " ".join(head.split()) == "task keep= heads neurons shard of the backbone free heads free neurons"
    assert len(lines) == 11 and lines[0].split()[:4] == ["1", "0.1111", "2", "14"]
    assert lines[-1].startswith("heads do not go round") and "5 tasks get none" in lines[-1]
    text = str(copying().plan(20))
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["own=", "0.01", "0.02", "0.05", "0.1", "0.2"]
    assert "20 tasks" in text and "do not go round" not in text


def test_a_plan_changes_nothing_and_says_what_it_can_not_plan(trained: EideticModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    model.plan(2)
    assert torch.equal(torch.random.get_rng_state(), state) and model.tasks == ["first", "second"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="a whole number above 0"):
            model.plan(wrong)
    with pytest.raises(TaskError, match="There is no task 'nobody'"):
        model.plan(1, like="nobody")
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    with pytest.raises(TaskError, match="'next' is being learned; plan before"):
        model.plan(1)
    model.abandon_task()
    model.save_pretrained(tmp_path, include_pool=False)
    with pytest.raises(TaskError, match="has no pool"):
        EideticModel.from_pretrained(tmp_path).plan(1)


def test_the_command_line_shows_the_plan(trained: EideticModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    done = call("plan", tmp_path, "--tasks", 2, "--like", "first")
    assert done.exit_code == 0 and done.stdout.strip() == str(trained.plan(2, "first"))
    assert call("plan", tmp_path, "--tasks", 0).exit_code == 2
