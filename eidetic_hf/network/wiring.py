"""Task layers in their places in a backbone, whose own code goes on running.

Projections and norms above the trunk are replaced. Where a backbone's code relies on what a subnetwork changes (the
number of heads, a weight that modules share), the module keeps its place and its class, and a little is mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..compat import initialize, tied_weights
from ..views import LEARNING, current_view
from .architecture import (
    ArchitectureError,
    Fused,
    Stack,
    UnitPaths,
    find,
    in_projections,
    is_norm,
    n_units,
    weight_and_bias,
)
from .growth import Growth
from .layers import JoinedLinear, TaskLinear, TaskNorm, TaskTable
from .storage import ParametersIfAny, WeightCache, device_of, dtype_of, fixed_buffers, set_tensor, shell
from .units import FIXED, UnitGroup


class Swapped:
    """Base of what is mixed into the class of a module that stays where it is, and as it is.

    The module's own class goes on doing the work, and copies and pickles keep the mix. Nothing of a backbone's code
    is copied, and no other module of the same class is touched.
    """

    _own: type
    _mixes: tuple[tuple[type[Swapped], tuple[Any, ...]], ...]

    @classmethod
    def attributes(cls, *arguments: Any) -> dict[str, Any]:
        """Class attributes that depend on the arguments of `swap_class`."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _make_swapped, (self._own, self._mixes), self.__dict__


@cache
def _swapped_class(own: type, mixes: tuple[tuple[type[Swapped], tuple[Any, ...]], ...]) -> type:
    attributes: dict[str, Any] = {"__module__": own.__module__, "_own": own, "_mixes": mixes}
    for mixin, arguments in mixes:
        attributes.update(mixin.attributes(*arguments))
    return type(own.__name__, (*dict.fromkeys(mixin for mixin, _ in mixes), own), attributes)


def _make_swapped(own: type, mixes: tuple[tuple[type[Swapped], tuple[Any, ...]], ...]) -> nn.Module:
    """An empty module of the mixed class, for `copy` and `pickle` to fill."""
    return cast(nn.Module, object.__new__(_swapped_class(own, mixes)))


def swap_class(module: nn.Module, mixin: type[Swapped], *arguments: Any) -> None:
    """Mix `mixin` into the class of one module.

    Args:
        module: the module.
        mixin: what to mix in, before its own class.
        arguments: hashable values for `mixin.attributes`.
    """
    own, mixes = (module._own, module._mixes) if isinstance(module, Swapped) else (type(module), ())
    module.__class__ = _swapped_class(own, ((mixin, arguments), *mixes))


class AtRest(Swapped):
    """A backbone that has no Parameter while nobody learns, and yet a device and a dtype."""

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return device_of(cast(nn.Module, self))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the floating-point tensors that a checkpoint holds."""
        return dtype_of(cast(nn.Module, self))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What is being learned, if anything is."""
        return ParametersIfAny(cast(Any, super()).parameters(recurse))


class TiedWeight(Swapped):
    """A module whose weight is another module's: one tensor, under one name, wherever it moves to."""

    _source: list[nn.Module]
    _source_path: str

    def owner(self) -> nn.Module:
        """The module that has the weight."""
        return self._source[0].get_submodule(self._source_path)

    @classmethod
    def attributes(cls, leaf: str) -> dict[str, Any]:
        """A property in place of the Parameter `leaf`."""

        def weight(self: Any) -> Tensor:
            return getattr(self.owner(), leaf)

        return {leaf: property(weight)}


def refresh_buffers(backbone: PreTrainedModel) -> None:
    """Compute rotary frequencies again, in float32: casting a model to another dtype rounded them.

    A model made from the checkpoint has fresh ones, and it has to answer the same to the last bit.

    Raises:
        ArchitectureError: if the frequencies depend on the sequences seen before.
    """
    modules = {}
    for module, name, buffer in fixed_buffers(backbone):
        if not any(True for _ in module.parameters(recurse=False)):
            set_tensor(module, name, buffer.float().clone())
            modules[id(module)] = module
    for module in modules.values():
        types = getattr(module, "rope_type", "")
        if any("dynamic" in kind for kind in (types.values() if isinstance(types, dict) else [types])):
            raise ArchitectureError(
                "This backbone's rope_type is 'dynamic': its positions depend on the longest sequence seen so far, so "
                "a task's output for a text would change with the texts before it. Set another rope_type, such as "
                "'linear', in config.rope_parameters."
            )
        initialize(backbone, module)


