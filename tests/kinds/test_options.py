"""Options of a task: those of its kind, checked when it is added and when a checkpoint brings it."""

from __future__ import annotations

import ast
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.backbones import tiny_model
from support.data import make_data
from support.kind_cases import CASES

import eidetic_hf
from eidetic_hf import TaskError
from eidetic_hf.compat import need
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import TASK_KINDS, check_task
from eidetic_hf.kinds.base import Kind
from eidetic_hf.kinds.checks import is_dataset

HEAVY = {"datasets", "pandas", "pyarrow", "sklearn", "scipy", "evaluate"}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_task_that_is_given_no_option_has_all_of_its_kind(kind: str) -> None:
    architecture = {"causal-lm": "gpt2", "seq2seq-lm": "t5"}.get(kind, "bert")
    record = tiny_model(architecture).add_task("task", task_type=kind, **CASES[kind].options)
    assert list(record.options) == TASK_KINDS[kind].option_names()
    assert {name for name, value in record.options.items() if value is None} <= {"own_output_embeddings"}


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_options_do_not_change_once_they_are_checked(kind: str) -> None:
    options = TASK_KINDS[kind].Options()
    with pytest.raises(FrozenInstanceError):
        setattr(options, TASK_KINDS[kind].option_names()[0], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task_type": "question-answering", "pooling": "mean"},
            "pooling='mean' is for sequence-classification, .*not for question-ans"
            r".*; its options are \['head_dropout'\]. Leave it out",
        ),
        ({"labels": ["a", "b"], "poolin": "mean"}, "has no option 'poolin'; .* Did you mean 'pooling'?"),
        (
            {"labels": ["a", "b"], "temperatur": 1},
            r"has no option 'temperatur'; .* Did you mean 'temperature' \(of feature-extraction\)\?",
        ),
        ({"labels": ["a", "b"], "zzz": None}, r"has no option 'zzz'; its options are \['problem_type', .*\]\.$"),
        ({"labels": ["a", "b"], "temperature": 1.0}, "temperature=1.0 is for feature-extraction, not for sequence-cl"),
        ({"task_type": "masked-lm", "own_output_embeddings": 1}, "own_output_embeddings=1: expected True or False"),
        ({"task_type": "feature-extraction", "normalize": "no"}, "normalize='no': expected True or False"),
        ({"task_type": "multiple-choice", "labels": ["a"]}, r"has some: \['sequence-classification', 'token-class"),
        ({"task_type": "ordinal-regression"}, r"task_type='ordinal-regression' is unknown; .*kinds\.register_kind"),
    ],
)
def test_an_option_that_a_kind_does_not_have_is_explained(options: dict[str, Any], message: str) -> None:
    model = tiny_model()
    with pytest.raises(TaskError, match=f"Task 'task': .*{message}"):
        model.add_task("task", **options)
    assert model.added == {}


def test_none_stands_for_the_default() -> None:
    record = tiny_model().add_task("task", labels=["a", "b"], pooling=None, temperature=None, head_dropout=None)
    assert record.options == {
        "problem_type": "single_label_classification",
        "pooling": "mean",
        "head_dropout": 0.1,
        "head_bias": True,
    }


def test_regression_names_its_target_itself() -> None:
    assert tiny_model().add_task("task", problem_type="regression").labels == ["score"]


def test_what_a_checkpoint_brings_beside_the_kinds_options_is_dropped() -> None:
    old = {"name": "old", "task_type": "question-answering", "head_dropout": 0.3, "pooling": "mean", "later": 5}
    record = TaskRecord.from_dict(old)
    assert record.options == {"head_dropout": 0.3, "pooling": "mean", "later": 5}
    check_task(record)
    assert record.options == {"head_dropout": 0.3}


def test_what_a_checkpoint_brings_is_held_against_the_kind() -> None:
    record = TaskRecord.from_dict({"name": "old", "labels": ["a", "b"], "problem_type": "sorting"})
    with pytest.raises(TaskError, match="Task 'old': problem_type='sorting' is unknown; expected one of"):
        check_task(record)


def test_kinds_are_two_classes_deep_at_most() -> None:
    for name, kind in TASK_KINDS.items():
        depth = [c for c in type(kind).__mro__ if c.__module__.startswith("eidetic_hf.")]
        assert depth == [type(kind), Kind], name


# -- packages that may be missing -------------------------------------------------------------------------------------


def imported_at_once(path: Path) -> set[str]:
    """Top packages that a module imports when it is imported, but for what only type checkers read."""
    found, todo = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)
    return found


def test_no_kind_imports_what_only_the_extra_installs() -> None:
    root = Path(eidetic_hf.__file__).parent
    files = [*(root / "kinds").glob("*.py"), root / "configuration.py", root / "compat.py"]
    assert len(files) > 12
    assert {str(file): imported_at_once(file) & HEAVY for file in files if imported_at_once(file) & HEAVY} == {}


def test_a_data_set_is_one_only_if_somebody_has_imported_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(rows=2)
    assert is_dataset(data)
    assert not is_dataset([{"labels": 1}])
    monkeypatch.delitem(sys.modules, "datasets")
    assert not is_dataset(data)
    assert "datasets" not in sys.modules


def test_a_metric_says_what_to_install_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = TASK_KINDS["sequence-classification"]
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"'sklearn', which is not installed.*pip install 'eidetic-hf\[recipe\]'"):
        kind.metrics(SimpleNamespace(problem_type="single_label_classification"), [[0.0, 1.0]], [1])


def test_a_module_that_is_there_is_what_need_returns() -> None:
    assert need("json.decoder", why="This test").__name__ == "json.decoder"
    with pytest.raises(ImportError, match=r"^This test needs the Python package 'no_such', .*eidetic-hf.other"):
        need("no_such.module", why="This test", extra="other")
