"""Eidetic Learning for pretrained language models: one model, many text tasks, none ever lost."""

from .architectures import Architecture, ArchitectureError, UnitPaths, register_architecture
from .certificate import TaskVerification, VerificationReport
from .checkpoint import CheckpointError
from .configuration import EideticConfig, TaskError, TaskRecord
from .model import EideticModel, RoutedOutput
from .pruning import PruningConfig
from .router import Router, RouterSums
from .trainer import EideticCallback, EideticTrainer
from .version import __version__

__all__ = [
    "Architecture",
    "ArchitectureError",
    "CheckpointError",
    "EideticCallback",
    "EideticConfig",
    "EideticModel",
    "EideticTrainer",
    "PruningConfig",
    "RoutedOutput",
    "Router",
    "RouterSums",
    "TaskError",
    "TaskRecord",
    "TaskVerification",
    "UnitPaths",
    "VerificationReport",
    "__version__",
    "register_architecture",
]
