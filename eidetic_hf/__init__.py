"""Eidetic Learning for pretrained language models: one model, many text tasks, none ever lost."""

from .answering import RoutedOutput
from .architectures import Architecture, ArchitectureError, BiasTable, Fused, Stack, UnitPaths, register_architecture
from .certificate import TaskVerification, VerificationReport
from .checkpoint import CheckpointError
from .configuration import EideticConfig, TaskError, TaskRecord
from .kind import Kind
from .kinds import TASK_KINDS
from .model import (
    EideticForCausalLM,
    EideticForFeatureExtraction,
    EideticForMaskedLM,
    EideticForMultipleChoice,
    EideticForQuestionAnswering,
    EideticForSeq2SeqLM,
    EideticForTokenClassification,
    EideticModel,
)
from .pruning import PruningConfig
from .router import Router, RouterSums
from .trainer import EideticCallback, EideticTrainer
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
