"""What a model is made of, as plain values: the backbone's configuration and one record per task."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, fields
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig

from .views import running_view, task_name

FORMAT_VERSION = 3

TASK_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}(@([2-9]|[1-9][0-9]{1,5}))?")
FIRST_VERSION = "@1"  # behind the name of a task: its first version and no other, see `model/versions.py`
# The kind of a record that names none: the first versions had no other. What kinds there are, `kinds/` says.
DEFAULT_TASK_TYPE = "sequence-classification"
ALL_EARLIER = "all"  # how config.json says that a task reads all tasks before it, however many they are
AUTO = "auto"  # what a task is based on that is to start from what its data shows to be best
# What code outside of the package asks a model's configuration for, and the backbone's knows.
ANSWERED_BY_BACKBONE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
)  # fmt: skip


class TaskError(ValueError):
    """A task's name, labels or state does not allow what was asked."""


def check_task_name(name: object) -> str:
    """Return `name` if it can name a task, a file and a tensor.

    Raises:
        TaskError: if it is not 1 to 64 letters, digits, `-`, `_` or `.`, and perhaps the number of a version, from
            `@2` on; or starts with a dot.
    """
    if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
        raise TaskError(
            f"{name!r} cannot name a task: expected 1 to 64 letters, digits, '-', '_' or '.', not starting with a "
            "dot, such as 'agnews' or 'customer-mail.v2'; and for a version of a task its number from 2 on, such as "
            "'agnews@2'."
        )
    return name


def split_version(name: str) -> tuple[str, int]:
    """The task that a name is of, and which version of it: `agnews@2` is version 2, and `agnews` the first."""
    task, _, number = name.partition("@")
    return (task, int(number)) if number.isdecimal() else (name, 1)


def plain_name(name: str) -> str:
    """The name in a task's record: `agnews` where somebody says `agnews@1`."""
    return name.removesuffix(FIRST_VERSION)


def check_transfer(forward_transfer: Any) -> None:
    """Raise a `ValueError` if this does not say which earlier tasks a task reads."""
    is_list = isinstance(forward_transfer, list) and all(isinstance(name, str) for name in forward_transfer)
    if forward_transfer not in ("all", "none") and not is_list:
        raise ValueError(f"forward_transfer={forward_transfer!r}: expected 'all', 'none' or a list of task names.")


