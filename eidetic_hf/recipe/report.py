"""The report of a run: one HTML file that anybody can open, and the same as JSON.

Nothing in it is loaded from elsewhere: the style is inline, the pictures are inline SVG.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..network.architecture import DECODER_LAYERS
from ..network.units import UNIT_TYPES
from .kinds import lower_is_better
from .results import ACCURACY, shard_history, write_json

REPORT_FILE, REPORT_DATA_FILE = "report.html", "report.json"

# Text and lines are drawn in this color, which then becomes the page's: dark on light, or light on dark.
_INK = "#010203"
_FREE = "#9a9a9a"


def write_report(results: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write the report of a run.

    Args:
        results: what `run_recipe` returns and `results.json` holds.
        path: the HTML file; `report.json`, with the same content, is written beside it.

    Returns:
        Path of the HTML file.

    Raises:
        ValueError: if the results lack something that a report shows.
    """
    path = Path(path)
    try:
        content = report_content(results)
        pictures = {
            "matrix": matrix_picture(
                content["tasks"], content["matrix"], results["metrics"], content["lower_is_better"]
            ),
            "shards": shards_picture(content["shards"]),
        }
        if content["growth"] == "copy":
            pictures["copies"] = copies_picture(content["parents"], content["reads"])
        else:
            pictures["units"] = units_picture(content["tasks"], content["capacity"])
        if content["growth"] == "fixed" and content["reads"] and len(content["tasks"]) > 1:
            pictures["reads"] = reads_picture(content["tasks"], content["reads"], content["capacity"])
        if content["routing"]:
            pictures["confusion"] = confusion_picture(content["routing"])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"These are no results of a run that committed a task ({type(error).__name__}: {error}). Give what "
            "run_recipe returned, or what it wrote to results.json."
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eidetic_hf"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html").render(**content, pictures=pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    write_json(path.with_name(REPORT_DATA_FILE), content)
    return path


def report_content(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the report shows, as JSON-ready values: tables, verdict and figures, without the pictures."""
    steps = results["steps"]
    lower = results.get("lower_is_better", list(lower_is_better()))  # those of the first versions do not say it
    return {
        "name": results["name"],
        "backbone": results["backbone"],
        "trunk_layers": results["trunk_layers"],
        "growth": results.get("growth", "fixed"),  # those of the first versions know no other, and not who reads what
        "reads": results.get("reads"),
        "parents": {task["name"]: task["ancestors"][-1] if task["ancestors"] else None for task in results["tasks"]},
        "tasks": [task["name"] for task in results["tasks"]],
        "task_rows": [_task_row(task, results) for task in results["tasks"]],
        "matrix": results["matrix"],
        "average_accuracy": results["average_accuracy"],
        "backward_transfer": results["backward_transfer"],
        "forgetting": results["forgetting"],
        "averaged_tasks": results["averaged_tasks"],
        "lower_is_better": lower,
        "other_metrics": {name: found for name, found in results.get("by_metric", {}).items() if name != ACCURACY},
        "routing": results.get("routing"),  # results of the first versions have none
        "verify": results["verify"],
        "capacity": steps[-1]["capacity"],
        "capacity_steps": [{"task": step["task"], "free_share": step["capacity"]["free_share"]} for step in steps],
        "shards": steps[-1]["shards"],
        "shard_history": shard_history(steps),
        "learned": [step["task"] for step in steps],
        "environment": results["environment"],
        "recipe": results["recipe"],
    }


def _task_row(task: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What the table of tasks shows of one."""
    final = results["matrix"][-1]["scores"]
    at_commit = [row["scores"][task["name"]] for row in results["matrix"] if row["task"] == task["name"]]
    kept = ("name", "problem_type", "labels", "metric", "examples", "ancestors", "units", "seconds", "shard", "sha256")
    return {
        **{key: task[key] for key in (*kept, "bytes")},
        "type": task.get("type", "sequence-classification"),  # results of the first versions have no other
        "score": final[task["name"]],
        "score_at_commit": at_commit[0] if at_commit else None,
    }


# -- pictures ---------------------------------------------------------------------------------------------------------


def _svg(figure: Figure) -> Markup:
    """A figure as an SVG element that can stand in a page: no prolog, no metadata, the page's color for the ink."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight")
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (width|height)="[0-9.]+pt"', "", text, count=2)
    # All the text in it are names of tasks and files, drawn as paths; nothing needs escaping.
    return Markup(text.replace(_INK, "currentColor"))


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.patch.set_alpha(0)
        ax.tick_params(colors=_INK, labelsize=8)
        ax.spines[:].set_color(_INK)
        ax.spines[["top", "right"]].set_visible(False)
        for part in (ax.title, ax.xaxis.label, ax.yaxis.label):
            part.set_color(_INK)
            part.set_fontsize(9)
    return figure, axes


def _shade(value: float | None, column: Sequence[float | None], is_lower: bool) -> float | None:
    """What a score is colored by: itself, or where less is better the best of its column divided by it."""
    if value is None or not is_lower:
        return value
    best = min(other for other in column if other is not None)
    return best / value if value and math.isfinite(value) else float(value == best)


def _heat_map(
    columns: list[str],
    rows: list[str],
    values: list[list[float | None]],
    digits: int,
    shades: list[list[float | None]] | None = None,
) -> Figure:
    """Numbers as colored cells, `None` as an empty one; the label of each axis is the caller's.

    Args:
        columns: their names.
        rows: their names.
        values: the numbers.
        digits: behind the point.
        shades: what is colored, from 0 to 1; the numbers themselves by default.
    """
    shades = values if shades is None else shades
    figure, (ax,) = _figure(1.8 + 0.75 * len(columns), 1.1 + 0.5 * len(rows))
    present = [shade for row in shades for shade in row if shade is not None]
    span = matplotlib.colors.Normalize(min([0.0, *present]), max([1.0, *present]))
    colors = matplotlib.colormaps["viridis"]
    for i, (row, tints) in enumerate(zip(values, shades, strict=True)):
        for j, (value, tint) in enumerate(zip(row, tints, strict=True)):
            if value is None or tint is None:
                continue
            color = colors(span(tint))
            ax.add_patch(matplotlib.patches.Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=color, edgecolor="none"))
            is_light = sum(weight * part for weight, part in zip((0.3, 0.6, 0.1), color, strict=False)) > 0.5
            ink = "black" if is_light else "white"
            ax.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, color=ink)
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.set_xticks(range(len(columns)), columns, rotation=30 if len(columns) > 3 else 0)
    ax.set_yticks(range(len(rows)), rows)
    ax.spines[:].set_visible(False)
    return figure


def matrix_picture(
    tasks: list[str],
    matrix: list[dict[str, Any]],
    metrics: Mapping[str, str] | None = None,
    lower: Collection[str] = (),
) -> Markup:
    """The accuracy matrix as a heat map: rows are what was learned, columns the tasks; the upper triangle is empty.

    Numbers that are no shares, such as perplexities, are colored by what they are of the column's best: 1 is the best.

    Args:
        tasks: names of the columns.
        matrix: a row per task learned, `{"task": name, "scores": {task: score}}`.
        metrics: name of each task's metric.
        lower: metrics of which less is better.
    """
    values = [[row["scores"].get(task) for task in tasks] for row in matrix]
    shades = [
        [
            _shade(value, column, (metrics or {}).get(task) in lower)
            for value, column, task in zip(row, zip(*values, strict=True), tasks, strict=True)
        ]
        for row in values
    ]
    labels = tasks if metrics is None else [f"{task}\n({metrics[task]})" for task in tasks]
    figure = _heat_map(labels, [row["task"] for row in matrix], values, digits=3, shades=shades)
    figure.axes[0].set(xlabel="score on", ylabel="after learning")
    return _svg(figure)


def confusion_picture(routing: Mapping[str, Any]) -> Markup:
    """Share of each task's texts (rows) that the router sent to each task (columns), as a heat map."""
    sent = routing["confusion"]
    values = [[row[task] / sum(row.values()) for task in routing["tasks"]] for row in sent.values()]
    figure = _heat_map(routing["tasks"], list(sent), values, digits=2)
    figure.axes[0].set(xlabel="sent to", ylabel="texts of")
    return _svg(figure)


def units_picture(tasks: list[str], capacity: Mapping[str, Any]) -> Markup:
    """Units owned per layer (`d0`: in the decoder) and task as stacked bars, each kind apart, free units in grey."""
    kinds = [kind for kind in UNIT_TYPES if any(name.endswith(f".{kind}") for name in capacity["groups"])]
    figure, axes = _figure(8, 3.2, len(kinds))
    colors = matplotlib.colormaps["tab10" if len(tasks) <= 10 else "turbo"]
    shades = {task: colors(i if len(tasks) <= 10 else i / max(len(tasks) - 1, 1)) for i, task in enumerate(tasks)}
    for ax, kind in zip(axes, kinds, strict=True):
        groups = {_layer_label(name): units for name, units in capacity["groups"].items() if name.endswith(f".{kind}")}
        bottom = [0] * len(groups)
        for owner in [*tasks, "free"]:
            heights = [units.get(owner, 0) for units in groups.values()]
            ax.bar(list(groups), heights, 0.8, bottom, color=shades.get(owner, _FREE), label=owner)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        ax.set(title=kind.replace("_", " "), xlabel="layer", ylabel="units")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8, frameon=False
    )
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure)


