"""What transformers' trainer tests train, as this library has it: models, the trainer, and data that they can read.

The tests make their models and trainers by name. Under those names they find these here. A model stands in for a line
`y = a x + b`: a tiny BERT with a regression task, to which `x` is written as a token. Its `a` and `b` are numbers that
follow from all weights, so that two runs compare as they do for the line.
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers_suites.adapter import CLASSES, TASK, base_config, eidetic_config

from eidetic_hf import EideticConfig, EideticModel, EideticTrainer, PruningConfig

POSITIONS = (
    "model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init",
    "compute_loss_func", "compute_metrics", "callbacks", "optimizers",
)  # fmt: skip


class ToTrain:
    """Makes a class of the library have a task to be trained when it is built from a backbone's configuration.

    Attributes:
        kind: of the task.
        options: of the task.
    """

    kind: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: PreTrainedConfig | None = None, *args: Any, **kwargs: Any) -> None:
        if isinstance(config, EideticConfig):
            super().__init__(config, *args, **kwargs)
            return
        known = isinstance(config, PreTrainedConfig) and config.model_type in ("llama", "gpt2")
        super().__init__(eidetic_config(config if known else base_config("bert")))
        self.add_task(TASK, task_type=self.kind, **self.options)

    @property
    def a(self) -> Tensor:
        """A number that follows from every weight."""
        return torch.stack([value.double().abs().sum() for _, value in self._weights()]).sum().float()

    @property
    def b(self) -> Tensor:
        """Another one."""
        return torch.stack([value.double().square().sum() for _, value in self._weights()]).sum().float()

    def _weights(self) -> list[tuple[str, Tensor]]:
        held = [*self.named_parameters(), *self.named_buffers()]
        return sorted((name, value.detach()) for name, value in held if name.startswith(("backbone", "heads")))


def stand_in(kind: str, **options: Any) -> type[EideticModel]:
    """A class of models with a task to be trained."""
    return type(CLASSES[kind].__name__, (ToTrain, CLASSES[kind]), {"kind": kind, "options": options})


REGRESSION = stand_in("sequence-classification", problem_type="regression")


class Regression:
    """`RegressionDataset` of the suite: `y = a x + b` and noise, and `x` as a token."""

    def __init__(self, a: int = 2, b: int = 3, length: int = 64, seed: int = 42, label_names: Any = None) -> None:
        generator = np.random.RandomState(seed)
        self.label_names = ["labels"] if label_names is None else label_names
        self.length, self.x = length, generator.normal(size=(length,)).astype(np.float32)
        noise = [generator.normal(scale=0.1, size=(length,)) for _ in self.label_names]
        self.ys = [(a * self.x + b + part).astype(np.float32) for part in noise]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Any]:
        token = 3 + int(np.clip((self.x[i] + 3) / 6 * 100, 0, 99))
        ids = [token] * 4
        return {"input_ids": ids, **{name: y[i] for name, y in zip(self.label_names, self.ys, strict=True)}}


class SuiteTrainer(EideticTrainer):
    """`EideticTrainer` with the arguments of `Trainer`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs = {**dict(zip(POSITIONS, args, strict=False)), **kwargs}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if "model_init" not in kwargs and not isinstance(kwargs.get("model"), EideticModel):
            raise unittest.SkipTest("the test trains a model of its own")
        super().__init__(task=TASK, pruning=PruningConfig(keep=0.5), **kwargs)


# The names in the suite, and what is found under them.
IN_UTILITIES = {
    "Trainer": SuiteTrainer,
    "RegressionDataset": Regression,
    "RegressionModel": REGRESSION,
    "RegressionDictModel": REGRESSION,
    "RegressionPreTrainedModel": REGRESSION,
    "RegressionRandomPreTrainedModel": REGRESSION,
    "RegressionPreTrainedModelWithGradientCheckpointing": REGRESSION,
}
IN_TRANSFORMERS = {
    "Trainer": SuiteTrainer,
    "LlamaForCausalLM": stand_in("causal-lm"),
    "GPT2LMHeadModel": stand_in("causal-lm"),
    "LlamaForTokenClassification": stand_in("token-classification", labels=["LABEL_0", "LABEL_1"]),
}
