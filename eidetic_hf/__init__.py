"""Eidetic Learning for pretrained language models: one model, many text tasks, none ever lost."""

from .callback import EideticCallback
from .configuration import EideticConfig, TaskError, TaskRecord
from .kinds import TASK_KINDS
from .kinds.base import Kind
from .model.answering import RoutedOutput
from .model.certificate import TaskVerification, VerificationReport
from .model.checkpoint import CheckpointError
from .model.model import (
    EideticForCausalLM,
    EideticForFeatureExtraction,
    EideticForMaskedLM,
    EideticForMultipleChoice,
    EideticForQuestionAnswering,
    EideticForSeq2SeqLM,
    EideticForTokenClassification,
    EideticModel,
)
from .model.pruning import PruningConfig
from .model.router import Router, RouterSums
from .network.architecture import Architecture, ArchitectureError, BiasTable, Fused, Stack, UnitPaths
from .network.architectures import register_architecture
from .trainer import EideticTrainer
from .version import __version__

__all__ = [
    "TASK_KINDS",
    "Architecture",
    "ArchitectureError",
    "BiasTable",
    "CheckpointError",
    "EideticCallback",
    "EideticConfig",
    "EideticForCausalLM",
    "EideticForFeatureExtraction",
    "EideticForMaskedLM",
    "EideticForMultipleChoice",
    "EideticForQuestionAnswering",
    "EideticForSeq2SeqLM",
    "EideticForTokenClassification",
    "EideticModel",
    "EideticTrainer",
    "Fused",
    "Kind",
    "PruningConfig",
    "RoutedOutput",
    "Router",
    "RouterSums",
    "Stack",
    "TaskError",
    "TaskRecord",
    "TaskVerification",
    "UnitPaths",
    "VerificationReport",
    "__version__",
    "register_architecture",
]
