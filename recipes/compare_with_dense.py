"""Hold a recipe's accuracy against a separate plain model per task, fine-tuned in the same run with the same steps.

    python recipes/compare_with_dense.py recipes/standard.yaml [--output runs/standard] [--json comparison.json]
        [--separate-learning-rate 1e-4]

Runs the recipe (or takes the tasks that are committed in its output folder already), then fine-tunes, for every task,
a plain `AutoModelForSequenceClassification` of the same backbone with the same `TrainingArguments`, seed, data and
number of steps. Prints both accuracies on the test split and the mean difference with a paired bootstrap 95 % interval
over test items. Supports single-label tasks. Takes about twice the recipe's own time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
from scipy.stats import bootstrap
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    set_seed,
)
from transformers.utils import logging

from eidetic_hf import EideticModel, EideticTrainer
from eidetic_hf.recipe import Recipe, load_task_data, read_recipe, resolve_backbone, run_recipe


def correct(trainer: Trainer, data: datasets.Dataset) -> np.ndarray:
    """Whether each item of a split is answered right, `(items,)`, as 0 or 1."""
    prediction = trainer.predict(data)
    return (prediction.predictions.argmax(-1) == prediction.label_ids).astype(float)


def compare_task(
    recipe: Recipe, name: str, model: EideticModel, tokenizer: PreTrainedTokenizerBase, separate: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of the eidetic model and of a plain model fine-tuned here, item by item."""
    task = recipe.task(name)
    data = load_task_data(recipe, task, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "eval_strategy": "no", "disable_tqdm": True}
        arguments = recipe.training_arguments(task, **settings)
        eidetic = EideticTrainer(model=model, task=name, args=arguments, processing_class=tokenizer)
        ours = correct(eidetic, data.splits["test"])
        set_seed(arguments.seed)
        plain = AutoModelForSequenceClassification.from_pretrained(
            resolve_backbone(recipe.backbone, recipe.folder), num_labels=len(data.labels)
        )
        arguments = recipe.training_arguments(task, **settings, **separate)
        trainer = Trainer(model=plain, args=arguments, train_dataset=data.splits["train"], processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return ours, correct(trainer, data.splits["test"])


def mean_of_means(*differences: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of each task's mean over items."""
    return np.mean([difference.mean(axis=axis) for difference in differences], axis=0)


def main() -> None:
    """Run the recipe, fine-tune the plain models, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--separate-learning-rate", type=float, help="for the separate models; the recipe's by default"
    )
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    recipe = read_recipe(options.recipe, options.output)
    run_recipe(recipe, lambda line: print(line, flush=True))
    model = EideticModel.from_pretrained(recipe.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(recipe.output / "model")
    rate = options.separate_learning_rate
    separate = {} if rate is None else {"learning_rate": rate}
    rows, differences = {}, []
    print(f"\n{'task':12} {'eidetic':>8} {'separate':>9} {'difference':>11}   (test items)", flush=True)
    for task in recipe.tasks:
        ours, plain = compare_task(recipe, task.name, model, tokenizer, separate)
        rows[task.name] = {"eidetic": ours.mean(), "separate": plain.mean(), "items": len(ours)}
        differences.append(ours - plain)
        points = 100 * (ours.mean() - plain.mean())
        print(f"{task.name:12} {ours.mean():8.4f} {plain.mean():9.4f} {points:+10.2f}p   ({len(ours)})", flush=True)
    interval = bootstrap(
        differences, mean_of_means, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    summary = {
        "mean_eidetic": float(np.mean([row["eidetic"] for row in rows.values()])),
        "mean_separate": float(np.mean([row["separate"] for row in rows.values()])),
        "difference_points": 100 * float(mean_of_means(*differences)),
        "interval_95_points": [100 * float(interval.low), 100 * float(interval.high)],
        "free_share": model.capacity()["free_share"],
        "free_share_by_kind": model.capacity()["free_share_by_kind"],
        "verified": bool(model.verify()),
    }
    print(
        f"{'mean':12} {summary['mean_eidetic']:8.4f} {summary['mean_separate']:9.4f} "
        f"{summary['difference_points']:+10.2f}p   95 % interval {interval.low * 100:+.2f} to "
        f"{interval.high * 100:+.2f}\nunits still free: {summary['free_share']:.1%} {summary['free_share_by_kind']}; "
        f"verified: {summary['verified']}"
    )
    if options.json:
        options.json.write_text(json.dumps({"tasks": rows, **summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
