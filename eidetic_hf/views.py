"""Which subnetwork a forward pass runs, and who owns a tensor.

The view of the pass in progress is kept per thread, so that several threads may answer for several tasks at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

POOL = "pool"
LEARNING = "learning"
TRUNK = "trunk"
SEVERAL = "several"
TOLD = "told"  # owns what users have told the router about tasks since their commit
BASE = "base"  # owns the backbone's units where tasks copy them, for every task to read


# What holds one tensor, or one module, for each owner, the backbone's own units among them.
_BY_OWNER = ("segments", "units")


def task_key(name: str) -> str:
    """The component of a tensor's name that says which task owns it: `@agnews`. Dots are written `%2E`."""
    return "@" + name.replace(".", "%2E")


def task_name(key: str) -> str | None:
    """The name of the task that a key is of, such as `agnews` of `@agnews`; `None` if it is no task's."""
    return key[1:].replace("%2E", ".") if key.startswith("@") else None


def private_key(key: str) -> str:
    """Under which key the norms and output biases lie that a view reads: base's are what new tasks start from."""
    return POOL if key == BASE else key


def owner_of(tensor_name: str) -> str:
    """Who owns a tensor, by its name: `trunk`, `base`, `pool`, `learning`, `told`, or a task's key, as `@agnews`."""
    before = ""
    for part in tensor_name.split("."):
        if part in (LEARNING, "progress", "learner"):
            return LEARNING
        if part == TOLD and before == "router":
            return TOLD
        if part == POOL or part.startswith("@") or (part == BASE and before in _BY_OWNER):
            return part
        before = part
    return TRUNK


@dataclass(frozen=True)
class View:
    """Which subnetwork a forward pass runs.

    Attributes:
        key: `task_key` of a committed task, `LEARNING`, `BASE` (the backbone as it came), or `SEVERAL`.
        teacher: run the network being learned with every unit, as it was before pruning.
        probe: importance measure to accumulate in the backward pass (`"fisher"` or `"taylor"`), or `None`.
        token_mask: 1 for real tokens and 0 for padding, `(batch, sequence)`; `None` if all are real.
        decoder_token_mask: the same for what a decoder reads beside its encoder.
        batch: number of sequences, for code that flattens them into one list of tokens; known while probing, and of
            several tasks.
        whole_vocabulary: whether it knows every token, as the router does; else those that the task knows.
        part: which part of the token embeddings is being looked up, where they come in several; `None` for all.
        beside: of a batch of several tasks that are computed side by side, whose key is `SEVERAL`: key and number of
            sequences of each, in the order of the rows.
    """

    key: str
    teacher: bool = False
    probe: str | None = None
    token_mask: Tensor | None = None
    decoder_token_mask: Tensor | None = None
    batch: int = 0
    whole_vocabulary: bool = False
    part: int | None = None
    beside: tuple[tuple[str, int], ...] = ()

    @classmethod
    def several(cls, sequences: Mapping[str, int]) -> View:
        """The view of a batch of several tasks side by side, each of which has so many sequences one after another."""
        return cls(SEVERAL, beside=tuple(sequences.items()), batch=sum(sequences.values()))

    def slices(self, rows: int) -> Iterator[tuple[str, slice]]:
        """Key and rows of each task of a batch of several, in a tensor of so many rows.

        A sequence has as many rows as any other: several where beams search for its text, or where tokens of all
        sequences are in one list, as OPT's MLP has them.

        Raises:
            ValueError: if it is not so.
        """
        sequences = sum(count for _, count in self.beside)
        if rows % sequences:
            raise ValueError(
                f"A layer was given {rows} rows for {sequences} sequences of several tasks: this backbone mixes "
                "sequences before it. Set model.mixed_batches = 'apart'."
            )
        start, each = 0, rows // sequences
        for key, count in self.beside:
            yield key, slice(start, start + count * each)
            start += count * each

    def in_decoder(self) -> View:
        """This view, as the units of a decoder beside an encoder need it."""
        return replace(self, token_mask=self.decoder_token_mask)


class _Running(threading.local):
    """The view of the forward pass in progress, one per thread.

    Not a `ContextVar`: `torch.compile` can not look into one, and would break the graph in every layer. A forward pass
    never waits for anything, so coroutines in one thread do not meet in it, either.
    """

    def __init__(self) -> None:
        # In each thread, at its first look, and not where a view is set: no guard of a compiled graph then fails.
        self.view: View | None = None


_RUNNING = _Running()


@contextmanager
def use_view(view: View) -> Iterator[None]:
    """Run a forward pass on one task's subnetwork; each thread has its own."""
    before = _RUNNING.view
    _RUNNING.view = view
    try:
        yield
    finally:
        _RUNNING.view = before


def running_view() -> View | None:
    """The view of the forward pass in progress; `None` outside of one."""
    return _RUNNING.view


def current_view() -> View:
    """The view of the forward pass in progress.

    Raises:
        RuntimeError: outside of `EideticModel.forward`.
    """
    view = _RUNNING.view
    if view is None:
        raise RuntimeError(
            "A task layer was called outside of EideticModel.forward, so it does not know its task. "
            "Call model(**inputs, task=...) instead of model.backbone(**inputs)."
        )
    return view
