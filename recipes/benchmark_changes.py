"""How the router holds on texts as people write them: each text changed in every way of text_changes.py.

    python recipes/benchmark_changes.py [--data FOLDER] [--texts 300] [--sentences FILE] [--recipe FILE.yaml]
        [--trunk-layers N] [--seed 0] [--json changes.json]

Two sequences of tasks: those of a recipe (recipes/quickstart.yaml), with its number of trunk layers and its longest
sequence; and with --data the ten corpora of compare_routing.py, with the default number of trunk layers and at most 64
tokens. Each task leaves its sums, from its unchanged training texts, and is not trained. FILE holds lines {"text",
"task"} for the recipe's tasks that were written for no data set.

Printed for each: the share of test texts sent to their own task, each task counting alike, and the texts that go wrong
of FILE. For each change the share of texts of which it changes a token at all, the share sent to their own task, the
difference to the unchanged ones in points, how many texts lost and won their own task by it, and the task that loses
most. Three changes are of the batch: padded on the left to the longest sequence, cut at 16 tokens, and each text
alone. Last, the share by number of tokens before any cut: in quartiles of all texts, and of each task's own, which
differ where tasks differ in length. Takes about ten minutes on one core, most of it for the ten corpora.

Supported: tasks whose rows are a text, or a pair (read as one text), and a label. Other kinds are not.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from compare_routing import BATCH, CORPORA, MAX_LENGTH, read_rows
from text_changes import changed
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from eidetic_hf import EideticModel
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.starting_point import resolve_backbone
from eidetic_hf.recipe.task_data import load_splits

SHORT = 16
BOUND = 1.5  # points that a change may cost on the recipe's texts
UNCHANGED, PADDED, CUT, ALONE = "unchanged", "padded on the left", f"cut at {SHORT} tokens", "each text alone"

Ids = list[list[int]]


@dataclass(frozen=True)
class Tasks:
    """Tasks that a text is routed among.

    Attributes:
        rows: of each task, the training rows, which the router's sums are taken from.
        texts: of each task, the texts to be routed.
        trunk_layers: of the model; `None` takes its default.
        max_length: tokens at which a text is cut.
    """

    rows: dict[str, list[dict[str, Any]]]
    texts: dict[str, list[str]]
    trunk_layers: int | None
    max_length: int


@dataclass(frozen=True)
class Routed:
    """Where texts went: of each task, the token ids of its texts, and the task that each of them was sent to."""

    ids: dict[str, Ids]
    tasks: dict[str, list[str]]

    def right(self) -> dict[str, list[bool]]:
        """Of each task, whether each of its texts was sent to it."""
        return {task: [one == task for one in found] for task, found in self.tasks.items()}


def text_of(row: Mapping[str, Any]) -> str:
    """A row's text; a pair becomes one."""
    return " ".join(filter(None, [row["text"], row.get("text_pair")]))


def read_recipe_tasks(path: Path, texts: int) -> Tasks:
    """The tasks of a recipe whose rows have the columns `text` and `label`, with at most so many test texts each."""
    recipe = read_recipe(path)
    splits = {task.name: load_splits(recipe, task) for task in recipe.tasks}
    return Tasks(
        rows={name: found["train"].to_list() for name, found in splits.items()},
        texts={name: [text_of(row) for row in found["test"].to_list()[:texts]] for name, found in splits.items()},
        trunk_layers=recipe.trunk_layers,
        max_length=recipe.max_length,
    )


def read_corpora(folder: Path, texts: int) -> Tasks:
    """The ten corpora, with at most so many test texts each."""
    return Tasks(
        rows={task: read_rows(folder / task / "train.jsonl") for task in CORPORA},
        texts={task: [text_of(row) for row in read_rows(folder / task / "test.jsonl")[:texts]] for task in CORPORA},
        trunk_layers=None,
        max_length=MAX_LENGTH,
    )


def read_sentences(path: Path, tasks: Sequence[str]) -> dict[str, list[str]]:
    """The texts of a JSON lines file, by task."""
    rows = read_rows(path)
    strange = sorted({row["task"] for row in rows} - set(tasks))
    if strange:
        raise SystemExit(f"{path} has sentences for {', '.join(strange)}; the recipe's tasks are {', '.join(tasks)}.")
    return {task: found for task in tasks if (found := [row["text"] for row in rows if row["task"] == task])}


