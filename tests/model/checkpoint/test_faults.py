"""Each system call of a save fails, or is the last: the folder holds the old checkpoint or the new, and says which.

By default every call of one save fails or is the last, in turn, and some of every other. With `EIDETIC_FAULTS=all`
every call of each save fails in every way, which takes ten minutes and more. Under `pytest -s` a table is printed, as
in docs/checkpoint.md.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from support import faults
from support.backbones import tiny_backbone
from support.faults import Fault, Hang, Operation, watch
from support.folders import answers, hashes, is_whole, same
from support.power_cut import frozen, read_tree
from support.quick import learn_quickly
from torch import Tensor

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model.checkpoint.folder import COMMITTED, find
from eidetic_hf.model.checkpoint.layout import sha256_of

ALL = os.environ.get("EIDETIC_FAULTS") == "all"
# Those of the second line last until the fault is repaired: the folder cannot be tidied up either.
ONCE = (errno.ENOSPC, errno.EIO)
LASTING = (errno.EDQUOT, errno.EACCES, errno.EROFS)
UNCHANGED = r"Saving to .* failed \(.*\)\. The checkpoint there is unchanged\.$"
# Of a file that a save reads, when nothing was changed yet.
UNREADABLE = r"^/.* can not be opened \(.*\)\.( Save to an empty folder\.)?$"
CHANGED = r"The checkpoint in .* is the new one, and something after this change failed \(.*\)\. It loads; "

pytestmark = pytest.mark.skipif(not faults.SUPPORTED, reason="calls can be watched on Linux on x86-64 alone")


@dataclass
class Saving:
    """One kind of save.

    Attributes:
        model: what is saved.
        before: the folder as it is before; `None` where there is none.
        after: the same after the save.
        act: what is done to the folder.
        answers: of the model.
        old: answers of what is in the folder before; `None` where nothing can be loaded.
        loads: whether that is a load, which completes a save.
        readable: whether what is saved can be loaded, as a Trainer checkpoint cannot.
    """

    model: EideticModel
    before: Path | None
    after: Path
    act: Callable[[Path], object]
    answers: dict[str, Tensor]
    old: dict[str, Tensor] | None
    loads: bool = False
    readable: bool = True

    def start(self, folder: Path) -> Path:
        """The folder as it is before, at a place of its own."""
        if self.before is not None:
            shutil.copytree(self.before, folder)
        return folder

    def may_break(self, operation: Operation) -> bool:
        """Whether a fault there is a fault of the save: a lock is let go of by the system if by nobody else."""
        return operation.kind != "unlock" and not (operation.kind == "open" and self.loads)


KINDS = ["third task", "first", "removal", "mid-task", "teaching", "completion by a load", "completion by a save"]


@pytest.fixture(scope="module")
def savings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saving]:
    """A save of each kind."""
    base = tmp_path_factory.mktemp("savings")
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    for seed, name in enumerate(("first", "second")):
        learn_quickly(model, name, seed)
    found: dict[str, Saving] = {}

    def note(
        kind: str, model: EideticModel, before: Path | None, old: EideticModel | None, load: bool = False
    ) -> Path:
        model = copy.deepcopy(model)
        act = EideticModel.from_pretrained if load else model.save_pretrained
        old_answers = None if old is None else answers(old)
        saving = Saving(model, before, base / f"{kind}, after", act, answers(model), old_answers, load)
        found[kind] = saving
        saving.act(saving.start(saving.after))
        return saving.after

    two = note("first", model, None, None)
    then = copy.deepcopy(model)
    model.router.set_prior("first", 3.0)
    note("teaching", model, two, then)
    learn_quickly(model, "third", 2)
    three = note("third task", model, two, then)
    third = copy.deepcopy(model)
    model.remove_task("second")
    note("removal", model, three, third)
    model.add_task("fourth", labels=["x", "y"])
    model.begin_task("fourth")
    model.save_pretrained(base / "checkpoint")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    note("mid-task", model, base / "checkpoint", None)
    found["mid-task"].readable = False
    root = base / "cut off"
    shutil.copytree(two, root / "folder")
    assert watch(lambda: third.save_pretrained(root / "folder"), root, _killed_when_moving).killed
    assert (root / "folder" / COMMITTED).is_dir()
    note("completion by a load", third, root / "folder", third, load=True)
    again = copy.deepcopy(third)
    again.router.set_prior("second", 2.0)
    note("completion by a save", again, root / "folder", third)
    return found


def _killed_when_moving(number: int, operation: Operation) -> Fault:
    return "kill" if operation.kind == "rename" and operation.path.name == "README.md" else None


def seen(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a reader finds who changes nothing."""
    names: set[str] = set()
    for place in (folder, folder / COMMITTED):
        if place.is_dir():
            names |= {path.name for path in place.iterdir() if path.name[0] != "."}
    places = {name: find(folder, name) for name in names}
    return {name: sha256_of(path) for name, path in places.items() if path is not None}


