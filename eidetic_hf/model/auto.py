"""Classes for the Auto classes of transformers: each routes, where no task is named, among the tasks of one kind."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from ..configuration import EideticConfig
from .model import EideticModel


class EideticForTokenClassification(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that label tokens."""

    answering_type = "token-classification"


class EideticForQuestionAnswering(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that answer questions."""

    answering_type = "question-answering"


class EideticForMultipleChoice(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks of multiple choice."""

    answering_type = "multiple-choice"


class EideticForCausalLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that continue texts."""

    answering_type = "causal-lm"


class EideticForSeq2SeqLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that write texts from texts."""

    answering_type = "seq2seq-lm"


class EideticForMaskedLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that fill gaps."""

    answering_type = "masked-lm"


class EideticForFeatureExtraction(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that embed texts.

    `AutoModel` loads an `EideticModel`; this class is for those who want embeddings of a model that has other tasks.
    """

    answering_type = "feature-extraction"


def register_auto_classes() -> None:
    """Let the Auto classes of transformers load an `EideticModel`."""
    AutoConfig.register(EideticConfig.model_type, EideticConfig, exist_ok=True)
    classes: tuple[tuple[Any, type[EideticModel]], ...] = (
        (AutoModel, EideticModel),
        (AutoModelForSequenceClassification, EideticModel),
        (AutoModelForTokenClassification, EideticForTokenClassification),
        (AutoModelForQuestionAnswering, EideticForQuestionAnswering),
        (AutoModelForMultipleChoice, EideticForMultipleChoice),
        (AutoModelForCausalLM, EideticForCausalLM),
        (AutoModelForSeq2SeqLM, EideticForSeq2SeqLM),
        (AutoModelForMaskedLM, EideticForMaskedLM),
    )
    for auto_class, model_class in classes:
        auto_class.register(EideticConfig, model_class, exist_ok=True)