def join_tied(backbone: PreTrainedModel, empty: bool) -> None:
    """Leave one owner of each Parameter that several modules of the backbone share; the others read it there.

    Args:
        backbone: the backbone.
        empty: whether its values mean nothing yet, as a checkpoint is about to fill it.

    Raises:
        ArchitectureError: if the configuration ties weights that differ in this backbone.
    """
    for target, source in tied_weights(backbone).items():
        tensors = backbone.get_parameter(target), backbone.get_parameter(source)
        if not empty and tensors[0] is not tensors[1] and not torch.equal(*tensors):
            raise ArchitectureError(
                f"The configuration of this backbone ({type(backbone).__name__}) ties {target} to {source} "
                "(tie_word_embeddings), but they differ. A model saved so could not be loaded; make them equal."
            )
        path, _, leaf = target.rpartition(".")
        setattr(backbone.get_submodule(path), leaf, tensors[1])
    owners: dict[int, str] = {}
    for name, parameter in list(backbone.named_parameters(remove_duplicate=False)):
        owner = owners.setdefault(id(parameter), name)
        if owner == name:
            continue
        path, _, leaf = name.rpartition(".")
        owner_path, _, owner_leaf = owner.rpartition(".")
        module, owning = backbone.get_submodule(path), backbone.get_submodule(owner_path)
        if leaf != owner_leaf:
            continue
        if module is owning:  # one module in two places: the second place gets a module of its own
            module = shell(owning, lambda buffer: buffer)
            parent, _, child = path.rpartition(".")
            setattr(backbone.get_submodule(parent), child, module)
        set_tensor(module, leaf, None)
        module._source, module._source_path = [backbone], owner_path  # type: ignore[assignment]
        swap_class(module, TiedWeight, leaf)


class _Overlay:
    """An object with other values for some of its attributes."""

    def __init__(self, inner: Any, values: dict[str, Any]) -> None:
        self._inner = inner
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._inner, name)


