"""Where tensors live: Parameters while they are learned, buffers for ever after, rows with owners in one piece.

This is the only file that knows how a `torch.nn.Module` keeps its tensors (`_parameters`, `_buffers`).
"""

from __future__ import annotations

import ctypes
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..views import POOL

Module = TypeVar("Module", bound=nn.Module)

# A slice of packed rows is as good as a copy of them where it begins at a multiple of this many bytes: no product then
# takes another code path. A CPU's vectors have up to 64; cuBLAS chooses its algorithm by an alignment of up to 256.
_ALIGNMENT = {"cpu": 64}
_ALIGNMENT_ELSEWHERE = 256


# -- a module's own tensors -------------------------------------------------------------------------------------------


def get_tensor(module: nn.Module, leaf: str) -> Tensor | None:
    """The Parameter or buffer of this name, past any property that a class has in its place; `None` without one."""
    value = module._parameters.get(leaf)
    return value if value is not None else module._buffers.get(leaf)


def set_tensor(module: nn.Module, leaf: str, value: Tensor | None) -> None:
    """Put a tensor in a module's place of this name: a Parameter can be trained, any other tensor is a buffer.

    `None` removes it. A tensor that takes the place of one of the same sort keeps its position in the state dict.
    """
    tables: list[Any] = [module._buffers, module._parameters]
    if isinstance(value, nn.Parameter):
        tables.reverse()
    tables[1].pop(leaf, None)
    if value is None:
        tables[0].pop(leaf, None)
    else:
        tables[0][leaf] = value


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """A module's buffers by name, without its children's."""
    return {leaf: buffer for leaf, buffer in module._buffers.items() if buffer is not None}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's Parameters and buffers by name, without its children's."""
    parameters = {leaf: parameter for leaf, parameter in module._parameters.items() if parameter is not None}
    return {**parameters, **own_buffers(module)}


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's Parameters and buffers that a checkpoint holds, by name, without its children's."""
    passing = module._non_persistent_buffers_set
    return {leaf: tensor for leaf, tensor in own_tensors(module).items() if leaf not in passing}


def named_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a module and all below it that a checkpoint holds, by their names in the state dict."""
    return module.state_dict(prefix=f"{name}.", keep_vars=True)


def computed_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The buffers of a module and all below it that no checkpoint holds, since code computes them, by name.

    Beside a weight (Gemma's scale of embeddings) as they are used: in its dtype, whatever theirs is.
    """
    found = {}
    for path, child in module.named_modules(prefix=name):
        beside = next((tensor.dtype for tensor in stored_tensors(child).values() if tensor.is_floating_point()), None)
        for leaf, buffer in own_buffers(child).items():
            if leaf in child._non_persistent_buffers_set:
                found[f"{path}.{leaf}"] = buffer.to(beside) if beside and buffer.is_floating_point() else buffer
    return found


def device_of(root: nn.Module) -> torch.device:
    """Device of a module's tensors, Parameters or not."""
    return next(tensor.device for module in root.modules() for tensor in own_tensors(module).values())


def dtype_of(root: nn.Module) -> torch.dtype:
    """Dtype of a module's floating-point tensors that a checkpoint holds, Parameters or not."""
    return next(
        tensor.dtype
        for module in root.modules()
        for tensor in stored_tensors(module).values()
        if tensor.is_floating_point()
    )


class NoParameters(StopIteration):
    """Somebody asked a model at rest for its first Parameter.

    A `StopIteration`, so that code that expects one, and `next(parameters, None)`, go on as with any empty iterator.
    """


_NOTHING_TO_TRAIN = (
    "An EideticModel at rest has no Parameter: every tensor is a buffer, out of any optimizer's reach. For its device "
    "and dtype ask model.device and model.dtype. To train, add a task and use EideticTrainer, or call "
    "model.begin_task(name) and make the optimizer after it."
)


