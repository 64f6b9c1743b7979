"""Where tensors live: Parameters while they are learned, buffers for ever after."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def freeze(module: nn.Module, copy: bool = True) -> nn.Module:
    """Turn every Parameter below `module` into a buffer with a copy of its value, out of every optimizer's reach.

    Without `copy` the buffer keeps the Parameter's memory: for Parameters that nobody else can have seen.
    """
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach().clone() if copy else parameter.detach())
    return module


def thaw(module: nn.Module) -> nn.Module:
    """Turn every floating-point buffer below `module` into a Parameter with a copy of its value."""
    for child in module.modules():
        for name, buffer in list(child._buffers.items()):
            if buffer is not None and buffer.is_floating_point() and name not in child._non_persistent_buffers_set:
                del child._buffers[name]
                child.register_parameter(name, nn.Parameter(buffer.detach().clone()))
    return module


class Slots(nn.Module):
    """A bag of tensors, one per task, the pool or the task being learned."""

    def get(self, key: str) -> Tensor | None:
        """The tensor of `key`, or `None`."""
        value = self._parameters.get(key)
        return value if value is not None else self._buffers.get(key)

    def need(self, key: str) -> Tensor:
        """The tensor of `key`.

        Raises:
            KeyError: if there is none.
        """
        value = self.get(key)
        if value is None:
            raise KeyError(f"There is no tensor in the slot '{key}'.")
        return value

    def put(self, key: str, value: Tensor | nn.Parameter | None) -> None:
        """Set the tensor of `key`: a `Parameter` can be trained, any other tensor is a buffer. `None` removes it."""
        self._parameters.pop(key, None)
        self._buffers.pop(key, None)
        if isinstance(value, nn.Parameter):
            self.register_parameter(key, value)
        elif value is not None:
            self.register_buffer(key, value)


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


def put_tensor(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a module's own: a `Parameter` can be trained, any other tensor is a buffer."""
    is_parameter = isinstance(tensor, nn.Parameter)
    (module._buffers if is_parameter else module._parameters).pop(leaf, None)
    place: dict[str, Any] = module._parameters if is_parameter else module._buffers
    place[leaf] = tensor


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own tensors that a checkpoint holds, by name; not those of its children."""
    fixed = module._non_persistent_buffers_set
    found = {name: buffer for name, buffer in module._buffers.items() if name not in fixed}
    return {name: tensor for name, tensor in {**module._parameters, **found}.items() if tensor is not None}


def thaw_own(module: nn.Module) -> dict[str, Tensor]:
    """Turn a module's own floating-point buffers into Parameters with copies of their values; not its children's.

    Returns:
        The buffers by name.
    """
    before = {name: tensor for name, tensor in tensors_of(module).items() if tensor.is_floating_point()}
    for name, tensor in before.items():
        put_tensor(module, name, nn.Parameter(tensor.detach().clone()))
    return before


def named_tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of a module and all below it that a checkpoint holds, by their names in the state dict."""
    return module.state_dict(prefix=f"{name}.", keep_vars=True)


def fixed_buffers(backbone: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """Floating-point buffers that no checkpoint holds, since they follow from the configuration: rotary frequencies.

    Returns:
        Module, name and tensor of each.
    """
    return [
        (module, name, buffer)
        for module in backbone.modules()
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set and buffer is not None and buffer.is_floating_point()
    ]


def restore_fixed(fixed: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Put back what `fixed_buffers` returned, on the device that each is on now."""
    for module, name, buffer in fixed:
        module._buffers[name] = buffer.to(cast(Tensor, module._buffers[name]).device)
