"""A kind of task of one's own: ordinal regression, for labels that have an order, such as one to five stars.

`import ordinal` makes it known: `model.add_task("stars", task_type="ordinal", labels=["1", "2", "3", "4", "5"])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from eidetic_hf.configuration import EideticConfig, TaskError, TaskRecord
from eidetic_hf.kinds import checks, register_kind
from eidetic_hf.kinds.base import IGNORED, Answer, Kind
from eidetic_hf.kinds.heads import POOLINGS, choose_pooling, pool_sequence
from eidetic_hf.network.backbone import hidden_size, initializer_range
from eidetic_hf.network.vocabulary import TokenTable


class OrdinalHead(nn.Module):
    """A score for a sequence, and thresholds between each label and the next (McCullagh 1980, cumulative link).

    The probability of one of the first k labels is the logistic function of the k-th threshold less the score. The
    distances between thresholds are positive, so they stay in order.

    Args:
        hidden_size: width of the backbone.
        n_labels: number of labels.
        pooling: as `pool_sequence` takes it.
        dropout: probability, in training.
        std: standard deviation of the initial weights.
    """

    def __init__(self, hidden_size: int, n_labels: int, pooling: str, dropout: float, std: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=std)
        self.first = nn.Parameter(torch.tensor([1 - n_labels / 2]))
        self.distances = nn.Parameter(torch.full((n_labels - 2,), 0.5413))  # of which softplus makes 1

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Hidden states `(batch, sequence, hidden)` to the logarithms of probabilities, `(batch, labels)`."""
        score = self.score(self.dropout(pool_sequence(hidden, attention_mask, self.pooling)))  # (batch, 1)
        distances = F.softplus(self.distances)  # (labels - 2,)
        thresholds = torch.cat([self.first, self.first + distances.cumsum(0)])  # (labels - 1,)
        up_to = F.logsigmoid(thresholds - score)  # (batch, labels - 1): of this label or one before
        beyond = F.logsigmoid(score - thresholds)  # (batch, labels - 1): of a later one
        # The difference of two logistic functions, without the cancellation.
        between = up_to[:, 1:] + beyond[:, :-1] + torch.log(-torch.expm1(-distances))  # (batch, labels - 2)
        return torch.cat([up_to[:, :1], between, beyond[:, -1:]], 1)


class Ordinal(Kind):
    """One of several labels in an order, for a whole sequence."""

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            pooling: how the head reads a sequence, one of `POOLINGS`; `None` for what suits the backbone.
            head_dropout: dropout probability before the score, while the task is being learned.
        """

        pooling: str | None = None
        head_dropout: float = 0.1

        def __post_init__(self) -> None:
            checks.expect_one_of("pooling", self.pooling, (None, *POOLINGS))
            checks.expect_probability("head_dropout", self.head_dropout)

    name = "ordinal"
    output_class = SequenceClassifierOutput
    has_labels = True

    # -- what a kind must write: a head, its answer, a loss, metrics --

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """Pooling, a score and thresholds."""
        std = initializer_range(config)
        return OrdinalHead(hidden_size(config), len(task.labels), task.pooling, task.head_dropout, std)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`logits`, `(batch, labels)`: logarithms of probabilities."""
        return {"logits": head(hidden, inputs.get("attention_mask"))}

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Negative log likelihood."""
        logits, labels = answer["logits"], targets["labels"]
        checks.expect_shape(task, "labels", labels, (len(logits),), "the number of each sequence's label")
        checks.expect_whole_numbers(task, "labels", labels)
        checks.expect_range(task, labels, len(task.labels), f"labels {task.labels}")
        checks.expect_some(task, labels, "Give the number of each sequence's label.")
        return F.nll_loss(logits.float(), labels.long(), ignore_index=IGNORED)

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """How many labels the answer is off, and how often by none. The answer is the median of the distribution."""
        predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels)
        counted = labels != IGNORED
        off = np.abs((np.exp(predictions).cumsum(-1) < 0.5).sum(-1) - labels)[counted]
        return {"mean_absolute_error": float(off.mean()), "accuracy": float((off == 0).mean())}

    # -- what it may: here, checks that say more, and how the head reads a sequence --

    def check_labels(self, task: TaskRecord) -> None:
        """At least two."""
        super().check_labels(task)
        if len(task.labels) < 2:
            raise TaskError(
                f"Task '{task.name}': one label leaves nothing to put in order; give labels from low to high."
            )

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:
        """The last token in a decoder, else the mean, if nobody says it."""
        choose_pooling(task, config)

    def check_dataset(self, task: TaskRecord, name: str, data: Any) -> None:
        """Numbers of labels."""
        checks.expect_label_numbers(task, name, data, checks.label_column(task, name, data))


register_kind(Ordinal())

# -- what recipes and the command line ask of it ----------------------------------------------------------------------
