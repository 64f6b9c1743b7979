"""What a model is made of, as plain values: the backbone's configuration and one record per task."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig

from .views import running_view, task_key

FORMAT_VERSION = 1

TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION = "sequence-classification", "token-classification"
# What each kind of task learns and answers is in `kinds.py`.
TASK_TYPES = (
    SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, "question-answering", "multiple-choice", "causal-lm", "seq2seq-lm",
    "masked-lm", "feature-extraction",
)  # fmt: skip
# What code outside of the package asks a model's configuration for, and the backbone's knows.
ANSWERED_BY_BACKBONE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
)  # fmt: skip
# The kinds whose tasks write texts; and these and the one whose tasks fill gaps: all of them score tokens.
WRITING = ("causal-lm", "seq2seq-lm")
LANGUAGE_MODELS = (*WRITING, "masked-lm")
# The kinds whose tasks have a list of labels of their own.
LABELLED = (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION)
# The kinds whose tasks score the tokens of the vocabulary.
LANGUAGE_MODELS = ("causal-lm", "seq2seq-lm", "masked-lm")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
POOLINGS = ("mean", "first", "last")


class TaskError(ValueError):
    """A task's name, labels or state does not allow what was asked."""


def check_task_name(name: object) -> str:
    """Return `name` if it can name a task, a file and a tensor.

    Raises:
        TaskError: if it is not 1 to 64 letters, digits, `-`, `_` or `.`, or starts with a dot.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise TaskError(
            f"{name!r} cannot name a task: expected 1 to 64 letters, digits, '-', '_' or '.', not starting with a "
            "dot, such as 'agnews' or 'customer-mail.v2'."
        )
    return name


@dataclass
class TaskRecord:
    """What `config.json` holds of one task: enough to rebuild every shape of its subnetwork.

    Attributes:
        name: the task's name.
        task_type: one of `TASK_TYPES`.
        problem_type: one of `PROBLEM_TYPES`, with the meaning it has in transformers; of sequence classification only.
        labels: names of the labels in the order of the logits; for regression, names of the targets; empty for kinds
            without labels.
        ancestors: earlier tasks whose units this task reads, in commit order.
        pooling: how a head that reads whole sequences does it: mean over real tokens, the first token, or the last
            real one.
        head_dropout: dropout probability before the classifier, while the task is being learned.
        vocab_size: tokens that the task knows, and scores if it is a language model: those there were at its time;
            `None` stands for those that the backbone came with.
        head: what a language model's head is made of, see `language_heads.py`.
        temperature: of the contrastive loss of sentence embeddings.
        normalize: whether sentence embeddings are scaled to length 1.
        own_output_embeddings: whether a language model's head has output embeddings of its own; `None` if it was left
            to the kind, which notes in `head` what it chose.
        special_tokens: ids of the special tokens that a task that writes texts was committed with, by their names in
            `GenerationConfig`: what it writes must not change with the tokenizer of a later task.
        preparation: how a recipe prepares the task's texts (`max_length`, `stride`, `template`, ...), so that
            `eidetic-hf predict` prepares what it is asked alike; empty if no recipe did.
        units: units owned, per unit group (`{"layers.2.neurons": 460, ...}`). Empty before the commit.
        metrics: figures that the trainer measured at commit, for the model card.
        certificate: digests and environment, written at commit (see `certificate.py`).
    """

    name: str
    task_type: str = "sequence-classification"
    problem_type: str = "single_label_classification"
    labels: list[str] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)
    pooling: str = "mean"
    head_dropout: float = 0.1
    vocab_size: int | None = None
    head: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.05
    normalize: bool = True
    own_output_embeddings: bool | None = None
    special_tokens: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task_name(self.name)
        for value, allowed, what in (
            (self.problem_type, PROBLEM_TYPES, "problem_type"),
            (self.pooling, POOLINGS, "pooling"),
        ):
            if value not in allowed:
                raise TaskError(f"Task '{self.name}': {what}={value!r} is unknown; expected one of {list(allowed)}.")
        if self.task_type in LABELLED:
            self._check_labels()
        elif self.labels and self.task_type in TASK_TYPES:
            raise TaskError(
                f"Task '{self.name}': {self.task_type} has no labels, got {self.labels!r}. Leave labels= out, or add "
                f"a task of a kind that has some: {list(LABELLED)}."
            )
        if self.task_type != SEQUENCE_CLASSIFICATION and self.problem_type != PROBLEM_TYPES[0]:
            raise TaskError(
                f"Task '{self.name}': problem_type={self.problem_type!r} is for {SEQUENCE_CLASSIFICATION}, not for "
                f"{self.task_type}. Leave it out."
            )
        if self.own_output_embeddings is not None and self.task_type not in LANGUAGE_MODELS:
            raise TaskError(
                f"Task '{self.name}': own_output_embeddings={self.own_output_embeddings!r} is for language models "
                f"({', '.join(LANGUAGE_MODELS)}), not for {self.task_type}. Leave it out."
            )
        dropout = self.head_dropout
        if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise TaskError(f"Task '{self.name}': head_dropout={dropout!r}: expected a probability in [0, 1).")
        if not isinstance(self.temperature, (int, float)) or not self.temperature > 0:
            raise TaskError(f"Task '{self.name}': temperature={self.temperature!r}: expected a number > 0.")

    def _check_labels(self) -> None:
        if not self.labels:
            raise TaskError(
                f"Task '{self.name}' has no labels. Give labels=[...] in the order of the logits "
                "(for regression, the names of the targets, such as ['score'])."
            )
        is_list = isinstance(self.labels, list) and all(isinstance(label, str) for label in self.labels)
        if not is_list or len(set(self.labels)) != len(self.labels):
            raise TaskError(f"Task '{self.name}': labels must be distinct strings, got {self.labels!r}.")
        if self.problem_type == "single_label_classification" and len(self.labels) < 2:
            raise TaskError(
                f"Task '{self.name}': one label ({self.labels[0]!r}) leaves nothing to classify; give two."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskRecord:
        """Read a record, ignoring fields that a later version may have added."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return asdict(self)


