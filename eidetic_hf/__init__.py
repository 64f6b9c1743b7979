"""Eidetic Learning for pretrained language models: one model, many text tasks, none ever lost."""

from .architectures import Architecture, ArchitectureError, UnitPaths, register_architecture
from .certificate import TaskVerification, VerificationReport
from .checkpoint import CheckpointError
from .configuration import EideticConfig, TaskError, TaskRecord
from .model import EideticModel
from .pruning import PruningConfig
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
    "TaskError",
    "TaskRecord",
    "TaskVerification",
    "UnitPaths",
    "VerificationReport",
    "__version__",
    "register_architecture",
]
