"""What the command line shows of results: tables and lines."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from .results import ACCURACY, shard_history

DIGEST_SHOWN = 12
CONFUSION_SHOWN = 12  # a matrix of more tasks is in the JSON and in the report


def continual_lines(results: dict[str, Any]) -> list[str]:
    """Averages and forgetting, of each metric alone."""
    names = ("average_accuracy", "backward_transfer", "forgetting")
    lines = [f"{name.replace('_', ' ')}: {results[name]:.4f}" for name in names if results[name] is not None]
    for metric, found in results["by_metric"].items():
        if metric != ACCURACY:
            note = " (less is better)" if metric in results["lower_is_better"] else ""
            lines.append(f"average {metric}{note}: {found['average']:.4f}")
            if found["forgetting"] is not None:
                lines.append(f"{metric} lost to later tasks: {found['forgetting']:.4f}")
    return lines


def matrix_table(results: dict[str, Any]) -> Table:
    """The score of every task after each task."""
    names = [task["name"] for task in results["tasks"]]
    table = Table(title="Scores on every task's test split, the task given", title_justify="left")
    table.add_column("after learning")
    for name in names:
        table.add_column(f"{name}\n({results['metrics'][name]})", justify="right")
    for row in results["matrix"]:
        table.add_row(row["task"], *(f"{row['scores'][name]:.4f}" if name in row["scores"] else "" for name in names))
    return table


def metrics_table(oracle: dict[str, dict[str, float]], split: str) -> Table:
    """Every metric of every task on a split, the task given."""
    table = Table("task", "metric", title=f"{split} split, the task given", title_justify="left")
    table.add_column("value", justify="right")
    for name, metrics in oracle.items():
        for metric, value in metrics.items():
            table.add_row(name, metric, f"{value:.4f}")
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def routing_line(routing: dict[str, Any]) -> str:
    """How often the router chose right, and the answer was right."""
    mean = routing["mean"]
    line = f"task not given: {mean['routing_accuracy']:.4f} sent to their own task"
    if mean["routed_accuracy"] is None:
        return line
    return f"{line}, {mean['routed_accuracy']:.4f} answered right (task given: {mean['oracle_accuracy']:.4f})"


def routing_tables(routing: dict[str, Any]) -> list[Table]:
    """Accuracies with and without the task given, and how many texts of each task went to which."""
    scores = Table(title="Task not given: the router chooses", title_justify="left")
    scores.add_column("task")
    for name in ("texts", "routing accuracy", "oracle accuracy", "routed accuracy", "merged-label accuracy"):
        scores.add_column(name.replace(" ", "\n"), justify="right")
    keys = ("routing_accuracy", "oracle_accuracy", "routed_accuracy", "merged_label_accuracy")
    for task, row in routing["scores"].items():
        scores.add_row(task, str(row["texts"]), *(_percent(row[key]) for key in keys))
    if len(routing["scores"]) > 1:
        scores.add_section()
        scores.add_row("mean", "", *(_percent(routing["mean"][key]) for key in keys))
    if len(routing["tasks"]) > CONFUSION_SHOWN:
        return [scores]
    confusion = Table(title="Texts of each task (rows) by the task they were sent to", title_justify="left")
    confusion.add_column("")
    for task in routing["tasks"]:
        confusion.add_column(task, justify="right")
    for task, sent in routing["confusion"].items():
        confusion.add_row(task, *(f"[bold]{n}[/]" if other == task else str(n) for other, n in sent.items()))
    return [scores, confusion]


def shards_table(results: dict[str, Any]) -> Table:
    """The digest of every shard after each task, and whether it is the one before."""
    table = Table(title=f"sha256 of every shard (first {DIGEST_SHOWN} characters)", title_justify="left")
    table.add_column("shard", overflow="fold")
    for step in results["steps"]:
        table.add_column(f"after {step['task']}", overflow="fold")
    for row in shard_history(results["steps"]):
        table.add_row(row["shard"].removeprefix("eidetic-").removesuffix(".safetensors"), *map(_digest, row["after"]))
    return table


def _digest(cell: dict[str, Any]) -> str:
    if cell["sha256"] is None:
        return ""
    mark = {None: "", True: "\n[green]unchanged[/]", False: "\n[red]CHANGED[/]"}[cell["unchanged"]]
    return cell["sha256"][:DIGEST_SHOWN] + mark
