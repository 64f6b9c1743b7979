"""What a model is asked: one value, made in `forward`, that answering, routing and generation share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..kinds.base import TARGETS
from ..kinds.collators import PAIR
from ..network.backbone import DECODER_TEXTS, MODEL_INPUTS, batch_size

_INPUTS = (*MODEL_INPUTS, *DECODER_TEXTS, "decoder_attention_mask")


@dataclass(frozen=True)
class Request:
    """What a model is asked; nothing in it is `None`.

    Attributes:
        inputs: the sequences, `(batch, sequence)` or `(batch, choices, sequence)`, by the names of `forward`.
        pair: the other text of each pair, by the same names.
        targets: what the loss is computed from.
        arguments: further arguments for the backbone, such as `output_hidden_states` or `past_key_values`; and
            `logits_to_keep`, if it is not all of them.
        items: rows or tokens with a target in all the batches of an optimizer step, over which their losses are to
            be one mean; `None` for the mean of this batch.
    """

    inputs: dict[str, Tensor]
    pair: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    items: Tensor | int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Sort the arguments of `forward` by what they are."""
        parts: tuple[dict[str, Any], ...] = ({}, {}, {}, {})
        for name, value in given.items():
            if value is None or name == "num_items_in_batch":
                continue
            if name in _INPUTS:
                parts[0][name] = value
            elif name.startswith(PAIR):
                parts[1][name.removeprefix(PAIR)] = value
            elif name in TARGETS:
                parts[2][name] = value
            elif name != "logits_to_keep" or isinstance(value, Tensor) or value:
                parts[3][name] = value
        inputs, pair, targets, arguments = parts
        return cls(inputs, pair, targets, arguments, given.get("num_items_in_batch"))

    @property
    def batch(self) -> int:
        """Number of rows."""
        return batch_size(self.inputs)

    def rows(self, rows: Tensor) -> Request:
        """The same for some rows of the batch, given by number, without targets."""

        def cut(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value[rows] if _is_batched(value, batch) else value for name, value in values.items()}

        batch = self.batch
        return replace(self, inputs=cut(self.inputs), arguments=cut(self.arguments), pair={}, targets={})


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