@dataclass
class Trial:
    """What came of one fault.

    Attributes:
        operation: which it met.
        fault: an error number, "kill" or "torn".
        said: what the error said; `None` if there was none, or nobody to hear it.
        state: "old" or "new", "lost" if it is neither, or "hang".
        wrong: what should not be.
    """

    operation: Operation
    fault: Fault
    said: str | None
    state: str
    wrong: list[str] = field(default_factory=list)


class Laboratory:
    """Faults of one kind of save, each in a folder of its own."""

    def __init__(self, saving: Saving, base: Path) -> None:
        self.saving, self.base = saving, base
        self.states = {"new": hashes(saving.after), "old": {} if saving.before is None else seen(saving.before)}
        self._loaded: dict[object, list[str]] = {}
        (self.base / "whole").mkdir()
        whole = saving.start(self.base / "whole" / "folder")
        self.operations = watch(lambda: self._act(whole), self.base / "whole").operations

    def _act(self, folder: Path) -> None:
        self.saving.act(folder)

    def trial(self, at: int, fault: Fault) -> Trial:
        """Meet one operation with a fault, and look at all that follows."""
        base = self.base / f"{at}-{fault}"
        root, copied = base / "root", base / "copied"
        root.mkdir(parents=True)
        folder = self.saving.start(root / "folder")
        repaired = False

        def decide(number: int, operation: Operation) -> Fault:
            nonlocal repaired
            repaired = repaired or operation.path.name == "repaired"
            if repaired or (fault in (*ONCE, *LASTING) and not self.saving.may_break(operation)):
                return None
            return fault if number == at or (fault in LASTING and number > at) else None

        try:
            watched = watch(lambda: self._endure(folder, copied), root, decide)
        except Hang as error:
            return Trial(self.operations[at], fault, None, "hang", [str(error)])
        trial = Trial(watched.operations[at], fault, None, "lost")
        if watched.killed:
            if folder.exists():
                shutil.copytree(folder, copied)
            self._act(folder)
        else:
            trial.said, wrong = watched.returned
            trial.wrong += wrong
        self._judge(trial, copied)
        if not is_whole(folder) or hashes(folder) != self.states["new"]:
            trial.wrong.append("the next save did not leave the new checkpoint")
        shutil.rmtree(base)
        return trial

    def _endure(self, folder: Path, copied: Path) -> tuple[str | None, list[str]]:
        """Act in spite of the fault, then without; what the error said, and what is wrong."""
        said, wrong = None, []
        try:
            self._act(folder)
        except (OSError, CheckpointError) as error:
            said = str(error)
        except Exception as error:
            said = f"raw {error!r}"
        (folder.parent / "repaired").mkdir()
        if folder.exists():
            shutil.copytree(folder, copied)
        if not same(answers(self.saving.model), self.saving.answers):
            wrong.append("the model answers otherwise")
        self._act(folder)
        self.saving.model.save_pretrained(copied.parent / "elsewhere")
        if hashes(copied.parent / "elsewhere") != self.states["new"]:
            wrong.append("saved elsewhere, it is another")
        return said, wrong

    def _judge(self, trial: Trial, folder: Path) -> None:
        """Compare what was said, if anything, and what a reader finds."""
        found = seen(folder)
        trial.state = next((state for state, files in self.states.items() if files == found), "lost")
        if trial.said is not None:
            expected = {"old": f"{UNCHANGED}|{UNREADABLE}", "new": CHANGED}.get(trial.state, "never")
            if not re.search(expected, trial.said):
                trial.wrong.append(f"with the {trial.state} checkpoint there it said: {trial.said}")
            if isinstance(trial.fault, int) and f"[Errno {trial.fault}]" not in trial.said:
                trial.wrong.append(f"the error has another number: {trial.said}")
        elif isinstance(trial.fault, int) and trial.state != "new":
            trial.wrong.append("nothing was said, and nothing was saved")
        if folder.exists():
            trial.wrong += self._load(folder, trial.state)

    def _load(self, folder: Path, state: str) -> list[str]:
        """What is wrong with what is loaded from there; the same bytes are loaded once."""
        key = frozen(read_tree(folder))
        if key not in self._loaded:
            expected = self.saving.answers if state == "new" else self.saving.old
            self._loaded[key] = wrong = []
            try:
                if not same(answers(EideticModel.from_pretrained(folder)), expected or {}):
                    wrong.append(f"the {state} checkpoint answers otherwise")
            except CheckpointError as error:
                if self.saving.readable and expected is not None:
                    wrong.append(f"the {state} checkpoint does not load: {error}")
        return self._loaded[key]