class ParametersIfAny(Iterator[nn.Parameter]):
    """The Parameters of a model, which may have none: whoever needs one is told what to do.

    Args:
        found: what `nn.Module.parameters` returns.
    """

    def __init__(self, found: Iterator[nn.Parameter]) -> None:
        self._found = found
        self._any = False

    def __iter__(self) -> Iterator[nn.Parameter]:
        """As of any iterator; only an optimizer, which takes no empty one, hears why it is empty."""
        caller = sys._getframe(1).f_locals.get("self")
        if isinstance(caller, torch.optim.Optimizer) and not self._any:
            first = next(self._found, None)
            if first is None:
                raise ValueError(_NOTHING_TO_TRAIN)
            return chain([first], self._found)
        return self._found

    def __next__(self) -> nn.Parameter:
        parameter = next(self._found, None)
        if parameter is None:
            raise StopIteration if self._any else NoParameters(_NOTHING_TO_TRAIN)
        self._any = True
        return parameter


def _float_buffers(root: nn.Module, stored: bool) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in root.modules():
        for leaf, buffer in own_buffers(module).items():
            if buffer.is_floating_point() and (leaf not in module._non_persistent_buffers_set) == stored:
                yield module, leaf, buffer


def stored_buffers(root: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Floating-point buffers below a module that a checkpoint holds: module, name and tensor of each."""
    return _float_buffers(root, stored=True)


def fixed_buffers(root: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Floating-point buffers that no checkpoint holds, since they follow from the configuration: rotary frequencies.

    Returns:
        Module, name and tensor of each.
    """
    return list(_float_buffers(root, stored=False))


def restore_fixed(fixed: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Put back what `fixed_buffers` returned, on the device that each is on now."""
    for module, leaf, buffer in fixed:
        set_tensor(module, leaf, buffer.to(cast(Tensor, get_tensor(module, leaf)).device))


class Originals:
    """The tensors of a module and all below it, as they are now, for a cast that is to be undone.

    They are kept, not copied: until they are restored, they and what they were cast to are in memory.

    Args:
        root: the module. None may come or go below it before the tensors are restored.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._tensors = [
            (module, leaf, tensor, tensor.data)
            for module in root.modules()
            for leaf, tensor in own_tensors(module).items()
        ]

    def restore(self) -> None:
        """Put them back, to the last bit."""
        for module, leaf, tensor, values in self._tensors:
            tensor.data = values
            set_tensor(module, leaf, tensor)
        self._root._apply(lambda tensor: tensor)  # rows with owners are laid out again


def remove_hooks(root: nn.Module, source: str) -> None:
    """Remove the forward hooks below a module whose functions come from one Python module, by its name."""
    for module in root.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", None) == source:
                del module._forward_hooks[key]


class Arrangement:
    """Which children and tensors are registered in a module and in all below it, to be brought back.

    By reference: it undoes what puts others in their places, not what writes to them.

    Args:
        root: the module.
    """

    def __init__(self, root: nn.Module) -> None:
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (table, dict(table))
            for module in root.modules()
            for table in (module._modules, module._buffers, module._parameters)
        ]

    def restore(self) -> None:
        """Put them back."""
        for table, before in self._tables:
            table.clear()
            table.update(before)


def freeze(module: Module, copy: bool = True, recurse: bool = True) -> Module:
    """Turn every Parameter of `module` into a buffer with a copy of its value, out of every optimizer's reach.

    Args:
        module: the module.
        copy: without it the buffer keeps the Parameter's memory: for Parameters that nobody else can have seen.
        recurse: whether its children's are meant, too.
    """
    for child in module.modules() if recurse else [module]:
        for leaf, parameter in list(child._parameters.items()):
            if parameter is not None:
                set_tensor(child, leaf, parameter.detach().clone() if copy else parameter.detach())
    return module


def thaw(module: Module, recurse: bool = True) -> Module:
    """Turn every floating-point buffer of `module` that a checkpoint holds into a Parameter with a copy of its value.

    Args:
        module: the module.
        recurse: whether its children's are meant, too.
    """
    for child in module.modules() if recurse else [module]:
        for leaf, buffer in own_buffers(child).items():
            if buffer.is_floating_point() and leaf not in child._non_persistent_buffers_set:
                set_tensor(child, leaf, nn.Parameter(buffer.detach().clone()))
    return module


def give_back_memory() -> None:
    """Let the system have what was freed: activations, gradients and the optimizer's state of a task that is over.

    glibc keeps blocks of up to 32 MB for itself once such a block was freed, in pieces that the next task's tensors do
    not fit into: without this, each task adds its own to the size of the process. Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def shell(module: Module, like: Callable[[Tensor], Tensor]) -> Module:
    """A module of the same class and settings that shares Parameters and children, and has buffers of its own.

    It is cheaper than a deep copy, and copies nothing that a checkpoint is about to bring.

    Args:
        module: the module.
        like: what makes a buffer from one of `module`'s, such as `torch.empty_like`.
    """
    twin = cast(Module, module.__class__.__new__(module.__class__))
    twin.__dict__ = {
        **module.__dict__,
        "_parameters": dict(module._parameters),
        "_modules": dict(module._modules),
        "_buffers": {leaf: None if buffer is None else like(buffer) for leaf, buffer in module._buffers.items()},
        "_non_persistent_buffers_set": set(module._non_persistent_buffers_set),
    }
    return twin


class Slots(nn.Module):
    """A bag of tensors, one per task, the pool or the task being learned."""

    def get(self, key: str) -> Tensor | None:
        """The tensor of `key`, or `None`."""
        return get_tensor(self, key)

    def need(self, key: str) -> Tensor:
        """The tensor of `key`.

        Raises:
            KeyError: if there is none.
        """
        value = self.get(key)
        if value is None:
            raise KeyError(f"There is no tensor in the slot '{key}'; there are {list(own_tensors(self))}.")
        return value

    def put(self, key: str, value: Tensor | nn.Parameter | None) -> None:
        """Set the tensor of `key`: a `Parameter` can be trained, any other tensor is a buffer. `None` removes it."""
        set_tensor(self, key, value)

    def clear(self) -> None:
        """Remove all tensors."""
        for key in own_tensors(self):
            self.put(key, None)


class Segment(nn.Module):
    """Rows of one projection that one task owns, or the pool's.

    Args:
        weight: `(units * width, features)`.
        bias: `(units * width,)`, or `None` for out-projections and projections without one.
        trainable: whether they are Parameters (the working copy of the task being learned) or buffers.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, trainable: bool = False) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            if value is None or not trainable:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def room(self, rows: int) -> Segment:
        """A segment of `rows` rows to be filled, of the same dtype and device, and with a bias if this has one."""
        bias = None if self.bias is None else self.bias.new_empty(rows)
        return Segment(self.weight.new_empty(rows, self.weight.shape[1]), bias)


