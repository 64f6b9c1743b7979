"""Whatever happens in whatever order: every committed task stays as it is, bit for bit, and the books add up."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.backbones import tiny_backbone
from support.data import logits_of
from support.exactness import poison
from support.quick import learn_quickly
from torch import Tensor

from eidetic_hf import EideticModel, TaskError
from eidetic_hf.views import BASE, POOL, task_key

UNITS = {"heads": 4, "neurons": 64}
SEEDS, NUMBERS = st.integers(0, 10**6), st.integers(0, 99)


def start(growth: str) -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth=growth)


class Life(RuleBasedStateMachine):
    """A model, what its tasks answered when they were committed or came, and folders that were saved on the way."""

    growth: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.answers: dict[str, Tensor] = {}
        self.saved: list[tuple[Path, dict[str, Tensor]]] = []
        self.made = 0

    @initialize()
    def begin(self) -> None:
        self.model = start(self.growth)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def name(self) -> str:
        self.made += 1
        return f"task{self.made}"

    def one(self, number: int) -> str | None:
        """One of the tasks, or none."""
        tasks = [None, *self.model.tasks]
        return tasks[number % len(tasks)]

    def learn_on(self, model: EideticModel, name: str, seed: int, parent: str | None) -> None:
        copies = self.growth == "copy"
        if not copies and parent is None and model.tasks and any(g.count(POOL) == 0 for g in model.groups.values()):
            parent = model.tasks[-1]  # where nothing is free, a task that reads no other has nothing to see
        options: dict[str, Any] = (
            {"based_on": parent} if copies else {"forward_transfer": [parent] if parent else "none"}
        )
        learn_quickly(model, name, seed, keep=0.2, see=0.4 + seed % 7 / 10, **options)

    # -- what may happen ------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.tasks) < 6)
    @rule(seed=SEEDS, number=NUMBERS)
    def learn(self, seed: int, number: int) -> None:
        name = self.name()
        self.learn_on(self.model, name, seed, self.one(number))
        self.answers[name] = logits_of(self.model, name)

    @rule(seed=SEEDS)
    def abandon(self, seed: int) -> None:
        name = self.name()
        self.model.add_task(name, labels=["x", "y"])
        self.model.begin_task(name)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(torch.nan)
        self.model.abandon_task()
        del self.model.added[name]

    @precondition(lambda self: self.model.tasks)
    @rule(number=NUMBERS, cascade=st.booleans())
    def remove(self, number: int, cascade: bool) -> None:
        name = self.model.tasks[number % len(self.model.tasks)]
        read = any(name in self.model.record(other).ancestors for other in self.model.tasks)
        backbone = tiny_backbone("bert") if self.growth == "fixed" else None
        if read and not cascade:
            with pytest.raises(TaskError, match="read it"):
                self.model.remove_task(name, backbone=backbone)
            return
        for gone in self.model.remove_task(name, cascade, backbone):
            del self.answers[gone]

    @precondition(lambda self: self.growth == "fixed" and self.model.capacity()["total"] < 300)
    @rule()
    def expand(self) -> None:
        self.model.expand(2)

    @rule(seed=SEEDS, prefix=st.sampled_from([None, "p-"]))
    @precondition(lambda self: len(self.model.tasks) < 6)
    def merge(self, seed: int, prefix: str | None) -> None:
        other, name = start(self.growth), self.name()
        self.learn_on(other, name, seed, None)
        assert self.model.merge(other, prefix) == [f"{prefix or ''}{name}"]
        self.answers[f"{prefix or ''}{name}"] = logits_of(other, name)

    @rule()
    def save_and_load(self) -> None:
        place = self.folder / str(len(self.saved))
        self.model.save_pretrained(place)
        self.model = EideticModel.from_pretrained(place)
        self.saved.append((place, dict(self.answers)))

    @precondition(lambda self: any(answers for _, answers in self.saved) and len(self.model.tasks) < 6)
    @rule(number=NUMBERS, other=NUMBERS)
    def load_task(self, number: int, other: int) -> None:
        full = [saved for saved in self.saved if saved[1]]
        place, answers = full[number % len(full)]
        task = sorted(answers)[other % len(answers)]
        for name in self.model.load_task(place, task):
            self.answers[name] = answers[name]

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def every_task_is_as_it_was(self) -> None:
        if not hasattr(self, "model"):
            return
        assert set(self.model.tasks) == set(self.answers)
        for name, logits in self.answers.items():
            assert torch.equal(logits_of(self.model, name), logits), name
        assert self.model.verify().ok

    @invariant()
    def one_reads_nothing_of_the_others(self) -> None:
        for name in list(self.answers)[-1:]:
            assert torch.equal(logits_of(poison(self.model, name, least=0), name), self.answers[name]), name

    @invariant()
    def the_books_add_up(self) -> None:
        if not hasattr(self, "model"):
            return
        capacity, config = self.model.capacity(), self.model.config
        for group in self.model.network.unit_groups():
            keys = [task_key(name) for name in self.model.tasks]
            first = [BASE] if self.growth == "copy" else []
            assert group.order[: len(first)] == first and set(group.order[len(first) :]) == set(keys)
            assert group.owners.total == sum(len(group.units.need(key)) for key in group.order)
            for member in group.members:
                assert all(
                    len(member.segment(k).weight) == member.width * group.count(k) for k in [*group.order, POOL]
                )
            units = UNITS[group.unit_type]
            free = group.units.need(POOL).tolist()
            if self.growth == "fixed":
                assert group.total == units + config.expanded.get(group.name, 0)
                owned = {unit for key in keys for unit in group.units.need(key).tolist()}
                assert len(set(free)) == len(free) and free == sorted(free) and not owned & set(free)
                assert set(range(units)) <= owned | set(free)
            else:
                assert free == [] and group.units.need(BASE).tolist() == list(range(units))
        for name in self.model.tasks:
            assert capacity["owned"][name] == sum(self.model.record(name).units.values())


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_nothing_that_happens_changes_a_task(growth: str) -> None:
    machine = type("Life", (Life,), {"growth": growth})
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=8, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=quiet
        ),
    )
