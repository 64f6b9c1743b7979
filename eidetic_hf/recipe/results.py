"""The results of a run: what `results.json` holds, how it is written, and what follows from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..configuration import TaskRecord
from ..model.certificate import environment_of
from ..model.checkpoint.layout import sha256_of, shard_file
from ..model.model import EideticModel
from ..version import __version__
from ..views import task_key
from .kinds import lower_is_better
from .recipe import Recipe
from .task_data import TaskData

RESULTS_FILE = "results.json"
RESULTS_VERSION = 1
ACCURACY = "accuracy"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shards_in(model_folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every shard, read from the disk: what a person would see with sha256sum."""
    paths = sorted(model_folder.glob("eidetic-*.safetensors"))
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}


def results_of(
    recipe: Recipe,
    model: EideticModel,
    data: Mapping[str, TaskData],
    steps: list[dict[str, Any]],
    shards: Mapping[str, Mapping[str, Any]],
    verified: EideticModel,
    routing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `results.json` holds.

    Args:
        recipe: what was run.
        model: what it has learned so far.
        data: of every task.
        steps: one for each task learned, in order.
        shards: what `shards_in` found.
        verified: the model whose certificates are recomputed: this one, or the same as it was read from the disk.
        routing: what `evaluate_routing` returned.
    """
    metrics = {task.name: task.metric for task in recipe.tasks}
    less = lower_is_better()
    matrix = [
        {"task": step["task"], "scores": {name: found[metrics[name]] for name, found in step["scores"].items()}}
        for step in steps
    ]
    verdict = verified.verify()
    return {
        "format_version": RESULTS_VERSION,
        "name": recipe.name,
        "recipe": recipe.source,
        "backbone": recipe.backbone_name,
        "trunk_layers": model.config.trunk_layers,
        "growth": model.config.growth,
        "environment": {
            "eidetic_hf": __version__,
            "python": platform.python_version(),
            "datasets": datasets.__version__,
            **environment_of(model),
        },
        "tasks": [
            _describe(record, metrics[record.name], data[record.name], steps, shards)
            for record in model.config.tasks
            if record.name in data  # base itself is of no recipe
        ],
        "reads": model.network.reads([record.name for record in model.config.tasks]),
        "metrics": metrics,
        "lower_is_better": list(less),
        "matrix": matrix,
        **continual_metrics(matrix, metrics, less),
        "routing": routing,
        "verify": {"ok": bool(verdict), "text": str(verdict), "tasks": [str(task) for task in verdict.tasks]},
        "steps": steps,
    }


def _describe(
    record: TaskRecord,
    metric: str,
    data: TaskData,
    steps: list[dict[str, Any]],
    shards: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the results say of one task."""
    file = shard_file(task_key(record.name))
    return {
        "name": record.name,
        "type": record.task_type,
        # Of every kind of task, as it has always been there; the report shows it of one.
        "problem_type": getattr(record, "problem_type", "single_label_classification"),
        "labels": record.labels,
        "metric": metric,
        "examples": {name: len(rows) for name, rows in data.rows.items()},
        "ancestors": record.ancestors,
        "units": sum(record.units.values()),
        "seconds": next((step["seconds"] for step in steps if step["task"] == record.name), None),
        "shard": file,
        **shards[file],
    }


# -- what follows from them -------------------------------------------------------------------------------------------


def continual_metrics(
    matrix: list[dict[str, Any]], metrics: Mapping[str, str], lower: Collection[str]
) -> dict[str, Any]:
    """Average, backward transfer and forgetting of an accuracy matrix.

    With a[i][j] the score on task j after task i, of T: the mean over j of a[T][j]; the mean over j < T of
    a[T][j] - a[j][j]; and the mean over j < T of max_i a[i][j] - a[T][j] (Lopez-Paz & Ranzato, arXiv 1706.08840, and
    Chaudhry et al., arXiv 1801.10112). Where less is better, the signs are turned: forgetting is always what was lost.

    Args:
        matrix: a row per task learned, `{"task": name, "scores": {task: score}}`.
        metrics: name of each task's metric.
        lower: metrics of which less is better.

    Returns:
        `average_accuracy`, `backward_transfer` and `forgetting` over all tasks whose metric is accuracy, named in
        `averaged_tasks`; and `by_metric`, for each metric of the run its `average`, `backward_transfer`, `forgetting`
        and `tasks`. Figures of different metrics are never averaged. What there is nothing to average of is `None`.
    """
    learned = [row["task"] for row in matrix]
    accurate = [name for name in learned if metrics[name] == ACCURACY]
    overall = _over_time(matrix, accurate, 1)
    by_metric = {}
    for metric in dict.fromkeys(metrics[name] for name in learned):
        tasks = [name for name in learned if metrics[name] == metric]
        by_metric[metric] = {**_over_time(matrix, tasks, -1 if metric in lower else 1), "tasks": tasks}
    return {
        "average_accuracy": overall["average"],
        "backward_transfer": overall["backward_transfer"],
        "forgetting": overall["forgetting"],
        "averaged_tasks": accurate,
        "by_metric": by_metric,
    }


def _over_time(matrix: list[dict[str, Any]], tasks: list[str], sign: int) -> dict[str, float | None]:
    """The three figures over some tasks; `sign` is -1 if less is better."""
    final = matrix[-1]["scores"] if matrix else {}
    at_commit = {row["task"]: row["scores"][row["task"]] for row in matrix}
    earlier = [name for name in tasks if name in final and name != matrix[-1]["task"]]
    best = {name: max(sign * row["scores"][name] for row in matrix if name in row["scores"]) for name in earlier}
    scored = [final[name] for name in tasks if name in final]
    transfer = [sign * (final[name] - at_commit[name]) for name in earlier]
    forgotten = [best[name] - sign * final[name] for name in earlier]
    return {
        "average": float(np.mean(scored)) if scored else None,
        # Without the sign of minus zero.
        "backward_transfer": float(np.mean(transfer)) + 0.0 if earlier else None,
        "forgetting": float(np.mean(forgotten)) + 0.0 if earlier else None,
    }


def shard_history(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """SHA-256 of every permanent shard after every task, and whether it was the same as after the task before.

    Returns:
        A row per shard: `{"shard": file, "after": [{"task", "sha256", "unchanged"}, ...]}`. `sha256` is `None` before
        the shard exists, `unchanged` is `None` when there is nothing to compare with. The pool's shard has no row: it
        holds what is free, so every task changes it.
    """
    files = sorted({file for step in steps for file in step["shards"]} - {"eidetic-pool.safetensors"})
    order = ["eidetic-trunk.safetensors", *(f"eidetic-task-{step['task']}.safetensors" for step in steps)]
    rows = []
    for file in sorted(files, key=lambda file: (order.index(file) if file in order else len(order), file)):
        after, before = [], None
        for step in steps:
            sha256 = step["shards"].get(file, {}).get("sha256")
            after.append({"task": step["task"], "sha256": sha256, "unchanged": before and sha256 == before})
            before = sha256
        rows.append({"shard": file, "after": after})
    return rows
