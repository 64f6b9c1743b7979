"""Labels of a data set: their names, their numbers, their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from ..recipe import RecipeError, TaskRecipe
from .preparation import TRAIN


def encoded(data: datasets.Dataset, prepare: Any) -> datasets.Dataset:
    """A split with its columns replaced, batch by batch. Not from a cache, which knows no version of this package."""
    return data.map(prepare, batched=True, remove_columns=data.column_names, load_from_cache_file=False)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return type(value) in (int, float) and bool(np.isfinite(value))


def label_order(value: Any) -> tuple[bool, float, str]:
    """Sorts numbers before texts, and by size: 10 comes after 9."""
    is_number = isinstance(value, (int, float))
    return not is_number, float(value) if is_number else 0.0, str(value)


def label_numbers(
    task: TaskRecipe, splits: Mapping[str, datasets.Dataset], what: str, many: bool = False
) -> tuple[list[str], dict[Any, int]]:
    """Names of the labels in the order of the logits, and the number of each value of the label column.

    Whole numbers are the names of a `ClassLabel` feature, else names if the recipe lists them as such, else positions
    in the recipe's list.

    Args:
        task: the task, with a column `label`.
        splits: its rows.
        what: says in errors what the labels are for.
        many: whether each row has a list of labels.
    """
    column = task.columns["label"]
    feature: Any = splits[TRAIN].features[column]
    inner = getattr(feature, "feature", None) if many else feature
    if many != is_list(feature) or not isinstance(inner, (datasets.Value, datasets.ClassLabel)):
        expected = "lists of label names" if many else "one label a row"
        raise RecipeError(f"Task '{task.name}' ({what}): the column '{column}' holds {feature}, expected {expected}.")
    feature = inner
    values: dict[str, list[Any]] = {}
    for split, data in splits.items():
        found = {label for row in data[column] for label in row} if many else set(data.unique(column))
        values[split] = sorted(found, key=label_order)
    names = names_of({value for found in values.values() for value in found}, feature, task.labels)
    labels = task.labels or getattr(feature, "names", None) or [names[value] for value in values[TRAIN]]
    places = {name: number for number, name in enumerate(labels)}
    for split, listed in values.items():
        wrong = [value for value in listed if names[value] not in places]
        if wrong:
            row = next(i for i, v in enumerate(splits[split][column]) if wrong[0] in (v if many else [v]))
            raise unknown_label(task, split, row, names[wrong[0]], labels)
    return list(labels), {value: places[name] for value, name in names.items()}


def is_list(feature: Any) -> bool:
    """Whether a column holds lists."""
    return isinstance(feature, (datasets.List, datasets.LargeList))


def names_of(values: set[Any], feature: Any, labels: Sequence[str] | None) -> dict[Any, str]:
    """The name of each value of a label column, see `label_numbers`."""
    if isinstance(feature, datasets.ClassLabel):
        known = range(len(feature.names))
        return {value: feature.int2str(value) if value in known else str(value) for value in values}
    names = {value: str(value) for value in values}
    if labels and not set(names.values()) <= set(labels):
        places = range(len(labels))
        if all(type(value) is int and value in places for value in values):
            return {value: labels[value] for value in values}
    return names


def unknown_label(task: TaskRecipe, split: str, row: int, name: str, labels: Sequence[str]) -> RecipeError:
    """The error of a label that is not among a task's."""
    return RecipeError(
        f"Task '{task.name}': row {row} of the {split} split has the label {name!r}, which is not among its labels "
        f"{list(labels)}. Add it to `labels:`, correct the data, or name a labelled split with `splits:`."
    )
