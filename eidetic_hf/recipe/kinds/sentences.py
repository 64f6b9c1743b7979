"""Sentence embeddings in a recipe: pairs of texts that belong together, or that say how much they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ..recipe import RecipeError, TaskRecipe
from .asking import Asker, Query
from .base import LOSS, RecipeKind
from .labels import encoded, is_number
from .preparation import Preparation, encode_texts
from .settings import Settings, setting


@dataclass(frozen=True)
class SentenceSettings(Settings):
    """Settings of feature extraction.

    Attributes:
        max_score: the score of texts that mean the same; scores are divided by it.
        temperature: of the contrastive loss.
        normalize: whether embeddings are scaled to length 1.
    """

    max_score: float = setting(
        1.0, (int, float), lambda value: value > 0, "a number > 0, the score of texts that mean the same"
    )
    temperature: float = setting(0.05, (int, float), lambda value: value > 0, "a number > 0")
    normalize: bool = setting(True, bool, expected="true or false")


class Pairs(Preparation):
    """Pairs of texts, perhaps with a score, which `max_score` divides."""

    texts = ("text", "text_pair")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """Scores are numbers, none larger than the largest."""
        if "score" not in self.task.columns:
            return
        largest = self.task.settings.max_score
        self.need_two_rows(splits)
        for split, data in splits.items():
            for row, score in enumerate(self.column(data, "score")):
                if not is_number(score) or abs(score) > largest:
                    self.fail(
                        split,
                        row,
                        f"has the score {score!r}; expected a number from {-largest:g} to {largest:g}. "
                        "Say what texts that mean the same have, with `max_score:`.",
                    )

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks of both texts, those of the second as `pair_...`; and `labels`, from -1 to 1."""
        columns, largest = self.task.columns, self.task.settings.max_score

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            rows = dict(encode_texts(tokenizer, batch[columns["text"]], None, self.max_length))
            other = encode_texts(tokenizer, batch[columns["text_pair"]], None, self.max_length)
            rows.update((f"pair_{name}", values) for name, values in other.items())
            if "score" in columns:
                rows["labels"] = [score / largest for score in batch[columns["score"]]]
            return rows

        return encoded(data, prepare)


class FeatureExtractionRecipe(RecipeKind):
    """A vector for a text, near to those of texts that mean the same."""

    name = "feature-extraction"
    columns = {"text": "text", "text_pair": "text_pair", "score": None}
    metrics = ("spearman", "pearson")
    preparation = Pairs
    settings = SentenceSettings

    def default_metric(self, settings: SentenceSettings, columns: Mapping[str, Any]) -> str:
        """The loss, where no scores are there to be correlated with."""
        return super().default_metric(settings, columns) if "score" in columns else LOSS

    def check(self, task: TaskRecipe, where: str) -> None:
        """A correlation needs scores."""
        if "score" not in task.columns and task.metric != LOSS:
            raise RecipeError(
                f"`metric: {task.metric}` in {where} needs scores. Name them with `columns: {{score: NAME}}`."
            )

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """How the sequence is read, what the loss is like, and what becomes of the vectors."""
        settings = {"temperature": task.settings.temperature, "normalize": task.settings.normalize}
        return {**settings, **({} if pooling is None else {"pooling": pooling})}

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`embedding`; and of a pair, the `similarity` of both texts."""

        def embed(texts: list[str]) -> Tensor:
            batch = asker.batch(texts, None, asker.length_of(record))
            return asker.model(**batch, task=record.exact_name).pooler_output.float().cpu()

        embeddings = embed([query.text for query in queries])
        found: list[dict[str, Any]] = [{"embedding": row.tolist()} for row in embeddings]
        pairs = [row for row, query in enumerate(queries) if query.text_pair is not None]
        if pairs:
            others = embed([str(queries[row].text_pair) for row in pairs])
            similar = F.cosine_similarity(embeddings[pairs], others)
            for row, value in zip(pairs, similar.tolist(), strict=True):
                found[row]["similarity"] = value
        return found
