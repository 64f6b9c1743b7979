"""Eidetic Learning for pretrained language models: one model, many text tasks, none ever lost.

`EideticTrainer` and `EideticCallback` are imported when they are first asked for: transformers' `Trainer` takes longer
to import than everything else here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .configuration import EideticConfig, TaskError
from .kinds import register_kind
from .kinds.base import Kind
from .model.answering import RoutedOutput
from .model.auto import register_auto_classes
from .model.checkpoint.layout import CheckpointError
from .model.model import EideticModel
from .model.pipelines import join_pipelines
from .model.pruning import PruningConfig
from .network.architecture import Architecture, ArchitectureError, UnitPaths
from .network.architectures import register_architecture
from .version import __version__

if TYPE_CHECKING:
    from .callback import EideticCallback
    from .trainer import EideticTrainer

__all__ = [
    "Architecture",
    "ArchitectureError",
    "CheckpointError",
    "EideticCallback",
    "EideticConfig",
    "EideticModel",
    "EideticTrainer",
    "Kind",
    "PruningConfig",
    "RoutedOutput",
    "TaskError",
    "UnitPaths",
    "__version__",
    "register_architecture",
    "register_kind",
]

register_auto_classes()
join_pipelines()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "EideticTrainer":
        from .trainer import EideticTrainer

        return EideticTrainer
    if name == "EideticCallback":
        from .callback import EideticCallback

        return EideticCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