# -- rows with owners -------------------------------------------------------------------------------------------------


class Spans:
    """Which run of places each owner has: one after another, in the order in which they came, from place 0 on.

    Invariant: a run never changes its length, and moves only if an owner before it is dropped.

    Attributes:
        order: the owners.
        total: number of places that are somebody's.
    """

    def __init__(self) -> None:
        self.order: list[str] = []
        self.total = 0
        self._starts: list[int] = []
        self._runs: dict[str, tuple[int, int]] = {}

    def add(self, key: str, count: int) -> None:
        """Give the next `count` places to a new owner."""
        if key in self._runs:
            raise ValueError(f"'{key}' has places already, {self._runs[key]}.")
        self.order.append(key)
        self._starts.append(self.total)
        self._runs[key] = (self.total, self.total + count)
        self.total += count

    def drop_last(self) -> str:
        """Take the last owner back, and return who it was."""
        key = self.order.pop()
        self.total = self._starts.pop()
        del self._runs[key]
        return key

    def drop(self, key: str) -> None:
        """Let an owner go: those after it move up (`KeyError` if it is not known)."""
        del self._runs[key]
        rest = [(name, self.count(name)) for name in self.order if name != key]
        self.order, self._starts, self._runs, self.total = [], [], {}, 0
        for name, count in rest:
            self.add(name, count)

    def run(self, key: str) -> tuple[int, int]:
        """First place of an owner, and the one behind its last (`KeyError` if it has none)."""
        return self._runs[key]

    def count(self, key: str) -> int:
        """Number of an owner's places; 0 for one that is not known."""
        start, stop = self._runs.get(key, (0, 0))
        return stop - start

    def runs(self, keys: list[str]) -> list[tuple[int, int]]:
        """The places of several owners, as few runs as they are: those of neighbours are one.

        All owners up to one of them are one comparison of lists, however many they are.
        """
        if keys == self.order[: len(keys)]:
            return [(0, self._runs[keys[-1]][1])] if keys else []
        runs: list[tuple[int, int]] = []
        for key in keys:
            start, stop = self._runs[key]
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], stop)
            elif start < stop:
                runs.append((start, stop))
        return runs

    def before(self, place: int) -> list[str]:
        """The owners whose places begin before this one."""
        return self.order[: bisect_left(self._starts, place)]


