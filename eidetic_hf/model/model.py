"""`EideticModel`: a pretrained backbone that learns text tasks one after another and never changes a learned one."""

from __future__ import annotations

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

from ..compat import (
    CAPTURING,
    HUB_ARGUMENTS,
    SAVE_ARGUMENTS,
    attention_of,
    check_and_set_device_map,
    check_known,
    commit_of,
    forget_capturing,
    hinting_at,
    hub_arguments,
    set_attention,
    set_revision,
    static_cache_shape,
)
from ..configuration import DEFAULT_TASK_TYPE, EideticConfig, TaskError, TaskRecord, check_transfer, plain_name
from ..kinds import default_kind, kind_of, name_labels
from ..kinds.heads import LanguageModelHead
from ..kinds.pretrained_head import LanguageHead, load_with_head, read_language_head
from ..network.architecture import choose_trunk, layers_of
from ..network.architectures import architecture_of, is_declared
from ..network.backbone import base_model, hidden_size, initializer_range
from ..network.growth import growth_of
from ..network.network import Network
from ..network.storage import Originals, ParametersIfAny, fixed_buffers, freeze, remove_hooks, restore_fixed
from ..views import POOL, current_view, running_view, use_view
from . import (
    answering,
    branching,
    certificate,
    extract,
    generation,
    hub,
    joining,
    life,
    loading,
    persistence,
    planning,
    preserving,
    routing,
    versions,
)
from .checkpoint.layout import CheckpointError
from .learner import Learner
from .parts import Added, committed, record_of
from .planning import Plan
from .pruning import PruningConfig
from .request import Request
from .router import Router, RouterSums
from .routing import CASCADE, RoutedOutput
from .verification import VerificationReport

# Modules whose tensors a checkpoint brings along, in shapes of their own.
WITHOUT_ROOM = ("probes.", "router.")


class CheckpointWithView:
    """Gradient checkpointing whose replay, in the backward pass and outside of `forward`, runs the same task."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, layer: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run a layer so that it is computed again in the backward pass."""
        view = current_view()

        def replayed(*a: Any, **k: Any) -> Any:
            with use_view(view):
                return layer(*a, **k)

        return self.function(replayed, *args, **kwargs)