@pytest.fixture(scope="module")
def trials() -> Iterator[list[tuple[str, Trial]]]:
    """All trials, which are printed as a table."""
    made: list[tuple[str, Trial]] = []
    yield made
    print(f"\n{table(made)}")


def table(made: Sequence[tuple[str, Trial]]) -> str:
    """Faults by the operation that they met, by what they were and by the kind of save."""
    groups: tuple[dict[str, Counter[str]], ...] = ({}, {}, {}, {})
    for kind, trial in made:
        fault = errno.errorcode[trial.fault] if isinstance(trial.fault, int) else str(trial.fault)
        raw = trial.said is not None and not re.search(f"{UNCHANGED}|{CHANGED}|{UNREADABLE}", trial.said)
        for group, row in zip(groups, (kind, trial.operation.kind, fault, "all"), strict=True):
            count = group.setdefault(row, Counter())
            count["tried"] += 1
            count[trial.state] += 1
            count["clear errors"] += trial.said is not None and not raw
            count["raw errors"] += raw
            count["wrong"] += bool(trial.wrong)
    columns = ["tried", "clear errors", "old", "new", "lost", "raw errors", "hang", "wrong"]
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    rows += [[row, *(str(count[column]) for column in columns)] for group in groups for row, count in group.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def chosen(laboratory: Laboratory, kind: str) -> Iterator[tuple[int, Fault]]:
    """Which operation meets which fault."""
    errors: Sequence[Fault] = (*ONCE, *LASTING)
    moment = next((at for at, op in enumerate(laboratory.operations) if is_moment(op)), len(laboratory.operations) - 9)
    turns: Counter[str] = Counter()
    for at, operation in enumerate(laboratory.operations):
        ends: list[Fault] = ["kill", *(["torn"] if operation.kind == "write" else [])]
        breaks = errors if laboratory.saving.may_break(operation) else ()
        if operation.kind == "lock" and breaks:
            breaks = (errno.ENOLCK, errno.EIO)  # of the others none is said, or EACCES, which says that it is held
        if ALL:
            yield from ((at, fault) for fault in (*ends, *breaks))
        elif kind == KINDS[0] or at in (5, moment, moment + 4):
            turns[operation.kind] += 1
            turn = turns[operation.kind]
            yield at, errors[at % len(errors)] if turn % 2 and breaks else ends[-1]


def is_moment(operation: Operation) -> bool:
    return operation.kind == "rename" and operation.target is not None and operation.target.name == COMMITTED


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_call_fails_the_checkpoint_is_the_old_or_the_new_one_and_the_error_says_which(
    kind: str,
    savings: dict[str, Saving],
    trials: list[tuple[str, Trial]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eidetic_hf.model.checkpoint.folder.LOCK_TIMEOUT_SECONDS", 0.3)
    laboratory = Laboratory(savings[kind], tmp_path)
    made = [laboratory.trial(at, fault) for at, fault in chosen(laboratory, kind)]
    print(*(trial for trial in made if trial.wrong), sep="\n")
    trials += [(kind, trial) for trial in made]
    assert [trial for trial in made if trial.wrong or trial.state == "lost"] == []
    assert {trial.state for trial in made} == ({"new"} if kind == "completion by a load" else {"old", "new"})