@dataclass(frozen=True)
class Place:
    """Where the rows of one owner are registered, by name in the state dict.

    Attributes:
        module: the module.
        leaves: its names for the tensors whose rows lie in parallel, such as `weight` and `bias`.
    """

    module: nn.Module
    leaves: tuple[str, ...]

    def tensors(self) -> list[Tensor | None]:
        """What is there now."""
        return [get_tensor(self.module, leaf) for leaf in self.leaves]

    def put(self, tensors: Sequence[Tensor | None]) -> None:
        """Register tensors in place of what is there."""
        for leaf, tensor in zip(self.leaves, tensors, strict=True):
            if tensor is not None:
                set_tensor(self.module, leaf, tensor)

    def __len__(self) -> int:
        """Number of rows."""
        return len(cast(Tensor, self.tensors()[0]))


@dataclass(frozen=True)
class Undo:
    """What `OwnedRows.take_back` needs.

    Attributes:
        owners: how many there were.
        pool: a copy of the pool's rows, one tensor for each that lie in parallel.
    """

    owners: int
    pool: list[Tensor | None]


class OwnedRows:
    """Rows of one tensor or of several in parallel, each with one owner or in the pool, in one piece of memory.

        [ rows of the first owner | of the second | ... | pool ]

    Invariant, once packed: what is registered in the state dict for an owner is a view of this memory; and owned rows
    do not move and are not written to, whatever is handed over after them. So the rows of all owners up to one of them
    are a slice that stays valid for ever, also for a thread that computes with it while another commits a task.

    The modules in which rows are registered keep their names; this object is not one of them.
    """

    def __init__(self) -> None:
        self.owners = Spans()
        self._places: dict[str, Place] = {}
        self._packed: list[Tensor | None] | None = None
        self._is_copy = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._is_copy = True  # `pickle` copies each view for itself

    @property
    def packed(self) -> list[Tensor | None]:
        """The tensors that lie in parallel, with all rows.

        Raises:
            RuntimeError: if rows were added in other memory since they were packed.
        """
        if self._packed is None:
            raise RuntimeError(
                "These rows are not in one piece of memory yet: they were put there one by one, as accelerate's "
                "load_checkpoint_and_dispatch does. Load the checkpoint with EideticModel.from_pretrained(folder, "
                "device_map='auto'), which puts it on a device; in this package, call Network.pack()."
            )
        return self._packed

    @property
    def is_laid(self) -> bool:
        """Whether there is packed memory at all."""
        return self._packed is not None

    def count(self, key: str) -> int:
        """Number of rows that somebody owns, or of the pool's."""
        if key != POOL:
            return self.owners.count(key)
        return len(self._places[POOL]) if POOL in self._places else 0

    @property
    def total(self) -> int:
        """Number of all rows."""
        return self.owners.total + self.count(POOL)

    def place(self, key: str, place: Place) -> None:
        """Add the rows that are registered in a place; those of the pool take the place of what it had.

        They lie in memory of their own, until all are packed.
        """
        if key != POOL:
            self.owners.add(key, len(place))
        self._places[key] = place
        self._packed = None

    def drop_pool(self) -> None:
        """Forget a pool whose rows have all been handed over."""
        del self._places[POOL]

    def drop(self, key: str) -> None:
        """Let an owner go with its rows; those after it move up when all are packed, which is next."""
        self.owners.drop(key)
        del self._places[key]
        self._packed = None

    def books(self) -> Any:
        """What `put_books` needs, without any tensor's values."""
        return deepcopy(self.owners), dict(self._places), self._packed, self._is_copy

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called; what is registered comes back with its `Arrangement`."""
        self.owners, self._places, self._packed, self._is_copy = books

    def _parts(self) -> list[Place]:
        pool = [self._places[POOL]] if POOL in self._places else []
        return [*map(self._places.__getitem__, self.owners.order), *pool]

    # -- memory ---------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(self) -> None:
        """Lay all rows into fresh, aligned memory, and register views of it. It takes a copy of every row."""
        parts = self._parts()
        parallel = zip(*(part.tensors() for part in parts), strict=True)
        packed = [None if tensors[0] is None else torch.cat(cast(list[Tensor], tensors)) for tensors in parallel]
        self._register(parts, packed)

    def lay(self) -> None:
        """Make packed memory of any values for all rows, and register views of it, for a file to be read into.

        Raises:
            ValueError: if the rows of two owners are of different dtypes.
        """
        parts = self._parts()
        packed: list[Tensor | None] = []
        for tensors in zip(*(part.tensors() for part in parts), strict=True):
            if tensors[0] is None:
                packed.append(None)
                continue
            first, rows = tensors[0], sum(map(len, tensors))
            if len({tensor.dtype for tensor in tensors}) > 1:
                raise ValueError(f"rows in {sorted({str(tensor.dtype) for tensor in tensors})}, expected one dtype")
            packed.append(torch.empty((rows, *first.shape[1:]), dtype=first.dtype, device=first.device))
        self._register(parts, packed)

    def _register(self, parts: list[Place], packed: list[Tensor | None]) -> None:
        start = 0
        for part in parts:
            stop = start + len(part)
            part.put(_rows(packed, start, stop))
            start = stop
        self._packed, self._is_copy = packed, False

    def is_packed(self) -> bool:
        """Whether what is registered still is a view of the packed memory, as it is not after a move or a cast."""
        if self._packed is None:
            return False
        for index, packed in enumerate(self._packed):
            if packed is None:
                continue
            place = packed.data_ptr()
            for part in self._parts():
                tensor = part.tensors()[index]
                if tensor is None or tensor.dtype != packed.dtype or tensor.device != packed.device:
                    return False
                if tensor.numel() and tensor.data_ptr() != place:
                    return False
                place += tensor.numel() * tensor.element_size()
        return True

    def is_torn(self) -> bool:
        """Whether this is a copy that lost the packing on the way, as one by `pickle` does."""
        was_copy, self._is_copy = self._is_copy, False
        return was_copy and not self.is_packed()

    def read(self, start: int, stop: int) -> list[Tensor | None]:
        """A run of rows: slices, where a product over them gives the same bits as one over a copy; else copies."""
        return [tensor if tensor is None else self._read(tensor, start, stop) for tensor in self.packed]

    @staticmethod
    def _read(tensor: Tensor, start: int, stop: int) -> Tensor:
        rows = tensor[start:stop]
        if start == 0:
            return rows
        if torch.compiler.is_compiling():  # a trace can not ask where a tensor lies
            return rows.clone()
        is_aligned = rows.data_ptr() % _ALIGNMENT.get(rows.device.type, _ALIGNMENT_ELSEWHERE) == 0
        return rows if is_aligned else rows.clone()

    def gather(self, rows: Tensor) -> list[Tensor | None]:
        """Copies of rows given by number."""
        return [tensor if tensor is None else tensor[rows] for tensor in self.packed]

    def copied_bytes(self, tensors: Sequence[Tensor | None]) -> int:
        """How much memory tensors that were read take besides the packed one."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self.packed if tensor is not None}
        return sum(t.nbytes for t in tensors if t is not None and t.untyped_storage().data_ptr() not in own)

    # -- handing over ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Undo:
        """What `take_back` needs: a copy of the pool."""
        pool = [tensor if tensor is None else tensor[self.owners.total :].clone() for tensor in self.packed]
        return Undo(len(self.owners.order), pool)

    @torch.inference_mode(False)
    @torch.no_grad()
    def hand_over(self, key: str, place: Place, rest: Sequence[Tensor | None]) -> None:
        """Give rows of the pool to a new owner: where the pool was, its rows lie now, and then what is left of it.

        Args:
            key: the new owner.
            place: where its rows are registered, with their values.
            rest: what is left of the pool; as many rows as it has, less those of `place`.
        """
        self._make_writable()
        start, rows, pool = self.owners.total, place.tensors(), self._places[POOL]
        middle, stop = start + len(place), self.total
        self._write(start, rows)
        self._write(middle, rest)
        place.put(_rows(self.packed, start, middle))
        pool.put(_rows(self.packed, middle, stop))
        self._places[key] = place
        self.owners.add(key, middle - start)

    @torch.inference_mode(False)
    @torch.no_grad()
    def take_back(self, undo: Undo, pool: Place) -> None:
        """Bring the pool back as `snapshot` saw it, to the last bit, however far handing over came.

        Args:
            undo: what `snapshot` returned.
            pool: where the pool is registered.
        """
        while len(self.owners.order) > undo.owners:
            del self._places[self.owners.drop_last()]
        self._make_writable()
        self._write(self.owners.total, undo.pool)
        rows = next((len(tensor) for tensor in undo.pool if tensor is not None), 0)
        pool.put(_rows(self.packed, self.owners.total, self.owners.total + rows))
        self._places[POOL] = pool

    def _make_writable(self) -> None:
        """Leave memory that was made in inference mode: nobody may write to it outside of that."""
        if any(tensor is not None and tensor.is_inference() for tensor in self.packed):
            self.pack()

    def _write(self, start: int, rows: Sequence[Tensor | None]) -> None:
        for packed, values in zip(self.packed, rows, strict=True):
            if packed is not None and values is not None:
                # `data`, as this must not count as a change of the slices before it: another thread's backward pass
                # may hold them.
                packed.data[start : start + len(values)].copy_(values)


