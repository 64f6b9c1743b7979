"""What the router reads of a sequence: which layers, which numbers of them, and at which scale.

A feature is one number of a pooled state (`network.trunk.pool_states`), shifted and scaled by what sequences of random
tokens give, which stand for no task, and rounded to a whole number from -127 to 127. So all sums over features are
whole numbers, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...network.trunk import EDGE, MEAN, PLAIN_MEAN

MAX_FEATURES = 2304  # what solving for the classifier, which takes their third power, allows
LEVELS = 127
# A feature's whole number is 1 for this share of its standard deviation over sequences of random tokens. That of a
# mean over real texts is about the same, so that LEVELS is far out of reach.
STEPS_PER_DEVIATION = 10
REFERENCE_SEED, REFERENCE_SHAPE = 20250209, (128, 48)

# Which numbers of which layer: its number (0 for the embeddings); `MEAN`, `EDGE` or `PLAIN_MEAN`; how many.
Part = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Which numbers are features, in the order of the layers: those of the first layers are known first.

    Attributes:
        parts: what is pooled, side by side.
        columns: which of these numbers are features, `(features,)`.
    """

    parts: tuple[Part, ...]
    columns: Tensor

    @classmethod
    def of(cls, pooled: Sequence[tuple[int, int]], widths: Sequence[int]) -> Layout:
        """All numbers, or as many as may be, evenly spread.

        Args:
            pooled: layer, and what of its state.
            widths: how many numbers each of them has.
        """
        total = sum(widths)
        kept = min(total, MAX_FEATURES)
        parts = tuple((layer, what, width) for (layer, what), width in zip(pooled, widths, strict=True))
        return cls(parts, torch.arange(kept) * total // kept)

    @classmethod
    def before_depths(cls, trunk_layers: int, columns: Tensor) -> Layout:
        """As it was while the last trunk layer alone was read, for models whose tasks left their sums then."""
        whats = (PLAIN_MEAN, EDGE) if trunk_layers else (PLAIN_MEAN,)
        return cls(tuple((trunk_layers, what, 0) for what in whats), columns)

    @property
    def layers(self) -> list[int]:
        """The layers that are read, in ascending order."""
        return sorted({layer for layer, *_ in self.parts})

    def first_layer(self, trunk_layers: int) -> int:
        """Up to which layer every row is read: the deepest that the trunk has, or the first of all."""
        return max((layer for layer in self.layers if 0 < layer <= trunk_layers), default=self.layers[0])

    def first_features(self, trunk_layers: int) -> int:
        """How many features are known of every row."""
        if self.first_layer(trunk_layers) == self.layers[-1]:
            return len(self.columns)
        known = self.up_to(self.first_layer(trunk_layers))
        return int((self.columns < sum(width for _, _, width in self.parts[: len(known)])).sum())

    def up_to(self, layer: int) -> list[tuple[int, int]]:
        """What is pooled of the layers up to this one."""
        return [(number, what) for number, what, _ in self.parts if number <= layer]


def to_pool(layers: Sequence[int]) -> list[tuple[int, int]]:
    """What is pooled of some layers: the mean over the text, and the edge token.

    Of the embeddings, where a token has seen nothing but itself, the mean alone.
    """
    return [(layer, what) for layer in sorted(layers) for what in ((MEAN, EDGE) if layer else (MEAN,))]


def layers_to_read(trunk_layers: int, n_layers: int, copies: bool) -> list[int]:
    """The layers that the router reads where nobody says otherwise.

    Where base is there for ever: the trunk's last, one in the middle and one at two thirds of the depth (without a
    trunk, one at a third in its place). Deeper layers of a pretrained encoder know less of what a text looks like and
    more of what it says, and several depths together tell most (docs/routing.md). Else the last two of the trunk,
    since nothing above is the same for all tasks.
    """
    if copies:
        deepest = max(n_layers - 1, trunk_layers)
        wanted = (trunk_layers or round(n_layers / 3), round(n_layers / 2), round(2 * n_layers / 3))
        return sorted({min(max(layer, trunk_layers), deepest) for layer in wanted})
    return sorted({max(trunk_layers - 1, min(trunk_layers, 1)), trunk_layers})


def reference_inputs(vocab_size: int, longest: int | None = None, hidden: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask, `(sequences, tokens)`, of uneven lengths.

    All begin and end with the same token, as texts do whose tokenizer frames them.

    Args:
        vocab_size: number of tokens.
        longest: tokens that the backbone has positions for; `None` if that has no limit.
        hidden: the backbone's hidden size: a wide one, of which each pass takes long, reads fewer.
    """
    rows, tokens = REFERENCE_SHAPE
    rows = max(rows // max(hidden // 1024, 1) ** 2, 16)
    tokens = min(tokens, longest or tokens)
    generator = torch.Generator().manual_seed(REFERENCE_SEED)
    ids = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    lengths = torch.randint(min(4, tokens), tokens + 1, (rows,), generator=generator)
    ids[:, 0] = ids[0, 0]
    ids.scatter_(1, lengths.unsqueeze(1) - 1, int(ids[0, 1]))
    return ids, (torch.arange(tokens) < lengths.unsqueeze(1)).long()