class Bench:
    """A model whose tasks left their sums, and what it makes of texts.

    Args:
        backbone: a folder or a Hub id.
        tasks: the tasks; they are committed without having been trained, which routes do not depend on.
    """

    def __init__(self, backbone: str, tasks: Tasks) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(backbone)
        self.max_length = tasks.max_length
        self.model = EideticModel.from_backbone(backbone, trunk_layers=tasks.trunk_layers, growth="copy")
        for task, rows in tasks.rows.items():
            labels = sorted({str(row["label"]) for row in rows})
            self.model.add_task(task, labels=labels)
            self.model.begin_task(task)
            self.model.commit_task(router_sums=self.model.router_sums(self._labelled(rows, labels)))

    def _labelled(self, rows: list[dict[str, Any]], labels: list[str]) -> Iterator[dict[str, torch.Tensor]]:
        ids = self.encode([text_of(row) for row in rows])
        numbers = torch.tensor([labels.index(str(row["label"])) for row in rows])
        for start in range(0, len(rows), BATCH):
            batch = self.tokenizer.pad({"input_ids": ids[start : start + BATCH]}, return_tensors="pt")
            yield {**batch, "labels": numbers[start : start + BATCH]}

    def encode(self, texts: list[str], longest: int | None = None) -> Ids:
        """Token ids of texts, cut at so many tokens, or at those that the tasks were learned with."""
        return self.tokenizer(texts, truncation=True, max_length=longest or self.max_length)["input_ids"]

    def lengths(self, texts: Mapping[str, list[str]]) -> dict[str, list[int]]:
        """Number of tokens of each text, uncut, by task."""
        return {task: [len(ids) for ids in self.tokenizer(found)["input_ids"]] for task, found in texts.items()}

    def route(self, ids: Mapping[str, Ids], batch: int = BATCH, **padding: Any) -> Routed:
        """Route texts of all tasks mixed, those of like length together.

        Args:
            ids: token ids of each task's texts.
            batch: texts at a time.
            padding: arguments of the tokenizer's `pad`.
        """
        places = sorted((len(row), task, place) for task, rows in ids.items() for place, row in enumerate(rows))
        found = {task: [""] * len(rows) for task, rows in ids.items()}
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            rows = [ids[task][place] for _, task, place in part]
            inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt", **padding)
            for (_, task, place), choice in zip(part, self.model.route(**inputs).tasks, strict=True):
                found[task][place] = choice
        return Routed(dict(ids), found)

    def again(self, before: Routed, ids: Mapping[str, Ids]) -> Routed:
        """Route those texts of which a token has changed; the others went where they go."""
        moved = {
            task: [place for place, row in enumerate(rows) if row != before.ids[task][place]]
            for task, rows in ids.items()
        }
        routed = self.route({task: [ids[task][place] for place in places] for task, places in moved.items()})
        found = {task: list(choices) for task, choices in before.tasks.items()}
        for task, places in moved.items():
            for place, choice in zip(places, routed.tasks[task], strict=True):
                found[task][place] = choice
        return Routed(dict(ids), found)

    def under_changes(self, texts: Mapping[str, list[str]], seed: int) -> Iterator[tuple[str, Routed]]:
        """Where texts go unchanged, then under each change."""
        before = self.route({task: self.encode(found) for task, found in texts.items()})
        yield UNCHANGED, before
        for changes in zip(*(changed(found, seed) for found in texts.values()), strict=True):
            ids = {task: self.encode(found) for task, (_, found) in zip(texts, changes, strict=True)}
            yield changes[0][0], self.again(before, ids)
        padding: dict[str, Any] = {"padding": "max_length", "max_length": self.max_length, "padding_side": "left"}
        yield PADDED, self.route(before.ids, **padding)
        yield CUT, self.again(before, {task: self.encode(found, SHORT) for task, found in texts.items()})
        yield ALONE, self.route(before.ids, batch=1)


def share(right: Mapping[str, Sequence[bool]]) -> float:
    """Share of texts sent to their own task, each task counting alike."""
    return statistics.fmean(statistics.fmean(found) for found in right.values())


def compare(before: Routed, after: Routed) -> dict[str, Any]:
    """What a change did: shares, points, and texts that lost or won their own task by it."""
    was, now = before.right(), after.right()
    pairs = [pair for task in was for pair in zip(was[task], now[task], strict=True)]
    points = {task: 100 * (statistics.fmean(now[task]) - statistics.fmean(was[task])) for task in was}
    differ = [one != other for task in was for one, other in zip(before.ids[task], after.ids[task], strict=True)]
    return {
        "changed": statistics.fmean(differ),
        "right": share(now),
        "points": 100 * (share(now) - share(was)),
        "lost": pairs.count((True, False)),
        "won": pairs.count((False, True)),
        "points by task": points,
    }