class Adapted(Swapped):
    """A module whose code counts heads in attributes: they follow the number of heads that the current view sees."""

    _counted: dict[str, tuple[UnitGroup, int]]  # by count: whose units, and how much each of them counts for
    _ignored: tuple[str, ...]

    @classmethod
    def attributes(cls, counts: tuple[str, ...]) -> dict[str, Any]:
        """A property in place of each count; a count inside of another object (`config.n`) overlays that object."""

        def seen(self: Any, count: str) -> int:
            group, per_unit = self._counted[count]
            return group.seen() * per_unit

        def counted(count: str) -> property:
            return property(lambda self: seen(self, count))

        def overlaid(first: str) -> property:
            def get(self: Any) -> _Overlay:
                inside = [count for count in self._counted if count.startswith(f"{first}.")]
                return _Overlay(self.__dict__[first], {count.partition(".")[2]: seen(self, count) for count in inside})

            return property(get)

        return {
            count.partition(".")[0]: overlaid(count.partition(".")[0]) if "." in count else counted(count)
            for count in counts
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own class does, without the arguments that it must not take."""
        for name in self._ignored:
            kwargs.pop(name, None)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class BiasPerSequence(Swapped):
    """An attention whose relative position biases are each sequence's own, where the batch is of several tasks."""

    def compute_bias(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the module's own class does, `(1 or sequences, heads, queries, keys)`."""
        bias = super().compute_bias(*args, **kwargs)  # type: ignore[misc]
        view = current_view()
        return bias.unflatten(1, (view.batch, -1)).squeeze(0) if view.beside else bias


def _adapt(layer: nn.Module, paths: UnitPaths, group: UnitGroup) -> None:
    """Let the modules whose code counts this group's heads follow the current view."""
    known = {name for name, _ in layer.named_modules()}
    modules: dict[str, tuple[list[str], list[str]]] = {}
    for number, listed in enumerate((paths.counts, paths.ignores)):
        for path in listed:
            names = path.split(".")
            prefixes = (".".join(names[:length]) for length in reversed(range(len(names))))
            owner = next(prefix for prefix in prefixes if prefix in known)  # the layer itself is known as ""
            modules.setdefault(owner, ([], []))[number].append(path[len(owner) :].lstrip("."))
    for owner, (counts, ignored) in modules.items():
        module = layer.get_submodule(owner)
        counted = {}
        for count in counts:
            first, _, name = count.partition(".")
            value = vars(module)[first]  # its own one, even if another group's count is mixed in already
            counted[count] = (group, (attrgetter(name)(value) if name else value) // group.total)
        module._counted = {**module.__dict__.get("_counted", {}), **counted}  # type: ignore[assignment]
        module._ignored = (*module.__dict__.get("_ignored", ()), *ignored)  # type: ignore[assignment]
        swap_class(module, Adapted, tuple(counts))


def replace_module(root: nn.Module, path: str, module: nn.Module | None) -> None:
    """Put a module (or nothing) in another's place."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _wire_units(
    layer: nn.Module, paths: UnitPaths, group: UnitGroup, config: PreTrainedConfig, table: nn.Module | None
) -> None:
    """Put task layers in place of the projections of one kind of unit."""
    _adapt(layer, paths, group)
    for entry, parts in in_projections(layer, paths, config):
        made = [TaskLinear(weight, bias, group, False) for weight, bias in parts]
        if isinstance(entry, Fused):
            replace_module(layer, entry.path, JoinedLinear(made))
        else:
            replace_module(layer, entry, made[0])
    if table is not None and paths.table is not None:
        owner = layer.get_submodule(paths.table.path.rpartition(".")[0])
        setattr(owner, paths.table.flag, True)
        swap_class(owner, BiasPerSequence)
        replace_module(layer, paths.table.path, TaskTable(cast(Tensor, table.weight), group))
    weight, bias = weight_and_bias(layer.get_submodule(paths.output))
    replace_module(layer, paths.output, TaskLinear(weight, bias, group, True))


def wire_stack(
    prefix: str,
    stack: Stack,
    layers: nn.ModuleList,
    first: int,
    config: PreTrainedConfig,
    cache: WeightCache | None = None,
    growth: Growth = FIXED,
) -> Iterator[UnitGroup]:
    """Put task layers in place of a stack's own, from its layer `first` on.

    Args:
        prefix: what the names of the unit groups begin with.
        stack: where the units are.
        layers: the layers.
        first: number of the first layer above the trunk.
        config: configuration of the backbone.
        cache: what bounds the copies that all layers of the network keep.
        growth: how tasks come to units.

    Returns:
        The unit groups.
    """
    tables = {kind: find(layers[0], paths.table.path) for kind, paths in stack.kinds.items() if paths.table}
    for index in range(first, len(layers)):
        for kind, paths in stack.kinds.items():
            group = UnitGroup(f"{prefix}.{index}.{kind}", n_units(stack, kind, layers[index], config), cache, growth)
            _wire_units(layers[index], paths, group, config, tables.get(kind))
            yield group
        for name, module in [(n, m) for n, m in layers[index].named_modules() if is_norm(m)]:
            if any(True for _ in module.parameters()):
                replace_module(layers[index], name, TaskNorm(module))


def cut_error(
    cut: list[UnitGroup], groups: list[UnitGroup], norms: list[TaskNorm], run: Callable[[], Tensor]
) -> float:
    """How far a network with every second unit cut out is from one in which these units are silent.

    Args:
        cut: the groups that lose units.
        groups: all of the network's.
        norms: all of the network's.
        run: the network's output for the task being learned.

    Returns:
        The largest difference, as a share of the largest one that the cut makes; 0 if there is nothing to cut, and
        infinity if the backbone's code fails.
    """
    if not any(group.total > 1 for group in cut):
        return 0.0
    for group in groups:
        group.begin(group.growth.keys([]))
    for norm in norms:
        norm.begin()
    try:
        whole = run()
        for group in cut:
            group.kept()[1::2] = False
            group.forget_learning_views()
        try:
            without = run()
        except (RuntimeError, ValueError):
            return math.inf
        for group in cut:
            output = group.members[-1]
            output.segment(LEARNING).weight.data[~group.kept().repeat_interleave(output.width)] = 0
            group.kept().fill_(True)
            group.forget_learning_views()
        silent = run()
    finally:
        for group in groups:
            group.end()
        for norm in norms:
            norm.end()
    return float((without - silent).abs().max() / (whole - silent).abs().max().clamp(min=1e-12))
