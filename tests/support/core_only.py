"""A life with the core's packages alone: learn, answer, route, save, load, verify; then ask for what needs more.

`tests/test_house.py` runs it in a process that finds nothing but what `pip install eidetic-hf` brings. Its arguments
are an empty folder and the entry point of the command line; it prints what it found, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, Trainer, TrainingArguments

import eidetic_hf
from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig

ROWS, LENGTH, LABELS, VOCABULARY = 32, 8, ["x", "y"], 60


class Rows(Dataset):
    """Random tokens, of a range of the task's own, whose first says the label."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(20 * seed + 10, 20 * seed + 30, (ROWS, LENGTH), generator=generator)
        self.labels = torch.arange(ROWS) % len(LABELS)
        self.ids[:, 0] = 3 + self.labels

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[row], "attention_mask": torch.ones(LENGTH).long(), "labels": self.labels[row]}


def error_of(action: Callable[[], object]) -> str:
    """Class and message of the error that an action ends in, and what it has printed on stderr."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            action()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error} {printed.getvalue()}"
    return "none"


def run_recipe() -> None:
    """What `eidetic-hf train` begins with."""
    from eidetic_hf.recipe.recipe_file import read_recipe

    read_recipe(Path("recipe.yaml"))


def command_line() -> None:
    """What the entry point of `eidetic-hf` does."""
    module, name = sys.argv[2].split(":")
    getattr(importlib.import_module(module), name)()


def main(folder: Path) -> dict[str, object]:
    """All of it."""
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=8, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    backbone = BertConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=64)
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="fixed")
    model.add_task("first", labels=LABELS)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(0),
        callbacks=[EideticCallback("first", PruningConfig(keep=0.4))],
    ).train()
    model.add_task("second", labels=LABELS)
    trainer = EideticTrainer(model, "second", arguments, PruningConfig(keep=0.4), train_dataset=Rows(1))
    trainer.train()
    batch = {name: torch.stack([row[name] for row in Rows(1)][:4]) for name in ("input_ids", "attention_mask")}
    model.eval()
    given, routed = model(**batch, task="second").logits, model.route(**batch).tasks
    model.save_pretrained(folder / "model")
    loaded = EideticModel.from_pretrained(folder / "model")
    return {
        "tasks": model.tasks,
        "routed": routed,
        "answered": model(**batch).tasks,
        "same_logits": torch.equal(loaded(**batch, task="second").logits, given),
        "verified": bool(loaded.verify()),
        "version": eidetic_hf.__version__,
        "metrics": error_of(lambda: trainer.evaluate(Rows(1))),
        "recipe": error_of(run_recipe),
        "command_line": error_of(command_line),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