@dataclass
class TaskRecord:
    """What `config.json` holds of one task: enough to rebuild every shape of its subnetwork.

    An option of the task's kind reads as an attribute: `record.pooling` is `record.options["pooling"]`. A record
    checks nothing but its name; its kind does, where a task is added or loaded (`kinds.check_task`).

    Attributes:
        name: the task's name.
        task_type: name of its kind.
        labels: names of the labels in the order of the logits; for regression, names of the targets; empty for kinds
            without labels.
        ancestors: earlier tasks whose units this task reads, in commit order; in config.json `"all"`, if it reads
            all that come before it.
        options: the settings of its kind, by name, as plain JSON values (see `Kind.Options`).
        vocab_size: tokens that the task knows, and scores if it is a language model: those there were at its time;
            `None` stands for those that the backbone came with.
        head: what a language model's head is made of, see `kinds/pretrained_head.py`.
        special_tokens: ids of the special tokens that a task that writes texts was committed with, by their names in
            `GenerationConfig`: what it writes must not change with the tokenizer of a later task.
        preparation: how a recipe prepares the task's texts (`max_length`, `stride`, `template`, ...), so that
            `eidetic-hf predict` prepares what it is asked alike; empty if no recipe did.
        data: what the task was learned from, for the model card: `dataset` (its id on the Hub), `config`, `revision`,
            `split` and `rows`, see docs/model_card.md; empty if nobody said it.
        units: units owned, per unit group (`{"layers.2.neurons": 460, ...}`). Empty before the commit.
        metrics: figures that the trainer measured at commit, for the model card.
        certificate: digests and environment, written at commit (see `model/certificate.py`).
    """

    name: str
    task_type: str = DEFAULT_TASK_TYPE
    labels: list[str] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    vocab_size: int | None = None
    head: dict[str, Any] = field(default_factory=dict)
    special_tokens: dict[str, Any] = field(default_factory=dict)
    preparation: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_task_name(self.name)

    @property
    def exact_name(self) -> str:
        """What this task answers to whichever version is the default: `agnews@1` for `agnews`."""
        return self.name if "@" in self.name else self.name + FIRST_VERSION

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for names before there is anything in the object.
        values = self.__dict__
        options = values.get("options", {})
        if name in options:
            return options[name]
        raise AttributeError(
            f"The record of task {values.get('name')!r} ({values.get('task_type')}) has no {name!r}; its options are "
            f"{list(options)}."
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TaskRecord:
        """Read a record as `to_dict` writes it.

        What is no field of a record is an option, for its kind to judge: it drops those that a later version, or a
        version before kinds had options of their own, has written.
        """
        known = {f.name for f in fields(cls)}
        options = {key: value for key, value in values.items() if key not in known}
        options.update(values.get("options") or {})
        own = {key: value for key, value in values.items() if key in known and key != "options"}
        return cls(**own, options=options)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values, its options on one level with the fields."""
        values = copy.deepcopy(vars(self))
        return {**values.pop("options"), **values}


class EideticConfig(PreTrainedConfig):
    """Configuration of an `EideticModel`: a backbone, where its trunk ends, and the tasks in commit order.

    Args:
        base_config: configuration of the backbone (a `PreTrainedConfig` or its dictionary).
        trunk_layers: number of layers that stay at their pretrained values; `None` means a third of the depth.
        trunk_pretrained: `False` for a backbone that was made from a configuration: the first task trains the trunk.
        forward_transfer: which earlier tasks a new task reads by default: `"all"`, `"none"` or a list of names.
        growth: how tasks come to units: `"fixed"`, out of a pool; or `"copy"`, by copying the backbone's.
        tasks: records of the committed tasks (`TaskRecord` or dictionaries), in commit order.
        served: names of the tasks that this model answers; `None` means all of them. Set by `tasks=[...]` at loading.
        expanded: units added to a group beyond the backbone's own, per unit group.
        pool: `False` in an inference-only release, which learns nothing more.
        default_versions: by the name of a task, the number of the version that answers for it, where that is not the
            first one.
        files: size and SHA-256 of every shard of the checkpoint folder that this configuration lies in.
        learning: name of the task that was being learned when a Trainer checkpoint was written.
        learning_ancestors: the earlier tasks that this one reads.
        language_head: what the pretrained language-model head is made of, from which language models start; `None` if
            the pretrained model had none.
        output_embeddings: shape of the output embeddings, `(tokens, embedding)`, of a backbone whose output embeddings
            are not its input embeddings.
        vocab_size: tokens of a vocabulary that has grown; there is none if it is the backbone's.
        base: `name`, `revision` and `sha256` of the backbone, in a checkpoint that names it instead of holding it.
        router_layers: the layers that the router reads, 0 for the embeddings; `None` for those that suit the growth
            and the depth. The first task settles them.
        router: digests of what the router reads of a sequence, see `model/certificate.py`; `None` before a task has
            left anything to it.
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
        growth: str = "fixed",
        tasks: list[TaskRecord | dict[str, Any]] | None = None,
        served: list[str] | None = None,
        expanded: dict[str, int] | None = None,
        pool: bool = True,
        default_versions: dict[str, int] | None = None,
        files: dict[str, dict[str, Any]] | None = None,
        learning: str | None = None,
        learning_ancestors: list[str] | None = None,
        language_head: dict[str, Any] | None = None,
        output_embeddings: list[int] | None = None,
        vocab_size: int | None = None,
        base: dict[str, Any] | None = None,
        router_layers: list[int] | None = None,
        router: dict[str, Any] | None = None,
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
        self.growth = growth
        self.tasks = _records(tasks or [])
        self._positions: dict[str, int] = {}
        self.served = served
        self.expanded = dict(expanded or {})
        self.pool = pool
        self.default_versions = dict(default_versions or {})
        self.files = dict(files or {})
        self.learning = learning
        self.learning_ancestors = learning_ancestors
        self.language_head = language_head
        self.output_embeddings = None if output_embeddings is None else list(output_embeddings)
        self.base = None if base is None else dict(base)
        self.router_layers = None if router_layers is None else list(router_layers)
        self.router = None if router is None else dict(router)
        # What an earlier format holds is written in this one.
        self.format_version = FORMAT_VERSION if format_version in range(FORMAT_VERSION) else format_version
        if vocab_size is not None:
            self.vocab_size = vocab_size
        if base_config is not None:  # what follows from the backbone, whatever anybody says
            kwargs["is_encoder_decoder"] = bool(base_config.is_encoder_decoder)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a configuration as `to_dict` writes it; the Auto classes do, before they know of a checkpoint.

        Raises:
            ValueError: if it is none.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except TaskError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"config.json does not hold the configuration of an EideticModel: {said} ({type(error).__name__}). "
                "EideticModel.from_pretrained says more."
            ) from error

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
        name = None if view is None else task_name(view.beside[0][0] if view.beside else view.key)
        task = None if name is None else self.task(name)
        if task is None or task.vocab_size in (None, self.vocab_size):
            return self
        seen = copy.copy(self)
        seen.vocab_size = task.vocab_size
        return seen

    def task(self, name: str) -> TaskRecord | None:
        """The record of the committed task of this name; `None` if there is none.

        Where the name was found last is only a hint, held against the list: whoever appends to `tasks`, takes from it
        or puts another list in its place has nothing to bring up to date.
        """
        tasks, hints = self.tasks, self._positions
        place = hints.get(name)
        if place is not None and place < len(tasks) and tasks[place].name == name:
            return tasks[place]
        for place, task in enumerate(tasks):
            if task.name == name:
                hints[name] = place
                return task
        return None

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
        # Of a copy: another thread that reads this one must never see it without its tasks.
        bare = copy.copy(self)
        bare.__dict__.pop("tasks")
        bare.__dict__.pop("_positions")
        output = super(EideticConfig, bare).to_dict()
        output["tasks"] = _written(self.tasks)
        return output


