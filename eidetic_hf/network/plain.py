"""One task's subnetwork as a plain backbone, as transformers knows it.

What a task sees of each layer is packed to the front of the layer's own projections, and zeros fill what it does not
see: a head or a neuron of zeros adds nothing. Where every layer is the task's, the neurons that none of them sees are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..compat import tied_weights
from ..configuration import TaskError
from ..views import BASE, TRUNK, View, task_name
from .architecture import ArchitectureError, Stack, UnitPaths, in_projections, is_norm, n_units, weight_and_bias
from .architectures import architecture_of
from .backbone import flat_sequences
from .layers import TaskLinear, TaskNorm
from .network import Network, Section, module_name
from .storage import named_tensors, own_tensors, stored_tensors
from .units import UnitGroup

# What a configuration says of itself, and another model type's says anew.
_OWN = ("model_type", "architectures", "transformers_version")


class NoCounterpart(ValueError):
    """Why no model of transformers answers what a task does, and what to do about it."""


@dataclass
class PlainModel:
    """A model of transformers that is being filled with one task.

    Attributes:
        model: the model, with a head or without one.
        base: its base model, see `base_model`.
        inputs: a batch that the model answers.
        extra: a layer behind those of the backbone, if the configuration has one more; it passes on what it gets, but
            normalized, until a head makes something of it.
    """

    model: PreTrainedModel
    base: PreTrainedModel
    inputs: dict[str, Tensor]
    extra: nn.Module | None = None
    _filled: set[int] = field(default_factory=set)

    @torch.no_grad()
    def hidden_states(self) -> Tensor:
        """What the backbone's own layers put out for the batch, `(sequences, tokens, hidden)`."""
        entered: list[Tensor] = []

        def see(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])

        handle = None if self.extra is None else self.extra.register_forward_pre_hook(see, with_kwargs=True)
        try:
            output = self.base(**flat_sequences(self.inputs), return_dict=True).last_hidden_state
        finally:
            if handle is not None:
                handle.remove()
        return entered[0] if entered else output

    def put(self, target: Tensor, values: Tensor | float) -> None:
        """Write the first rows of a tensor of the model, and zeros behind them.

        Args:
            target: a tensor, or a view of one.
            values: rows, as many as it has or fewer; a number for all of it.
        """
        self._filled.add(target.untyped_storage().data_ptr())
        with torch.no_grad():
            if isinstance(values, Tensor) and values.dim():
                target[: len(values)].copy_(values)
                target[len(values) :].zero_()
            else:
                target.fill_(values)

    def is_filled(self, tensor: Tensor) -> bool:
        """Whether something was written to a tensor."""
        return tensor.untyped_storage().data_ptr() in self._filled

    def rest(self) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
        """The modules with tensors that nothing was written to, with these tensors by their names there."""
        for module in self.model.modules():
            found = {leaf: tensor for leaf, tensor in stored_tensors(module).items() if not self.is_filled(tensor)}
            found = {leaf: tensor for leaf, tensor in found.items() if tensor.is_floating_point()}
            if found:
                yield module, found


def plain_config(network: Network, key: str) -> PreTrainedConfig:
    """Configuration of a plain backbone that has room for a task.

    Args:
        network: the network.
        key: of the task.

    Raises:
        TaskError: if the task sees more heads than the backbone has.
    """
    architecture = architecture_of(network.backbone.config)
    config = deepcopy(network.backbone.config)
    if architecture.plain_type is not None:
        values = {name: value for name, value in config.to_dict().items() if name not in _OWN}
        config = AutoConfig.for_model(architecture.plain_type, **values)
    config.vocab_size = network.input_rows.size(View(key))
    needed: dict[str, list[int]] = {}
    for prefix, stack in architecture.stacks.items():
        for index, layer in enumerate(_layers(network.backbone, stack)):
            for kind in stack.kinds:
                group, name = _group(network, prefix, index, kind), stack.n_heads
                if kind == "neurons":
                    name = stack.n_neurons if hasattr(config, stack.n_neurons) else ""
                elif architecture.head_dim is None:
                    name = ""
                seen = n_units(stack, kind, layer, network.backbone.config) if group is None else group.view(key).count
                if name:
                    needed.setdefault(name, []).append(seen)
                elif group is not None and seen > _own_units(network, group):
                    raise TaskError(
                        f"The task '{task_name(key)}' sees {seen} {kind} in {group.name}, since units were added "
                        f"there, and a plain '{config.model_type}' has {_own_units(network, group)} in every layer. "
                        "It can not be taken out of this model; a task that reads fewer earlier ones "
                        "(forward_transfer) can."
                    )
    for name, seen_by_layers in needed.items():
        _set_count(config, name, max(*seen_by_layers, 1), architecture.head_dim)
    return config


