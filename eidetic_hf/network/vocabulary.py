"""A vocabulary that grows: new tokens get rows of their own, and no committed task sees them.

The backbone's own rows never move. Rows that came later are numbered after them,

    [ the backbone's | rows of the first task that took some | of the second | ... | pool ]

so that what a task knows, its tokens and all earlier ones, is a range of rows that starts at the first: a view, no
copy. Rows in the pool belong to nobody. The next task that reads one of them, or scores them as a language model,
trains them all and takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..views import LEARNING, POOL, View, running_view
from .storage import Slots
from .wiring import Swapped, TiedWeight, swap_class

# Token ids that a backbone is given, and the masks that say which of them count.
_MASKED_IDS = (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask"))


def table_of(embedding: nn.Module) -> nn.Module:
    """The module that has the weight of an embedding, which may be another's."""
    while isinstance(embedding, TiedWeight):
        embedding = embedding._source[0].get_submodule(embedding._source_path)
    return embedding


class LateRows(Slots):
    """The rows of one table of embeddings that the backbone did not come with.

    Invariant: a row has one owner, or is in the pool; and what is owned comes before the pool.

    Args:
        table: the module with the backbone's own rows, as its `weight`.
    """

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._table = [table]  # in a list, so that it is not registered as a child
        self.order: list[str] = []
        self.sizes: dict[str, int] = {}
        self._packed: Tensor | None = None

    @property
    def own(self) -> Tensor:
        """The backbone's own rows, `(tokens, embedding)`."""
        table = self._table[0]
        weight = table._parameters.get("weight")
        return cast(Tensor, table._buffers["weight"] if weight is None else weight)

    def count(self, key: str) -> int:
        """Number of late rows that a task or the pool owns."""
        rows = self.get(key)
        return 0 if rows is None else len(rows)

    @property
    def owned(self) -> int:
        """Number of rows that are somebody's: the backbone's and the tasks'."""
        return len(self.own) + sum(map(self.count, self.order))

    @property
    def total(self) -> int:
        """Number of all rows."""
        return self.owned + self.count(POOL)

    @property
    def has_grown(self) -> bool:
        """Whether there are late rows at all."""
        return bool(self.order) or self.count(POOL) > 0

    def size(self, view: View) -> int:
        """Number of tokens that a view knows."""
        if view.whole_vocabulary or view.key == LEARNING:
            return self.total
        return self.sizes.get(view.key, len(self.own))

    def owners(self, size: int) -> list[str]:
        """Tasks that own some of the first `size` rows."""
        found, start = [], len(self.own) if self.order else 0
        for key in self.order:
            if start < size:
                found.append(key)
            start += self.count(key)
        return found

    def seen(self, view: View | None) -> Tensor:
        """The rows that a view knows, `(tokens, embedding)`; outside of a forward pass all of them."""
        packed = self.own if self._packed is None else self._packed
        if view is None:
            return packed
        rows = self.get(LEARNING)
        if view.key == LEARNING and rows is not None and not view.whole_vocabulary:
            return torch.cat([packed[: self.owned], rows])
        return packed[: self.size(view)]

    # -- memory ---------------------------------------------------------------------------------------------------

    def _parts(self) -> list[Tensor]:
        pool = self.get(POOL)
        return [self.own, *map(self.need, self.order), *([] if pool is None else [pool])]

    def pack(self) -> None:
        """Lay all rows into one fresh, aligned tensor, and make each part a view of it."""
        if not self.has_grown:
            self._packed = None
            return
        packed, start = torch.cat(self._parts()), len(self.own)
        self._table[0]._buffers["weight"] = packed[:start]
        for key in [*self.order, *([POOL] if self.count(POOL) else [])]:
            stop = start + self.count(key)
            self._buffers[key] = packed[start:stop]
            start = stop
        self._packed = packed

    def is_packed(self) -> bool:
        """Whether every part still is a view of one tensor."""
        if self._packed is None:
            return not self.has_grown
        place = self._packed.data_ptr()
        for part in self._parts():
            same = part.dtype == self._packed.dtype and part.device == self._packed.device
            if not same or part.data_ptr() != place:
                return False
            place += part.numel() * part.element_size()
        return True

    # -- life of a row --------------------------------------------------------------------------------------------

    def grow(self, count: int, std: float | None) -> None:
        """Add rows to the pool: the mean of the backbone's, or drawn from a normal distribution."""
        own, pool = self.own, self.get(POOL)
        new = own.new_empty(count, own.shape[1])
        new = new.copy_(own.float().mean(0).expand_as(new)) if std is None else new.normal_(0, std)
        self.put(POOL, new if pool is None else torch.cat([pool, new]))
        self.pack()

    def join(self) -> None:
        """Let the pool's rows become the backbone's own."""
        self._table[0]._buffers["weight"] = torch.cat([self.own, self.need(POOL)])
        self.put(POOL, None)
        self.pack()

    def begin(self) -> None:
        """Make a trainable working copy of the pool's rows."""
        pool = self.get(POOL)
        if pool is not None and len(pool):
            self.put(LEARNING, nn.Parameter(pool.clone()))
            self.put("progress", torch.zeros((), dtype=torch.bool, device=pool.device))

    def note(self, highest: int) -> None:
        """Remember whether the task being learned has read a row of the pool."""
        read = self.get("progress")
        if read is not None and highest >= self.owned:
            read.fill_(True)

    def end(self) -> None:
        """Drop the working copy."""
        self.put(LEARNING, None)
        self.put("progress", None)

    def snapshot(self) -> Any:
        """What `undo_commit` needs."""
        return list(self.order), self.get(POOL)

    def commit(self, key: str, takes: bool) -> None:
        """Settle what `key` knows: what is owned, and if it takes the pool's rows, these too, as it trained them."""
        rows = self.get(LEARNING)
        if takes and rows is not None:
            self.put(key, rows.detach().clone())
            self.put(POOL, None)
            self.order.append(key)
            self.pack()
        self.sizes[key] = self.owned

    def undo_commit(self, key: str, undo: Any) -> None:
        """Take a commit back."""
        order, pool = undo
        self.sizes.pop(key, None)
        if self.order != order:
            self.order = order
            self.put(key, None)
            self.put(POOL, pool)
            self.pack()

    def rebuild(self, key: str, size: int) -> None:
        """Make room for a committed task's rows, which a checkpoint will fill; `size` is what it knows."""
        self.sizes[key] = size
        if size > self.owned:
            self.put(key, self.own.new_empty(size - self.owned, self.own.shape[1]))
            self.order.append(key)

    def rebuild_pool(self, total: int) -> None:
        """Make room for the pool's rows."""
        if total > self.owned:
            self.put(POOL, self.own.new_empty(total - self.owned, self.own.shape[1]))

    # -- what a batch reads ---------------------------------------------------------------------------------------

    def readable(self, inputs: dict[str, Any], view: View, who: str) -> dict[str, Any]:
        """A batch whose tokens a view knows.

        What is masked out counts for nothing, so that a late token there, such as a new padding token, is read as
        token 0: the output must not depend on a row that is not the task's.

        Args:
            inputs: what the backbone is given.
            view: of the pass.
            who: what the error calls the reader.

        Raises:
            ValueError: if a token is not known.
        """
        inputs = dict(inputs)
        for name, mask_name in _MASKED_IDS:
            ids, mask = inputs.get(name), inputs.get(mask_name)
            if ids is None:
                continue
            if isinstance(mask, Tensor) and mask.dim() == ids.dim() and mask.shape[-1] >= ids.shape[-1]:
                hidden = mask[..., mask.shape[-1] - ids.shape[-1] :] == 0
                ids = inputs[name] = ids.masked_fill(hidden & (ids >= len(self.own)), 0)
            highest, size = int(ids.max()) if ids.numel() else 0, self.size(view)
            if highest >= size:
                raise ValueError(
                    f"{name} holds the token {highest}, and {who} knows {size} tokens, 0 to {size - 1}. "
                    f"{_hint(size, self.total)}"
                )
            if view.key == LEARNING:
                self.note(highest)
        return inputs


def _hint(size: int, total: int) -> str:
    if size < total:
        return (
            f"The vocabulary has {total} tokens now, but a task keeps the one that it was committed with. Use the "
            "tokenizer of that time, or a task that was learned later."
        )
    return "Grow the vocabulary first: model.resize_token_embeddings(len(tokenizer))."


def highest_tokens(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """The highest token of each row of a batch that is not masked out, `(batch,)`; `None` without tokens."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        return None
    counted = ids if mask is None else ids.masked_fill(mask == 0, 0)
    return counted.flatten(1).amax(1)


class GrownEmbedding(Swapped):
    """An embedding whose weight is the rows that the current view knows."""

    _rows: list[LateRows]

    @classmethod
    def attributes(cls, *arguments: Any) -> dict[str, Any]:
        """A property in place of the buffer `weight`."""
        return {"weight": property(lambda self: self._rows[0].seen(running_view()))}


def read_by_view(rows: LateRows) -> None:
    """Let an embedding show each view the rows that it knows."""
    embedding = cast(nn.Embedding, rows._table[0])
    if not isinstance(embedding, GrownEmbedding):
        embedding._rows = [rows]  # type: ignore[assignment]
        swap_class(embedding, GrownEmbedding)
    embedding.num_embeddings = rows.total
