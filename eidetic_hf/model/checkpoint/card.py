"""The model card: a table of the tasks, between two markers. What a person writes around them stays."""

from __future__ import annotations

from importlib.resources import files
from string import Template

from ...configuration import EideticConfig, TaskRecord
from ...views import task_key
from .layout import POOL_FILE, shard_file

CARD_BEGIN, CARD_END = "<!-- eidetic_hf: begin -->", "<!-- eidetic_hf: end -->"
TABLE_HEAD = "| task | kind | labels | metrics | units owned | shard | sha256 |\n|---|---|---|---|---|---|---|"


def model_card(config: EideticConfig, existing: str | None = None) -> str:
    """The text of a checkpoint's card.

    Args:
        config: of the checkpoint, with its `files`.
        existing: the card that the folder holds. What is between the markers is replaced; a card without them, which
            a person wrote, gets them at its end.
    """
    # Not jinja2, which comes with the extra `recipe` alone: every save writes a card.
    template = files("eidetic_hf") / "templates" / "model_card.md"
    card = Template(template.read_text(encoding="utf-8")).substitute(
        source=_source(config), tasks=_table(config), pool=_pool(config)
    )
    if existing is None:
        return card
    body = CARD_BEGIN + card.partition(CARD_BEGIN)[2].partition(CARD_END)[0] + CARD_END
    head, begin, rest = existing.partition(CARD_BEGIN)
    _, end, tail = rest.partition(CARD_END)
    return head + body + tail if begin and end else f"{existing.rstrip()}\n\n{body}\n"


def _source(config: EideticConfig) -> str:
    """What the model was made from."""
    name = config.base_config.name_or_path
    return f"`{name}`" if name else f"a {config.base_config.model_type} backbone"


def _table(config: EideticConfig) -> str:
    """One row for each task, in commit order."""
    rows = [_row(task, config) for task in config.tasks]
    return "\n".join([TABLE_HEAD, *rows]) if rows else "No task has been committed yet."


def _row(task: TaskRecord, config: EideticConfig) -> str:
    file = shard_file(task_key(task.name))
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in task.metrics.items()) or "-"
    labels, owned = len(task.labels) or "-", sum(task.units.values())
    sha256 = config.files[file]["sha256"]
    return f"| {task.name} | {task.task_type} | {labels} | {metrics} | {owned} | `{file}` | `{sha256}` |"


def _pool(config: EideticConfig) -> str:
    """Whether the model can learn on."""
    if config.pool and POOL_FILE in config.files:
        return "is included: new tasks can be learned"
    return "is left out: inference only"