class CopiedRows:
    """Rows of several owners, each owner's in memory of its own. What `OwnedRows` is where rows are copied.

    Nothing is ever handed over, so there is no pool, and what an owner adds moves nobody's rows.
    """

    is_laid = True

    def __init__(self) -> None:
        self.owners = Spans()
        self._places: dict[str, Place] = {}
        self._laid: list[tuple[torch.dtype, torch.device]] = []

    def place(self, key: str, place: Place) -> None:
        """Add the rows that are registered in a place; the pool's place is a model for others, without rows."""
        if key != POOL:
            self.owners.add(key, len(place))
        self._places[key] = place
        self._laid = self._lie()

    def _lie(self) -> list[tuple[torch.dtype, torch.device]]:
        """Dtype and device of the rows of each owner, in the order of their owners' names."""
        tensors = (self._places[key].tensors()[0] for key in sorted(self._places))
        return [(tensor.dtype, tensor.device) for tensor in tensors if tensor is not None]

    @torch.inference_mode(False)
    @torch.no_grad()
    def pack(self) -> None:
        """Lay each owner's rows into fresh, aligned memory."""
        for place in self._places.values():
            place.put([tensor if tensor is None else tensor.clone() for tensor in place.tensors()])
        self._laid = self._lie()

    def lay(self) -> None:
        """Nothing moves: what is registered lies in memory of its own."""
        self._laid = self._lie()

    def drop(self, key: str) -> None:
        """Let an owner go with its rows; those after it move up."""
        self.owners.drop(key)
        del self._places[key]
        self._laid = self._lie()

    def books(self) -> Any:
        """What `put_books` needs, without any tensor's values."""
        return deepcopy(self.owners), dict(self._places)

    def put_books(self, books: Any) -> None:
        """Be as it was when `books` was called; what is registered comes back with its `Arrangement`."""
        self.owners, self._places = books
        self._laid = self._lie()

    def is_packed(self) -> bool:
        """Whether no owner's rows were moved or cast since: copies that were made of them are then out of date."""
        return self._laid == self._lie()

    def is_torn(self) -> bool:
        """A copy by `pickle` is as good."""
        return False

    def read(self, start: int, stop: int) -> list[Tensor | None]:
        """A run of rows: the tensors themselves, where they are one owner's; else a copy."""
        for key in self.owners.order:
            if self.owners.run(key) == (start, stop):
                return self._places[key].tensors()
        return self.gather(torch.arange(start, stop))

    def gather(self, rows: Tensor) -> list[Tensor | None]:
        """Copies of rows given by number."""
        order = self.owners.order
        if torch.compiler.is_compiling():  # a trace can not ask whose rows these are
            owned = zip(*(self._places[key].tensors() for key in order), strict=True)
            return [None if parts[0] is None else torch.cat(cast(list[Tensor], parts))[rows] for parts in owned]
        starts = torch.tensor([self.owners.run(key)[0] for key in order], device=rows.device)
        which = torch.bucketize(rows, starts, right=True) - 1
        # One owner's rows that follow each other are copied once, straight to where they belong.
        runs = [
            (int(number), int(count))
            for number, count in zip(*which.unique_consecutive(return_counts=True), strict=True)
        ]
        gathered: list[Tensor | None] = []
        for leaf, like in enumerate(self._places[POOL].tensors()):
            if like is None:
                gathered.append(None)
                continue
            target, start = like.new_empty(len(rows), *like.shape[1:]), 0
            for number, count in runs:
                tensor = cast(Tensor, self._places[order[number]].tensors()[leaf])
                local = (rows[start : start + count] - starts[number]).to(tensor.device)
                torch.index_select(tensor, 0, local, out=target[start : start + count])
                start += count
            gathered.append(target)
        return gathered

    def copied_bytes(self, tensors: Sequence[Tensor | None]) -> int:
        """How much memory tensors that were read take besides the owners' own."""
        places = (tensor for place in self._places.values() for tensor in place.tensors())
        own = {tensor.untyped_storage().data_ptr() for tensor in places if tensor is not None}
        return sum(t.nbytes for t in tensors if t is not None and t.untyped_storage().data_ptr() not in own)

    def snapshot(self) -> Undo:
        """What `take_back` needs."""
        return Undo(len(self.owners.order), [])

    def hand_over(self, key: str, place: Place, rest: Sequence[Tensor | None]) -> None:
        """Add a new owner's rows; nobody gives them."""
        self.place(key, place)

    def take_back(self, undo: Undo, pool: Place) -> None:
        """Forget who came after a snapshot."""
        while len(self.owners.order) > undo.owners:
            del self._places[self.owners.drop_last()]
        self._laid = self._lie()


