"""Models of several kinds of task in folders with a tokenizer, and what their cards are read for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from support.kind_cases import CASES, TAGS, batch_of, loud_backbone, word_tokenizer

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.configuration import TaskRecord

LABELS = ["x", "y", "z"]
# Names and arguments of tasks of every kind that a backbone can have, by its architecture.
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "bert": {
        "topic": {"task_type": "sequence-classification", "labels": LABELS},
        "mood": {"task_type": "sequence-classification", "labels": LABELS},
        "themes": {
            "task_type": "sequence-classification",
            "labels": LABELS,
            "problem_type": "multi_label_classification",
        },
        "stars": {"task_type": "sequence-classification", "problem_type": "regression"},
        "names": {"task_type": "token-classification", "labels": TAGS},
        "answers": {"task_type": "question-answering"},
        "choices": {"task_type": "multiple-choice"},
        "alike": {"task_type": "feature-extraction"},
        "gaps": {"task_type": "masked-lm"},
    },
    "gpt2": {"story": {"task_type": "causal-lm"}, "tale": {"task_type": "causal-lm"}},
    "t5": {
        "summary": {"task_type": "seq2seq-lm"},
        "topic": {"task_type": "sequence-classification", "labels": LABELS},
    },
}


def commit_untrained(model: EideticModel, name: str, metrics: dict[str, float], **options: Any) -> TaskRecord:
    """Commit a task as it begins, with what the router needs."""
    record = model.add_task(name, **options)
    model.begin_task(name, PruningConfig(importance="random"))
    batch = batch_of(CASES[record.task_type], seed=len(model.tasks))
    if record.labels:
        batch["labels"] = torch.arange(len(batch["input_ids"])) % len(record.labels)
    return model.commit_task(metrics, model.router_sums([batch]))


def model_with_tasks(architecture: str, growth: str) -> EideticModel:
    """A model that has a task of every kind of `TASKS`."""
    model = EideticModel.from_backbone(loud_backbone(architecture), trunk_layers=1, growth=growth)
    for number, (name, options) in enumerate(TASKS[architecture].items()):
        if growth == "fixed" and number:
            model.expand(2)
        commit_untrained(model, name, {"accuracy": 0.9 + number / 100, "loss": 1.5}, **options)
    return model


def save_with_tokenizer(model: EideticModel, folder: Path) -> Path:
    """Save a model and the tokenizer of its words; returns the folder."""
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def snippets(card: str) -> list[str]:
    """The Python snippets of a card, in order."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)
