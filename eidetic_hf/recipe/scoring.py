"""What the tasks of a recipe score: each by its metric, the router's choices, and all of them over time."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import evaluate
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..configuration import TaskRecord
from ..kinds import kind_of
from ..kinds.metrics import squad_scores
from ..model.model import EideticModel
from ..network.backbone import MODEL_INPUTS
from ..trainer import EideticTrainer, task_metrics
from .kinds.questions import Questions
from .predicting import Predictor, Query
from .recipe import Recipe, RecipeError, TaskRecipe, metrics_of
from .task_data import SPLITS, TaskData, load_task_data

ROUTING_BATCH = 64
ROUTING_SCORES = ("oracle_accuracy", "routed_accuracy", "merged_label_accuracy")

Score = Callable[[EvalPrediction], dict[str, float]]

# -- one task ---------------------------------------------------------------------------------------------------------


def load_metric(task: TaskRecipe, folder: Path) -> evaluate.EvaluationModule | None:
    """The `evaluate` module of a task's metric, or `None` if it is built in.

    Raises:
        RecipeError: if it can not be loaded.
    """
    built_in = metrics_of(task.type, task.problem_type)
    if task.metric in built_in:
        return None
    local = folder / task.metric
    options = {"config_name": "multilabel"} if task.problem_type == "multi_label_classification" else {}
    try:
        return evaluate.load(str(local) if local.exists() else task.metric, **options)
    except Exception as error:  # Modules are code that is downloaded: any error is possible.
        raise RecipeError(
            f"`metric: {task.metric}` of task '{task.name}' could not be loaded with evaluate.load ({error}). Built "
            f"in, and there without network, are: {', '.join(built_in)}."
        ) from error


@dataclass(frozen=True)
class TaskScore:
    """`compute_metrics` of one task: the built-in metrics, and the one of its recipe."""

    record: TaskRecord
    metric: str
    module: evaluate.EvaluationModule | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of what an evaluation collected."""
        scores = task_metrics(self.record, prediction)
        if self.module is not None:
            logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            answers = {
                "single_label_classification": lambda: (logits.argmax(-1), labels),
                "multi_label_classification": lambda: ((logits > 0).astype(int), labels.astype(int)),
                "regression": lambda: (logits.reshape(-1), labels.reshape(-1)),
            }[self.record.problem_type]()
            found = self.module.compute(predictions=answers[0], references=answers[1]) or {}
            numbers = [float(value) for value in found.values() if np.ndim(value) == 0]
            scores[self.metric] = float(found.get(self.metric, numbers[0] if numbers else np.nan))
        # The same answer to everything has no correlation with anything: it is worth nothing, but it is a number.
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


