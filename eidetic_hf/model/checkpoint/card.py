"""The model card: what a reader of a folder or a repository has to know, and snippets that run as pasted.

Its parts stand between markers, `<!-- eidetic_hf: begin tasks -->` and `<!-- eidetic_hf: end tasks -->`. Every save
writes anew what is between the markers of a pair, wherever it stands; all else, headings too, is a person's, and
stays. The metadata is merged key by key, see `metadata.py`; docs/model_card.md says what comes from where.
"""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from transformers.utils import logging

from ...configuration import EideticConfig, TaskRecord
from ...network.growth import growth_of
from ...views import task_key
from ..versions import routed
from .layout import POOL_FILE, shard_file
from .metadata import UnmergeableMetadata, data_of, facts, figures, merge_metadata, summary, write_metadata

logger = logging.get_logger(__name__)

HERE = "."  # where a model is that nobody has given a repository: its snippets are run in its folder
COLUMNS = ("task", "kind", "labels", "data", "metrics", "units", "bytes", "parents", "file", "sha256")
NAMED, LONGEST = 5, 40  # how many of a long list are named, and how many characters of a name are shown
USES = "use"  # the folder of the templates of snippets, by kind of task
ANY_KIND = "other"

_BEGIN = "<!-- eidetic_hf: begin"
_END = r"<!-- eidetic_hf: end(?P=name) -->"
# From a marker to its end, with no other beginning in between: that of a part that has lost its end.
_PART = re.compile(rf"{_BEGIN}(?P<name> [a-z]+|)(?: \([^<>]*\))? -->[^<]*(?:<(?!{_BEGIN[1:]}|{_END[1:]})[^<]*)*{_END}")
_HEADED = re.compile(rf"## .+\n\n{_PART.pattern}")
_MARKER = re.compile(r"<!-- eidetic_hf: (?:begin|end) ([a-z]+)[ (]")
_WROTE = re.compile(r"<!-- eidetic_hf: wrote (\{.*\}) -->")
# What stood behind the only part of the first cards, which had no name; its snippet ran nowhere.
_FORMER_USE = re.compile(r"\n*## Use\n\n`pip install eidetic-hf`, and `import eidetic_hf` .*\n\n```python\n[^`]*```\n")
_MARKDOWN = re.compile(r"[\\`*_\[\]|~$#!]")


def model_card(config: EideticConfig, existing: str | None = None, repository: str | None = None) -> str:
    """The text of a checkpoint's card.

    Args:
        config: of the checkpoint, with its `files`.
        existing: the card that there is. What stands between the markers of a part is replaced; a card without any,
            which a person wrote, gets all parts at its end. A part that was taken out with its markers stays away.
        repository: the Hub's id of where the card goes, which its snippets then load from; else they load from the
            current directory.
    """
    known = facts(config)
    # Not jinja2, which comes with the extra `recipe` alone: every save writes a card.
    template = Template(_template("model_card"))
    blanks = {**_blanks(config, repository or HERE), "metadata": write_metadata(known)}
    card = template.substitute(blanks, summary=_in_comment(summary(known)))
    if existing is None or not existing.strip("\ufeff\0 \t\r\n"):
        return card
    mark = "\ufeff" if existing.startswith("\ufeff") else ""
    text, before = existing.removeprefix(mark), _remembered(existing)
    try:
        text = _with_metadata(text, known, before)
    except UnmergeableMetadata as error:
        logger.warning(f"The metadata of the model card is left as it is, since {error}. Correct it by hand.")
        card = template.substitute(blanks, summary=_in_comment(before))
    return mark + _with_parts(text, {match["name"].strip(): match[0] for match in _HEADED.finditer(card)})


