"""A vocabulary that grows: new tokens get rows of their own, and no committed task sees them.

The backbone's own rows never move. Rows that came later are numbered after them,

    [ the backbone's | rows of the first task that took some | of the second | ... | pool ]

so that what a task knows, its tokens and all earlier ones, is a range of rows that starts at the first: a view, no
copy. Rows in the pool belong to nobody. The next task that reads one of them, or scores them as a language model,
trains them all and takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..views import LEARNING, POOL, TRUNK, View, running_view, use_view
from .storage import OwnedRows, Place, Slots, Undo, get_tensor, set_tensor
from .wiring import Swapped, TiedWeight, swap_class

# Parts of the table while new tokens are being learned.
_OLD, _NEW = 0, 1

# Token ids that a backbone is given, and the masks that say which of them count.
_MASKED_IDS = (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask"))


def table_of(embedding: nn.Module) -> nn.Module:
    """The module that has the weight of an embedding, which may be another's."""
    while isinstance(embedding, TiedWeight):
        embedding = embedding.owner()
    return embedding


@dataclass(frozen=True)
class TokenTable:
    """The embeddings of the tokens that a view knows, in parts that lie one behind the other.

    There is one part, but while a task is being learned that trains new tokens: then theirs are the second. They are
    used side by side and not joined, so that no gradient is computed for what is frozen, and the table is not copied
    at every forward pass.

    Attributes:
        parts: each `(tokens of the part, embedding)`.
    """

    parts: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.parts))

    @property
    def width(self) -> int:
        """Width of an embedding."""
        return self.parts[0].shape[1]

    def first(self, tokens: int) -> TokenTable:
        """The table of the first tokens only."""
        parts, start = [], 0
        for part in self.parts:
            if start == 0 or start < tokens:
                parts.append(part if start + len(part) <= tokens else part[: tokens - start])
            start += len(part)
        return TokenTable(tuple(parts))

    def joined(self) -> Tensor:
        """All embeddings as one tensor, `(tokens, embedding)`: a copy, if there are several parts."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)

    def score(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of hidden states with every token's embedding.

        Args:
            hidden: `(..., embedding)`.
            bias: `(tokens,)`.

        Returns:
            Logits, `(..., tokens)`.
        """
        biases = [None] * len(self.parts) if bias is None else bias.split([len(part) for part in self.parts])
        scores = [F.linear(hidden, part, own) for part, own in zip(self.parts, biases, strict=True)]
        return scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)


