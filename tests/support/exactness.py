"""The poison test: what a task does not read may hold anything."""

from __future__ import annotations

import copy

import torch

from eidetic_hf import EideticModel


def poison(model: EideticModel, name: str, *others: str, least: int = 1000) -> EideticModel:
    """A copy of the model with NaN in every floating-point tensor that the task, or none of several, reads.

    So many numbers at least are poisoned.
    """
    model = copy.deepcopy(model)
    kept = {tensor for task in (name, *others) for tensor in model.task_tensors(task)}
    poisoned = 0
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name not in kept and tensor.is_floating_point():
            tensor.fill_(torch.nan)
            poisoned += tensor.numel()
    assert poisoned >= least
    for group in model.groups.values():
        group.forget_views()  # caches hold copies made before
    return model