def read_card(path: Path) -> str | None:
    """The text of a card, with its own ends of lines, in whatever encoding; `None` if there is none.

    Raises:
        OSError: if it can not be read.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # the Hub reads UTF-8 alone, and so it is written
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8", errors="surrogateescape")


def write_card(path: Path, existing: Path, config: EideticConfig, repository: str | None = None) -> None:
    """Write a checkpoint's card, with what a person wrote into the one that there is.

    What stands in its place and is no file of the folder's own (a link, a folder, something that can not be read) is
    left alone: a save is not to fail because of a card, nor to take anything from elsewhere into it.

    Args:
        path: where to; nothing is written there, if the existing one is left alone.
        existing: the card that there is, or where it would be.
        config: of the checkpoint, with its `files`.
        repository: as in `model_card`.
    """
    try:
        if os.path.lexists(existing) and not stat.S_ISREG(os.lstat(existing).st_mode):
            logger.warning(f"{existing} is no plain file, so it is left as it is, and no model card is written.")
            return
        text = read_card(existing)
    except OSError as error:
        logger.warning(f"{existing} can not be read ({error}), so it is left as it is, and no model card is written.")
        return
    card = model_card(config, text, repository)
    path.write_text(card, encoding="utf-8", errors="surrogateescape", newline="")


# -- what there is ----------------------------------------------------------------------------------------------------


def _with_parts(text: str, headed: Mapping[str, str]) -> str:
    """A card whose parts are up to date.

    One that has none gets all, at its end; a part that lost one of its markers is text, and is written there anew.

    Args:
        text: the card.
        headed: the parts by name, each with its heading, which a person may change: it stands before the marker.
    """
    newline = _newline(text)
    between, headed = newline * 2, {name: part.replace("\n", newline) for name, part in headed.items()}
    found: set[str] = set()

    def renewed(match: re.Match[str]) -> str:
        name = match["name"].strip()
        found.update([name] if name else headed)
        if not name:
            return between.join(headed.values())
        return headed[name][headed[name].index(_BEGIN) :] if name in headed else match[0]

    if any(not match["name"] for match in _PART.finditer(text)):
        text = _FORMER_USE.sub(lambda _: "\n", text)
    text = _PART.sub(renewed, text)
    broken = set(_MARKER.findall(text)) if found else set(headed)
    lost = [part for name, part in headed.items() if name not in found and name in broken]
    return text.rstrip() + between + between.join(lost) + newline if lost else text


def _with_metadata(text: str, known: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """A card whose metadata is up to date.

    Raises:
        UnmergeableMetadata: if there is some that has to be left as it is.
    """
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        newline = _newline(text)
        return f"---\n{write_metadata(known)}\n---\n\n".replace("\n", newline) + text
    merged = merge_metadata(match[2].replace("\r\n", "\n"), known, before)
    return text[: match.start(2)] + merged.replace("\n", _newline(match[0])) + text[match.end(2) :]


def _remembered(text: str) -> dict[str, Any]:
    """What the library wrote into the metadata of a card the last time: texts and lists of texts, by key."""
    match = _WROTE.search(text)
    try:
        values = json.loads(match[1]) if match else {}
    except (ValueError, RecursionError):
        return {}
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    }


def _in_comment(values: Mapping[str, Any]) -> str:
    """Values as JSON that does not end the comment that it stands in."""
    return json.dumps(values).replace(">", "\\u003e")


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


# -- what is written --------------------------------------------------------------------------------------------------


def _template(name: str) -> str:
    return (files("eidetic_hf") / "templates" / f"{name}.md").read_text(encoding="utf-8")


def _blanks(config: EideticConfig, where: str) -> dict[str, str]:
    """What the template leaves open, but the metadata; `where` the model is to be loaded from."""
    here = where == HERE
    shards = "eidetic-task-*.safetensors"
    download = f"hf download {shlex.quote(where)} --include '{shards}' --local-dir model"
    return {
        "origin": _origin(config),
        "tasks": _table(config),
        "place": (
            f' The snippets are run in this folder, `"{HERE}"`; from elsewhere, put its path or the repository there.'
            if here
            else ""
        ),
        "use": "\n".join(_uses(config, json.dumps(where))).rstrip(),
        "learning": _learning(config, json.dumps(where)),
        "sha256sum": f"sha256sum {shards}" if here else f"{download} && sha256sum model/{shards}",
        "where": shlex.quote(where),
        "source": json.dumps(where),
    }


def _origin(config: EideticConfig) -> str:
    """What the model was made from."""
    name = config.base_config.name_or_path
    return _code(name) if name else f"a {config.base_config.model_type} backbone"


def _uses(config: EideticConfig, source: str) -> Iterator[str]:
    """Snippets: one for each kind of task, one that names no task, and one that loads a part; `source` in Python."""
    if config.learning:
        yield f"This is a checkpoint in the middle of learning {_code(config.learning)}: a Trainer's, not for use.\n"
        return
    served = [task for task in config.tasks if config.serves(task.name)]
    there = {path.name for path in (files("eidetic_hf") / "templates" / USES).iterdir()}
    shown: dict[str, TaskRecord] = {}
    for task in served:
        shown.setdefault(_template_of(task, there), task)
    for name, task in shown.items():
        yield Template(_template(name)).substitute(source=source, task=json.dumps(task.name))
    if len(routed(config, [task.name for task in served])) > 1:
        yield Template(_template("router")).substitute(source=source)
    if served:
        task = served[-1]
        parents = _few([_code(name) for name in task.ancestors]) or "here, none"
        bring = (
            f" `model.load_task({source}, {json.dumps(task.name)})` brings it into another model of this backbone."
            if growth_of(config.growth).copies
            else ""
        )
        yield Template(_template("part")).substitute(
            source=source, task=json.dumps(task.name), parents=parents, bring=bring
        )
    else:
        yield "No task has been committed yet, so there is nobody to ask.\n"


def _template_of(task: TaskRecord, there: set[str]) -> str:
    """Which of the templates that are there a task's snippet has: its kind's and problem's, its kind's, or any's."""
    names = (f"{task.task_type}.{task.options.get('problem_type')}", task.task_type, ANY_KIND)
    return f"{USES}/{next(name for name in names if f'{name}.md' in there)}"