def flat_label(task: TaskRecord, label: str) -> str:
    """A task's label in the flat space of all tasks' labels: `agnews/Sports`.

    Tags of tokens keep their prefix first, `B-wnut17/person`, and `O` stays `O`: so pipelines find entities in them.
    """
    if task.task_type == TOKEN_CLASSIFICATION:
        if label == "O":
            return label
        if label[:2] in ("B-", "I-"):
            return f"{label[:2]}{task.name}/{label[2:]}"
    return f"{task.name}/{label}"


class EideticConfig(PreTrainedConfig):
    """Configuration of an `EideticModel`: a backbone, where its trunk ends, and the tasks in commit order.

    Args:
        base_config: configuration of the backbone (a `PreTrainedConfig` or its dictionary).
        trunk_layers: number of layers that stay at their pretrained values; `None` means a third of the depth.
        trunk_pretrained: `False` for a backbone that was made from a configuration: the first task trains the trunk.
        forward_transfer: which earlier tasks a new task reads by default: `"all"`, `"none"` or a list of names.
        tasks: records of the committed tasks (`TaskRecord` or dictionaries), in commit order.
        served: names of the tasks that this model answers; `None` means all of them. Set by `tasks=[...]` at loading.
        expanded: units added to a group beyond the backbone's own, per unit group.
        pool: `False` in an inference-only release, which learns nothing more.
        files: size and SHA-256 of every shard of the checkpoint folder that this configuration lies in.
        learning: name of the task that was being learned when a Trainer checkpoint was written.
        language_head: what the pretrained language-model head is made of, from which language models start; `None` if
            the pretrained model had none.
        output_embeddings: shape of the output embeddings, `(tokens, embedding)`, of a backbone whose output embeddings
            are not its input embeddings.
        vocab_size: tokens of a vocabulary that has grown; there is none if it is the backbone's.
    """

    model_type = "eidetic"
    sub_configs = {"base_config": AutoConfig}
    # What an evaluation does not collect: a hidden state per token, and what generation keeps.
    keys_to_ignore_at_inference = ["past_key_values", "cache", "last_hidden_state"]

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        trunk_layers: int | None = None,
        trunk_pretrained: bool = True,
        forward_transfer: str | list[str] = "all",
        tasks: list[TaskRecord | dict[str, Any]] | None = None,
        served: list[str] | None = None,
        expanded: dict[str, int] | None = None,
        pool: bool = True,
        files: dict[str, dict[str, Any]] | None = None,
        learning: str | None = None,
        language_head: dict[str, Any] | None = None,
        output_embeddings: list[int] | None = None,
        vocab_size: int | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            values = dict(base_config)
            base_config = AutoConfig.for_model(values.pop("model_type"), **values)
        # None only in the bare `EideticConfig()` that transformers compares configurations with.
        self.base_config = cast(PreTrainedConfig, base_config)
        self.trunk_layers = cast(int, trunk_layers)
        self.trunk_pretrained = trunk_pretrained
        self.forward_transfer = forward_transfer
        self.tasks = [task if isinstance(task, TaskRecord) else TaskRecord.from_dict(task) for task in tasks or []]
        self.served = served
        self.expanded = dict(expanded or {})
        self.pool = pool
        self.files = dict(files or {})
        self.learning = learning
        self.language_head = language_head
        self.output_embeddings = None if output_embeddings is None else list(output_embeddings)
        self.format_version = format_version
        if vocab_size is not None:
            self.vocab_size = vocab_size
        if base_config is not None and base_config.is_encoder_decoder:
            kwargs["is_encoder_decoder"] = True
        super().__init__(**kwargs)
        self.set_labels()

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base_config")
        if name in ANSWERED_BY_BACKBONE and base is not None:
            return getattr(base, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's configuration of its decoder or encoder if one is asked for, else this one.

        What a cache has to look like is asked of the decoder's. The `Trainer` writes its tokenizer's special tokens
        to the one that nobody specified: the backbone's must never change.
        """
        if decoder == encoder or self.base_config is None:
            return self._as_seen()
        return self.base_config.get_text_config(decoder=decoder, encoder=encoder)

    def _as_seen(self) -> EideticConfig:
        """This configuration; where a task writes that knows fewer tokens, a copy with as many.

        Beam search of transformers 5.17 takes the width of the logits from the configuration.
        """
        view = running_view()
        task = next((t for t in self.tasks if view is not None and task_key(t.name) == view.key), None)
        if task is None or task.vocab_size in (None, self.vocab_size):
            return self
        seen = copy.copy(self)
        seen.vocab_size = task.vocab_size
        return seen

    def set_labels(self, task_type: str | None = None) -> None:
        """Bring `id2label` and `label2id` up to date: one flat space of labels over the served tasks of one kind.

        Args:
            task_type: the kind; the one that `default_type` says, if not given.
        """
        names = self.flat_labels(task_type or self.default_type()) or ["LABEL_0", "LABEL_1"]
        self.id2label = dict(enumerate(names))
        self.label2id = {name: names.index(name) for name in names}  # every task that labels tokens has an `O`

    def default_type(self) -> str:
        """The kind of tasks that answers where nobody asks for one: the only one there is, else of sequences."""
        kinds = {task.task_type for task in self.tasks if self.serves(task.name)}
        return next(iter(kinds)) if len(kinds) == 1 else SEQUENCE_CLASSIFICATION

    def flat_labels(self, task_type: str) -> list[str]:
        """The labels of all served tasks of a kind, in the order of the flat label space."""
        tasks = [task for task in self.tasks if self.serves(task.name) and task.task_type == task_type]
        return [flat_label(task, label) for task in tasks for label in task.labels]

    def label_spans(self, task_type: str = SEQUENCE_CLASSIFICATION) -> dict[str, slice]:
        """Where each served task's labels lie in the flat label space of its kind, in the order of the logits."""
        spans, stop = {}, 0
        for task in self.tasks:
            if self.serves(task.name) and task.task_type == task_type:
                start, stop = stop, stop + len(task.labels)
                spans[task.name] = slice(start, stop)
        return spans

    def owners_of_tokens(self, reader: TaskRecord) -> list[str]:
        """Names of the tasks that own tokens which this one reads or scores: in each table those that added to it."""
        tables = [self.tasks]
        if self.output_embeddings is not None and reader.task_type in LANGUAGE_MODELS:
            tables.append([task for task in self.tasks if task.task_type in LANGUAGE_MODELS])
        base, owners = self.base_config.vocab_size, []
        for table in tables:
            total = base
            for task in table:
                if total < (task.vocab_size or base):
                    owners += [task.name] if total < (reader.vocab_size or base) else []
                    total = task.vocab_size
        return owners

    def forget_free_tokens(self) -> None:
        """Let the vocabulary end with the last token that a task knows: what comes after is in the pool."""
        sizes = [task.vocab_size for task in self.tasks if task.vocab_size is not None]
        self.__dict__.pop("vocab_size", None)
        if max(sizes, default=0) > self.base_config.vocab_size:
            self.vocab_size = max(sizes)

    def serves(self, name: str) -> bool:
        """Whether the model answers for this committed task (not only reads its units as an ancestor's)."""
        return self.served is None or name in self.served

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-ready values."""
        tasks = self.__dict__.pop("tasks")
        try:
            output = super().to_dict()
        finally:
            self.tasks = tasks
        output["tasks"] = [task.to_dict() if isinstance(task, TaskRecord) else task for task in tasks]
        return output
