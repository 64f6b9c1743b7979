"""One pass through the trunk, shared by the router and by every task of a batch.

The trunk answers the same for every task, so a batch goes through it once. A `TrunkPass` first records what the
embeddings and the trunk's layers put out, and stops where the first layer above the trunk begins. Then each task's
rows run the backbone again, with the recorded states in place of what the trunk would compute. Nothing of a backbone's
own `forward` is copied: its embeddings, its trunk layers and the layer above them get a subclass of their class, which
does nothing but pass on when no `TrunkPass` is in progress.

Where an architecture has no module whose output is the embeddings (GPT-2 adds positions to its token embeddings in
its own `forward`), they are what enters the first layer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .wiring import Swapped, swap_class

GATE = -1


class TrunkDone(Exception):
    """Ends a recording pass at the first layer above the trunk."""


@dataclass
class TrunkPass:
    """What the trunk put out for a batch.

    Attributes:
        states: the embeddings and the output of each trunk layer, by number, `(batch, sequence, features)`.
        entry: what enters the first layer above the trunk, `(batch, sequence, hidden)`.
        rows: rows of the batch to replay; `None` for all of them.
        replaying: whether the states are being used instead of recorded.
        rest: for modules whose output is a tuple that begins with the state, what follows, by number.
        entered: whether the first layer above the trunk has been called; some models call it several times.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    entry: Tensor | None = None
    rows: Tensor | None = None
    replaying: bool = False
    rest: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    entered: bool = False

    def cut(self, tensor: Tensor) -> Tensor:
        """The rows to replay of a recorded tensor."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

    def cut_rest(self, place: int) -> tuple[Any, ...]:
        """The rows to replay of what follows a state; what is the same for every sequence stays."""
        batch = len(self.states[place])
        return tuple(
            self.cut(value) if isinstance(value, Tensor) and value.dim() and len(value) == batch else value
            for value in self.rest[place]
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
def record_trunk() -> Iterator[TrunkPass]:
    """Record what the trunk puts out in the backbone's forward pass inside, which ends where the trunk does."""
    trunk = TrunkPass()
    with _use(trunk):
        try:
            yield trunk
        except TrunkDone:
            return
    raise RuntimeError("The backbone's forward pass never came to the first layer above the trunk.")


@contextmanager
def replay_trunk(trunk: TrunkPass, rows: Tensor | None) -> Iterator[None]:
    """Run the backbone on some rows of a recorded batch, without computing the trunk again.

    Args:
        trunk: what `record_trunk` returned.
        rows: numbers of the rows, `(rows,)`; `None` for the whole batch.
    """
    with _use(TrunkPass(trunk.states, trunk.entry, rows, replaying=True, rest=trunk.rest)):
        yield


class _Shared(Swapped):
    """Mixed into the class of a module that takes part in a `TrunkPass`."""

    _trunk_place: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own class does, unless a pass through the trunk is recorded or replayed."""
        trunk, place = _RUNNING.trunk, self._trunk_place
        if trunk is None or (place == GATE and trunk.entered):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if trunk.replaying and place != GATE:
            state = trunk.cut(trunk.states[place])
            return (state, *trunk.cut_rest(place)) if place in trunk.rest else state
        if place != 0:
            hidden, args, kwargs = _take_hidden(args, kwargs)
            if not trunk.replaying:
                trunk.states.setdefault(0, hidden)
            if place == GATE:
                hidden = self._enter(trunk, hidden)
            args = (hidden, *args)
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if place != GATE:
            if isinstance(output, tuple):
                trunk.rest[place] = output[1:]
            trunk.states[place] = output[0] if isinstance(output, tuple) else output
        return output

    @staticmethod
    def _enter(trunk: TrunkPass, hidden: Tensor) -> Tensor:
        """End a recording here; in a replay, what enters the first layer above the trunk."""
        if not trunk.replaying:
            trunk.entry = hidden
            raise TrunkDone
        trunk.entered = True
        assert trunk.entry is not None
        return trunk.cut(trunk.entry)


def _take_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states among a layer's arguments, and the others."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def share_trunk(embeddings: nn.Module | None, trunk: list[nn.Module], gate: nn.Module) -> None:
    """Let the backbone's embeddings, trunk layers and first layer above them take part in a `TrunkPass`."""
    for place, module in [*enumerate([embeddings, *trunk]), (GATE, gate)]:
        if module is not None:
            module._trunk_place = place  # type: ignore[assignment]
            swap_class(module, _Shared)


def pool_states(states: dict[int, Tensor], mask: Tensor | None, edge: str) -> list[Tensor]:
    """What the last state of a trunk says of whole sequences.

    Args:
        states: the embeddings and the output of each trunk layer, by number, `(batch, sequence, hidden)` each.
        mask: 1 for real tokens, `(batch, sequence)`; `None` if all are real.
        edge: the token that has seen the whole sequence: `"first"` where attention goes both ways, as BERT's [CLS],
            `"last"` where it goes back only.

    Returns:
        The mean over real tokens and, if there is a trunk layer, the state of the first or last real token; both
        `(batch, hidden)` float32. Below the first layer a token has seen nothing but itself.
    """
    state = states[max(states)]
    batch, length = state.shape[:2]
    if mask is None:
        mask = state.new_ones(batch, length)
    weights = (mask / mask.sum(1, keepdim=True).clamp(min=1)).float().unsqueeze(1)
    mean = torch.bmm(weights, state.float()).squeeze(1)
    if max(states) == 0:
        return [mean]
    place = mask.int().argmax(1) if edge == "first" else length - 1 - mask.int().flip(1).argmax(1)
    return [mean, state[torch.arange(batch, device=state.device), place].float()]
