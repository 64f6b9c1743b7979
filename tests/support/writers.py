"""Tiny models that write, and what they are asked."""

from __future__ import annotations

import torch
from support.backbones import ALL_CONFIGS
from support.data import make_batch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.network.backbone import DECODER, ENCODER, family_of

WRITERS = [name for name, config in ALL_CONFIGS.items() if family_of(config()) != ENCODER]
GREEDY = {"max_new_tokens": 7, "do_sample": False}


def pretrained(architecture: str) -> PreTrainedModel:
    """A random language model of transformers, whose logits depend much on what it reads."""
    torch.manual_seed(1)
    config = ALL_CONFIGS[architecture]()
    model = (AutoModelForCausalLM if family_of(config) == DECODER else AutoModelForSeq2SeqLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "rel" not in name:
                parameter.mul_(4)
    return model.eval()


def kind_of_writing(model: EideticModel) -> str:
    return "causal-lm" if family_of(model.backbone.config) == DECODER else "seq2seq-lm"


def learn_to_write(
    model: EideticModel, name: str, seed: int = 0, steps: int = 3, keep: float = 0.4, texts: Tensor | None = None
) -> None:
    """Add a task that writes, and learn it from random texts, or from these."""
    model.add_task(name, task_type=kind_of_writing(model))
    learn_added(model, name, seed, steps, keep, texts)


def learn_added(
    model: EideticModel, name: str, seed: int = 0, steps: int = 3, keep: float = 0.4, texts: Tensor | None = None
) -> None:
    """Learn a task that was added."""
    model.begin_task(name, PruningConfig(keep=keep))
    torch.manual_seed(seed)
    batch = (
        make_batch(seed, rows=8) if texts is None else {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    )
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    if keep < 1:
        model.learner.prune(keep)
    model.commit_task(router_sums=model.router_sums([batch]))


def prompts(model: EideticModel, rows: int = 4, seed: int = 5) -> dict[str, Tensor]:
    """Prompts of uneven length, padded on the side where the backbone's kind wants it."""
    batch = make_batch(seed, rows=rows, length=8)
    return {
        name: value.flip(1) if family_of(model.backbone.config) == DECODER else value for name, value in batch.items()
    }


def rows_of(batch: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in batch.items()}