def _set_count(config: PreTrainedConfig, name: str, count: int, head_dim: str | None) -> None:
    """Let every layer of a configuration have so many neurons or heads; a head stays as wide as it is."""
    heads, grouped = getattr(config, "num_attention_heads", None), "num_key_value_heads"
    if head_dim is not None and heads is not None and getattr(config, head_dim, None) is None:
        setattr(config, head_dim, config.hidden_size // heads)
    if name == grouped and heads is not None:
        config.num_attention_heads = heads // getattr(config, grouped) * count
    setattr(config, name, count)


@torch.no_grad()
def fill_backbone(network: Network, key: str, plain: PlainModel) -> None:
    """Write what a task sees into a plain backbone.

    Args:
        network: the network.
        key: of the task.
        plain: a model with the configuration that `plain_config` returned.
    """
    base, backbone = plain.base, network.backbone
    architecture = architecture_of(backbone.config)
    places = {name: own_tensors(module) for name, module in base.named_modules(remove_duplicate=False)}
    for name, tensor in network.tensors_of(Section(TRUNK, "trunk")).items():
        path, _, leaf = name.removeprefix("backbone").removeprefix(".").rpartition(".")
        target = places.get(path, {}).get(leaf)
        if target is not None and target.shape == tensor.shape:
            plain.put(target, tensor)
    for name, module in backbone.named_modules():
        if isinstance(module, TaskNorm):
            for leaf, tensor in named_tensors(module.tasks[key], "").items():
                plain.put(places[name][leaf.removeprefix(".")], tensor)
    for prefix, stack in architecture.stacks.items():
        own = _layers(backbone, stack)
        for index, layer in enumerate(_layers(base, stack)):
            if index >= len(own):
                _pass_on(plain, layer)
                continue
            for kind, paths in stack.kinds.items():
                group, slots = _group(network, prefix, index, kind), _slots(layer, paths, base.config, layer)
                if group is not None:
                    _fill_units(plain, group, key, slots)
                    bias = weight_and_bias(layer.get_submodule(paths.output))[1]
                    if bias is not None:
                        plain.put(bias, cast(TaskLinear, group.members[-1]).biases.need(key))
                    continue
                # The trunk's, perhaps in a wider layer; and its layers share the first one's table.
                for slot, source in zip(slots, _slots(own[index], paths, backbone.config, own[0]), strict=True):
                    _put_all(plain, slot, source)
    embeddings = cast(nn.Embedding, base.get_input_embeddings())
    known = network.input_rows.table(View(key)).joined()
    unknown = known[:1].expand(len(embeddings.weight) - len(known), -1)  # where masked out, they are read as token 0
    plain.put(embeddings.weight, torch.cat([known, unknown]))
    for tied, owner in tied_weights(backbone).items():  # they may be two in the plain model
        if not plain.is_filled(base.get_parameter(tied)):
            plain.put(base.get_parameter(tied), base.get_parameter(owner))
    lost = [name for name, parameter in base.named_parameters() if not plain.is_filled(parameter)]
    lost = [name for name in lost if not name.startswith(architecture.unused)]
    if lost:
        raise ArchitectureError(
            f"{type(base).__name__} has {len(lost)} parameters that no task of this model has: {lost[:3]}. The "
            f"declaration of '{architecture.model_type}' leaves them out, or says with plain_type that another class "
            "has room for a task."
        )


def _pass_on(plain: PlainModel, layer: nn.Module) -> None:
    """Let a layer add nothing to what it gets."""
    plain.extra = layer
    for parameter in layer.parameters():
        plain.put(parameter, 0.0)
    for module in layer.modules():
        if is_norm(module):
            plain.put(cast(Tensor, module.weight), 1.0)


def _layers(backbone: nn.Module, stack: Stack) -> nn.ModuleList:
    return cast(nn.ModuleList, backbone.get_submodule(stack.layers))


def _group(network: Network, prefix: str, index: int, kind: str) -> UnitGroup | None:
    """The books of one kind of unit in a layer; `None` in the trunk."""
    name = module_name(f"{prefix}.{index}.{kind}")
    return cast(UnitGroup, network.groups[name]) if name in network.groups else None


def _own_units(network: Network, group: UnitGroup) -> int:
    """Number of units that the backbone came with."""
    if network.growth.copies:
        return group.count(BASE)
    return group.total - network.config.expanded.get(group.name, 0)


def _slots(
    layer: nn.Module, paths: UnitPaths, config: PreTrainedConfig, tabled: nn.Module
) -> list[tuple[Tensor, Tensor | None]]:
    """Views of a plain layer's weights, whose rows belong to units, and biases, in the order of a group's members.

    Args:
        layer: the layer.
        paths: of the units.
        config: of the layer's backbone.
        tabled: the layer that holds the table of position biases, if there is one.
    """
    slots = [part for _, parts in in_projections(layer, paths, config) for part in parts]
    if paths.table is not None:
        slots.append((cast(nn.Embedding, tabled.get_submodule(paths.table.path)).weight.t(), None))
    return [*slots, (weight_and_bias(layer.get_submodule(paths.output))[0].t(), None)]


def _put_all(plain: PlainModel, target: tuple[Tensor, Tensor | None], source: tuple[Tensor, Tensor | None]) -> None:
    for there, here in zip(target, source, strict=True):
        if there is not None and here is not None:
            plain.put(there, here)


def _fill_units(plain: PlainModel, group: UnitGroup, key: str, slots: list[tuple[Tensor, Tensor | None]]) -> None:
    """Pack the units that a task sees to the front of a layer's projections, with their gates multiplied in."""
    view = group.view(key)
    places = view.positions
    if places is None:
        places = torch.arange(view.start, view.start + view.count, device=group.device)
    for member, slot in zip(group.members, slots, strict=True):
        weight, bias = member.read(places)
        if member is group.members[-1] and view.gates is not None:
            weight = weight * view.gates.repeat_interleave(member.width).unsqueeze(1)
        _put_all(plain, slot, (weight, bias))
