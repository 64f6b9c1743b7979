"""Learn tasks in order, in a random order and side by side: are the shards the same, byte for byte?

    python recipes/benchmark_order.py [--data FOLDER] [--tasks 30] [--jobs 2] [--backbone package:NAME/FOLDER]
        [--steps 20] [--rows 64] [--seed 0] [--json order.json]

FOLDER (by default recipes/data) holds {name}/{train,test}.jsonl with lines {"text", "label"}. A task is to tell some
labels of one of these data sets apart: pairs of labels first, then three at a time, the data sets in turn.
Every fifth task is based on the one before it, so it is on a branch, and every third one masks half of the backbone's
units out. The backbone is by default a random BERT that reads bytes (hidden size 64, 4 layers, one of them trunk).

Printed: seconds of each run, the number of shards, how many differ, and whether the folders of the first and the
last run are the same in every file. Exit code 1 if anything differs. With more than one thread in each of several
jobs, cores are shared: set OMP_NUM_THREADS to the cores divided by the jobs, for all three runs alike.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers import BertConfig, BertModel
from transformers.utils import logging

from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.network.backbone import ENCODER
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import MODEL_FOLDER, run_recipe
from eidetic_hf.recipe.starting_point import train_tokenizer

BRANCH_EVERY, MASK_EVERY = 5, 3
SPLITS = ("train", "test")

Rows = list[dict[str, Any]]


def read_data(folder: Path) -> dict[str, dict[str, Rows]]:
    """The splits of every data set of a folder whose rows are a text and its label."""
    found = {}
    for path in sorted(folder.iterdir()):
        files = {split: path / f"{split}.jsonl" for split in SPLITS}
        if all(file.exists() for file in files.values()):
            splits = {
                split: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                for split, file in files.items()
            }
            if all(set(row) >= {"text", "label"} and isinstance(row["label"], str) for row in splits["train"]):
                found[path.name] = splits
    if not found:
        raise SystemExit(f"{folder} has no folder with train.jsonl and test.jsonl of texts and labels.")
    return found


def slices(data: dict[str, dict[str, Rows]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Data sets in turn, each time with other labels: pairs, then three at a time, and so on."""

    def of(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        labels = sorted({row["label"] for row in data[name]["train"]})
        for size in range(2, len(labels) + 1):
            yield from ((name, chosen) for chosen in itertools.combinations(labels, size))

    waiting = [of(name) for name in data]
    while waiting:
        for source in list(waiting):
            chosen = next(source, None)
            if chosen is None:
                waiting.remove(source)
            else:
                yield chosen


def write_tasks(folder: Path, data: dict[str, dict[str, Rows]], count: int, rows: int) -> list[dict[str, Any]]:
    """Files and entries of a recipe for so many tasks."""
    tasks: list[dict[str, Any]] = []
    for number, (name, labels) in enumerate(itertools.islice(slices(data), count)):
        files = {}
        for split in SPLITS:
            chosen = [row for row in data[name][split] if row["label"] in labels][:rows]
            file = folder / f"{number}.{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
            files[split] = file.name
        task = {
            "name": f"{name}-{number:02}",
            "data": {"path": "json", "data_files": files},
            "labels": list(labels),
        }
        if number % MASK_EVERY == MASK_EVERY - 1:
            task["pruning"] = {"see": 0.5}
        if number % BRANCH_EVERY == BRANCH_EVERY - 1:
            task["based_on"] = tasks[-1]["name"]
        tasks.append(task)
    if len(tasks) < count:
        raise SystemExit(f"The labels of these data sets give {len(tasks)} tasks. Ask for fewer, or give other data.")
    return tasks


def shuffled(tasks: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The tasks in a random order, each after the one that it is based on."""
    waiting = random.Random(seed).sample(tasks, len(tasks))
    found: list[dict[str, Any]] = []
    while waiting:
        names = {task["name"] for task in found}
        ready = next(task for task in waiting if task.get("based_on") in {None, *names})
        waiting.remove(ready)
        found.append(ready)
    return found


def write_backbone(folder: Path, seed: int) -> Path:
    """A small random BERT, saved as a pretrained one is."""
    tokenizer = train_tokenizer("byte", [], ENCODER)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}


def main() -> None:
    """Learn, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--backbone", help="instead of the small random one")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=64, help="of each split, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    gc.collect()
    gc.freeze()  # every training collects garbage, and would walk all that was imported
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = write_tasks(folder, read_data(arguments.data), arguments.tasks, arguments.rows)
        content = {
            "backbone": arguments.backbone or str(write_backbone(folder / "backbone", 0)),
            "growth": "copy",
            "trunk_layers": 1,
            "max_length": 48,
            "pruning": {"own": 0.1},
            "training": {
                "max_steps": arguments.steps,
                "per_device_train_batch_size": 16,
                "learning_rate": 1e-3,
                "eval_strategy": "no",
                "disable_tqdm": True,
            },
        }
        runs = {
            "in order": (tasks, 1),
            "in a random order": (shuffled(tasks, arguments.seed), 1),
            f"{arguments.jobs} at once": (tasks, arguments.jobs),
        }
        found: dict[str, dict[str, str]] = {}
        seconds: dict[str, float] = {}
        for run, (ordered, jobs) in runs.items():
            path = folder / "order.yaml"
            path.write_text(yaml.safe_dump({**content, "tasks": ordered}, sort_keys=False))
            output = folder / f"output-{len(found)}"
            start = time.perf_counter()
            results = run_recipe(read_recipe(path, output), lambda line: None, jobs)
            seconds[run] = time.perf_counter() - start
            if not results["verify"]["ok"]:
                raise SystemExit(f"{run}: {results['verify']['text']}")
            found[run] = hashes(output / MODEL_FOLDER)
            print(f"{run}: {seconds[run]:.0f} s, verified", flush=True)
        report(found, seconds, arguments)


def report(found: dict[str, dict[str, str]], seconds: dict[str, float], arguments: argparse.Namespace) -> None:
    """Print what differs, and write it; exit with 1 if anything does."""
    first, *_, last = found
    shards = {
        run: {name: sha for name, sha in files.items() if name.endswith(".safetensors")}
        for run, files in found.items()
    }
    differ = {
        run: sorted(name for name in {*files, *shards[first]} if files.get(name) != shards[first].get(name))
        for run, files in shards.items()
    }
    same_folder = found[first] == found[last]
    print(f"{len(shards[first])} shards of {arguments.tasks} tasks, {torch.get_num_threads()} threads")
    for run, names in differ.items():
        print(f"{run}: {len(names)} shards differ from those learned {first}{''.join(f', {n}' for n in names)}")
    print(f"every file of the folder the same, {first} and {last}: {'yes' if same_folder else 'NO'}")
    if arguments.json is not None:
        values = {
            "tasks": arguments.tasks,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "shards": len(shards[first]),
            "differ": differ,
            "same_folder": same_folder,
        }
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")
    if not same_folder or any(differ.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