class EideticModel(PreTrainedModel, GenerationMixin):
    """One backbone, many tasks.

    Invariant: after `commit_task(t)`, nothing changes a tensor that task t's output reads.

    Make one with `from_backbone` or `from_pretrained`. At rest it has no Parameter at all: every tensor is a buffer,
    out of any optimizer's reach. While a task is being learned, the working copy of the pool, the task's private
    parameters and its head are Parameters, and nothing else.

    Args:
        config: an `EideticConfig`.
        backbone: the base model to take over, with its weights; made from `config.base_config` if not given.
        empty: leave out what only moves values, for a model that a checkpoint is about to fill.
        language_head: the language-model head that was pretrained with the backbone, if there was one.
    """

    config_class = EideticConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # num_items_in_batch
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    answering_type: ClassVar[str | None] = None

    config: EideticConfig
    generation_config: GenerationConfig
    learner: Learner | None

    def __init__(
        self,
        config: EideticConfig,
        backbone: PreTrainedModel | None = None,
        empty: bool = False,
        language_head: LanguageHead | None = None,
    ) -> None:
        if config.tasks and not empty:
            raise ValueError(
                f"This configuration has the tasks {[task.name for task in config.tasks]}, and their weights are in a "
                "checkpoint. Load it with from_pretrained (with device_map='auto' in place of init_empty_weights and "
                "load_checkpoint_and_dispatch); a configuration alone makes a model without tasks."
            )
        super().__init__(config)
        own = None if language_head is None else language_head.generation_config
        self.generation_config = own or GenerationConfig.from_model_config(config.base_config)
        architecture_of(config.base_config)  # an error before any memory is taken
        if backbone is None:
            backbone = AutoModel.from_config(config.base_config)
        self.network = Network(config, backbone, empty)
        # One and the same, so that what is set there reaches the backbone.
        config.base_config = backbone.config
        set_attention(config, attention_of(backbone.config))
        self.backbone, self.groups = self.network.backbone, self.network.groups
        self.heads = nn.ModuleDict()
        self.language_head = nn.ModuleDict()
        self.output_embeddings = self.network.output_embeddings
        self.input_rows, self.output_rows = self.network.input_rows, self.network.output_rows
        self.probes = nn.ModuleDict()
        self.router = Router()
        self.router.read_by(
            partial(routing.read, self), partial(routing.labels_of, self), partial(routing.first_look, self)
        )
        self._routing = CASCADE
        self.learner = None
        self.added: dict[str, Added] = {}
        self.removed: dict[str, str] = {}
        self.run_task: str | None = None
        self._originals: Originals | None = None
        self.casts_are_undone = False
        self._keep_language_head(language_head)
        strangers = sorted(config.expanded.keys() - {group.name for group in self.network.unit_groups()})
        if strangers:
            raise ValueError(f"expanded has {strangers[0]!r}, and this backbone has no such group of units.")
        for group in self.network.unit_groups():
            if group.name in config.expanded:
                group.expand(config.expanded[group.name], 0.0)
        for task in config.tasks:
            persistence.make_room(self, task)
        self.network.rebuild_pool()
        if not empty:
            self.network.pack()
        self.post_init()
        self._set_labels()
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """What `pickle` and `torch.save` write: all but transformers' hooks, which are installed when needed.

        They are local functions, which pickle refuses. A request for hidden states that another thread has under way
        loses what they would have captured.
        """
        remove_hooks(self, CAPTURING)
        forget_capturing(self)
        return self.__dict__.copy()

    def init_weights(self) -> None:
        """Nothing: the backbone initialized itself, and every other tensor starts from it or comes from a file."""

    def _init_weights(self, module: nn.Module) -> None:
        pass

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike | PreTrainedConfig | PreTrainedModel,
        trunk_layers: int | None = None,
        forward_transfer: str | list[str] = "all",
        growth: str | None = None,
        router_layers: list[int] | None = None,
        **kwargs: Any,
    ) -> EideticModel:
        """Start from a pretrained model, with no task learned yet.

        Args:
            backbone: a folder, a Hub id, or a loaded model, whose modules are taken over; or a configuration, for a
                random backbone whose trunk the first task trains. A pretrained language-model head is kept, and what
                a language model starts from.
            trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
            forward_transfer: which earlier tasks a new task reads: `"all"`, `"none"` or a list of names.
            growth: how tasks come to units: `"copy"`, each copies those that it changes; or `"fixed"`, each takes some
                out of a pool. By default `"copy"` for a pretrained backbone, and `"fixed"` for a random one; see
                docs/growth.md.
            router_layers: the layers that the router reads, 0 for the embeddings; those that suit the growth and the
                depth by default, see docs/routing.md. With `growth="fixed"` no deeper than the trunk.
            kwargs: further arguments for the `from_pretrained` of the backbone's class, such as `revision` or
                `attn_implementation`.

        Raises:
            ArchitectureError: if the backbone's architecture is not declared.
            ValueError: if `trunk_layers` or `router_layers` are out of range, or `forward_transfer` is not understood,
                or says something where units are copied.
        """
        pretrained = not isinstance(backbone, PreTrainedConfig)
        growth = growth or ("copy" if pretrained else "fixed")
        if growth_of(growth).copies and forward_transfer != "all":
            raise ValueError(
                f"forward_transfer={forward_transfer!r} says which earlier tasks one reads with growth='fixed'. With "
                "growth='copy' a task reads the backbone, or the one that add_task(..., based_on=...) names; make the "
                "model with growth='fixed', or leave it out."
            )
        head, own = None, ("trunk_layers", "forward_transfer", "growth", "router_layers")
        if isinstance(backbone, PreTrainedModel):
            check_known("EideticModel.from_backbone with a loaded model", kwargs, own)
            architecture_of(backbone.config)
            model = base_model(backbone)
            head = read_language_head(backbone, model)
        elif isinstance(backbone, PreTrainedConfig):
            architecture_of(backbone)
            with hinting_at(kwargs, own):
                model = AutoModel.from_config(backbone, **kwargs)
        else:
            commit = commit_of(backbone, hub_arguments(kwargs))
            kwargs.update({} if commit is None else {"revision": commit})  # whatever is pushed in between
            config = AutoConfig.from_pretrained(backbone, **hub_arguments(kwargs))
            if isinstance(config, EideticConfig):
                raise ValueError(f"{backbone} is an EideticModel already. Load it with EideticModel.from_pretrained.")
            architecture_of(config)
            kwargs.setdefault("dtype", torch.float32)
            with hinting_at(kwargs, own):
                model, head = load_with_head(backbone, config, **kwargs)
            set_revision(model.config, commit)
        architecture = architecture_of(model.config)
        trunk_layers = choose_trunk(architecture, len(layers_of(architecture, model)), trunk_layers)
        config = EideticConfig(
            base_config=model.config,
            trunk_layers=trunk_layers,
            trunk_pretrained=pretrained,
            forward_transfer=forward_transfer,
            growth=growth,
            router_layers=router_layers,
            dtype=model.dtype,
            attn_implementation=attention_of(model.config),
        )
        check_transfer(forward_transfer)
        if head is not None:
            config.language_head = head.parts if head.agrees else {"unreadable": head.owner}
            config.output_embeddings = None if head.embeddings is None else list(head.embeddings.shape)
        elif not pretrained and not model.config.tie_word_embeddings:
            config.output_embeddings = list(cast(Tensor, model.get_input_embeddings().weight).shape)
        eidetic = cls(config, backbone=model, language_head=head)
        routing.layers_of_router(eidetic)
        if not is_declared(model.config):
            eidetic.check_architecture()
        return eidetic

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: EideticConfig | None = None,
        tasks: list[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        backbone: Any = None,
        hash_once: bool = False,
        **kwargs: Any,
    ) -> EideticModel:
        """Load a checkpoint folder, or one from the Hub.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            model_args: there are none.
            config: not needed; taken from the checkpoint.
            tasks: names of the tasks to load; only their shards, and those of the tasks whose units they read, are
                opened. The model then answers for these tasks only, and learns nothing more.
            dtype: to compute in; the stored one by default. A model loaded in another dtype can not be saved.
            device_map: a device, such as `"cuda"`, or `"auto"` for the GPU, if there is one; by default the one that
                `torch.device` has set.
            attn_implementation: as in transformers.
            backbone: where the backbone of a checkpoint is that names it instead of holding it: a folder, a Hub id or
                a loaded model, whose modules are taken over; by default as the checkpoint says.
            hash_once: load a shard that was hashed before with this setting, by this user on this machine, without
                hashing it again, if its file is the same by path, device, inode, size and times of change.
            kwargs: where the repository's files are: `revision`, `cache_dir`, `token`, `subfolder`, ...; and of the
                configuration `output_hidden_states`, `output_attentions`, `return_dict` and `forward_transfer`.

        Raises:
            CheckpointError: if the folder is no release, or a file is missing, damaged or not what was saved.
            TaskError: if `tasks` names a task that the checkpoint does not have.
            RuntimeError: under `torch.device("meta")`, where nothing can be loaded.
        """
        if model_args:
            raise TypeError(f"EideticModel.from_pretrained takes no further positional arguments, got {model_args!r}.")
        older = kwargs.pop("torch_dtype", None)  # what transformers called it up to version 4
        dtype = older if dtype is None else dtype
        device_map = check_and_set_device_map(device_map)
        # Whatever device the caller has set: everything moves there at once, below. And what is loaded may learn on,
        # which tensors that were made in inference mode can not.
        with torch.device("cpu"), torch.inference_mode(False):
            source = pretrained_model_name_or_path
            given = {**kwargs, "hash_once": hash_once}
            model = loading.load(cls, source, config, tasks, attn_implementation, backbone, given)
        if dtype is not None and dtype != "auto":
            loading.cast_floats(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if device_map is not None:
            loading.move(model, device_map)
        if kwargs.get("output_loading_info"):
            nothing: dict[str, Any] = {
                "missing_keys": set(),
                "unexpected_keys": set(),
                "mismatched_keys": set(),
                "error_msgs": [],
            }
            return model, nothing  # type: ignore[return-value]
        return model

    def _keep_language_head(self, given: LanguageHead | None) -> None:
        """Make, or make room for, the pretrained language-model head and output embeddings of their own."""
        config = self.config
        vocab_size, width = cast(Tensor, self.get_input_embeddings().weight).shape
        std = initializer_range(self.backbone.config)
        parts = config.language_head or {}
        if config.pool and (parts.get("transform") is not None or parts.get("bias")):
            head = LanguageModelHead(hidden_size(self.backbone.config), width, vocab_size, parts, std)
            if given is not None:
                head.load_state_dict(given.head.state_dict())
            self.language_head[POOL] = freeze(head.to(self.device, self.dtype))
        if config.output_embeddings is not None:
            weight = None if given is None else given.embeddings
            if weight is None:
                weight = torch.empty(config.output_embeddings, dtype=self.dtype, device=self.device).normal_(0, std)
            self.output_embeddings.put("weight", weight)

    def _set_labels(self) -> None:
        """Bring the configuration's labels up to date with the tasks that this class answers for."""
        name_labels(self.config, self.answering)
        self.num_labels = self.config.num_labels

    # -- tasks ----------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the committed tasks that the model answers for, in commit order."""
        return committed(self)

    @property
    def learning(self) -> str | None:
        """Name of the task that is being learned."""
        return self.learner.name if self.learner is not None else None

    @property
    def answering(self) -> str:
        """The kind of tasks that are routed among where no task is named."""
        return self.answering_type or default_kind(self.config)

    def record(self, name: str) -> TaskRecord:
        """What is known of a task, committed or only added.

        Raises:
            TaskError: if there is no task of this name.
        """
        return record_of(self, name)

    @property
    def cache_bytes(self) -> int | None:
        """Bytes for copies of weights, which tasks need whose units do not lie in a row; `None` for no limit."""
        return self.network.cache.limit

    @cache_bytes.setter
    def cache_bytes(self, limit: int | None) -> None:
        self.network.cache.limit = limit

    @property
    def mixed_batches(self) -> str:
        """How a batch of several tasks is computed: `"joint"`, in one pass, or `"apart"`, in one for each task.

        Joint is the way of `growth="copy"`: base's products are computed once for all rows, and those of the copies
        beside them. A row's answer then is that of its task by itself up to rounding; apart it is the same, bit for
        bit, as that of the task's own sub-batch. In either way later tasks change no bit of it.
        """
        return self.network.mixed_batches

    @mixed_batches.setter
    def mixed_batches(self, way: str) -> None:
        self.network.set_mixed_batches(way)

    @property
    def routing(self) -> str:
        """How deep the router reads of a batch whose tasks are not named.

        `"shallow"`: what the trunk says of each row, or without a trunk the first layer that it reads, decides;
        `"cascade"`, the default: where that leaves doubt, rows go on through base to all layers that the router reads;
        `"deep"`: all rows do, as they do wherever `abstain` is asked for. Without `growth="copy"` all are the same.
        """
        return self._routing

    @routing.setter
    def routing(self, way: str) -> None:
        self._routing = routing.check_way(way)

    def is_committed(self, name: str) -> bool:
        """Whether a task has been learned."""
        return self.config.task(plain_name(name)) is not None

    def capacity(self) -> dict[str, Any]:
        """How the units are shared out.

        Returns:
            `total` and `free` numbers of units, `free_share`, `free_share_by_kind` (heads, neurons, and `cross_heads`
            in an encoder-decoder), `owned` per task, and `groups`: per unit group, the units of each task and of
            `"free"`.
        """
        return self.network.capacity([task.name for task in self.config.tasks])

    def plan(self, tasks: int, like: str | None = None) -> Plan:
        """Propose budgets for coming tasks, and say what will be left.

        With `growth="fixed"`, which share of what is free each may keep so that all get the same number of units;
        with `growth="copy"`, what a task takes for some shares of base's units. Sizes of shards are exact, for texts
        in numbers that the router's sums hold in 32 bits (more than 100,000 a task).

        Args:
            tasks: how many are to come.
            like: name of the task that each of them is like: its kind, its labels, the length of its name; by default
                the last that owns units, or else sequence classification with two labels.

        Returns:
            A table, if printed.

        Raises:
            TaskError: while a task is being learned, if the model has no pool, or if there is no such task.
            ValueError: if `tasks` is no number above 0.
        """
        return planning.plan(self, tasks, like)

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """The closed set: every tensor that a committed task's output reads, by its name in the state dict.

        All others may hold anything, NaN included, and the task's logits stay the same bit for bit.

        Raises:
            TaskError: if the task is not committed.
        """
        return certificate.closed_set(self, name)

    def verify(self, tasks: list[str] | None = None) -> VerificationReport:
        """Recompute every certificate: has any committed task changed, or what the router knows of it?

        Returns:
            A report that is true in a condition if nothing has, and names the first tensor that differs otherwise.
        """
        return certificate.verify(self, tasks)

    def extract_task(
        self,
        name: str,
        save_directory: str | os.PathLike | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        head: bool = True,
    ) -> PreTrainedModel:
        """Take a committed task out as a plain model of transformers, which answers without this package.

        Its class is that of the task's kind for the backbone, such as `BertForSequenceClassification`, its answers are
        the task's up to rounding, and the model that it comes from stays as it is. See docs/extract.md for which kinds
        of task have such a class on which architecture.

        Args:
            name: of the task.
            save_directory: a folder to write it to, which must be new or empty.
            tokenizer: is saved with it, and says which token is padding where the backbone does not.
            head: without it, the backbone alone, whose `last_hidden_state` is the task's.

        Raises:
            TaskError: if the task is unknown or not committed, or no class of transformers answers what it does, or
                the folder is not empty.
            OSError: if writing failed; nothing is left then.
        """
        self.undo_cast()
        return extract.extract(self, name, save_directory, tokenizer, head)

    def add_task(
        self,
        name: str,
        task_type: str = DEFAULT_TASK_TYPE,
        labels: list[str] | None = None,
        forward_transfer: str | list[str] | None = None,
        based_on: str | None = None,
        **options: Any,
    ) -> TaskRecord:
        """Declare a task, to be learned with `EideticTrainer(model, task=name, ...)`.

        Args:
            name: 1 to 64 letters, digits, `-`, `_`, `.`; not starting with a dot. `agnews@2` is a version of `agnews`,
                see `add_version`.
            task_type: the kind of task: `"sequence-classification"`, `"token-classification"`,
                `"question-answering"`, `"multiple-choice"`, `"causal-lm"`, `"seq2seq-lm"`, `"masked-lm"`,
                `"feature-extraction"`, or one of your own (see docs/kinds.md).
            labels: names of the labels in the order of the logits, in the kinds that classify sequences or tokens.
                For regression, names of the targets (`["score"]` by default).
            forward_transfer: which earlier tasks this one reads: `"all"`, `"none"` or names; the model's by default.
            based_on: with `growth="copy"`, the committed task that this one starts from, and whose copies it reads
                where it makes none of its own; the backbone itself by default. `"auto"` for what the data shows to be
                best, which `EideticTrainer` tries in `train()`, see `choose_branch`.
            options: of the kind of task, such as `problem_type`, `pooling`, `head_dropout`, `temperature`,
                `normalize` and `own_output_embeddings`; docs/kinds.md says which kind has which. `None` stands for
                the default.

        Raises:
            TaskError: if the name is malformed or taken, or there are no labels, or an ancestor is unknown, or the
                backbone can not have this kind of task, or the kind has no such option.
        """
        # A list or nothing; anything else is for the kind to refuse.
        given = list(labels) if isinstance(labels, (list, tuple)) else labels or []
        record = TaskRecord(name, task_type, labels=given)
        return life.add_task(self, record, forward_transfer, based_on, options)

    def add_version(
        self,
        task: str,
        labels: list[str] | None = None,
        based_on: str | None = None,
        forward_transfer: str | list[str] | None = None,
        **options: Any,
    ) -> TaskRecord:
        """Declare the next version of a task, such as `agnews@2`, to be learned as any other task.

        The older ones stay exact, and the default version goes on answering to `agnews` (`set_default_version`).

        Args:
            task: the task's own name, such as `agnews`.
            labels: names of the labels, which may be others; by default those of the default version, as its kind.
            based_on: with `growth="copy"`, the task that it starts from; by default the default version.
            forward_transfer: with `growth="fixed"`, which earlier tasks it reads; by default as the model says, and
                the default version.
            options: of the kind of task, over those of the default version.

        Returns:
            The record of the version, with its `name`.

        Raises:
            TaskError: as in `add_task`, and if no version of the task is committed.
        """
        return life.add_task(self, *versions.next_version(self, task, labels, based_on, forward_transfer, options))

    def set_default_version(self, task: str, version: str | int) -> None:
        """Say which version of a task answers where it is asked for by its own name, or the router chooses it.

        Args:
            task: the task's own name, such as `agnews`.
            version: a number, 1 for the first one; or a name, such as `agnews@2`.

        Raises:
            TaskError: if there is no such task, or no such version of it is committed.
        """
        versions.set_default_version(self, task, version)

    def choose_branch(
        self,
        name: str,
        batches: Iterable[Mapping[str, Any]],
        pruning: PruningConfig | None = None,
        nearest: int = 2,
        learning_rate: float = 1e-3,
        margin: float = 0.02,
    ) -> str | None:
        """Choose what a task starts from that was added with `based_on="auto"`, by trying.

        Base, and the committed tasks whose texts are nearest by the router's sums, are each learned on for a step on
        each batch but every fourth, and dropped. The task will start from the one with the lowest loss on the others;
        from base, if none is better by a margin. All else in the model stays as it is. `EideticTrainer` calls it.

        Args:
            name: the task.
            batches: as `forward` takes them, with targets; four at least.
            pruning: how the task will be learned; units and random numbers are chosen accordingly.
            nearest: how many committed tasks are tried.
            learning_rate: of the trials.
            margin: share of base's loss by which another one has to be better.

        Returns:
            The name of the chosen task, or `None` for base.

        Raises:
            TaskError: if the task was added otherwise, or another one is being learned.
            ValueError: if there are fewer than four batches.
        """
        pruning = pruning or PruningConfig()
        return branching.choose_branch(self, name, batches, pruning, nearest, learning_rate, margin)

    def begin_task(self, name: str, pruning: PruningConfig | None = None) -> Learner:
        """Open the pool for a task that was added: from here on the model has Parameters to train.

        `EideticTrainer` calls it. Call it yourself to build an optimizer of your own before training.

        Raises:
            TaskError: if the task is unknown or committed, or another one is being learned, or no unit is free and
                `pruning.on_exhausted` is `"error"`.
        """
        self.undo_cast()  # an evaluation that failed may have left one
        return life.begin_task(self, name, pruning or PruningConfig())

    def abandon_task(self) -> None:
        """Drop the task being learned: every tensor is as it was before it began. The task stays added."""
        life.abandon_task(self)

    def commit_task(
        self, metrics: Mapping[str, float] | None = None, router_sums: RouterSums | None = None
    ) -> TaskRecord:
        """Freeze the task being learned: it takes its kept units out of the pool, for good, and gets its certificate.

        Args:
            metrics: figures for the model card; by default those of the run that trained the task.
            router_sums: what `router_sums` returned for the task's training data. Without them the model answers the
                task only when it is named.

        Raises:
            TaskError: if no task is being learned.
        """
        self.undo_cast()
        record = life.commit_task(self, metrics, router_sums)
        self._set_labels()
        return record

    def preserve(
        self,
        name: str = preserving.BASE_TASK,
        task_type: str | None = None,
        batches: Iterable[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> TaskRecord:
        """With `growth="copy"`, let the backbone itself answer as a task, exact for ever: it copies no unit.

        It may be called at any time, as base never changes.

        Args:
            name: of the task.
            task_type: the kind of task; by default that of the language-model head that the backbone came with, or
                `"feature-extraction"`, where it came without one.
            batches: texts by which the router comes to know the task, as `router_sums` takes them; without them it
                answers only when it is named.
            options: of the kind of task, as in `add_task`.

        Raises:
            TaskError: with `growth="fixed"`, where tasks take the backbone's units; if the name is taken, or a task
                is being learned; if the backbone came without the head that a task of this kind needs.
        """
        self.undo_cast()
        record = preserving.preserve(self, name, task_type, batches, options)
        self._set_labels()
        return record

    def router_sums(self, batches: Iterable[Mapping[str, Any]]) -> RouterSums:
        """What the task being learned leaves behind for the router: one pass over its data, as deep as it reads.

        Args:
            batches: as `forward` takes them, with `labels` if the task has a single label per sequence. Sequences
                without a token or with the label -100 do not count. Each kind of task says which text it is known by:
                all choices of a multiple-choice example together, both texts of a pair of sentences, and of a text to
                be continued the part that carries no label, its prompt, or the text and its beginnings.

        Returns:
            Sums to give to `commit_task`. Those of several processes may be added with `RouterSums.merged`.

        Raises:
            TaskError: if no task is being learned.
            ValueError: if a batch has no labels that the task needs.
        """
        return routing.router_sums(self, batches)

    def choose_units(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """With `growth="copy"`, choose which units the task being learned copies, before it is trained.

        Those whose gates have the largest squared gradients. The trainer and the callback call it.

        Args:
            batches: as `forward` takes them, with targets.

        Raises:
            TaskError: if no task is being learned, or units are not copied.
        """
        life.choose_units(self, batches)

    # -- tasks that come and go -----------------------------------------------------------------------------------

    def remove_task(self, name: str, cascade: bool = False, backbone: Any = None) -> list[str]:
        """Let a committed task go, with all that it owns: nothing of it is in this model or in what it saves.

        Every other task stays as it is, to the last bit. With `growth="fixed"` its units return to the pool at their
        pretrained values. `save_pretrained` to the folder that the task is in deletes its shard there. Not to be
        called while another thread answers.

        Args:
            name: of the task.
            cascade: whether to remove the tasks that read it, too.
            backbone: where the backbone is, for its values: a folder, a Hub id or a loaded model; by default as the
                configuration says. Not needed with `growth="copy"`, nor without a pool.

        Returns:
            Names of the tasks that are gone.

        Raises:
            TaskError: if there is no such task, or others read it, or the backbone can not be had or is another. The
                model is then as it was.
        """
        gone = joining.remove_task(self, name, cascade, backbone)
        self._set_labels()
        return gone

    def load_task(
        self, source: str | os.PathLike | EideticModel, task: str, name: str | None = None, **hub: Any
    ) -> list[str]:
        """Bring a task along out of another checkpoint of the same backbone, with the tasks that it reads.

        It answers as it did there, to the last bit. What this model has already, with the same weights, is shared.
        With `growth="fixed"`, units that both have taken are there twice.

        Args:
            source: a folder, a Hub id, or another model.
            task: its name there.
            name: its name here; the same by default.
            hub: where the repository's files are: `revision`, `token`, `cache_dir`, ...

        Returns:
            Names of the tasks that came, in commit order.

        Raises:
            CheckpointError: if the source is damaged.
            TaskError: if it has no such task, or a name is taken here, or the backbone is another. The model is then
                as it was.
        """
        return self._bring(source, [task], {} if name is None else {task: name}, hub)

    def merge(self, other: str | os.PathLike | EideticModel, prefix: str | None = None, **hub: Any) -> list[str]:
        """Bring all tasks of another model of the same backbone along, see `load_task`.

        Args:
            other: a folder, a Hub id, or another model.
            prefix: put before the names of all tasks that come.
            hub: as in `load_task`.

        Returns:
            Names of the tasks that came, in commit order.

        Raises:
            CheckpointError: if the source is damaged.
            TaskError: if a name is taken here by another task, or the backbone is another. The model is then as it
                was.
        """
        return self._bring(other, None, prefix or "", hub)

    def _bring(self, source: Any, names: list[str] | None, call: Any, hub: dict[str, Any]) -> list[str]:
        check_known("EideticModel.load_task or merge", hub, HUB_ARGUMENTS)
        came = joining.bring(self, joining.shards_of(source, hub), names, call)
        self._set_labels()
        return came

    def expand(self, units: float | int, groups: list[str] | None = None) -> dict[str, int]:
        """Add free units. Their out-projections start at zero; no committed task reads them.

        Args:
            units: how many per group; a fraction below 1 is a share of the group's size (at least one unit).
            groups: names of unit groups such as `layers.2.heads`; all by default.

        Returns:
            The number of units added, by group.

        Raises:
            TaskError: while a task is being learned.
            ValueError: if `units` is not positive or a group does not exist.
        """
        return life.expand(self, units, groups)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Add tokens to the vocabulary, for tasks to come. No committed task sees them: it keeps its vocabulary.

        The next task that reads one of the new tokens, or scores them as a language model, trains the rows of all of
        them, and takes them with it at its commit; later tasks read them there.

        Args:
            new_num_tokens: size of the whole vocabulary, such as `len(tokenizer)`; as it is, if not given.
            pad_to_multiple_of: round it up to a multiple of this.
            mean_resizing: start new rows at the mean of the backbone's own rows; else draw them from a normal
                distribution.

        Returns:
            The input embeddings.

        Raises:
            TaskError: while a task is being learned, or if the model has no pool.
            ValueError: if the vocabulary would shrink.
        """
        total = self.input_rows.total
        size = total if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", multiple)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number above 0.")
        size = -(-size // multiple) * multiple
        embeddings = cast(nn.Embedding, self.get_input_embeddings())
        if size < total:
            raise ValueError(
                f"new_num_tokens={size}: the vocabulary has {total} tokens, and it can only grow, since committed "
                "tasks and the trunk read them. Leave it as it is: tokens that a tokenizer does not have do no harm."
            )
        if size == total:
            return embeddings
        life.grow_vocabulary(self, size, None if mean_resizing else initializer_range(self.backbone.config))
        return embeddings

    def check_architecture(self) -> None:
        """Hold the backbone's own code against what a subnetwork asks of it: to run with fewer units.

        Half of the units of one kind are cut out, and again left in without a weight in the out-projection: the
        outputs have to be equal up to rounding. A declaration that the code does not keep to, for example because it
        counts heads in an attribute, differs here. Derived declarations are checked by `from_backbone`; call it for
        one that you wrote, on pretrained weights.

        Raises:
            ArchitectureError: if they differ.
            TaskError: while a task is being learned.
        """
        if self.learner is not None:
            raise TaskError(f"'{self.learner.name}' is being learned; check the architecture before a task begins.")
        self.network.check_architecture()

    # -- answers --------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        task: str | Sequence[str] | None = None,
        abstain: bool | float = False,
        tasks: Sequence[str] | None = None,
        answer_all: bool = False,
        return_dict: bool | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | RoutedOutput | ModelOutput | tuple[Any, ...]:  # libraries look at the first
        """Run one task's subnetwork, or several, each on its own sequences.

        Without a task, the router chooses one for each sequence; but while a task is being learned, that one runs.

        Args:
            input_ids: token ids, `(batch, sequence)`; for multiple choice `(batch, choices, sequence)`, as all others.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            decoder_input_ids: what an encoder-decoder's decoder reads, `(batch, target sequence)`; made from `labels`,
                or for kinds that do not write text from `input_ids`, if not given.
            decoder_attention_mask: `(batch, target sequence)`.
            pair_input_ids: the other text of a pair of sentences, for feature extraction, `(batch, pair sequence)`.
            pair_attention_mask: `(batch, pair sequence)`.
            pair_token_type_ids: `(batch, pair sequence)`.
            labels: what the loss is computed from, see docs/kinds.md: `(batch,)` int64 for a label per sequence;
                `(batch, labels)` float for multi-label; `(batch,)` or `(batch, targets)` float for regression;
                `(batch, sequence)` int64 for a label or a token per token, -100 where there is none.
            start_positions: first token of the answer to a question, `(batch,)` int64.
            end_positions: last token of the answer to a question, `(batch,)` int64.
            task: name of the task; or a list with the name of a committed task per sequence, all of one kind; or
                `None`, see above.
            abstain: whether the router may answer that a sequence belongs to no task. A number is the share of a
                task's own sequences that may be turned away, `True` stands for 0.05; what
                `router.set_threshold` says of a task goes before.
            tasks: names of the tasks that the router may choose among; all of the kind, if not given.
            answer_all: whether all these tasks answer every sequence, each in its own place of `logits`, and not the
                likeliest alone: for tasks on the same texts, such as topic and sentiment of a review.
            return_dict: `False` for a tuple; as the configuration says by default.
            encoder_outputs: what an encoder-decoder's encoder put out for the same task, in place of `input_ids`.
            past_key_values: cache of the tokens before these, by the same task; newer versions of transformers call
                it `cache`, which is taken, too.
            use_cache: whether to return the cache; as `past_key_values` was given by default.
            logits_to_keep: for how many tokens at the end of each sequence a language model scores the vocabulary, or
                their places; 0 means all.
            num_items_in_batch: rows or tokens with a target in all the batches of an optimizer step, which the
                `Trainer` counts when it accumulates gradients: the losses of these batches then add up to their mean.
            kwargs: further arguments for the backbone, such as `output_hidden_states` or `decoder_inputs_embeds`.

        Returns:
            With one task: what its kind answers (`Kind.output_class`), with the `loss` if there are targets. Else a
            `RoutedOutput`.

        Raises:
            TaskError: if a task is unknown, none is committed, or the list has another length than the batch or names
                tasks of several kinds.
            ValueError: if targets do not fit the task, or are given without one; if a sequence to be routed has no
                token.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "pair_input_ids": pair_input_ids,
            "pair_attention_mask": pair_attention_mask,
            "pair_token_type_ids": pair_token_type_ids,
            "labels": labels,
            "start_positions": start_positions,
            "end_positions": end_positions,
            "encoder_outputs": encoder_outputs,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "num_items_in_batch": num_items_in_batch,
        }
        view = kwargs.pop("view", None)  # of the unpruned network, when it teaches
        answering.check_arguments(self, kwargs, (*given, "task", "abstain", "tasks", "answer_all", "return_dict"))
        output = answering.respond(self, Request.of({**given, **kwargs}), task, abstain, view, tasks, answer_all)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        task: str | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RoutedOutput | ModelOutput | tuple[Any, ...]:
        """Embeddings of texts, whatever other tasks there are; what `SentenceTransformer(folder)` asks for.

        Args:
            input_ids: token ids, `(batch, sequence)`.
            attention_mask: as in `forward`, as the others.
            token_type_ids: `(batch, sequence)`.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`.
            task: name of the task; by default the only one that embeds texts, or the router chooses among those.
            return_dict: as in `forward`.
            kwargs: as in `forward`, such as `output_hidden_states`.

        Returns:
            What `forward` returns, with the embeddings in `pooler_output`, `(batch, hidden)`.

        Raises:
            TaskError: if no task embeds texts, or this one does not.
            TypeError: if nobody takes an argument.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        answering.check_arguments(self, kwargs, (*given, "task", "return_dict"))
        output = answering.embed(self, Request.of({**given, **kwargs}), task)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    @torch.no_grad()
    def route(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        abstain: bool | float = False,
        tasks: Sequence[str] | None = None,
    ) -> RoutedOutput:
        """Say which task each sequence belongs to, of whatever kind, without answering it.

        The trunk runs, and base as deep as `routing` says.

        Args:
            input_ids: token ids, `(batch, sequence)`, or `(batch, choices, sequence)`, as all others: the choices of
                an example are then routed together.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            abstain: as in `forward`.
            tasks: as in `forward`.

        Returns:
            What `forward` returns without a task, but the answer; the scores are over all of `model.tasks`.

        Raises:
            TaskError: if no task is committed, or all of them were committed without router sums.
            ValueError: if a sequence has no token, or `abstain` is no share.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        return routing.route(self, Request.of(given), abstain, tasks)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        task: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Continue prompts, or write a text for each text, with all options of transformers' `generate`.

        It runs in evaluation mode. Without a task, the router chooses one for each prompt among the tasks that write;
        but while a task is being learned, that one writes. A text ends where the backbone's context does.

        Args:
            inputs: the prompts, `(batch, sequence)`; the same as `input_ids`.
            generation_config: as in transformers. What it and `kwargs` leave open is as in `model.generation_config`,
                and special tokens are as they were when the task was committed.
            task: name of the task; or a list with one name for each prompt; or `None`, see above.
            kwargs: as in transformers: `input_ids`, `attention_mask`, `max_new_tokens`, `do_sample`, `num_beams`,
                `streamer`, `stopping_criteria`, ...

        Returns:
            As in transformers. Where a list was given or the router chose, `return_dict_in_generate=True` returns
            `tasks` and `router_scores`, too; in a batch of several tasks, a `RoutedGeneration`.

        Raises:
            TaskError: if a task is unknown, or does not write; if no task does; if the list has another length than
                the batch.
            NotImplementedError: for `cache_implementation="paged"`.
            ValueError: if there is no prompt, or an empty one, or one that fills the context; if something is asked
                for that only one task can give, in a batch of several.
        """
        return generation.generate(self, inputs, generation_config, task, kwargs)

    # -- what transformers' generation asks -----------------------------------------------------------------------

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `forward` is given for the next token: the task, too, which is that of the current view."""
        return generation.prepare_inputs(self, super().prepare_inputs_for_generation(*args, **kwargs))

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        try:
            cast(Any, super())._validate_model_kwargs(model_kwargs)
        except ValueError as error:
            known = [*inspect.signature(self.forward).parameters, *inspect.signature(self.generate).parameters]
            raise ValueError(f"{error}{generation.hint_at_arguments(self, model_kwargs, known)}") from error

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching calls the model without saying for which task."""
        generation.refuse_continuous_batching()

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: tuple[Tensor, ...],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """As in transformers, where every step scores the whole vocabulary; a task may know less of one that grew."""
        scores = generation.in_whole_vocabulary(scores, self.config.vocab_size)
        return cast(Any, super()).compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def create_masks_for_generate(self, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """The masks that go with a static cache: those of the backbone, whose layers may look back less far."""
        create = getattr(self.backbone, "create_masks_for_generate", create_masks_for_generate)
        return create(config=self.backbone.config, **kwargs)

    def _get_static_cache_init_shape(self) -> None:
        return static_cache_shape()

    # -- what a PreTrainedModel derives from Parameters -------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's floating-point tensors."""
        return self.network.dtype

    @property
    def _is_accelerate_prepared(self) -> bool:
        """Never once and for all: the next task has other Parameters, for accelerate to wrap in DDP or autocast."""
        return False

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, value: bool) -> None:
        pass

    @property
    def loss_type(self) -> Any:
        """By which a `Trainer` knows of what is about to be learned that the first token of a row does not count."""
        records = [self.record(self.learner.name)] if self.learner else [added.record for added in self.added.values()]
        return "ForCausalLM" if records and all(kind_of(record).shifts_labels for record in records) else None

    @loss_type.setter
    def loss_type(self, value: str | None) -> None:
        pass

    @property
    def _original_forward(self) -> Any:
        """What accelerate has wrapped in autocast: `forward` as it was before the first wrapping of a run."""
        return self.__dict__.get("_forward_before_autocast")

    @_original_forward.setter
    def _original_forward(self, forward: Any) -> None:
        self.__dict__.setdefault("_forward_before_autocast", forward)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DDP must not broadcast at every step: what is frozen, and is the same on every process."""
        return [name for name, _ in self.named_buffers()]

    def to(self, *args: Any, **kwargs: Any) -> EideticModel:  # type: ignore[override]
        """As in torch. If `casts_are_undone`, `undo_cast` brings the tensors back as they were, to the last bit."""
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        if self.casts_are_undone and dtype not in (None, self.dtype) and self._originals is None:
            self._originals = Originals(self)
        return cast(EideticModel, super().to(*args, **kwargs))

    def undo_cast(self) -> None:
        """Bring the tensors back that were cast since `casts_are_undone` was set; nothing if none was."""
        originals, self._originals = self._originals, None
        if originals is not None:
            originals.restore()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What is being learned; at rest there is none, and `next(model.parameters())` says what to ask instead."""
        return ParametersIfAny(super().parameters(recurse))

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Move or cast the network; what is computed from the configuration keeps its dtype."""
        fixed = fixed_buffers(self.backbone)
        super()._apply(fn, recurse)
        restore_fixed(fixed)
        for rows in (self.input_rows, self.output_rows):
            if not rows.is_packed():  # moved to another device or dtype, piece by piece
                rows.pack()
        self.network.make_views()
        return self

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights: trainable ones while a task is being learned, and all frozen ones."""
        count = super().num_parameters(only_trainable, exclude_embeddings)
        if only_trainable:
            return count
        embeddings = {f"{n}.weight" for n, m in self.named_modules() if isinstance(m, nn.Embedding)}
        for name, buffer in self.named_buffers():
            is_weight = buffer.is_floating_point() and not name.startswith(("probes.", "router.", "learner."))
            if is_weight and not (exclude_embeddings and name in embeddings):
                count += buffer.numel()
        return count

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    @property
    def base_model(self) -> Any:
        """The backbone; for code that calls it by itself, as the task runs it that is being learned or was last."""
        task = answering.meant_task(self)
        return self.backbone if task is None or running_view() is not None else answering.TaskBackbone(self, task)

    def get_output_embeddings(self) -> nn.Module | None:
        """What scores tokens for the task that is being learned or was last, if it is a language model's layer."""
        task = answering.meant_task(self)
        return None if task is None else answering.output_embeddings_of(self, task)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations in the backward pass.

        Always the non-reentrant kind: the reentrant one passes no gradient behind a trunk that has no Parameter.
        """
        gradient_checkpointing_kwargs = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        function = CheckpointWithView(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, every_n_layers)

    # -- saving ---------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state of the task being learned. What belongs to a committed task is compared, never written.

        The Trainer calls it to resume and to restore its best checkpoint.

        Raises:
            CheckpointError: if the state dict holds other values for a committed task.
        """
        result = super().load_state_dict(persistence.to_restore(self, state_dict), strict=strict, assign=False)
        for group in self.network.unit_groups():
            group.forget_learning_views()
        return result

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        include_pool: bool = True,
        include_base: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the checkpoint folder, or leave it as it was. Shards of tasks that it holds already are not touched.

        While a task is being learned, what resuming needs is written beside them, for the Trainer.

        Args:
            save_directory: the folder.
            is_main_process: only the main process writes.
            state_dict: gathered by the Trainer in distributed training.
            push_to_hub: push the folder afterwards, as it is (`repo_id`, by default the folder's name, `token`,
                `merge`, ... as in `push_to_hub`).
            max_shard_size: accepted for compatibility; there is one shard per task, whatever its size.
            include_pool: `False` leaves out what is still free: a smaller release that can only infer.
            include_base: with `growth="copy"`, `False` leaves the backbone out and names it (id, revision, SHA-256):
                a folder of megabytes, which `from_pretrained` loads on the backbone, and which can learn on.
            kwargs: for `push_to_hub`; ignored without it.

        Raises:
            CheckpointError: if the folder holds something that this would lose or change, or a committed task is not
                what it was; or if it is not pushed, while it is saved.
            OSError: if writing failed; the folder's checkpoint is unchanged.
            ConnectionError: if the Hub could not be reached, while the folder is saved.
        """
        check_known("save_pretrained", kwargs, SAVE_ARGUMENTS)
        if not is_main_process:
            return
        folder = Path(save_directory)
        if push_to_hub:
            hub.check_can_be_pushed(self)
        self.undo_cast()
        persistence.save(self, folder, state_dict or self.state_dict(), include_pool, include_base)
        if push_to_hub:
            wish = hub.Push(kwargs.get("repo_id") or folder.resolve().name, **hub.options_among(kwargs))
            try:
                hub.push_saved(self, folder, wish)
            except (CheckpointError, ConnectionError) as error:
                raise type(error)(f"{folder} is saved, but not pushed. {error}") from error

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: bool = True,
        include_pool: bool = True,
        include_base: bool = True,
        merge: bool = False,
        replace: bool = False,
    ) -> CommitInfo:
        """Push the model to a repository on the Hub, in one commit. What is there already is not sent again.

        Nothing that is there is lost: tasks that the model does not have, or another task of the same name, are an
        error, and so is a push that somebody else makes meanwhile; tasks that were removed from the model go.

        Args:
            repo_id: `"owner/name"`; made if it is not there. Without an owner it is yours.
            commit_message: by default the tasks that come and go.
            commit_description: what follows.
            private: whether a repository that is made is private.
            token: by default the environment's (`HF_TOKEN`), or that of `hf auth login`.
            revision: the branch, `main` by default; made if it is not there.
            create_pr: open a pull request instead.
            max_shard_size: accepted for compatibility; there is one shard per task, whatever its size.
            tags: give each task that comes to `main` a tag of its name: `from_pretrained(repo_id, revision="agnews")`
                is the model as of that task.
            include_pool: as in `save_pretrained`.
            include_base: as in `save_pretrained`.
            merge: with `growth="copy"`, push what both have. The model then has the repository's tasks, too, but where
                it was loaded with some tasks alone, or is pushed without pool or backbone.
            replace: let the model take the place of what it lacks.

        Returns:
            The commit; the last one there was, if there was nothing to change.

        Raises:
            CheckpointError: if something would be lost, the repository holds another model or may not be written to,
                or a task is being learned. Nothing was pushed.
            PushConflict: a `CheckpointError`, if somebody else pushed meanwhile. Nothing was pushed: push again.
            ConnectionError: if the Hub could not be reached.
        """
        hub.check_can_be_pushed(self)
        wish = hub.Push(
            repo_id, revision, create_pr, private, token, commit_message, commit_description, merge, replace,
            True if tags is None else tags,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as place:
            self.save_pretrained(place, include_pool=include_pool, include_base=include_base)
            return hub.push_saved(self, Path(place), wish).commit