def reads_picture(tasks: list[str], reads: Mapping[str, Mapping[str, Any]], capacity: Mapping[str, Any]) -> Markup:
    """Share of each task's own units (columns) that each task reads (rows), as a heat map."""

    def share(reader: str, owner: str) -> float | None:
        read = sum(group["tasks"][reader]["tasks"].get(owner, 0) for group in reads.values())
        owned = capacity["owned"][owner]
        return read / owned if owned and read else None

    figure = _heat_map(tasks, tasks, [[share(reader, owner) for owner in tasks] for reader in tasks], digits=2)
    figure.axes[0].set(xlabel="units of", ylabel="read by")
    return _svg(figure)


def branch_order(parents: Mapping[str, str | None]) -> dict[str, int]:
    """The tasks with each behind the one that it is based on, and how many stand between it and the backbone."""
    found: dict[str, int] = {}

    def follow(parent: str | None, depth: int) -> None:
        for task in [task for task, other in parents.items() if other == parent]:
            found[task] = depth
            follow(task, depth + 1)

    follow(None, 0)
    return found


def copies_picture(parents: Mapping[str, str | None], reads: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The tree of branches, and beside it for each layer what each task reads of the backbone's units.

    A bar is all of the backbone's units of a layer: those that the task has copied, those that it reads as an earlier
    task on its branch has copied them, those that it reads as they were pretrained, and those that it leaves out. The
    SVG element of a part is named `<what>:<unit group>:<task>:<units>`.

    Args:
        parents: the task that each is based on; `None` for the backbone.
        reads: as `results.json` has it.
    """
    depths = branch_order(parents)
    kinds = [kind for kind in UNIT_TYPES if any(name.endswith(f".{kind}") for name in reads)]
    layers = [[name for name in reads if name.endswith(f".{kind}")] for kind in kinds]
    columns = max(map(len, layers))
    height = 0.21 * (len(depths) + 1)
    figure = Figure(figsize=(8.5, len(kinds) * (height + 0.45) + 0.4), layout="constrained")
    figure.patch.set_alpha(0)
    grid = figure.subplots(len(kinds), 1 + columns, squeeze=False, width_ratios=[2.0, *[6.2 / columns] * columns])
    for kind, groups, axes in zip(kinds, layers, grid, strict=True):
        for ax in axes:
            ax.set(ylim=(len(depths) + 0.5, -0.5), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.patch.set_alpha(0)
        _draw_tree(axes[0], parents, depths)
        axes[0].set_title(f"{kind.replace('_', ' ')} in layer", fontsize=9, color=_INK, loc="right")
        for name, ax in zip(groups, axes[1:], strict=False):
            ax.set_title(_layer_label(name), fontsize=9, color=_INK)
            ax.set_xlim(0, reads[name]["base"])
            for row, task in enumerate(depths, 1):
                _draw_bar(ax, row, name, task, reads[name])
    handles = [matplotlib.patches.Patch(label=label, **style) for label, style in _PARTS.values()]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_color(_INK)
    return _svg(figure)


# What a bar is made of, by the first part of its elements' names.
_PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "copied": ("copied", {"facecolor": "tab:orange", "edgecolor": "none"}),
    "branch": ("as its branch has it", {"facecolor": "tab:blue", "edgecolor": "none"}),
    "base": ("as it was pretrained", {"facecolor": _FREE, "edgecolor": "none"}),
    "masked": ("left out", {"facecolor": "none", "edgecolor": _FREE, "linewidth": 0.5}),
}


def _draw_bar(ax: Any, row: int, group: str, task: str, reads: Mapping[str, Any]) -> None:
    """What a task reads of a group's units, as one bar of several parts."""
    read = dict(reads["tasks"][task]["tasks"])
    own = read.pop(task, 0)
    parts = {"copied": own, "branch": sum(read.values()), "base": reads["tasks"][task]["base"]}
    parts["masked"] = reads["base"] - sum(parts.values())
    left = 0
    for what, units in parts.items():
        if units:
            (bar,) = ax.barh(row, units, 0.72, left, **_PARTS[what][1])
            bar.set_gid(f"{what}:{group}:{task}:{units}")
        left += units


def _draw_tree(ax: Any, parents: Mapping[str, str | None], depths: Mapping[str, int]) -> None:
    """Names of the tasks, a line each, on lines that lead to what each is based on."""
    rows: dict[str | None, int] = {None: 0, **{task: row for row, task in enumerate(depths, 1)}}
    step, deepest = 1.0, max(depths.values(), default=0)
    ax.set_xlim(0, max(8.0, deepest * step + 6))
    ax.text(0, 0, "the backbone", va="center", fontsize=8, color=_INK, style="italic")
    above: dict[str | None, float] = {}  # where the line of the last task on the same one has ended
    for task, depth in depths.items():
        x, y, parent = (depth + 0.3) * step, rows[task], parents[task]
        start = above.get(parent, rows[parent] + 0.4)
        above[parent] = y
        (line,) = ax.plot([x, x, x + 0.45 * step], [start, y, y], color=_INK, linewidth=0.7)
        line.set_gid(f"branch:{parent or ''}:{task}")
        ax.text(x + 0.6 * step, y, task, va="center", fontsize=8, color=_INK)


def _layer_label(group: str) -> str:
    """A unit group's layer: its number, after a `d` in the decoder beside an encoder."""
    stack, number, _ = group.split(".")
    return f"d{number}" if stack == DECODER_LAYERS else number


def shards_picture(shards: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Sizes of the checkpoint's shards."""
    figure, (ax,) = _figure(8, 0.8 + 0.3 * len(shards))
    names = list(shards)[::-1]
    sizes = [shards[name]["bytes"] / 2**20 for name in names]
    bars = ax.barh(names, sizes, color=[_FREE if name == "eidetic-pool.safetensors" else "tab:blue" for name in names])
    ax.bar_label(bars, [f"{size:.2f} MiB" for size in sizes], padding=3, fontsize=8, color=_INK)
    ax.set(xlabel="MiB", xlim=(0, max(sizes) * 1.18))
    return _svg(figure)
