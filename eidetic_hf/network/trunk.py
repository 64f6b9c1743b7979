"""Passes that stop, or begin, in the middle of a backbone: what the router and every task of a batch share.

The trunk answers the same for every task, so a batch goes through it once. A `TrunkPass` first records what the
embeddings and the trunk's layers put out, and stops where the first layer above the trunk begins. Then each task's
rows run the backbone again, with the recorded states in place of what the trunk would compute. Where the backbone's
own units are there for ever (`growth="copy"`), the router may have some rows go on through base's layers, as deep as
it reads. Nothing of a backbone's own `forward` is copied: its embeddings and its layers get a subclass of their class,
which does nothing but pass on when no `TrunkPass` is in progress.

Where an architecture has no module whose output is the embeddings (GPT-2 adds positions to its token embeddings in
its own `forward`), they are what enters the first layer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .wiring import Swapped, swap_class


class TrunkDone(Exception):
    """Ends a recording pass at the first layer that is not to run."""


@dataclass
class TrunkPass:
    """What the trunk put out for a batch, and how a pass in progress makes use of it.

    Attributes:
        states: the embeddings and the output of each layer, by number, `(batch, sequence, features)`.
        entry: what enters the first layer above those that were recorded, `(batch, sequence, hidden)`.
        rest: for modules whose output is a tuple that begins with the state, what follows, by number.
        until: number of layers to run and record, in a pass that records; `None` in one that goes through.
        given: a recorded pass, whose states are used instead of computing them again.
        rows: rows of it to use; `None` for all of them.
        layers: number of layers that are done, whether computed or taken from `given`.
        entered: whether the first layer above the given ones has been called.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    entry: Tensor | None = None
    rest: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    until: int | None = None
    given: TrunkPass | None = None
    rows: Tensor | None = None
    layers: int = 0
    entered: bool = False

    def cut(self, tensor: Tensor) -> Tensor:
        """The rows to use of a tensor of the given pass."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

    def state(self, number: int) -> Tensor:
        """What a layer (or the embeddings, 0) put out for the rows in use, recorded here or in the given pass."""
        if self.given is None or number in self.states:
            return self.states[number]
        return self.cut(self.given.states[number])

    def cut_rest(self, given: TrunkPass, place: int) -> tuple[Any, ...]:
        """The rows to use of what follows a state; what is the same for every sequence stays."""
        batch = len(given.states[place])
        return tuple(
            self.cut(value) if isinstance(value, Tensor) and value.dim() and len(value) == batch else value
            for value in given.rest[place]
        )


class _Running(threading.local):
    """The pass in progress, one per thread (see the layers' view for why it is no `ContextVar`)."""

    def __init__(self) -> None:
        self.trunk: TrunkPass | None = None


_RUNNING = _Running()


@contextmanager
def _use(trunk: TrunkPass) -> Iterator[None]:
    before = _RUNNING.trunk
    _RUNNING.trunk = trunk
    try:
        yield
    finally:
        _RUNNING.trunk = before


@contextmanager
def record_layers(until: int, given: TrunkPass | None = None, rows: Tensor | None = None) -> Iterator[TrunkPass]:
    """Record what the first layers put out in the backbone's forward pass inside, which ends behind them.

    Args:
        until: number of layers to run.
        given: a recorded pass of fewer layers to go on from.
        rows: numbers of its rows to go on with, `(rows,)`; `None` for the whole batch.
    """
    trunk = TrunkPass(until=until, given=given, rows=rows)
    with _use(trunk):
        try:
            yield trunk
        except TrunkDone:
            return
    if trunk.layers < until:
        raise RuntimeError(f"The backbone's forward pass ran {trunk.layers} layers, and {until} were to be recorded.")


@contextmanager
def replay_trunk(trunk: TrunkPass, rows: Tensor | None) -> Iterator[None]:
    """Run the backbone on some rows of a recorded batch, without computing the trunk again.

    Args:
        trunk: what was recorded.
        rows: numbers of the rows, `(rows,)`; `None` for the whole batch.
    """
    with _use(TrunkPass(given=trunk, rows=rows)):
        yield


class _Shared(Swapped):
    """Mixed into the class of a module that takes part in a `TrunkPass`."""

    _trunk_place: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own class does, unless a pass is recorded or goes on from a recorded one."""
        trunk = _RUNNING.trunk
        if trunk is None or (trunk.until is None and trunk.entered):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        is_layer, given = self._trunk_place > 0, trunk.given
        # Some models run the same layer several times: it is the passes through layers that are counted.
        place = trunk.layers + 1 if is_layer else 0
        if given is not None and place in given.states:
            trunk.layers = place
            state = trunk.cut(given.states[place])
            return (state, *trunk.cut_rest(given, place)) if place in given.rest else state
        if is_layer:
            hidden, args, kwargs = _take_hidden(args, kwargs)
            if given is not None and not trunk.entered:
                trunk.entered = True
                assert given.entry is not None
                hidden = trunk.cut(given.entry)
            if given is None:
                trunk.states.setdefault(0, hidden)
            if trunk.until is not None and place > trunk.until:
                trunk.entry = hidden
                raise TrunkDone
            args = (hidden, *args)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        trunk.layers = place
        if trunk.until is not None:
            if isinstance(output, tuple):
                trunk.rest[place] = output[1:]
            trunk.states[place] = output[0] if isinstance(output, tuple) else output
        return output


def _take_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states among a layer's arguments, and the others."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def share_layers(embeddings: nn.Module | None, layers: list[nn.Module]) -> None:
    """Let the backbone's embeddings, and its layers from the first on, take part in a `TrunkPass`."""
    for place, module in enumerate([embeddings, *layers]):
        if module is not None:
            module._trunk_place = place  # type: ignore[assignment]
            swap_class(module, _Shared)


# What is read of a state: its mean over the tokens of a text, the token that has seen the whole sequence; and, as it
# was before deeper layers were read, the mean over all tokens.
MEAN, EDGE, PLAIN_MEAN = 0, 1, 2


def pool_states(trunk: TrunkPass, parts: Sequence[tuple[int, int]], mask: Tensor | None, edge: str) -> list[Tensor]:
    """What recorded states say of whole sequences, wherever padding stands.

    The first token and, where attention goes both ways, the last are no part of a text for `MEAN`: a tokenizer frames
    it by them ([CLS] and [SEP], <s>), and a layer gathers there what has nothing to do with the text (Xiao et al.,
    arXiv 2309.17453). A sequence of fewer than three tokens is taken as a whole.

    Args:
        trunk: the recorded pass; states are `(batch, sequence, hidden)`.
        parts: which layer (0 for the embeddings) and what of its state, one of `MEAN`, `EDGE`, `PLAIN_MEAN`.
        mask: 1 for real tokens, `(batch, sequence)`; `None` if all are real.
        edge: the token that has seen the whole sequence: `"first"` where attention goes both ways, as BERT's [CLS],
            `"last"` where it goes back only.

    Returns:
        Each of them, `(batch, hidden)` float32.
    """
    state = trunk.state(parts[0][0])
    batch, length = state.shape[:2]
    if mask is None:
        mask = state.new_ones(batch, length)
    mask = mask.int()
    first, last = mask.argmax(1), length - 1 - mask.flip(1).argmax(1)
    rows = torch.arange(batch, device=state.device)
    framed = mask.clone()
    framed[rows, first] = 0
    if edge == "first":
        framed[rows, last] = 0
    content = torch.where(mask.sum(1, keepdim=True) < 3, mask, framed)
    weights = {PLAIN_MEAN: _mean_weights(mask), MEAN: _mean_weights(content)}
    place = first if edge == "first" else last
    return [
        trunk.state(layer)[rows, place].float()
        if what == EDGE
        else torch.bmm(weights[what], trunk.state(layer).float()).squeeze(1)
        for layer, what in parts
    ]


def _mean_weights(mask: Tensor) -> Tensor:
    """Of each token in a mean over those of a mask, `(batch, 1, sequence)` float32."""
    return (mask / mask.sum(1, keepdim=True).clamp(min=1)).float().unsqueeze(1)
