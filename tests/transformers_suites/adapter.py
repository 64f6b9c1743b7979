"""Models of this library as transformers' suites build them: from a configuration alone, ready to answer.

A model of this library answers with a task. So each class here is a class of the library whose constructor also adds
a task, begins it and commits it, or leaves it to be trained where a test trains. Nothing else of the class is changed.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from support.backbones import ALL_CONFIGS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from eidetic_hf import EideticConfig, EideticModel, PruningConfig
from eidetic_hf.model import auto

TASK = "suite"
BATCH, LENGTH, CHOICES = 4, 7, 3
# The class that answers each kind of task.
CLASSES: dict[str, type[EideticModel]] = {
    "sequence-classification": EideticModel,
    "token-classification": auto.EideticForTokenClassification,
    "question-answering": auto.EideticForQuestionAnswering,
    "multiple-choice": auto.EideticForMultipleChoice,
    "causal-lm": auto.EideticForCausalLM,
    "seq2seq-lm": auto.EideticForSeq2SeqLM,
    "masked-lm": auto.EideticForMaskedLM,
    "feature-extraction": auto.EideticForFeatureExtraction,
}
LABELLED = ("sequence-classification", "token-classification")
WRITING = ("causal-lm", "seq2seq-lm")


class WithTask:
    """Makes a class of the library have a task of its kind when it is built from a configuration.

    Attributes:
        kind: of the task.
        learning: whether the task is still being learned, so that the model has Parameters.
        keep: share of the heads and neurons that the task keeps.
    """

    kind: ClassVar[str]
    learning: ClassVar[bool]
    keep: ClassVar[float]

    def __init__(self, config: EideticConfig, *args: Any, empty: bool = False, **kwargs: Any) -> None:
        if empty:  # a checkpoint is about to fill it
            super().__init__(config, *args, empty=True, **kwargs)
            return
        if config.tasks:  # of a model that was built from this configuration before
            config = copy.deepcopy(config)
            config.tasks = []
        options: dict[str, Any] = {}
        if self.kind in LABELLED:
            options["labels"] = [f"LABEL_{i}" for i in range(config.num_labels)]
        if self.kind == "sequence-classification" and config.problem_type is not None:
            options["problem_type"] = config.problem_type
        super().__init__(config, *args, **kwargs)
        if torch.empty(0).is_meta:  # nothing there that a task could be made of
            return
        self.add_task(TASK, task_type=self.kind, **options)
        self.begin_task(TASK, PruningConfig(keep=self.keep))
        if not self.learning:
            self.commit_task()


def model_class(kind: str, learning: bool = False, keep: float = 0.5) -> type[EideticModel]:
    """The library's class for a kind, whose models have a task."""
    base = CLASSES[kind]
    return type(base.__name__, (WithTask, base), {"kind": kind, "learning": learning, "keep": keep})


def base_config(architecture: str, **values: Any) -> PreTrainedConfig:
    """A tiny backbone of two layers, as the suites want it; `values` replace others."""
    config = ALL_CONFIGS[architecture]()
    values = {"num_hidden_layers": 2, **values}
    if getattr(config, "num_decoder_layers", None):
        values["num_decoder_layers"] = 2
    if getattr(config, "pad_token_id", None) is None:
        values["pad_token_id"] = 0
    if getattr(config, "bos_token_id", None) is None:
        values["bos_token_id"] = 0
    for name, value in values.items():
        setattr(config, name, value)
    return config


def eidetic_config(base: PreTrainedConfig) -> EideticConfig:
    """The configuration of a model without tasks, which has chosen no implementation of attention yet."""
    config = EideticModel.from_backbone(copy.deepcopy(base), trunk_layers=1, growth="fixed").config
    values = config.to_dict()
    return EideticConfig(**{**values, "base_config": base})


class Tester:
    """What a suite asks for a configuration and inputs (`model_tester`).

    Args:
        architecture: of the backbone, a name in `support.backbones`.
        kind: of the task.
    """

    is_training = True
    batch_size, seq_length, num_choices = BATCH, LENGTH, CHOICES
    encoder_seq_length = decoder_seq_length = LENGTH

    def __init__(self, architecture: str, kind: str) -> None:
        self.architecture, self.kind = architecture, kind
        base = base_config(architecture)
        self.is_encoder_decoder = base.is_encoder_decoder
        self.num_hidden_layers, self.num_attention_heads = base.num_hidden_layers, base.num_attention_heads
        self.hidden_size, self.vocab_size = base.hidden_size, base.vocab_size

    def get_config(self) -> EideticConfig:
        """The configuration of a model without tasks."""
        return eidetic_config(base_config(self.architecture))

    def prepare_config_and_inputs_for_common(self) -> tuple[EideticConfig, dict[str, torch.Tensor]]:
        """A configuration, and a batch whose texts are padded on the right."""
        ids = torch.randint(3, self.vocab_size, (BATCH, LENGTH))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril(LENGTH - BATCH)}
        if self.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.randint(3, self.vocab_size, (BATCH, LENGTH))
            inputs["decoder_attention_mask"] = torch.ones_like(ids)
        return self.get_config(), inputs


def for_kind(kind: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch in the shapes that a kind reads: for multiple choice, every text is each choice."""
    if kind != "multiple-choice":
        return copy.deepcopy(inputs)
    return {
        name: value.unsqueeze(1).repeat(1, CHOICES, *(1,) * (value.dim() - 1))
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.items()
    }


def targets(kind: str) -> dict[str, torch.Tensor]:
    """What the loss of a kind is computed from."""
    if kind == "question-answering":
        return {name: torch.zeros(BATCH, dtype=torch.long) for name in ("start_positions", "end_positions")}
    if kind in ("sequence-classification", "multiple-choice"):
        return {"labels": torch.zeros(BATCH, dtype=torch.long)}
    if kind == "feature-extraction":
        return {"pair_input_ids": torch.arange(3, 3 + BATCH * LENGTH).reshape(BATCH, LENGTH)}
    return {"labels": torch.full((BATCH, LENGTH), 1 if kind in LABELLED else 5)}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, behind the special tokens, whose ids are those of the tiny backbones."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    words = {word: i for i, word in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    inner = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=512, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        sep_token="</s>", cls_token="<s>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip
