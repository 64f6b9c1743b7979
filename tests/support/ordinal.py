"""A kind of task of a user's own, as a plugin: labels that have an order (McCullagh's proportional odds)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from eidetic_hf import TaskRecord
from eidetic_hf.kinds import register_kind
from eidetic_hf.kinds.base import Answer, Kind
from eidetic_hf.kinds.heads import pool


class OrdinalHead(nn.Module):
    """A text's place on a line, and where on it each label but the last ends."""

    def __init__(self, hidden_size: int, n_labels: int) -> None:
        super().__init__()
        self.place = nn.Linear(hidden_size, 1, bias=False)
        self.gaps = nn.Parameter(torch.zeros(n_labels - 1))

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Log probabilities of the labels, `(batch, labels)`."""
        place = self.place(pool(hidden, attention_mask, "mean"))
        ends = F.softplus(self.gaps).cumsum(0) - F.softplus(self.gaps).sum() / 2
        below = torch.sigmoid(ends - place)
        edges = torch.cat([torch.zeros_like(place), below, torch.ones_like(place)], -1)
        return (edges[:, 1:] - edges[:, :-1]).clamp(min=1e-6).log()


class Ordinal(Kind):
    """One of several labels that have an order."""

    name = "ordinal"
    output_class = SequenceClassifierOutput
    has_labels = True
    auto_class = "AutoModel"

    def make_head(self, config: PreTrainedConfig, record: TaskRecord) -> nn.Module:
        return OrdinalHead(config.hidden_size, len(record.labels))

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: Tensor) -> Answer:
        return {"logits": head(hidden, inputs.get("attention_mask"))}

    def loss(self, record: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        return F.nll_loss(answer["logits"].log_softmax(-1), targets["labels"])

    def metrics(self, record: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        median = (np.exp(np.asarray(predictions, dtype=np.float64)).cumsum(-1) < 0.5).sum(-1)
        off = np.abs(median - np.asarray(labels))
        return {"mean_absolute_error": float(off.mean()), "accuracy": float((off == 0).mean())}


register_kind(Ordinal())
