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
            "units": units_picture(content["tasks"], content["capacity"]),
            "shards": shards_picture(content["shards"]),
        }
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
