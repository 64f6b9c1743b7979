"""Small data to train on, and short runs."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from support.backbones import VOCABULARY
from transformers import (
    TrainingArguments,
)

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig


def make_data(seed: int = 0, rows: int = 64, labels: int = 3, length: int = 10) -> datasets.Dataset:
    """Random token sequences of uneven length, padded; the first token decides the label, so it can be learned."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    targets = torch.randint(0, labels, (rows,), generator=generator)
    ids[:, 1] = 3 + targets
    lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    return datasets.Dataset.from_dict(
        {"input_ids": (ids * mask).tolist(), "attention_mask": mask.tolist(), "labels": targets.tolist()}
    )


def make_batch(seed: int = 99, rows: int = 5, length: int = 12) -> dict[str, torch.Tensor]:
    """A fixed batch with padding, without labels."""
    data = make_data(seed, rows, length=length)
    return {name: torch.tensor(data[name][:]) for name in ("input_ids", "attention_mask")}


def arguments(folder: Path, **kwargs: object) -> TrainingArguments:
    """Short training on the CPU, silent, without checkpoints."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1000,
    }
    return TrainingArguments(**{**defaults, **kwargs})


def learn(
    model: EideticModel, name: str, folder: Path, seed: int = 0, pruning: PruningConfig | None = None, **kwargs: object
) -> EideticTrainer:
    """Add a task of three labels and learn it from random data; returns the trainer that did it."""
    model.add_task(name, labels=["x", "y", "z"])
    trainer = EideticTrainer(
        model=model,
        task=name,
        args=arguments(folder, **kwargs),
        pruning=pruning or PruningConfig(keep=0.4),
        train_dataset=make_data(seed),
        eval_dataset=make_data(seed + 1000, rows=16),
    )
    trainer.train()
    return trainer


@torch.no_grad()
def logits_of(model: EideticModel, name: str, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Logits of a task on a batch, in evaluation mode."""
    model.eval()
    return model(**(batch or make_batch()), task=name).logits
