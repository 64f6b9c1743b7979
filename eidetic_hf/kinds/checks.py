"""Checks that kinds of task share: of targets in `forward`, of columns of a data set."""

from __future__ import annotations

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from ..configuration import TaskRecord
from .base import IGNORED


def expect_shape(record: TaskRecord, name: str, given: Tensor, expected: tuple[int, ...], of: str) -> None:
    """Raise a `ValueError` if a target has another shape than `expected`; `of` says what that is."""
    if tuple(given.shape) != expected:
        raise ValueError(
            f"Task '{record.name}' ({record.task_type}) got {name} of shape {tuple(given.shape)}; expected "
            f"{expected}, {of}."
        )


def expect_whole_numbers(record: TaskRecord, name: str, given: Tensor) -> None:
    """Raise a `ValueError` if a target is no integer tensor."""
    if given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(f"Task '{record.name}' needs whole numbers as {name}, got {given.dtype}.")


def expect_range(record: TaskRecord, given: Tensor, n_labels: int, meaning: str) -> None:
    """Hold labels against a list's length. On the CPU only: elsewhere the check would wait for the device."""
    if given.device.type == "cpu" and given.numel():
        wrong = given[((given < 0) & (given != IGNORED)) | (given >= n_labels)]
        if wrong.numel():
            raise ValueError(
                f"Task '{record.name}' has {n_labels} {meaning}, got label {int(wrong[0])}. Expected 0 to "
                f"{n_labels - 1}, or {IGNORED} for what does not count."
            )


def expect_some(record: TaskRecord, given: Tensor, hint: str) -> None:
    """Raise if nothing counts: the mean over nothing is no number, and would spoil every weight."""
    if not bool((given != IGNORED).any()):
        raise ValueError(
            f"Task '{record.name}' ({record.task_type}): all labels of a batch are {IGNORED}, so there is nothing to "
            f"learn from it. {hint}"
        )


def label_column(record: TaskRecord, name: str, data: Dataset) -> str:
    """The column of labels of a data set.

    Raises:
        ValueError: if there is none.
    """
    column = next((column for column in ("labels", "label") if column in data.column_names), None)
    if column is None:
        raise ValueError(
            f"Task '{record.name}': the {name} has no column 'labels' or 'label'; it has {data.column_names}."
        )
    return column


def arrow_column(data: Dataset, column: str) -> pa.ChunkedArray:
    """A column as it lies in memory, its rows in the data set's order."""
    return data.select_columns([column]).with_format("arrow")[:][column]
