"""What the tasks of a recipe score: each by its metric, the router's choices, and all of them over time."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import evaluate
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..configuration import TaskRecord
from ..kinds import kind_of
from ..model.model import EideticModel
from ..model.versions import routed, routed_name
from ..network.backbone import MODEL_INPUTS
from ..trainer import EideticTrainer
from .kinds import RECIPE_KINDS, recipe_kind_of
from .kinds.asking import Asker
from .kinds.base import LOSS, Score
from .recipe import Recipe, RecipeError, TaskRecipe
from .task_data import SPLITS, TaskData, load_task_data

ROUTING_BATCH = 64
ROUTING_SCORES = ("oracle_accuracy", "routed_accuracy", "merged_label_accuracy")

# -- one task ---------------------------------------------------------------------------------------------------------


def load_metric(task: TaskRecipe, folder: Path) -> evaluate.EvaluationModule | None:
    """The `evaluate` module of a task's metric, or `None` if it is built in.

    Raises:
        RecipeError: if it can not be loaded.
    """
    kind = recipe_kind_of(task.type)
    built_in = (*kind.metrics_of(task.settings), LOSS)
    if task.metric in built_in:
        return None
    local = folder / task.metric
    try:
        return evaluate.load(str(local) if local.exists() else task.metric, **kind.module_options(task))
    except Exception as error:  # Modules are code that is downloaded: any error is possible.
        raise RecipeError(
            f"`metric: {task.metric}` of task '{task.name}' could not be loaded with evaluate.load ({error}). Built "
            f"in, and there without network, are: {', '.join(built_in)}."
        ) from error


def score_of(
    model: EideticModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskRecipe,
    data: TaskData,
    split: str,
    module: evaluate.EvaluationModule | None = None,
) -> Score:
    """`compute_metrics` for a split of a task of the model."""
    kind = recipe_kind_of(task.type)
    return kind.score(task, data.preparation, data.rows[split], split, Asker(model, tokenizer), module)


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
    compared: list[tuple[str, Any, Any]] = [("type", record.task_type, task.type)]
    if record.task_type == task.type:
        learned_with = recipe_kind_of(task.type).learned_with
        compared += [(name, getattr(record, name), getattr(task.settings, name)) for name in learned_with]
    compared.append(("labels", record.labels, data.labels if record.labels else record.labels))
    for what, has, wants in compared:
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
        wrong route is right if it answers with labels of the right names). Of a task with several versions the right
        route is to the default one. `oracle_accuracy` and the two after it are `None` for tasks that do not give
        labels to whole texts. Instead of all this `None`, if there is nothing to choose: one task only, or one without
        router sums.
    """
    routes = [name for name in routed(model.config, model.tasks) if model.router.has(name)]
    if len(routes) < 2 or not all(model.router.has(name) for name in texts):
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
            "routing_accuracy": sent[routed_name(model.config, model.tasks, name)] / len(data),
            **{key: value / len(data) if _names_labels(record) else None for key, value in right.items()},
        }
    mean: dict[str, float | None] = {}
    for key in ("routing_accuracy", *ROUTING_SCORES):
        known = [row[key] for row in scores.values() if row[key] is not None]
        mean[key] = float(np.mean(known)) if known else None
    return {"tasks": model.tasks, "confusion": confusion, "scores": scores, "mean": mean}


def _names_labels(record: TaskRecord) -> bool:
    """Whether a task's answer to a text is one or several labels; not if nobody says what its kind answers."""
    kind = RECIPE_KINDS.get(record.task_type)
    return kind is not None and kind.names_labels(record)


def _label_names(record: TaskRecord, values: torch.Tensor) -> list[set[str]]:
    """Names of the labels in logits `(texts, labels)` or in the `labels` of a batch."""
    return recipe_kind_of(record.task_type).label_names(record, values)


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
    named = _label_names(record, model(**inputs, task=record.exact_name).logits)
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
    goal = routed_name(model.config, model.tasks, record.name)
    merged = [answer == true for answer, true in zip(answers, truth, strict=True)]
    return {
        "tasks": chosen,
        "oracle_accuracy": sum(answer == true for answer, true in zip(named, truth, strict=True)),
        "routed_accuracy": sum(ok and task == goal for ok, task in zip(merged, chosen, strict=True)),
        "merged_label_accuracy": sum(merged),
    }