@dataclass(frozen=True)
class WrittenScore:
    """`compute_metrics` of a task that writes texts of which it is known what they should be.

    Adds `exact_match` and `f1` over words, as SQuAD counts them, as shares: of the first texts of a split, which are
    written without sampling.

    Attributes:
        sums: computes what needs no writing.
        predictor: writes, at most as many tokens as the longest right text has.
        task: name of the task, committed or being learned.
        texts: what is given.
        right: what should be written.
    """

    sums: TaskScore
    predictor: Predictor
    task: str
    texts: list[str]
    right: list[str]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of what an evaluation collected, and of what is written now."""
        answers = self.predictor.answers([Query(text) for text in self.texts], self.task)
        written = [answer["generated"].strip() for answer in answers]
        found = squad_scores(written, [[text] for text in self.right])
        return {**self.sums(prediction), **{name: value / 100 for name, value in found.items()}}


def score_of(
    model: EideticModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskRecipe,
    data: TaskData,
    split: str,
    module: evaluate.EvaluationModule | None = None,
) -> Score:
    """`compute_metrics` for a split of a task of the model."""
    if isinstance(data.preparation, Questions):
        return data.preparation.score(data.rows[split], split)
    score = TaskScore(model.record(task.name), task.metric, module)
    if not task.n_written:
        return score
    given, wanted = data.preparation.texts  # of prompts and answers, or sources and targets
    rows = data.rows[split].select(range(min(task.n_written, len(data.rows[split]))))
    texts, right = (data.preparation.column(rows, role) for role in (given, wanted))
    longest = max(len(ids) for ids in tokenizer(text_target=right)["input_ids"])
    return WrittenScore(score, Predictor(model, tokenizer, max_new_tokens=longest + 1), task.name, texts, right)


def score_arguments(record: TaskRecord, score: Score) -> dict[str, Any]:
    """What an `EideticTrainer` needs to compute the scores of a task."""
    reduce = functools.partial(kind_of(record).reduce, record)
    return {"compute_metrics": score, "preprocess_logits_for_metrics": reduce}


def evaluate_task(
    model: EideticModel,
    task: str,
    data: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    score: Score,
) -> dict[str, float]:
    """Metrics of a committed task on one of its splits; the task is given (oracle)."""
    trainer = EideticTrainer(
        model=model,
        task=task,
        args=arguments,
        processing_class=tokenizer,
        eval_dataset=data,
        **score_arguments(model.record(task), score),
    )
    trainer.remove_callback(PrinterCallback)
    found = trainer.evaluate()
    skip = ("runtime", "per_second", "epoch", "time")
    return {name.removeprefix("eval_"): float(value) for name, value in found.items() if not name.endswith(skip)}


# -- all tasks of a recipe --------------------------------------------------------------------------------------------


def evaluate_recipe(
    model: EideticModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    split: str = "test",
    tasks: list[str] | None = None,
) -> dict[str, Any]:
    """Metrics of a model's committed tasks on the data of a recipe, the task given and the task not given.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        recipe: says where each task's data is.
        split: `"train"`, `"validation"` or `"test"`.
        tasks: names of the tasks; by default all that both the model and the recipe have.

    Returns:
        `split`; `oracle`, all metrics of each task when it is given; `routing`, what `evaluate_routing` returns.

    Raises:
        RecipeError: if there is nothing to evaluate, or the labels differ.
    """
    if split not in SPLITS:
        raise RecipeError(f"split={split!r}: expected train, validation or test.")
    chosen = tasks or [task.name for task in recipe.tasks if task.name in model.tasks]
    if not chosen:
        ours = [task.name for task in recipe.tasks]
        raise RecipeError(f"The model has the tasks {model.tasks}, the recipe {ours}: none in common.")
    oracle, texts = {}, {}
    for name in chosen:
        task, record = recipe.task(name), model.record(name)
        data = load_task_data(recipe, task, tokenizer)
        check_record(record, task, data)
        texts[name] = data.texts_to_route(split)
        with tempfile.TemporaryDirectory() as folder:
            arguments = recipe.training_arguments(
                task, output_dir=folder, save_strategy="no", load_best_model_at_end=False
            )
            score = score_of(model, tokenizer, task, data, split, load_metric(task, recipe.folder))
            oracle[name] = evaluate_task(model, name, data.splits[split], tokenizer, arguments, score)
    return {"split": split, "oracle": oracle, "routing": evaluate_routing(model, tokenizer, texts)}


def check_record(record: TaskRecord, task: TaskRecipe, data: TaskData) -> None:
    """Raise a `RecipeError` if a model has learned something else under a task's name."""
    for what, has, wants in (
        ("type", record.task_type, task.type),
        ("problem_type", record.options.get("problem_type", task.problem_type), task.problem_type),
        ("labels", record.labels, data.labels if record.labels else record.labels),
    ):
        if has != wants:
            raise RecipeError(
                f"The model learned the task '{task.name}' with {what} {has}, the recipe says {wants}. Name the task "
                "differently, or use another output folder."
            )


# -- routing ----------------------------------------------------------------------------------------------------------