def bands(lengths: Mapping[str, list[int]], right: Mapping[str, list[bool]]) -> list[dict[str, Any]]:
    """Share of texts sent to their own task by number of tokens, in quartiles of all these texts: pooled."""
    pairs = [pair for task in lengths for pair in zip(lengths[task], right[task], strict=True)]
    edges = statistics.quantiles([length for length, _ in pairs], n=4, method="inclusive")
    found: list[list[tuple[int, bool]]] = [[] for _ in range(4)]
    for length, is_right in pairs:
        found[bisect.bisect_left(edges, length)].append((length, is_right))
    return [
        {
            "tokens": [min(length for length, _ in band), max(length for length, _ in band)],
            "texts": len(band),
            "right": statistics.fmean(is_right for _, is_right in band),
        }
        for band in found
        if band
    ]


def measure(
    bench: Bench, texts: Mapping[str, list[str]], seed: int
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """All figures of these texts; and each that goes wrong unchanged: the text, its task, the one it is sent to."""
    routed = bench.under_changes(texts, seed)
    _, before = next(routed)
    right, lengths = before.right(), bench.lengths(texts)
    own = {task: bands({task: lengths[task]}, {task: right[task]}) for task in texts}
    found = {
        "texts": {task: len(some) for task, some in texts.items()},
        "trunk layers": bench.model.config.trunk_layers,
        "right": share(right),
        "right by task": {task: statistics.fmean(some) for task, some in right.items()},
        "changes": {name: compare(before, after) for name, after in routed},
        "by length": bands(lengths, right),
        "by length within each task": own,
    }
    wrong = [
        (text, task, choice)
        for task, some in texts.items()
        for text, choice in zip(some, before.tasks[task], strict=True)
        if choice != task
    ]
    return found, wrong


def show(name: str, found: Mapping[str, Any], bound: float | None) -> None:
    """Print one sequence's table."""
    by_task = ", ".join(f"{task} {value:.3f}" for task, value in found["right by task"].items())
    print(f"\n{name}: {sum(found['texts'].values())} texts, {found['trunk layers']} trunk layers")
    print(f"{UNCHANGED}: {found['right']:.4f} sent to their own task ({by_task})")
    print(f"\n{'':34} {'changed':>7} {'right':>7} {'points':>7} {'lost':>5} {'won':>5}  loses most")
    for change, row in found["changes"].items():
        worst = min(row["points by task"], key=row["points by task"].get)
        loss = f"{worst} {row['points by task'][worst]:.1f}" if row["points by task"][worst] < 0 else ""
        mark = f"  LOSES MORE THAN {bound}" if bound is not None and row["points"] < -bound else ""
        counts = f"{row['lost']:5} {row['won']:5}  {loss}{mark}".rstrip()
        print(f"{change:34} {row['changed']:7.0%} {row['right']:7.4f} {row['points']:+7.2f} {counts}")
    print("\nby number of tokens, quartiles of all texts:")
    print("  " + ", ".join("{tokens[0]}-{tokens[1]}: {right:.3f}".format(**band) for band in found["by length"]))
    print("quartiles of each task's own texts:")
    for task, own in found["by length within each task"].items():
        print(f"  {task}: " + ", ".join("{tokens[0]}-{tokens[1]}: {right:.3f}".format(**band) for band in own))


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the ten corpora, which are left out without it")
    parser.add_argument("--texts", type=int, default=300, help="test texts of a task, at most")
    parser.add_argument("--sentences", type=Path, help="JSON lines of texts written for the recipe's tasks")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "quickstart.yaml")
    parser.add_argument("--backbone", help="the recipe's by default")
    parser.add_argument("--trunk-layers", type=int, help="for both sequences, instead of the recipe's and the default")
    parser.add_argument("--seed", type=int, default=0, help="of typing errors, greetings and the like")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    recipe = read_recipe(options.recipe)
    named = options.backbone or recipe.backbone
    if not isinstance(named, str):
        parser.error(f"{options.recipe} has a random backbone; give a pretrained one with --backbone")
    backbone = resolve_backbone(named, Path.cwd() if options.backbone else options.recipe.parent)
    results: dict[str, dict[str, Any]] = {}

    def run(tasks: Tasks, more: Mapping[str, Mapping[str, list[str]]], name: str, bound: float | None) -> None:
        if options.trunk_layers is not None:
            tasks = dataclasses.replace(tasks, trunk_layers=options.trunk_layers)
        bench = Bench(backbone, tasks)
        for title, texts in {name: tasks.texts, **more}.items():
            results[title], wrong = measure(bench, texts, options.seed)
            show(title, results[title], None if title in more else bound)
            if title in more:
                print("wrong:" + "".join(f"\n  {text!r} ({task}) is sent to {to}" for text, task, to in wrong))

    tasks = read_recipe_tasks(options.recipe, options.texts)
    more = {}
    if options.sentences:
        more[options.sentences.stem] = read_sentences(options.sentences, list(tasks.rows))
    run(tasks, more, recipe.name, BOUND)
    if options.data:
        run(read_corpora(options.data, options.texts), {}, "ten corpora", None)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
