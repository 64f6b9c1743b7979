"""Checks that kinds of task share: of options, of targets in `forward`, of columns of a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ..compat import need
from ..configuration import TaskRecord
from .base import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

# -- options ----------------------------------------------------------------------------------------------------------


def expect_one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise a `ValueError` if an option is none of these values."""
    if value not in allowed:
        expected = [choice for choice in allowed if choice is not None]
        raise ValueError(f"{name}={value!r} is unknown; expected one of {expected}.")


def expect_probability(name: str, value: Any) -> None:
    """Raise a `ValueError` if an option is no probability below 1."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: expected a probability in [0, 1).")


def expect_positive(name: str, value: Any) -> None:
    """Raise a `ValueError` if an option is no number above 0."""
    if not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name}={value!r}: expected a number > 0.")


def expect_bool(name: str, value: Any) -> None:
    """Raise a `ValueError` if an option is neither `True` nor `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected True or False.")


# -- targets ----------------------------------------------------------------------------------------------------------


def expect_shape(task: TaskRecord, name: str, given: Tensor, expected: tuple[int, ...], of: str) -> None:
    """Raise a `ValueError` if a target has another shape than `expected`; `of` says what that is."""
    if tuple(given.shape) != expected:
        raise ValueError(
            f"Task '{task.name}' ({task.task_type}) got {name} of shape {tuple(given.shape)}; expected "
            f"{expected}, {of}."
        )


def expect_whole_numbers(task: TaskRecord, name: str, given: Tensor) -> None:
    """Raise a `ValueError` if a target is no integer tensor."""
    if given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(f"Task '{task.name}' needs whole numbers as {name}, got {given.dtype}.")


def expect_range(task: TaskRecord, given: Tensor, n_labels: int, meaning: str) -> None:
    """Hold labels against a list's length. On the CPU only: elsewhere the check would wait for the device."""
    if given.device.type == "cpu" and given.numel():
        wrong = given[((given < 0) & (given != IGNORED)) | (given >= n_labels)]
        if wrong.numel():
            raise ValueError(
                f"Task '{task.name}' has {n_labels} {meaning}, got label {int(wrong[0])}. Expected 0 to "
                f"{n_labels - 1}, or {IGNORED} for what does not count."
            )


def expect_some(task: TaskRecord, given: Tensor, hint: str) -> None:
    """Raise if nothing counts: the mean over nothing is no number, and would spoil every weight."""
    if not bool((given != IGNORED).any()):
        raise ValueError(
            f"Task '{task.name}' ({task.task_type}): all labels of a batch are {IGNORED}, so there is nothing to "
            f"learn from it. {hint}"
        )


# -- data sets --------------------------------------------------------------------------------------------------------


def expect_finite(task: TaskRecord, name: str, data: Any, column: str) -> None:
    """Raise a `ValueError` at the first row whose number, or one of whose numbers, is not finite.

    Args:
        task: the task.
        name: what the error calls the data set.
        data: the data set.
        column: of numbers, or lists of as many.
    """
    values = np.asarray(data[column][:], dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Task '{task.name}': row {row} of the {name} has the label {data[row][column]!r}; expected finite "
            "numbers. Remove the row, or correct it: one such target spoils every weight."
        )


def is_dataset(data: Any) -> bool:
    """Whether this is a `datasets.Dataset`. Nobody can have one who has not imported that package: this does not."""
    return "datasets" in sys.modules and isinstance(data, sys.modules["datasets"].Dataset)


def find_label_column(data: Dataset) -> str | None:
    """The column of labels of a data set, if it has one."""
    return next((column for column in ("labels", "label") if column in data.column_names), None)


def label_column(task: TaskRecord, name: str, data: Dataset) -> str:
    """The column of labels of a data set.

    Raises:
        ValueError: if there is none.
    """
    column = find_label_column(data)
    if column is None:
        raise ValueError(
            f"Task '{task.name}': the {name} has no column 'labels' or 'label'; it has {data.column_names}."
        )
    return column


def expect_label_numbers(task: TaskRecord, name: str, data: Dataset, column: str) -> None:
    """Raise a `ValueError` if a column holds anything but numbers of the task's labels, and -100."""
    n_labels = len(task.labels)
    values = set(data.unique(column))
    wrong = sorted((v for v in values if not isinstance(v, int) or not (0 <= v < n_labels or v == IGNORED)), key=str)
    if wrong:
        hint = " Map the names to their numbers first, as TaskRecord.labels lists them."
        raise ValueError(
            f"Task '{task.name}': the {name} has the label {wrong[0]!r}, outside of 0 to {n_labels - 1} "
            f"({task.labels}).{hint if isinstance(wrong[0], str) else ''}"
        )


def list_lengths(data: Dataset, column: str) -> np.ndarray:
    """How many values each row of a column of lists holds, `(rows,)`."""
    return _compute().list_value_length(_arrow(data, column)).to_numpy()


def distinct_values(data: Dataset, column: str) -> list[Any]:
    """The values in the lists of a column, each once."""
    return _compute().unique(_compute().list_flatten(_arrow(data, column))).to_pylist()


def largest_value(data: Dataset, column: str) -> Any:
    """The largest value in the lists of a column; `None` if they are empty."""
    return _compute().max(_compute().list_flatten(_arrow(data, column))).as_py()


def _compute() -> Any:
    return need("pyarrow.compute", why="Checking the lists of a data set")


def _arrow(data: Dataset, column: str) -> Any:
    """A column as it lies in memory, its rows in the data set's order."""
    return cast(Any, data.select_columns([column]).with_format("arrow"))[:][column]
