"""What a run has to say in the end: its results, over time, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .recipe import LOWER_IS_BETTER

# -- all of them over time --------------------------------------------------------------------------------------------


def continual_metrics(matrix: list[dict[str, Any]], metrics: Mapping[str, str]) -> dict[str, Any]:
    """Average, backward transfer and forgetting of an accuracy matrix.

    With a[i][j] the score on task j after task i, of T: the mean over j of a[T][j]; the mean over j < T of
    a[T][j] - a[j][j]; and the mean over j < T of max_i a[i][j] - a[T][j] (Lopez-Paz & Ranzato, arXiv 1706.08840, and
    Chaudhry et al., arXiv 1801.10112). Where less is better, the signs are turned: forgetting is always what was lost.

    Args:
        matrix: a row per task learned, `{"task": name, "scores": {task: score}}`.
        metrics: name of each task's metric.

    Returns:
        `average_accuracy`, `backward_transfer` and `forgetting` over all tasks whose scores are shares, of which more
        is better, named in `averaged_tasks`; and `by_metric`, for each metric of the run its `average`,
        `backward_transfer`, `forgetting` and `tasks`. What there is nothing to average of is `None`.
    """
    learned = [row["task"] for row in matrix]
    shares = [name for name in learned if metrics[name] not in LOWER_IS_BETTER]
    overall = _over_time(matrix, shares, 1)
    by_metric = {}
    for metric in dict.fromkeys(metrics[name] for name in learned):
        tasks = [name for name in learned if metrics[name] == metric]
        by_metric[metric] = {**_over_time(matrix, tasks, -1 if metric in LOWER_IS_BETTER else 1), "tasks": tasks}
    return {
        "average_accuracy": overall["average"],
        "backward_transfer": overall["backward_transfer"],
        "forgetting": overall["forgetting"],
        "averaged_tasks": shares,
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
