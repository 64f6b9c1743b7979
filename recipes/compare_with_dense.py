"""Hold a recipe's scores against a separate plain model per task, fine-tuned in the same run with the same steps.

    python recipes/compare_with_dense.py recipes/standard.yaml [--output runs/standard] [--json comparison.json]
        [--separate-learning-rate 1e-4] [--tasks agnews sst2]

Runs the recipe (or takes the tasks that are committed in its output folder already), then fine-tunes, for every task,
a plain model of transformers for that kind of task (`AutoModelForTokenClassification`, ...) from the same backbone
with the same `TrainingArguments`, seed, data and number of steps. Prints both scores on the test split, and the
differences with paired bootstrap 95 % intervals over test items: of each task, and of the mean over the tasks whose
scores are shares. For F1 of entities, correlations and perplexity the items are drawn and the score is computed anew
each time.

Supports every kind of task. For feature-extraction transformers has no class with a loss: its plain model is the
encoder with the task's own pooling and loss; pairs without scores are left out, as there is nothing to measure.
Takes about twice the recipe's own time.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    set_seed,
)
from transformers.utils import logging

from eidetic_hf import EideticModel, EideticTrainer
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import kind_of
from eidetic_hf.kinds.collators import MaskingCollator
from eidetic_hf.kinds.metrics import answer_f1, correlations, entities, language_scores, squad_scores
from eidetic_hf.recipe.kinds import lower_is_better
from eidetic_hf.recipe.recipe import Recipe, TaskRecipe
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.starting_point import make_config, resolve_backbone
from eidetic_hf.recipe.task_data import TaskData, load_task_data

RESAMPLES = 2000
EMBEDDINGS = "feature-extraction"
Statistic = Callable[[np.ndarray], float]


@dataclass
class Items:
    """What a model did on each item of a test split.

    Attributes:
        figures: `(items, figures)`.
        scores: what is computed from them, by metric; the first one is the task's main one.
    """

    figures: np.ndarray
    scores: dict[str, Statistic]


def mean_of(column: int) -> Statistic:
    """The mean of a figure."""
    return lambda figures: float(figures[:, column].mean())


def f1_of_sums(figures: np.ndarray) -> float:
    """F1 from the numbers of answers, of right answers, and of those that are both, `(items, 3)`."""
    answered, right, both = figures.sum(0)
    return float(2 * both / (answered + right)) if answered + right else 0.0


def correlation(name: str) -> Statistic:
    """Correlation of predicted and right numbers, `(items, 2)`; 0 where one of them never changes."""

    def compute(figures: np.ndarray) -> float:
        constant = (figures == figures[0]).all(0).any()
        return 0.0 if constant else correlations(figures[:, 0], figures[:, 1])[name]

    return compute


def items_of(record: TaskRecord, data: TaskData, prediction: EvalPrediction, split: str = "test") -> Items:
    """What there is to compare in a model's answers to a split."""
    found, labels = prediction.predictions, prediction.label_ids
    if record.task_type == "question-answering":
        answers = data.preparation.answers_to(data.rows[split], split, found)
        rights = [row["text"] for row in data.rows[split][data.preparation.task.columns["answers"]]]
        figures = [
            [
                max(answer_f1(answer.text, text) for text in right or [""]),
                squad_scores([answer.text], [right])["exact_match"] / 100,
            ]
            for answer, right in zip(answers, rights, strict=True)
        ]
        return Items(np.array(figures), {"f1": mean_of(0), "exact_match": mean_of(1)})
    if record.task_type == "token-classification":
        figures = []
        for scores, row in zip(np.asarray(found), np.asarray(labels), strict=True):
            counted = row != -100
            ours, theirs = (
                entities([record.labels[number] for number in numbers])
                for numbers in (scores.argmax(-1)[counted], row[counted])
            )
            figures.append([len(ours), len(theirs), len(ours & theirs)])
        return Items(np.array(figures, dtype=float), {"f1": f1_of_sums})
    if record.task_type.endswith("-lm"):
        sums = np.asarray(found, dtype=float)
        return Items(sums, {"perplexity": lambda figures: language_scores(figures)["perplexity"]})
    if record.options.get("problem_type") == "regression" or record.task_type == EMBEDDINGS:
        figures = np.stack([np.asarray(found).reshape(-1), np.asarray(labels).reshape(-1)], 1).astype(float)
        names = ("spearman", "pearson") if record.task_type == EMBEDDINGS else ("pearson", "spearman")
        return Items(figures, {name: correlation(name) for name in names})
    if record.options.get("problem_type") == "multi_label_classification":
        ours, theirs = np.asarray(found) > 0, np.asarray(labels) > 0.5
        figures = np.stack([ours.sum(1), theirs.sum(1), (ours & theirs).sum(1)], 1).astype(float)
        return Items(figures, {"f1": f1_of_sums})
    right = np.asarray(found).argmax(-1) == np.asarray(labels)
    return Items(right[:, None].astype(float), {"accuracy": mean_of(0)})


