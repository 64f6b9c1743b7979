"""What keeping the books of many tasks costs: CPU seconds and bytes per task, as the number of tasks grows.

    python recipes/benchmark_books.py [--tasks 10 100 300] [--forward-transfer all none] [--json books.json]

A small random BERT (hidden size 64, 4 layers of 8 heads and 1024 neurons, one of them trunk, 500 tokens) is given
one task after another, without training: cost does not depend on values. Each task keeps 1 % of the free units, at
random, and leaves its router sums. At each number of tasks, in a model whose tasks read all earlier ones and in one
whose tasks read none, it takes the time of adding and committing one task, of the first save, of a save after one more
task, of verifying, of `task_tensors` of one task, and of loading, and the size of config.json, of the last task's
entry in it, and of its shard. What is done once for all tasks is divided by their number, so a cost that grows in
proportion to the tasks has a ratio of 1. Times are those of the process, on all its threads, and what can be repeated
is repeated and the least counts: so whatever else the machine does hardly matters. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig

TASKS, TRANSFERS = [10, 100, 300], ["all", "none"]
BOUND = 1.5  # of the last number of tasks against the first, per task
REPEATS, PATIENCE = 3, 20.0  # repeat what took less than so many seconds in all
TEXTS, LENGTH, LABELS, VOCABULARY = 8, 16, ["a", "b"], 500

ONE_TASK = (
    "CPU seconds to add and commit a task",
    "CPU seconds of task_tensors of a task",
    "bytes of a task's shard, without its gates",
    "bytes of a task's gates, which it learns",
    "bytes of a task's entry in config.json",
)
ALL_TASKS = (
    "CPU seconds of the first save, per task",
    "CPU seconds of a save after one more task, per task",
    "CPU seconds to verify, per task",
    "CPU seconds to load, per task",
    "bytes of config.json, per task",
)

Figures = dict[str, float]


def small_model(forward_transfer: str) -> EideticModel:
    """A random BERT without a task, whose trunk counts as pretrained."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=64,
    )
    return EideticModel.from_backbone(
        AutoModel.from_config(config), trunk_layers=1, forward_transfer=forward_transfer, growth="fixed"
    )


def add_task(model: EideticModel) -> str:
    """One more task, committed without training; returns its name."""
    number = len(model.tasks)
    name = f"task-{number:04}"
    generator = torch.Generator().manual_seed(number)
    batch = {
        "input_ids": torch.randint(0, VOCABULARY, (TEXTS, LENGTH), generator=generator),
        "attention_mask": torch.ones(TEXTS, LENGTH, dtype=torch.long),
        "labels": torch.arange(TEXTS) % len(LABELS),
    }
    model.add_task(name, labels=LABELS)
    model.begin_task(name, PruningConfig(importance="random", keep=0.01, on_exhausted="private"))
    model.commit_task(router_sums=model.router_sums([batch]))
    return name


def fastest(action: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU seconds that an action takes: the least of some repetitions, or of fewer where they take long."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < PATIENCE:
        start = time.process_time()
        action()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(model: EideticModel, count: int, folder: Path) -> Figures:
    """Bring a model to so many tasks, and take all figures there; it has some more afterwards."""
    while len(model.tasks) < count - REPEATS:
        add_task(model)
    adding = fastest(lambda: add_task(model))
    while len(model.tasks) < count:
        add_task(model)
    names = list(model.tasks)
    tensors = fastest(lambda: model.task_tensors(names[-1]))
    verifying = fastest(lambda: _assert(bool(model.verify())))
    folders = [folder / f"{count}-{number}" for number in range(REPEATS)]
    first = fastest(lambda: model.save_pretrained(folders.pop()))
    saved = next(path for path in sorted(folder.glob(f"{count}-*"), reverse=True))
    loading = fastest(lambda: EideticModel.from_pretrained(saved))
    size = (saved / "config.json").stat().st_size
    sizes = size_of(saved, names[-1])
    seconds = []
    for _ in range(REPEATS):
        add_task(model)
        seconds.append(fastest(lambda: model.save_pretrained(saved), repeats=1))
    of_all = (first, min(seconds), verifying, loading, size)
    return {
        **dict(zip(ONE_TASK, (adding, tensors, *sizes), strict=True)),
        **{name: value / count for name, value in zip(ALL_TASKS, of_all, strict=True)},
    }


def size_of(folder: Path, task: str) -> tuple[int, int, int]:
    """Bytes of a task's shard without its gates, of its gates, and of its entry in config.json."""
    path = folder / f"eidetic-task-{task}.safetensors"
    gates = sum(tensor.nbytes for name, tensor in load_file(path).items() if ".gates." in name)
    entries = json.loads((folder / "config.json").read_text())["tasks"]
    entry = next(entry for entry in entries if entry["name"] == task)
    return path.stat().st_size - gates, gates, len(json.dumps(entry, indent=2))


def _assert(holds: bool) -> None:
    if not holds:
        raise SystemExit("A task that nobody touched has changed: what was measured is worth nothing.")


def show(forward_transfer: str, figures: dict[int, Figures]) -> None:
    """Print a row per figure, a column per number of tasks, and the last against the first."""
    counts = list(figures)
    head = "".join(f"{count:>12}" for count in counts)
    print(f"\n{f'tasks that read {forward_transfer} earlier ones':50}{head}{f'{counts[-1]} : {counts[0]}':>12}")
    for name in (*ONE_TASK, *ALL_TASKS):
        values = [figures[count][name] for count in counts]
        ratio = values[-1] / (values[0] or 1)  # a first task has no gates
        mark = "  ABOVE THE BOUND" if ratio > BOUND else ""
        print(f"{name:50}{''.join(f'{value:12.4g}' for value in values)}{ratio:12.2f}{mark}", flush=True)


def main() -> None:
    """Measure, print a table for each kind of transfer, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS, help="numbers of tasks to measure at")
    parser.add_argument("--forward-transfer", nargs="+", choices=TRANSFERS, default=TRANSFERS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found: dict[str, dict[int, Figures]] = {}
    for transfer in options.forward_transfer:
        model, found[transfer] = small_model(transfer), {}
        with tempfile.TemporaryDirectory() as folder:
            for count in sorted(options.tasks):
                found[transfer][count] = measure(model, count, Path(folder))
                if options.json:  # after each, since the last takes longest
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
        show(transfer, found[transfer])


if __name__ == "__main__":
    main()
