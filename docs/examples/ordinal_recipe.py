"""Ordered labels in recipes and on the command line: the other side of `ordinal.py`.

A recipe names this file, `plugins: [ordinal_recipe.py]`, and may then have tasks of `type: ordinal`. The commands that
read a model take it as `eidetic-hf --plugin ordinal_recipe.py predict MODEL TEXT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import ordinal  # registers the kind with the model and the trainer
import torch
from transformers import PreTrainedTokenizerBase

from eidetic_hf.configuration import TaskRecord
from eidetic_hf.recipe.kinds import register_recipe_kind
from eidetic_hf.recipe.kinds.asking import Asker, Query, alike
from eidetic_hf.recipe.kinds.base import RecipeKind
from eidetic_hf.recipe.kinds.labels import encoded, label_numbers
from eidetic_hf.recipe.kinds.preparation import Preparation, encode_texts
from eidetic_hf.recipe.recipe import RecipeError, TaskRecipe


class OrderedLabels(Preparation):
    """Texts with a label each, in the order that the recipe lists them."""

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """All labels are among the task's."""
        self.labels, self.numbers = label_numbers(self.task, splits, "ordered labels")

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids, masks and `labels`, the place of each label."""
        columns = self.task.columns

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            tokens = encode_texts(tokenizer, batch[columns["text"]], None, self.max_length)
            return {**tokens, "labels": [self.numbers[label] for label in batch[columns["label"]]]}

        return encoded(data, prepare)


class OrdinalRecipe(RecipeKind):
    """One of several labels that have an order, such as stars."""

    name = ordinal.Ordinal.name
    columns = {"text": "text", "label": "label"}
    metrics = ("mean_absolute_error", "accuracy")
    lower_is_better = ("mean_absolute_error",)
    preparation = OrderedLabels
    has_labels = True
    reads_pairs = False

    def check(self, task: TaskRecipe, where: str) -> None:
        """Somebody has to say which label comes first: their names do not."""
        if task.labels is None:
            raise RecipeError(f"{where} has ordered labels. List them with `labels:`, from the lowest to the highest.")

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """How the head reads the sequence."""
        return {} if pooling is None else {"pooling": pooling}

    def names_labels(self, record: TaskRecord) -> bool:
        """So that a routed answer can be right or wrong."""
        return True

    def label_names(self, record: TaskRecord, values: torch.Tensor) -> list[set[str]]:
        """The label of each text."""
        numbers = values if values.dim() == 1 else median(values)
        return [{record.labels[number]} for number in numbers.tolist()]

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`label`, its place among the labels, and the `scores` of all."""
        found = []
        for some in alike(queries):
            logits = asker.model(**asker.batch_of(record, some), task=record.exact_name).logits.float().cpu()
            for place, chances in zip(median(logits).tolist(), logits.exp().tolist(), strict=True):
                scores = dict(zip(record.labels, chances, strict=True))
                found.append({"label": record.labels[place], "place": place, "scores": scores})
        return found


def median(logits: torch.Tensor) -> torch.Tensor:
    """Places of the labels in the middle of the distributions, `(texts,)`; logits are logarithms of probabilities."""
    return (logits.double().exp().cumsum(-1) < 0.5).sum(-1)


register_recipe_kind(OrdinalRecipe())