class PlainEmbedder(nn.Module):
    """A model of transformers with the pooling and the loss of a task of feature extraction.

    Args:
        encoder: the model.
        record: the task.
    """

    def __init__(self, encoder: PreTrainedModel, record: TaskRecord) -> None:
        super().__init__()
        self.encoder, self.record, self.kind = encoder, record, kind_of(record)
        self.head = self.kind.make_head(encoder.config, record)

    def _embed(self, **inputs: Tensor | None) -> dict[str, Any]:
        given = {name: value for name, value in inputs.items() if value is not None}
        hidden = self.encoder(**given).last_hidden_state
        return self.kind.answer(self.head, hidden, given, self.encoder.get_input_embeddings().weight)

    def forward(
        self,
        input_ids: Tensor,
        pair_input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pair_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss` and `similarity` of pairs, whose texts and partners are `(batch, sequence)` each."""
        ours, theirs = (
            self._embed(input_ids=ids, attention_mask=mask, token_type_ids=types)
            for ids, mask, types in (
                (input_ids, attention_mask, token_type_ids),
                (pair_input_ids, pair_attention_mask, pair_token_type_ids),
            )
        )
        targets = self.kind.pair_targets(self.record, lambda: theirs)
        if labels is not None:
            targets["labels"] = labels
        similarity = cosine_similarity(ours["pooler_output"], theirs["pooler_output"])
        return {"loss": self.kind.loss(self.record, ours, targets), "similarity": similarity}


def plain_model(recipe: Recipe, record: TaskRecord, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """A model of transformers for a task, from the recipe's backbone."""
    options: dict[str, Any] = {}
    if record.labels:
        options["num_labels"] = len(record.labels)
    if record.task_type == "sequence-classification":
        options["problem_type"] = record.problem_type
    auto_class = getattr(transformers, kind_of(record).auto_class)
    if isinstance(recipe.backbone, dict):
        config = make_config(recipe.backbone, tokenizer)
        for name, value in options.items():
            setattr(config, name, value)
        model = auto_class.from_config(config)
    else:
        model = auto_class.from_pretrained(resolve_backbone(recipe.backbone, recipe.folder), **options)
        model.config.pad_token_id = tokenizer.pad_token_id
    return PlainEmbedder(model, record) if record.task_type == EMBEDDINGS else model


def compare_task(
    recipe: Recipe, task: TaskRecipe, model: EideticModel, tokenizer: PreTrainedTokenizerBase, separate: dict[str, Any]
) -> tuple[Items, Items]:
    """Answers of the eidetic model and of a plain model fine-tuned here, on the same items."""
    data, record = load_task_data(recipe, task, tokenizer), model.record(task.name)
    kind = kind_of(record)
    reduce = functools.partial(kind.reduce, record)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
        settings["load_best_model_at_end"] = False
        arguments = recipe.training_arguments(task, **settings)
        eidetic = EideticTrainer(
            model=model,
            task=task.name,
            args=arguments,
            processing_class=tokenizer,
            preprocess_logits_for_metrics=reduce,
        )
        ours = items_of(record, data, eidetic.predict(data.splits["test"]))
        set_seed(arguments.seed)
        collator = kind.collator(tokenizer)
        if task.type == "masked-lm":
            collator = MaskingCollator(tokenizer, task.settings.mlm_probability)
        trainer = Trainer(
            model=plain_model(recipe, record, tokenizer),
            args=recipe.training_arguments(task, **settings, **separate),
            data_collator=collator,
            train_dataset=data.splits["train"],
            processing_class=tokenizer,
            preprocess_logits_for_metrics=reduce,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return ours, items_of(record, data, trainer.predict(data.splits["test"]))


def resampled(ours: Items, plain: Items, metric: str, rng: np.random.Generator) -> np.ndarray:
    """Differences of both models' scores on items drawn with replacement, the same for both, `(RESAMPLES,)`."""
    score, n_items = ours.scores[metric], len(ours.figures)
    drawn = (rng.integers(n_items, size=n_items) for _ in range(RESAMPLES))
    return np.array([score(ours.figures[rows]) - score(plain.figures[rows]) for rows in drawn])


def interval(differences: np.ndarray) -> list[float]:
    """Its middle 95 %."""
    return [float(value) for value in np.percentile(differences, [2.5, 97.5])]


def describe(name: str, metric: str, row: dict[str, Any], n_items: int) -> str:
    """A line of the table. Differences of shares are in points."""
    share = metric not in lower_is_better()
    factor, unit = (100, "p") if share else (1, "")
    low, high = (factor * value for value in row["interval_95"])
    return (
        f"{name:12} {metric:12} {row['eidetic']:9.4f} {row['separate']:9.4f} "
        f"{factor * row['difference']:+10.2f}{unit:1}   {low:+.2f} to {high:+.2f}   ({n_items})"
    )


@dataclass
class Comparison:
    """A task's rows of the table, by metric, and the resampled differences of its main one."""

    metric: str
    rows: dict[str, dict[str, Any]]
    differences: np.ndarray
    n_items: int

    @property
    def counts(self) -> bool:
        """Whether it is a share, and so counts for the mean over tasks."""
        return self.metric not in lower_is_better()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        main = {which: self.rows[self.metric][which] for which in ("eidetic", "separate")}
        return {"metric": self.metric, **main, "items": self.n_items, "metrics": self.rows}


def compare_items(ours: Items, plain: Items, rng: np.random.Generator) -> Comparison:
    """Both models' scores, and what lies between them."""
    rows, drawn = {}, {}
    for metric, score in ours.scores.items():
        values = score(ours.figures), score(plain.figures)
        drawn[metric] = resampled(ours, plain, metric, rng)
        rows[metric] = {
            "eidetic": values[0],
            "separate": values[1],
            "difference": values[0] - values[1],
            "interval_95": interval(drawn[metric]),
        }
    main = next(iter(rows))
    return Comparison(main, rows, drawn[main], len(ours.figures))


def summarize(found: dict[str, Comparison]) -> dict[str, Any]:
    """The mean over the tasks whose scores are shares."""
    counted = {name: one for name, one in found.items() if one.counts}
    if not counted:
        return {"averaged": []}
    rows = [one.rows[one.metric] for one in counted.values()]
    ours, plain = (float(np.mean([row[which] for row in rows])) for which in ("eidetic", "separate"))
    low, high = interval(np.mean([one.differences for one in counted.values()], 0))
    return {
        "averaged": list(counted),
        "mean_eidetic": ours,
        "mean_separate": plain,
        "difference_points": 100 * (ours - plain),
        "interval_95_points": [100 * low, 100 * high],
    }


def main() -> None:
    """Run the recipe, fine-tune the plain models, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tasks", nargs="+", help="tasks to compare; all by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--separate-learning-rate", type=float, help="for the separate models; the recipe's by default"
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    recipe = read_recipe(options.recipe, options.output)
    tasks = recipe.tasks if options.tasks is None else [recipe.task(name) for name in options.tasks]
    run_recipe(recipe, lambda line: print(line, flush=True))
    model = EideticModel.from_pretrained(recipe.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(recipe.output / "model")
    rate = options.separate_learning_rate
    separate = {} if rate is None else {"learning_rate": rate}
    rng, found = np.random.default_rng(0), {}
    print(
        f"\n{'task':12} {'metric':12} {'eidetic':>9} {'separate':>9} {'difference':>11}   95 % interval (test items)"
    )
    for task in tasks:
        if task.type == EMBEDDINGS and "score" not in task.columns:
            print(f"{task.name:12} left out: its pairs have no scores", flush=True)
            continue
        found[task.name] = compare_items(*compare_task(recipe, task, model, tokenizer, separate), rng)
        for metric, row in found[task.name].rows.items():
            print(describe(task.name, metric, row, found[task.name].n_items), flush=True)
    summary = {
        "tasks": {name: one.to_dict() for name, one in found.items()},
        **summarize(found),
        "free_share": model.capacity()["free_share"],
        "free_share_by_kind": model.capacity()["free_share_by_kind"],
        "verified": bool(model.verify()),
    }
    if summary["averaged"]:
        low, high = summary["interval_95_points"]
        print(
            f"{'mean':25} {summary['mean_eidetic']:9.4f} {summary['mean_separate']:9.4f} "
            f"{summary['difference_points']:+10.2f}p   {low:+.2f} to {high:+.2f}   ({len(summary['averaged'])} tasks)"
        )
    free = f"{summary['free_share']:.1%} {summary['free_share_by_kind']}"
    print(f"units still free: {free}; verified: {summary['verified']}")
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