class LateRows(Slots):
    """The rows of one table of embeddings that the backbone did not come with.

    Invariant: a row has one owner, or is in the pool; and what is owned comes before the pool.

    Args:
        table: the module with the backbone's own rows, as its `weight`.
    """

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self._table = [table]  # in a list, so that it is not registered as a child
        self.sizes: dict[str, int] = {}
        self._rows: OwnedRows | None = None  # none, as long as the vocabulary has not grown

    @property
    def own(self) -> Tensor:
        """The backbone's own rows, `(tokens, embedding)`."""
        own = get_tensor(self._table[0], "weight")
        if own is None:  # `hasattr` has to be possible: torch.jit.trace asks for every name
            raise AttributeError("There are no embeddings of this table: the backbone has the input's only.")
        return own

    @property
    def order(self) -> list[str]:
        """The tasks that own late rows, in commit order."""
        return [] if self._rows is None else self._rows.owners.order[1:]

    def count(self, key: str) -> int:
        """Number of late rows that a task or the pool owns."""
        return 0 if self._rows is None else self._rows.count(key)

    @property
    def owned(self) -> int:
        """Number of rows that are somebody's: the backbone's and the tasks'."""
        return len(self.own) if self._rows is None else self._rows.owners.total

    @property
    def total(self) -> int:
        """Number of all rows."""
        return self.owned + self.count(POOL)

    @property
    def has_grown(self) -> bool:
        """Whether there are late rows at all."""
        return self.total > len(self.own)

    def size(self, view: View) -> int:
        """Number of tokens that a view knows; tasks side by side know the same."""
        if view.whole_vocabulary or view.key == LEARNING:
            return self.total
        return self.sizes.get(view.beside[0][0] if view.beside else view.key, len(self.own))

    def owners(self, size: int) -> list[str]:
        """Tasks that own some of the first `size` rows."""
        return [] if self._rows is None else self._rows.owners.before(size)[1:]

    def learning_from(self, view: View | None) -> int | None:
        """The first token whose row the view is learning; `None` if all that it reads is frozen."""
        if view is None or view.key != LEARNING or view.whole_vocabulary or self.get(LEARNING) is None:
            return None
        return self.owned

    def table(self, view: View | None) -> TokenTable:
        """The rows that a view knows; outside of a forward pass all of them."""
        packed = self.own if self._rows is None else cast(Tensor, self._rows.packed[0])
        if view is None:
            return TokenTable((packed,))
        start = self.learning_from(view)
        if start is None:
            return TokenTable((packed[: self.size(view)],))
        parts = (packed[:start], self.need(LEARNING))
        return TokenTable(parts if view.part is None else parts[view.part : view.part + 1])

    def seen(self, view: View | None) -> Tensor:
        """The rows of `table` as one tensor, `(tokens, embedding)`."""
        return self.table(view).joined()

    # -- memory ---------------------------------------------------------------------------------------------------

    def pack(self) -> None:
        """Lay all rows into one fresh, aligned tensor, and make each part a view of it."""
        if self._rows is not None:
            self._rows.pack()

    def lay(self) -> None:
        """Make memory for all rows, as `pack` does, for a file to be read into."""
        if self._rows is not None:
            self._rows.lay()

    def is_packed(self) -> bool:
        """Whether every part still is a view of one tensor."""
        return self._rows is None or self._rows.is_packed()

    def _place(self, key: str, rows: Tensor) -> None:
        """Register rows, in memory of their own, for a task or the pool."""
        if self._rows is None:
            self._rows = OwnedRows()
            self._rows.place(TRUNK, Place(self._table[0], ("weight",)))
        self.put(key, rows)
        self._rows.place(key, Place(self, (key,)))

    # -- life of a row --------------------------------------------------------------------------------------------

    def grow(self, count: int, std: float | None) -> None:
        """Add rows to the pool: the mean of the backbone's, or drawn from a normal distribution."""
        own, pool = self.own, self.get(POOL)
        new = own.new_empty(count, own.shape[1])
        new = new.copy_(own.float().mean(0).expand_as(new)) if std is None else new.normal_(0, std)
        self._place(POOL, new if pool is None else torch.cat([pool, new]))
        self.pack()

    def join(self) -> None:
        """Let the pool's rows become the backbone's own."""
        set_tensor(self._table[0], "weight", torch.cat([self.own, self.need(POOL)]))
        self.put(POOL, None)
        self._rows = None

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

    def snapshot(self) -> Undo | None:
        """What `undo_commit` needs; `None` if no row can change its owner."""
        if self._rows is None or not self.count(POOL):
            return None
        if self._rows.is_torn():
            self.pack()
        return self._rows.snapshot()

    def commit(self, key: str, takes: bool | None) -> None:
        """Settle what `key` knows: what is owned, and if it takes the pool's rows, these too, as it trained them.

        Args:
            key: of the task.
            takes: whether it takes them; `None` for a task that knows the backbone's own rows alone.
        """
        rows = self.get(LEARNING)
        if takes and rows is not None and self._rows is not None:
            self.put(key, rows.detach().clone())
            self._rows.hand_over(key, Place(self, (key,)), [rows[:0]])
            self.put(POOL, None)
            self._rows.drop_pool()
        self.sizes[key] = len(self.own) if takes is None else self.owned

    def undo_commit(self, key: str, undo: Undo | None) -> None:
        """Take a commit back."""
        self.sizes.pop(key, None)
        if undo is not None and self._rows is not None:
            self.put(key, None)
            self._rows.take_back(undo, Place(self, (POOL,)))

    def drop(self, key: str, has_pool: bool) -> None:
        """Let a committed task go; its rows are the last that somebody owns, and they start anew in the pool.

        They have to be packed next.
        """
        self.sizes.pop(key, None)
        count = self.count(key)
        if self._rows is None or self.get(key) is None:
            return
        if self._rows.is_torn():
            self.pack()
        self._rows.drop(key)
        self.put(key, None)
        if has_pool:
            new = self.own.float().mean(0).to(self.own).expand(count, -1)
            pool = self.get(POOL)
            self._place(POOL, torch.cat([new, *([] if pool is None else [pool])]))

    def books(self) -> Any:
        """What `put_books` needs, without any tensor's values."""
        return dict(self.sizes), self._rows, None if self._rows is None else self._rows.books()

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called; what is registered comes back with its `Arrangement`."""
        self.sizes, self._rows, rows = books
        if self._rows is not None:
            self._rows.put_books(rows)

    def rebuild(self, key: str, size: int) -> None:
        """Make room for a committed task's rows, which a checkpoint will fill; `size` is what it knows."""
        self.sizes[key] = size
        if size > self.owned:
            self._place(key, self.own.new_empty(size - self.owned, self.own.shape[1]))

    def rebuild_pool(self, total: int) -> None:
        """Make room for the pool's rows."""
        if total > self.owned:
            self._place(POOL, self.own.new_empty(total - self.owned, self.own.shape[1]))

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
    """An embedding whose weight is the rows that the current view knows.

    While new tokens are being learned their rows and the frozen ones are looked up apart, each by the module's own
    forward, which may scale what it finds.
    """

    _rows: list[LateRows]

    @classmethod
    def attributes(cls, *arguments: Any) -> dict[str, Any]:
        """Properties in place of the buffer `weight`, and of the token that gets no gradient, which is an old one."""

        def padding_idx(self: Any) -> int | None:
            view = running_view()
            return None if view is not None and view.part == _NEW else self.__dict__["padding_idx"]

        def set_padding_idx(self: Any, value: int | None) -> None:
            self.__dict__["padding_idx"] = value

        return {
            "weight": property(lambda self: self._rows[0].seen(running_view())),
            "padding_idx": property(padding_idx, set_padding_idx),
        }

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids `(...)` to embeddings `(..., embedding)`."""
        view = running_view()
        start = self._rows[0].learning_from(view)
        if view is None or start is None:
            return super().forward(ids)  # type: ignore[misc]
        is_new = ids >= start
        with use_view(replace(view, part=_OLD)):
            old = super().forward(ids.masked_fill(is_new, 0))  # type: ignore[misc]
        with use_view(replace(view, part=_NEW)):
            new = super().forward((ids - start).clamp(min=0))  # type: ignore[misc]
        return torch.where(is_new.unsqueeze(-1), new, old)


def read_by_view(rows: LateRows, backbone: nn.Module) -> None:
    """Let the embeddings of a backbone that read a table show each view the rows that it knows."""
    for module in backbone.modules():
        if not isinstance(module, nn.Embedding) or table_of(module) is not rows._table[0]:
            continue
        if not isinstance(module, GrownEmbedding):
            module._rows = [rows]  # type: ignore[assignment]
            swap_class(module, GrownEmbedding)
        module.num_embeddings = rows.total