def _learning(config: EideticConfig, source: str) -> str:
    """Whether the model can learn on, and how."""
    copies = growth_of(config.growth).copies
    if config.learning:
        return "`trainer.train(resume_from_checkpoint=...)` goes on from here."
    if not config.pool or (POOL_FILE not in config.files and config.base is None):
        return "What a new task starts from is left out: inference only."
    room = (
        "There is room for any number of tasks: each copies the few units of the backbone that it has to change."
        if copies
        else "The pool of free units is included: new tasks can be learned, as long as there are some. "
        "`model.capacity()` says how many, and `model.expand(0.1)` adds a tenth."
    )
    taken = {task.name for task in config.tasks}
    name = next(
        name for name in itertools.chain(["mine"], map("mine-{}".format, itertools.count(2))) if name not in taken
    )
    return Template(_template("learning")).substitute(room=room, source=source, task=json.dumps(name)).rstrip()


# -- the table --------------------------------------------------------------------------------------------------------


def _table(config: EideticConfig) -> str:
    """One row for each task, in commit order."""
    rows = [_row(task, config.files) for task in config.tasks]
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *rows]) if rows else "No task has been committed yet."


def _row(task: TaskRecord, shards: Mapping[str, Mapping[str, Any]]) -> str:
    """What is known of a task since its commit, and of no other: a row never changes."""
    file = shard_file(task_key(task.name))
    shard = shards.get(file, {})
    metrics = [f"{_plain(name)} {value:.4g}" for name, value in figures(task).items()]
    cells = (
        f"`{task.name}`",
        _plain(str(task.task_type)),
        f"{len(task.labels)}: {_few([_plain(str(label)) for label in task.labels[: NAMED + 1]], len(task.labels))}"
        if task.labels
        else "",
        _data(data_of(task)),
        _few(metrics),
        str(sum(task.units.values())),
        str(shard.get("bytes", "")),
        _few([_code(name) for name in task.ancestors[: NAMED + 1]], len(task.ancestors)),
        f"`{file}`",
        f"`{shard['sha256']}`" if "sha256" in shard else "",
    )
    return f"| {' | '.join(cell or '-' for cell in cells)} |"


def _data(data: Mapping[str, Any]) -> str:
    """What a task was learned from, as far as its record says."""
    rows = data.get("rows")
    parts = [_plain(str(data["dataset"])) if "dataset" in data else "local files" if rows else ""]
    parts += [_plain(str(data["config"]))] if data.get("config") else []
    parts += [f"{_plain(str(rows['train']))} rows"] if isinstance(rows, Mapping) and "train" in rows else []
    return ", ".join(filter(None, parts))


def _few(names: Sequence[str], number: int | None = None) -> str:
    """The first names of a list, and how many there are more; `number` in all, if these are not all."""
    number = len(names) if number is None else number
    return ", ".join(names[:NAMED]) + (f" and {number - NAMED} more" if number > NAMED else "")


def _shown(value: object) -> str:
    """A text on one line, cut, without characters that show nothing or turn the line around."""
    text = str(value)[: 2 * LONGEST]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@lru_cache(maxsize=4096)
def _plain(value: str) -> str:
    """A text as text in a cell of a table: no markup, no link, no marker."""
    escaped = html.escape(_MARKDOWN.sub(r"\\\g<0>", _shown(value)), quote=False)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


@lru_cache(maxsize=4096)
def _code(value: str) -> str:
    """A text as code, in a line or a cell."""
    return "`" + _shown(value).replace("`", "'").replace("|", "/").replace("<!--", "<! --") + "`"