def _rows(tensors: Sequence[Tensor | None], start: int, stop: int) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor[start:stop] for tensor in tensors]


# -- copies of rows ---------------------------------------------------------------------------------------------------


class WeightCache:
    """A bound on the memory of rows that layers gathered, because what a task sees is no slice.

    Each layer keeps its copies itself, in a dictionary by task: a hit is a plain lookup there, without a lock, so that
    `torch.compile` keeps one graph. This object only counts, and drops the copies of the task that was used longest
    ago; a use is a pass, see `note_use`. A layer makes them again when it needs them.

    Args:
        limit: bytes that all copies of a network may take; `None` for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._held: dict[str, dict[int, tuple[dict[str, Any], int]]] = {}
        self._lock = threading.Lock()
        self.used = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self._limit}  # a copy of the network starts with none

    def __setstate__(self, state: dict[str, Any]) -> None:
        WeightCache.__init__(self, state["limit"])

    @property
    def limit(self) -> int | None:
        """Bytes that all copies may take; `None` for no limit."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError(f"limit={limit!r}: expected a number of bytes, or None for no limit.")
        with self._lock:
            self._limit = limit
            self._shrink(keep=None)

    def note_use(self, keys: Iterable[str]) -> None:
        """Remember that copies are used now: once for a pass, and not for each layer.

        Nothing is remembered inside of a compiled graph, which would have to break for it.
        """
        if torch.compiler.is_compiling():
            return
        with self._lock:
            for key in keys:
                self._touch(key)

    @torch.compiler.disable
    def admit(self, plans: dict[str, Any], key: str, plan: Any, size: int) -> None:
        """Keep what a layer gathered for a task, unless the copies of this task alone do not fit.

        Args:
            plans: the layer's dictionary.
            key: the task.
            plan: what to keep there.
            size: bytes that it takes.
        """
        with self._lock:
            self._drop(plans, key)
            plans[key] = plan
            self._held.setdefault(key, {})[id(plans)] = (plans, size)
            self._touch(key)
            self.used += size
            self._shrink(keep=key)
            if self._limit is not None and self.used > self._limit:
                self._drop(plans, key)

    @torch.compiler.disable
    def forget(self, plans: dict[str, Any]) -> None:
        """Empty a layer's dictionary."""
        with self._lock:
            for key in list(plans):
                self._drop(plans, key)
            plans.clear()

    def _touch(self, key: str) -> None:
        """Put a task behind all others in the order in which copies go."""
        if key in self._held:
            self._held[key] = self._held.pop(key)

    def _shrink(self, keep: str | None) -> None:
        for key in list(self._held):
            if self._limit is None or self.used <= self._limit:
                return
            if key != keep:
                for plans, _ in list(self._held[key].values()):
                    self._drop(plans, key)

    def _drop(self, plans: dict[str, Any], key: str) -> None:
        plans.pop(key, None)
        held = self._held.get(key, {})
        if id(plans) in held:
            self.used -= held.pop(id(plans))[1]
            if not held:
                del self._held[key]
