"""Heads: from the backbone's hidden states to what a task answers. Which kind of task has which, its file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from ..configuration import EideticConfig, TaskRecord
from ..network.backbone import DECODER, family_of
from ..network.vocabulary import TokenTable

POOLINGS = ("mean", "first", "last")


def choose_pooling(task: TaskRecord, config: EideticConfig) -> None:
    """Fill in a task's option `pooling` where it is `None`.

    In a decoder it becomes the last token, since no other one has seen all of the sequence, and else the mean.
    """
    usual = "last" if family_of(config.base_config) == DECODER else "mean"
    task.options = {**task.options, "pooling": task.options["pooling"] or usual}


def pool_sequence(hidden: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """One vector per sequence, `(batch, hidden)`.

    Args:
        hidden: `(batch, sequence, hidden)`.
        attention_mask: 1 for real tokens, `(batch, sequence)`; `None` if all are real.
        pooling: `"mean"` over real tokens, `"first"` token, or `"last"` real token, on whichever side padding is.
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        if attention_mask is None:
            return hidden[:, -1]
        places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        last = (attention_mask.to(places.dtype) * places).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask.to(hidden.dtype).unsqueeze(-1)
    count = attention_mask.sum(1, keepdim=True).clamp(min=1)  # as whole numbers: bfloat16 knows none above 256
    return ((hidden * mask).sum(1, dtype=torch.float32) / count).to(hidden.dtype)


def _classifier(hidden_size: int, n_outputs: int, std: float, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(hidden_size, n_outputs, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class SequenceClassificationHead(nn.Module):
    """Pools a sequence and projects it to logits.

    Args:
        hidden_size: width of the backbone.
        n_labels: number of logits.
        pooling: as `pool_sequence` takes it.
        dropout: probability, in training.
        std: standard deviation of the initial weights.
        bias: whether the projection has one.
    """

    def __init__(
        self, hidden_size: int, n_labels: int, pooling: str, dropout: float, std: float, bias: bool = True
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.classifier = _classifier(hidden_size, n_labels, std, bias)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Hidden states `(batch, sequence, hidden)` and mask `(batch, sequence)` to logits `(batch, labels)`."""
        return self.classifier(self.dropout(pool_sequence(hidden, attention_mask, self.pooling)))


class TokenClassificationHead(nn.Module):
    """Projects every token to logits.

    Args:
        hidden_size: width of the backbone.
        n_labels: number of logits of a token.
        dropout: probability, in training.
        std: standard deviation of the initial weights.
    """

    def __init__(self, hidden_size: int, n_labels: int, dropout: float, std: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = _classifier(hidden_size, n_labels, std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `(batch, sequence, hidden)` to logits `(batch, sequence, labels)`."""
        return self.classifier(self.dropout(hidden))


class EmbeddingHead(nn.Module):
    """Pools a sequence to its embedding. It has no weights.

    Args:
        pooling: as `pool_sequence` takes it.
        normalize: scale embeddings to length 1.
    """

    def __init__(self, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.pooling, self.normalize = pooling, normalize

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Hidden states `(batch, sequence, hidden)` and mask `(batch, sequence)` to embeddings `(batch, hidden)`."""
        pooled = pool_sequence(hidden, attention_mask, self.pooling)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


class Transform(nn.Module):
    """What a masked language model does to a hidden state before it meets the vocabulary.

    Args:
        hidden_size: width of the backbone.
        embedding_size: width of the token embeddings.
        activation: its name in transformers.
        eps: of the norm.
        bias: whether the projection has one.
        norm_bias: whether the norm has one.
    """

    def __init__(
        self, hidden_size: int, embedding_size: int, activation: str, eps: float, bias: bool, norm_bias: bool
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, embedding_size, bias=bias)
        self.activation = ACT2FN[activation]
        self.norm = nn.LayerNorm(embedding_size, eps=eps, bias=norm_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., hidden)` to `(..., embedding)`."""
        return self.norm(self.activation(self.dense(hidden)))


class LanguageModelHead(nn.Module):
    """Scores every token of the vocabulary, by its embedding.

    The embeddings are the trunk's and frozen, passed in and none of this module's tensors; or its own.

    Args:
        hidden_size: width of the backbone.
        embedding_size: width of the token embeddings.
        vocab_size: number of tokens.
        parts: what the head is made of, see `pretrained_head.py`: `transform`, `bias`, `scale` and `softcap`; and
            `own_embeddings`, whether it has output embeddings of its own.
        std: standard deviation of the initial weights.
    """

    bias: Tensor | None
    embeddings: Tensor | None

    def __init__(
        self, hidden_size: int, embedding_size: int, vocab_size: int, parts: Mapping[str, Any], std: float
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.scale, self.softcap = parts.get("scale", 1.0), parts.get("softcap")
        self.transform = None
        if parts.get("transform") is not None:
            self.transform = Transform(hidden_size, embedding_size, **parts["transform"])
            nn.init.normal_(self.transform.dense.weight, std=std)
            if self.transform.dense.bias is not None:
                nn.init.zeros_(self.transform.dense.bias)
        self.register_parameter("bias", nn.Parameter(torch.zeros(vocab_size)) if parts.get("bias") else None)
        own = nn.Parameter(torch.empty(vocab_size, embedding_size)) if parts.get("own_embeddings") else None
        self.register_parameter("embeddings", own)
        if own is not None:
            nn.init.normal_(own, std=std)

    def forward(self, hidden: Tensor, embeddings: Tensor | TokenTable) -> Tensor:
        """Hidden states `(..., hidden)` and embeddings `(tokens, embedding)` to logits `(..., vocabulary)`.

        Of the embeddings only the first `vocab_size` are read, as the vocabulary may have grown since; none, if the
        head has its own.
        """
        if self.embeddings is not None:
            embeddings = self.embeddings
        table = embeddings if isinstance(embeddings, TokenTable) else TokenTable((embeddings,))
        return self._cap(table.first(self.vocab_size).score(self._features(hidden), self.bias))

    @staticmethod
    def forward_each(heads: list[LanguageModelHead], hidden: list[Tensor], embeddings: TokenTable) -> Tensor:
        """What several tasks' heads make of their rows, one after another, as one tensor.

        Where nothing of their own comes behind the tokens' embeddings, all rows are scored in one product.
        """
        first = heads[0]
        if any(head.embeddings is not None or head.bias is not None for head in heads):
            return torch.cat([head(rows, embeddings) for head, rows in zip(heads, hidden, strict=True)])
        features = torch.cat([head._features(rows) for head, rows in zip(heads, hidden, strict=True)])
        return first._cap(embeddings.first(first.vocab_size).score(features))

    def _features(self, hidden: Tensor) -> Tensor:
        """What is multiplied with the tokens' embeddings."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return hidden if self.scale == 1.0 else hidden * self.scale

    def _cap(self, logits: Tensor) -> Tensor:
        """Logits, which some models hold between bounds."""
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def as_layer(self, embeddings: TokenTable) -> nn.Module | None:
        """The same as one layer with `weight` and `bias`, if there is nothing but a product."""
        if self.transform is not None or self.scale != 1.0 or self.softcap is not None:
            return None
        layer = nn.Module()
        table = embeddings if self.embeddings is None else TokenTable((self.embeddings,))
        layer.weight, layer.bias = table.first(self.vocab_size).joined(), self.bias  # type: ignore[assignment]
        return layer