def evaluate_routing(
    model: EideticModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, datasets.Dataset]
) -> dict[str, Any] | None:
    """How often the router finds a text's own task, and how often the answer is right when it chooses.

    It chooses among all tasks, of whatever kind. A text is answered right if the label is, or, for a task of many
    labels, all of them are.

    Args:
        model: the model.
        tokenizer: its tokenizer, which pads.
        texts: encoded texts with their labels, by task.

    Returns:
        `tasks`, those that the router chooses from; `confusion`, for each task of `texts`, how many of its texts went
        to each of `tasks`; `scores`, for each task of `texts` and for their `mean`: `routing_accuracy`, and
        `oracle_accuracy` (the task given), `routed_accuracy` (a wrong route is wrong) and `merged_label_accuracy` (a
        wrong route is right if it answers with labels of the right names). The latter three are `None` for tasks that
        do not give labels to whole texts. Instead of all this `None`, if there is nothing to choose: one task only, or
        one without router sums.
    """
    if len(model.tasks) < 2 or not all(model.router.has(name) for name in model.tasks):
        return None
    confusion: dict[str, dict[str, int]] = {}
    scores: dict[str, dict[str, Any]] = {}
    for name, data in texts.items():
        sent, right = dict.fromkeys(model.tasks, 0), dict.fromkeys(ROUTING_SCORES, 0)
        record = model.record(name)
        collate = kind_of(record).collator(tokenizer) or DataCollatorWithPadding(tokenizer)
        for batch in DataLoader(data, ROUTING_BATCH, collate_fn=collate):
            found = _count_routed(model, record, {key: value.to(model.device) for key, value in batch.items()})
            for task in found.pop("tasks"):
                sent[task] += 1
            for key, value in found.items():
                right[key] += value
        confusion[name] = sent
        scores[name] = {
            "texts": len(data),
            "routing_accuracy": sent[name] / len(data),
            **{key: value / len(data) if _names_labels(record) else None for key, value in right.items()},
        }
    mean: dict[str, float | None] = {}
    for key in ("routing_accuracy", *ROUTING_SCORES):
        known = [row[key] for row in scores.values() if row[key] is not None]
        mean[key] = float(np.mean(known)) if known else None
    return {"tasks": model.tasks, "confusion": confusion, "scores": scores, "mean": mean}


def _names_labels(record: TaskRecord) -> bool:
    """Whether a task's answer to a text is one or several labels."""
    return record.options.get("problem_type", "regression") != "regression"


@torch.inference_mode()
def _count_routed(model: EideticModel, record: TaskRecord, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Where the texts of a task's batch went, and how many were answered right."""
    model.eval()
    text = kind_of(record).texts(record, batch)[0]
    inputs: dict[str, Any] = {name: text[name] for name in MODEL_INPUTS if text.get(name) is not None}
    chosen = cast(list[str], model.route(**inputs).tasks)
    if not _names_labels(record):
        return {"tasks": chosen}
    truth = _label_names(record, batch["labels"])
    named = _label_names(record, model(**inputs, task=record.name).logits)
    answers: list[set[str] | None] = [None] * len(chosen)
    for name in dict.fromkeys(chosen):
        rows = [row for row, task in enumerate(chosen) if task == name]
        if name == record.name:
            found = [named[row] for row in rows]
        elif _names_labels(model.record(name)):
            part = {key: value[rows] for key, value in inputs.items()}
            found = _label_names(model.record(name), model(**part, task=name).logits)
        else:
            continue
        for row, answer in zip(rows, found, strict=True):
            answers[row] = answer
    merged = [answer == true for answer, true in zip(answers, truth, strict=True)]
    return {
        "tasks": chosen,
        "oracle_accuracy": sum(answer == true for answer, true in zip(named, truth, strict=True)),
        "routed_accuracy": sum(ok and task == record.name for ok, task in zip(merged, chosen, strict=True)),
        "merged_label_accuracy": sum(merged),
    }


def _label_names(record: TaskRecord, values: torch.Tensor) -> list[set[str]]:
    """Names of the labels in logits `(texts, labels)` or in the `labels` of a batch."""
    if record.problem_type == "multi_label_classification":
        return [{record.labels[index] for index in row.nonzero().flatten().tolist()} for row in values > 0]
    numbers = values if values.dim() == 1 else values.argmax(-1)
    return [{record.labels[index]} for index in numbers.tolist()]