def _records(tasks: list[TaskRecord | dict[str, Any]]) -> list[TaskRecord]:
    """Records of tasks in commit order, each with the names of its ancestors.

    Raises:
        TaskError: if one reads another that does not come before it.
    """
    records: list[TaskRecord] = []
    names: dict[str, None] = {}
    for task in tasks:
        record = task if isinstance(task, TaskRecord) else TaskRecord.from_dict(task)
        if record.ancestors == ALL_EARLIER:
            record.ancestors = list(names)
        read = record.ancestors
        if not isinstance(read, list) or not all(isinstance(name, str) and name in names for name in read):
            raise TaskError(
                f"The task '{record.name}' has ancestors={read!r}; expected {ALL_EARLIER!r}, or names of tasks that "
                f"come before it: {list(names)}."
            )
        records.append(record)
        names[record.name] = None
    return records


def _written(tasks: list[Any]) -> list[Any]:
    """What `_records` reads: a task that reads all before it does not list them, so its room does not grow."""
    written, names = [], list[str]()
    for task in tasks:
        if isinstance(task, TaskRecord):
            values = task.to_dict()
            if names and values["ancestors"] == names:
                values["ancestors"] = ALL_EARLIER
            written.append(values)
            names.append(task.name)
        else:  # a name, of those to load
            written.append(task)
    return written
