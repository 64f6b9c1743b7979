"""`EideticModel`: a pretrained backbone that learns text tasks one after another and never changes a learned one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import SequenceClassifierOutput

from .architectures import (
    ENCODER,
    Architecture,
    ArchitectureError,
    architecture_of,
    choose_trunk,
    find,
    is_declared,
    layers_of,
    leftovers,
    output_size,
)
from .certificate import (
    TaskVerification,
    VerificationReport,
    compare_logits,
    digest_of_digests,
    environment,
    probe_inputs,
    tensor_digests,
)
from .checkpoint import TRUNK, CheckpointError, owner_of, read_config, read_tensors, write_checkpoint
from .configuration import EideticConfig, TaskError, TaskRecord, check_task_name
from .layers import (
    LEARNING,
    POOL,
    Segment,
    SequenceClassificationHead,
    Slots,
    TaskLinear,
    TaskNorm,
    UnitGroup,
    View,
    current_view,
    freeze,
    task_key,
    thaw,
    use_view,
)
from .pruning import KINDS, Learner, PruningConfig
from .router import REFERENCE_SEED, REFERENCE_SHAPE, Router, RouterSums
from .trunk import TrunkPass, join_states, mean_pool, record, replay, share_trunk
from .wiring import base_model, cut_error, fixed_buffers, join_tied, refresh_buffers, replace_module, wire_stack

# Arguments of `from_pretrained` that say where a repository's files are.
_HUB_ARGUMENTS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "user_agent",
    "_commit_hash",
)  # fmt: skip
# Further arguments that transformers' factories pass, and that have nothing to decide here.
_FACTORY_ARGUMENTS = (
    "_from_auto", "_from_pipeline", "adapter_kwargs", "low_cpu_mem_usage", "output_loading_info", "trust_remote_code",
    "use_safetensors", "weights_only", "code_revision", "tqdm_class", "_adapter_model_path",
)  # fmt: skip


_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

ABSTAIN_SHARE = 0.05  # of a task's own sequences that abstain=True may turn away

# Products over fewer tokens than this round differently than over more: such small groups run the trunk themselves.
_SMALL_PRODUCT = 64

# Modules whose tensors a checkpoint brings along, in shapes of their own.
_WITHOUT_ROOM = ("probes.", "router.")


class EideticModel(PreTrainedModel):
    """One backbone, many tasks.

    Invariant: after `commit_task(t)`, nothing changes a tensor that task t's output reads.

    Make one with `from_backbone` or `from_pretrained`. At rest it has no Parameter at all: every tensor is a buffer,
    out of any optimizer's reach. While a task is being learned, the working copy of the pool, the task's private
    parameters and its head are Parameters, and nothing else.

    Args:
        config: an `EideticConfig`.
        backbone: the base model to take over, with its weights; made from `config.base_config` if not given.
        empty: leave out what only moves values, for a model that a checkpoint is about to fill.
    """

    config_class = EideticConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # The Trainer then divides by the accumulation steps itself, as the loss here is a mean.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EideticConfig, backbone: PreTrainedModel | None = None, empty: bool = False) -> None:
        super().__init__(config)
        architecture = architecture_of(config.base_config)
        if backbone is None:
            backbone = AutoModel.from_config(config.base_config)
        layers = layers_of(architecture, backbone)
        for path in architecture.unused:
            replace_module(backbone, path, None)
        self.backbone = backbone
        self.groups = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.probes = nn.ModuleDict()
        self.router = Router()
        self.learner: Learner | None = None
        self._pending: dict[str, TaskRecord] = {}
        self._transfer: dict[str, str | list[str]] = {}
        self._thawed: dict[str, Tensor] | None = None
        self._backbone_arguments = set(inspect.signature(backbone.forward).parameters)
        self._has_decoder = architecture.decoder is not None
        self._wire(architecture, layers)
        # Somebody may hold the Parameters of a backbone that was given, an optimizer for example: then copy them.
        freeze(self.backbone, copy=not empty)
        for name, n_units in config.expanded.items():
            cast(UnitGroup, self.groups[_module_name(name)]).expand(n_units, 0.0)
        norms = self._norms()
        for task in config.tasks:
            self._rebuild(task, norms)
        self._resize_pool()
        if not empty:
            self.pack()
        self.post_init()
        self.eval()

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
        **kwargs: Any,
    ) -> EideticModel:
        """Start from a pretrained model, with no task learned yet.

        Args:
            backbone: a folder, a Hub id, or a loaded model, whose modules are taken over; or a configuration, for a
                random backbone whose trunk the first task trains.
            trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
            forward_transfer: which earlier tasks a new task reads: `"all"`, `"none"` or a list of names.
            kwargs: further arguments for `AutoModel.from_pretrained`, such as `revision` or `attn_implementation`.

        Raises:
            ArchitectureError: if the backbone's architecture is not declared.
            ValueError: if `trunk_layers` is out of range or `forward_transfer` is not understood.
        """
        pretrained = not isinstance(backbone, PreTrainedConfig)
        if isinstance(backbone, PreTrainedModel):
            architecture_of(backbone.config)
            model = base_model(backbone)
        elif isinstance(backbone, PreTrainedConfig):
            architecture_of(backbone)
            model = AutoModel.from_config(backbone, **kwargs)
        else:
            config = AutoConfig.from_pretrained(backbone, **_hub_arguments(kwargs))
            if isinstance(config, EideticConfig):
                raise ValueError(f"{backbone} is an EideticModel already. Load it with EideticModel.from_pretrained.")
            architecture_of(config)
            kwargs.setdefault("dtype", torch.float32)
            model = AutoModel.from_pretrained(backbone, **kwargs)
        architecture = architecture_of(model.config)
        trunk_layers = choose_trunk(architecture, len(layers_of(architecture, model)), trunk_layers)
        config = EideticConfig(
            base_config=model.config,
            trunk_layers=trunk_layers,
            trunk_pretrained=pretrained,
            forward_transfer=forward_transfer,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
        _check_transfer(forward_transfer)
        eidetic = cls(config, backbone=model)
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
            device_map: a device, such as `"cuda"`.
            attn_implementation: as in transformers.
            kwargs: where the repository's files are: `revision`, `cache_dir`, `token`, `subfolder`, ...

        Raises:
            CheckpointError: if the folder is no release, or a file is missing, damaged or not what was saved.
            TaskError: if `tasks` names a task that the checkpoint does not have.
        """
        if model_args:
            raise TypeError(f"EideticModel.from_pretrained takes no further positional arguments, got {model_args!r}.")
        unknown = sorted(set(kwargs) - set(_HUB_ARGUMENTS) - set(_FACTORY_ARGUMENTS))
        if unknown:
            raise TypeError(
                f"EideticModel.from_pretrained got {unknown[0]!r}, which it does not know; it takes config, tasks, "
                f"dtype, device_map, attn_implementation and {', '.join(_HUB_ARGUMENTS[:-1])}."
            )
        hub = _hub_arguments(kwargs)
        own_config = read_config(pretrained_model_name_or_path, hub)
        if attn_implementation is None and config is not None:
            attn_implementation = config._attn_implementation
        if tasks is None and config is not None and any(isinstance(task, str) for task in config.tasks):
            tasks = cast(list[str], config.tasks)  # AutoModel.from_pretrained(..., tasks=[...]) puts them here
        if tasks is not None:
            _restrict(own_config, tasks)
        elif config is not None and config.served is not None:
            _restrict(own_config, config.served)
        if attn_implementation is not None:
            own_config.base_config._attn_implementation = attn_implementation
        with ThreadPoolExecutor(1) as pool:  # the shards are read and hashed while the modules are made
            tensors = pool.submit(read_tensors, pretrained_model_name_or_path, own_config, hub)
            try:
                with no_init_weights():
                    model = cls(own_config, empty=True)
            except Exception:
                tensors.result()  # Damage in the files is the better explanation.
                raise
        model._fill(tensors.result())
        model.config.name_or_path = str(pretrained_model_name_or_path)
        if dtype is not None and dtype != "auto":
            cast(nn.Module, model).to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        if device_map is not None:
            if isinstance(device_map, Mapping) and set(device_map) == {""}:
                device_map = device_map[""]
            if device_map == "auto":
                device_map = "cuda" if torch.cuda.is_available() else "cpu"
            model.to(device_map)
        if kwargs.get("output_loading_info"):
            info: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
            return model, info  # type: ignore[return-value]
        return model

    def _wire(self, architecture: Architecture, layers: nn.ModuleList) -> None:
        """Put the task layers in place of the backbone's above the trunk."""
        join_tied(self.backbone)
        refresh_buffers(self.backbone)
        unowned: list[str] = []
        for prefix, stack in architecture.stacks.items():
            stacked = cast(nn.ModuleList, self.backbone.get_submodule(stack.layers))
            first = self.config.trunk_layers if prefix == ENCODER else 0
            for group in wire_stack(prefix, stack, stacked, first, self.backbone.config):
                self.groups[_module_name(group.name)] = group
            for index in range(first, len(stacked)):
                unowned += [f"{stack.layers}.{index}.{name}" for name in leftovers(architecture, stacked[index])]
        if unowned:
            raise ArchitectureError(
                f"The declaration of '{architecture.model_type}' leaves parameters above the trunk that no task owns: "
                f"{unowned[:5]}. Every projection and every norm there has to be declared; what is to stay at its "
                "pretrained values for every task is declared as shared."
            )
        for path in architecture.final_norms:
            norm = find(self.backbone, path)
            if norm is not None:
                replace_module(self.backbone, path, TaskNorm(norm))
        embeddings = self.backbone.get_submodule(architecture.embeddings) if architecture.embeddings else None
        trunk, above_trunk = layers[: self.config.trunk_layers], layers[self.config.trunk_layers]
        share_trunk(embeddings, list(trunk), above_trunk)

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
        ids = torch.arange(16, device=self.device).reshape(2, 8) % self.backbone.config.vocab_size

        def run() -> Tensor:
            return self._run(View(LEARNING), {"input_ids": ids}).last_hidden_state

        groups, norms = self._groups(), self._norms()
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.2
        with torch.no_grad(), self._in_eval_mode():
            for kind in KINDS:
                error = cut_error([group for group in groups if group.kind == kind], groups, norms, run)
                if error > tolerance:
                    raise ArchitectureError(
                        f"A '{self.backbone.config.model_type}' backbone does not run right with fewer {kind}: its "
                        f"output is off by {error:.2g} times what cutting half of them makes. Its code counts {kind} "
                        "or lays them out in another way than declared; see docs/architectures.md (counts, Fused)."
                    )

    def _rebuild(self, task: TaskRecord, norms: list[TaskNorm]) -> None:
        """Make room for a committed task's tensors."""
        key, ancestors = task_key(task.name), [task_key(name) for name in task.ancestors]
        for group in self._groups():
            group.rebuild(key, ancestors, task.units[group.name])
        for norm in norms:
            norm.rebuild(key)
        self.heads[key] = freeze(self._new_head(task))
        self.probes[key] = Slots()
        self.router.make_room(task.name)

    def _resize_pool(self) -> None:
        """Take the units that tasks own out of the pool's place, before a checkpoint fills both."""
        for group in self._groups():
            owned = sum(group.count(key) for key in group.order)
            if owned or not self.config.pool:
                group.resize_pool(group.count(POOL) - owned if self.config.pool else 0)

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        """Take over a checkpoint's tensors, each in fresh, aligned memory."""
        modules = dict(self.named_modules())
        expected = {name for name in self.state_dict() if self.config.pool or owner_of(name) != POOL}
        for name in sorted(tensors):
            module_name, _, leaf = name.rpartition(".")
            module = modules.get(module_name)
            if module is None or (leaf not in module._buffers and not module_name.startswith(_WITHOUT_ROOM)):
                raise CheckpointError(f"The checkpoint holds {name}, for which config.json leaves no place.")
            old = module._buffers.get(leaf)
            if old is not None and old.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{name} has the shape {tuple(tensors[name].shape)}, config.json expects {tuple(old.shape)}."
                )
            # The copy matters: a product over unaligned data may round differently. `pack` copies segments, and an
            # embedding is only looked up.
            tensor = tensors.pop(name)
            module._buffers[leaf] = tensor if isinstance(module, (Segment, nn.Embedding)) else tensor.clone()
            expected.discard(name)
        missing = sorted(expected)
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} tensors that config.json expects: {missing[:3]}."
            )
        self.pack()

    def pack(self) -> None:
        """Lay every projection's segments into one aligned tensor each."""
        for module in self.modules():
            if isinstance(module, TaskLinear):
                module.pack()

    def _groups(self) -> list[UnitGroup]:
        return cast(list[UnitGroup], list(self.groups.values()))

    def _norms(self) -> list[TaskNorm]:
        return [module for module in self.backbone.modules() if isinstance(module, TaskNorm)]

    def _new_head(self, task: TaskRecord) -> SequenceClassificationHead:
        config = self.backbone.config
        std = getattr(config, "initializer_range", 0.02)
        head = SequenceClassificationHead(output_size(config), len(task.labels), task.pooling, task.head_dropout, std)
        return head.to(device=self.device, dtype=self.dtype)

    # -- what a PreTrainedModel derives from Parameters -------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return next(self.buffers()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's floating-point tensors."""
        return next(
            buffer.dtype
            for module in self.backbone.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set
        )

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """Move or cast the network; what is computed from the configuration keeps its dtype."""
        fixed = fixed_buffers(self.backbone)
        super()._apply(fn, recurse)
        for module, name, buffer in fixed:
            module._buffers[name] = buffer.to(cast(Tensor, module._buffers[name]).device)
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
        function = _CheckpointWithView(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, every_n_layers)

    # -- tasks ----------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """Names of the committed tasks that the model answers for, in commit order."""
        return [task.name for task in self.config.tasks if self.config.serves(task.name)]

    @property
    def learning(self) -> str | None:
        """Name of the task that is being learned."""
        return self.learner.name if self.learner is not None else None

    def record(self, name: str) -> TaskRecord:
        """What is known of a task, committed or only added.

        Raises:
            TaskError: if there is no task of this name.
        """
        for task in [*self.config.tasks, *self._pending.values()]:
            if task.name == name:
                return task
        raise TaskError(
            f"There is no task '{name}'; committed are {self.tasks}, added {list(self._pending)}. Add it with "
            f"model.add_task({name!r}, labels=[...])."
        )

    def is_committed(self, name: str) -> bool:
        """Whether a task has been learned."""
        return any(task.name == name for task in self.config.tasks)

    def add_task(
        self,
        name: str,
        task_type: str = "sequence-classification",
        labels: list[str] | None = None,
        problem_type: str = "single_label_classification",
        forward_transfer: str | list[str] | None = None,
        pooling: str = "mean",
        head_dropout: float = 0.1,
    ) -> TaskRecord:
        """Declare a task, to be learned with `EideticTrainer(model, task=name, ...)`.

        Args:
            name: 1 to 64 letters, digits, `-`, `_`, `.`; not starting with a dot.
            task_type: `"sequence-classification"`.
            labels: names of the labels in the order of the logits. For regression, names of the targets
                (`["score"]` by default).
            problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
            forward_transfer: which earlier tasks this one reads: `"all"`, `"none"` or names; the model's by default.
            pooling: `"mean"` over real tokens or `"first"`.
            head_dropout: dropout probability before the classifier.

        Raises:
            TaskError: if the name is malformed or taken, or there are no labels, or an ancestor is unknown.
        """
        check_task_name(name)
        if any(task.name == name for task in [*self.config.tasks, *self._pending.values()]):
            state = "committed" if self.is_committed(name) else "added"
            raise TaskError(f"There is a task '{name}' already ({state}). Choose another name.")
        if not self.config.pool:
            raise TaskError(
                "This model has no pool: it was released for inference only, or loaded with tasks=[...]. Load the "
                "whole checkpoint to learn a new task."
            )
        if problem_type == "regression" and not labels:
            labels = ["score"]
        transfer = self.config.forward_transfer if forward_transfer is None else forward_transfer
        _check_transfer(transfer)
        for ancestor in transfer if isinstance(transfer, list) else []:
            if forward_transfer is not None and not self.is_committed(ancestor):
                raise TaskError(
                    f"forward_transfer names '{ancestor}', which is not committed; committed are {self.tasks}."
                )
        record = TaskRecord(
            name=name,
            task_type=task_type,
            problem_type=problem_type,
            labels=list(labels) if isinstance(labels, (list, tuple)) else labels or [],
            pooling=pooling,
            head_dropout=head_dropout,
        )
        self._pending[name] = record
        self._transfer[name] = transfer
        return record

    def begin_task(self, name: str, pruning: PruningConfig | None = None) -> Learner:
        """Open the pool for a task that was added: from here on the model has Parameters to train.

        `EideticTrainer` calls it. Call it yourself to build an optimizer of your own before training.

        Raises:
            TaskError: if the task is unknown or committed, or another one is being learned, or no unit is free and
                `pruning.on_exhausted` is `"error"`.
        """
        pruning = pruning or PruningConfig()
        record = self.record(name)
        if self.is_committed(name):
            raise TaskError(f"The task '{name}' is committed: it will never change. Add a task of another name.")
        if self.learner is not None:
            raise TaskError(
                f"'{self.learner.name}' is being learned. Finish it, or drop it with model.abandon_task(), before "
                f"'{name}' begins."
            )
        exhausted = [group for group in self._groups() if group.count(POOL) == 0]
        if exhausted and pruning.on_exhausted == "error":
            raise TaskError(
                f"No unit is free in {len(exhausted)} of {len(self.groups)} groups ({exhausted[0].name}, ...). Learn "
                "earlier tasks with a smaller PruningConfig.keep, or use on_exhausted='private' or 'expand'."
            )
        expanded = {}
        if exhausted and pruning.on_exhausted == "expand":
            expanded = self.expand(pruning.expand_by, [group.name for group in exhausted])
        transfer = self._transfer[name]
        committed = [task.name for task in self.config.tasks]
        if transfer == "all":
            record.ancestors = committed
        else:
            record.ancestors = (
                [] if transfer == "none" else [ancestor for ancestor in committed if ancestor in transfer]
            )
        ancestors = [task_key(ancestor) for ancestor in record.ancestors]
        self.learner = Learner(name, pruning, self._groups(), self)
        self.learner.expanded = expanded
        try:
            if not self.config.trunk_pretrained and not self.config.tasks:
                self._thaw_trunk()
            for group in self._groups():
                group.begin(ancestors)
            for norm in self._norms():
                norm.begin()
            self.heads[LEARNING] = self._new_head(record)
        except BaseException:
            self.abandon_task()
            raise
        return self.learner

    def _trunk_modules(self) -> Iterator[nn.Module]:
        for name, module in self.backbone.named_modules():
            if module._buffers and not any(owner_of(f"{name}.{leaf}") != TRUNK for leaf in module._buffers):
                yield module

    def _thaw_trunk(self) -> None:
        """Make the trunk of a random backbone trainable for the first task, which will own it."""
        self._thawed = {n: t.detach().clone() for n, t in self.backbone.state_dict().items() if owner_of(n) == TRUNK}
        for module in self._trunk_modules():
            _convert_own(module, thaw)

    def _freeze_trunk(self, restore: bool) -> None:
        if self._thawed is None:
            return
        modules = dict(self.backbone.named_modules())
        for name, before in self._thawed.items():
            module_name, _, leaf = name.rpartition(".")
            module = modules[module_name]
            parameter = module._parameters.pop(leaf, None)
            if parameter is not None:
                module.register_buffer(leaf, before if restore else parameter.detach().clone())
        self._thawed = None

    def abandon_task(self) -> None:
        """Drop the task being learned: every tensor is as it was before it began. The task stays added."""
        if self.learner is None:
            return
        self._freeze_trunk(restore=True)
        self._forget_reference()
        expanded = self.learner.expanded
        self._end_learning()
        for group in self._groups():
            if group.name in expanded:
                group.shrink(expanded[group.name])
                self.config.expanded[group.name] -= expanded[group.name]

    def _forget_reference(self) -> None:
        """Let the next commit look at the trunk again, as long as no committed task depends on it."""
        if not self.config.tasks:
            self.router.clear_reference()

    def _end_learning(self) -> None:
        for group in self._groups():
            group.end()
        for norm in self._norms():
            norm.end()
        if LEARNING in self.heads:
            del self.heads[LEARNING]
        self.learner = None

    def commit_task(
        self, metrics: Mapping[str, float] | None = None, router_sums: RouterSums | None = None
    ) -> TaskRecord:
        """Freeze the task being learned: it takes its kept units out of the pool, for good, and gets its certificate.

        Args:
            metrics: figures for the model card.
            router_sums: what `router_sums` returned for the task's training data. Without them the model answers the
                task only when it is named.

        Raises:
            TaskError: if no task is being learned.
        """
        if self.learner is None:
            raise TaskError("No task is being learned; begin one with model.begin_task(name) or EideticTrainer.")
        self.learner.finish()
        record = self.record(self.learner.name)
        key = task_key(record.name)
        recycle_std = None
        if self.learner.config.recycle == "random":
            recycle_std = getattr(self.backbone.config, "initializer_range", 0.02)
        undo: list[tuple[UnitGroup, Any]] = []
        trunk_before = self._thawed
        try:
            for group in self._groups():
                undo.append((group, group.snapshot()))
                group.commit(key, recycle_std)
            for norm in self._norms():
                norm.commit(key)
            self.heads[key] = freeze(deepcopy(self.heads[LEARNING]))
            self._freeze_trunk(restore=False)
            record.units = {group.name: group.count(key) for group in self._groups()}
            record.metrics = dict(metrics or {})
            self.config.tasks.append(record)
            if router_sums is not None:
                self.router.put(record.name, router_sums)
            self._certify(record)
        except BaseException:
            for group, state in undo:
                group.undo_commit(key, state)
            for norm in self._norms():
                norm.tasks.pop(key) if key in norm.tasks else None
            for modules in (self.heads, self.probes):
                modules.pop(key) if key in modules else None
            self.config.tasks = [task for task in self.config.tasks if task is not record]
            record.units, record.certificate, record.metrics = {}, {}, {}
            self.router.remove(record.name)
            self._forget_reference()
            self._freeze_trunk(restore=True)
            if trunk_before is not None:
                self._restore_trunk(trunk_before)
            self._end_learning()
            raise
        del self._pending[record.name]
        self._end_learning()
        self.config.set_labels()
        self.num_labels = self.config.num_labels
        return record

    @torch.no_grad()
    def router_sums(self, batches: Iterable[Mapping[str, Any]]) -> RouterSums:
        """What the task being learned leaves behind for the router: one pass over its data through the trunk.

        Args:
            batches: as `forward` takes them, with `labels` if the task has a single label. Sequences without a token
                or with the label -100 do not count.

        Returns:
            Sums to give to `commit_task`. Those of several processes may be added with `RouterSums.merged`.

        Raises:
            TaskError: if no task is being learned.
            ValueError: if a batch has no labels that the task needs.
        """
        if self.learner is None:
            raise TaskError("No task is being learned; its sums are taken before its commit.")
        task = self.record(self.learner.name)
        by_label = task.problem_type == "single_label_classification"
        with self._in_eval_mode(), torch.autocast(self.device.type, enabled=False):
            if not self.router.is_ready:
                self._set_reference()
            sums = RouterSums.zeros(len(task.labels) if by_label else 1, self.router.n_features)
            for batch in batches:
                inputs = {name: batch[name].to(self.device) for name in _MODEL_INPUTS if batch.get(name) is not None}
                features = self.router.features(mean_pool(self._trunk(inputs).states, inputs.get("attention_mask")))
                labels = torch.zeros(len(features), dtype=torch.long)
                if by_label:
                    if batch.get("labels") is None:
                        raise ValueError(f"Task '{task.name}': a batch has no 'labels', only {sorted(batch)}.")
                    labels = batch["labels"].cpu().long()
                counted = labels >= 0
                if "attention_mask" in inputs:
                    counted &= inputs["attention_mask"].cpu().sum(1) > 0
                sums.add(features.cpu()[counted], labels[counted])
        return sums

    def _trunk(self, inputs: Mapping[str, Any]) -> TrunkPass:
        """Run the trunk alone."""
        with record() as trunk:
            self._run(View(LEARNING), inputs)
        return trunk

    def _set_reference(self) -> None:
        """Look at random tokens, which stand for no task, to fix how the router scales its features."""
        generator = torch.Generator().manual_seed(REFERENCE_SEED)
        ids = torch.randint(0, self.backbone.config.vocab_size, REFERENCE_SHAPE, generator=generator).to(self.device)
        states = self._trunk({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).states
        self.router.set_reference(join_states(states).flatten(0, 1))

    def _restore_trunk(self, before: dict[str, Tensor]) -> None:
        modules = dict(self.backbone.named_modules())
        for name, tensor in before.items():
            module_name, _, leaf = name.rpartition(".")
            modules[module_name]._buffers[leaf] = tensor

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
        if self.learner is not None:
            raise TaskError(f"'{self.learner.name}' is being learned; expand the pool before a task begins.")
        if not units > 0:
            raise ValueError(f"units={units!r}: expected a number above 0.")
        known = {group.name: group for group in self._groups()}
        unknown = [name for name in groups or [] if name not in known]
        if unknown:
            raise ValueError(f"There is no unit group {unknown[0]!r}; there are {list(known)}.")
        std = getattr(self.backbone.config, "initializer_range", 0.02)
        added = {}
        for name in known if groups is None else groups:
            added[name] = max(round(units * known[name].total), 1) if units < 1 else int(units)
            known[name].expand(added[name], std)
            self.config.expanded[name] = self.config.expanded.get(name, 0) + added[name]
        return added

    def capacity(self) -> dict[str, Any]:
        """How the units are shared out.

        Returns:
            `total` and `free` numbers of units, `free_share`, `free_share_by_kind` (heads, neurons), `owned` per task,
            and `groups`: per unit group, the units of each task and of `"free"`.
        """
        names = [task.name for task in self.config.tasks]
        groups = {
            group.name: {**{name: group.count(task_key(name)) for name in names}, "free": group.count(POOL)}
            for group in self._groups()
        }
        by_kind = {}
        for kind in ("heads", "neurons"):
            rows = [row for name, row in groups.items() if name.endswith(kind)]
            by_kind[kind] = sum(row["free"] for row in rows) / max(sum(sum(row.values()) for row in rows), 1)
        total = sum(sum(row.values()) for row in groups.values())
        free = sum(row["free"] for row in groups.values())
        return {
            "total": total,
            "free": free,
            "free_share": free / max(total, 1),
            "free_share_by_kind": by_kind,
            "owned": {name: sum(row[name] for row in groups.values()) for name in names},
            "groups": groups,
        }

    # -- the guarantee --------------------------------------------------------------------------------------------

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """The closed set: every tensor that a committed task's output reads, by its name in the state dict.

        All others may hold anything, NaN included, and the task's logits stay the same bit for bit.

        Raises:
            TaskError: if the task is not committed.
        """
        record = self.record(name)
        if not self.is_committed(name):
            raise TaskError(f"The task '{name}' is not committed yet: its tensors still change.")
        own = task_key(name)
        inherited = {task_key(ancestor) for ancestor in record.ancestors}
        tensors = {}
        for tensor_name, tensor in self.state_dict(keep_vars=True).items():
            owner = owner_of(tensor_name)
            if tensor_name.startswith(_WITHOUT_ROOM) or ".units." in tensor_name:
                continue
            if owner in (TRUNK, own) or (owner in inherited and ".segments." in tensor_name):
                tensors[tensor_name] = tensor
        return tensors

    @torch.no_grad()
    def _probe_logits(self, inputs: Mapping[str, Tensor], name: str) -> Tensor:
        with self._in_eval_mode(), torch.autocast(self.device.type, enabled=False):
            batch = {key: value.to(self.device) for key, value in inputs.items()}
            return self._logits(View(task_key(name)), batch).cpu()

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def _certify(self, record: TaskRecord) -> None:
        """Store digests of the closed set and the logits of the probe batch."""
        probe = Slots()
        inputs = probe_inputs(record.name, self.backbone.config.vocab_size)
        digests = tensor_digests(self.task_tensors(record.name))
        logits = self._probe_logits(inputs, record.name)
        for slot, value in {**inputs, "logits": logits, "digests": digests}.items():
            probe.put(slot, value.to(self.device))
        self.probes[task_key(record.name)] = probe
        record.certificate = {
            "weights_sha256": digest_of_digests(digests),
            "logits_sha256": digest_of_digests(tensor_digests({"logits": logits})),
            "environment": environment(self.device, self.dtype, self.backbone.config._attn_implementation),
        }

    def verify(self, tasks: list[str] | None = None) -> VerificationReport:
        """Recompute every certificate: has any committed task changed?

        Returns:
            A report that is true in a condition if nothing has, and names the first tensor that differs otherwise.
        """
        cache: dict[str, bytes] = {}
        return VerificationReport([self._verify_task(self.record(name), cache) for name in tasks or self.tasks])

    def _verify_task(self, record: TaskRecord, cache: dict[str, bytes]) -> TaskVerification:
        probe = cast(Slots, self.probes[task_key(record.name)])
        tensors = self.task_tensors(record.name)
        now, then = tensor_digests(tensors, cache), probe.need("digests").cpu()
        first = None
        if now.shape != then.shape:
            first = f"(the closed set has {len(now)} tensors, at commit it had {len(then)})"
        elif not torch.equal(now, then):
            first = sorted(tensors)[int((now != then).any(1).nonzero()[0])]
        elif digest_of_digests(then) != record.certificate["weights_sha256"]:
            first = "(the stored digests differ from config.json)"
        elif (
            digest_of_digests(tensor_digests({"logits": probe.need("logits")})) != record.certificate["logits_sha256"]
        ):
            first = f"probes.{task_key(record.name)}.logits"
        before = record.certificate["environment"]
        after = environment(self.device, self.dtype, self.backbone.config._attn_implementation)
        changes = {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}
        inputs = {name: probe.need(name) for name in ("input_ids", "attention_mask")}
        logits = self._probe_logits(inputs, record.name)
        match, difference = compare_logits(probe.need("logits"), logits, not changes)
        digest = record.certificate["weights_sha256"]
        return TaskVerification(record.name, first is None, match, first, changes, difference, digest)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the state of the task being learned. What belongs to a committed task is compared, never written.

        The Trainer calls it to resume and to restore its best checkpoint.

        Raises:
            CheckpointError: if the state dict holds other values for a committed task.
        """
        state_dict = dict(state_dict)
        own = self.state_dict(keep_vars=True)
        fixed = {task_key(task.name) for task in self.config.tasks} | ({TRUNK} if self._thawed is None else set())
        for name in list(state_dict):
            if owner_of(name) not in fixed:
                continue
            if name not in own or not torch.equal(own[name].cpu(), state_dict[name].cpu()):
                raise CheckpointError(
                    f"The state to load has another {name} than this model, and it is frozen. The checkpoint belongs "
                    "to another model; load the one that it was made from."
                )
            state_dict[name] = own[name]
        if self.learner is not None:
            prefix = "learner."
            names = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
            self.learner.make_room(names, lambda name: torch.empty_like(state_dict[prefix + name], device=self.device))
        result = super().load_state_dict(state_dict, strict=strict, assign=False)
        for group in self._groups():
            group.forget_views()
        return result

    # -- forward --------------------------------------------------------------------------------------------------

    def _resolve_task(self, task: str | None) -> str:
        """The task that a forward pass is for: the one given, the one being learned, or the only one."""
        if task is None:
            if self.learner is not None:
                return self.learner.name
            if not self.tasks:
                raise TaskError("No task is committed, so there is nothing to answer. Learn one with EideticTrainer.")
            return self.tasks[0]
        if not isinstance(task, str):
            raise TaskError(
                f"task={task!r}: expected the name of a task, a list with one name per sequence, or nothing, to let "
                f"the router choose. Committed are {self.tasks}."
            )
        if task in self.tasks or task == self.learning:
            return task
        if task in self._pending:
            raise TaskError(f"The task '{task}' has been added, but not learned. Train it with EideticTrainer.")
        raise TaskError(f"There is no task '{task}'. Committed are {self.tasks}.")

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        task: str | Sequence[str] | None = None,
        abstain: bool | float = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Run one task's subnetwork, or several, each on its own sequences.

        Without a task, the router chooses one for each sequence; but while a task is being learned, that one runs.

        Args:
            input_ids: token ids, `(batch, sequence)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            labels: `(batch,)` int64; `(batch, labels)` float for multi-label; `(batch,)` or `(batch, targets)` float
                for regression.
            task: name of the task; or a list with the name of a committed task per sequence; or `None`, see above.
            abstain: whether the router may answer that a sequence belongs to no task. A number is the share of a
                task's own sequences that may be turned away, `True` stands for 0.05.
            return_dict: `False` for a tuple; as the configuration says by default.
            kwargs: further arguments for the backbone, such as `output_hidden_states`.

        Returns:
            With one task: `loss` (if labels are given) and `logits`, `(batch, labels)`. Else a `RoutedOutput`, whose
            logits are over the labels of all tasks, `config.id2label`.

        Raises:
            TaskError: if a task is unknown, none is committed, or the list has another length than the batch.
            ValueError: if labels do not fit the task, or are given without one; if a sequence to be routed has no
                token.
        """
        view = kwargs.pop("view", None)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        use_dict = self.config.return_dict if return_dict is None else return_dict
        is_routed = task is None and view is None and self.learner is None and (len(self.tasks) > 1 or abstain)
        if is_routed or isinstance(task, (list, tuple)):
            if labels is not None:
                raise ValueError("Labels were given, but no single task that they belong to. Pass task='<name>'.")
            routed = self._answer_each(task, abstain, inputs, **kwargs)
            return routed if use_dict else routed.to_tuple()
        if abstain and view is None:
            raise ValueError(
                "abstain lets the router turn sequences away, but here it does not choose: leave out task=, and wait "
                "until no task is being learned."
            )
        if view is None:
            name = self._resolve_task(cast(str | None, task))
            view = self._view(name, attention_mask)
        else:
            assert self.learner is not None
            name = self.learner.name
        output = self._run(view, inputs, **kwargs)
        logits = self._head(view, output.last_hidden_state, attention_mask)
        loss = None
        if labels is not None:
            loss = task_loss(self.record(name), logits, labels)
            if view.key == LEARNING and self.training:
                loss = self._distil(loss, logits, name, {**inputs, **kwargs})
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return result if use_dict else result.to_tuple()

    def _answer_each(
        self, tasks: Sequence[str] | None, abstain: bool | float, inputs: Mapping[str, Tensor | None], **kwargs: Any
    ) -> RoutedOutput:
        """Run each sequence's task on it, the one given or the one that the router chooses; the trunk runs once."""
        wanted = [name for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)]
        if wanted:
            raise ValueError(
                f"{wanted[0]}=True with several tasks in a batch: their subnetworks have different shapes. Pass "
                "task='<name>' for one of them."
            )
        given = {name: value for name, value in inputs.items() if value is not None}
        batch = _batch_size(given)
        _check_share(abstain)
        if tasks is not None:
            if abstain:
                raise ValueError("abstain lets the router turn sequences away, but the tasks were given.")
            tasks = [self._check_listed(name) for name in tasks]
            if len(tasks) != batch:
                raise TaskError(
                    f"task= has {len(tasks)} names for a batch of {batch} sequences; expected one for each."
                )
        elif not self.tasks:
            self._resolve_task(None)
        spans = self.config.label_spans()
        n_labels = max(span.stop for span in spans.values())
        logits = torch.full((batch, n_labels), -torch.inf, device=self.device, dtype=self.dtype)
        trunk = TrunkPass()
        if batch:
            with record() as trunk:
                self._run(View(task_key(self.tasks[0])), inputs, **kwargs)
        if tasks is None:
            result = self._route(trunk, given, abstain)
            tasks = self._most_likely(cast(Tensor, result.router_scores))
        else:
            result = RoutedOutput(tasks=list(tasks))
        for name in dict.fromkeys(tasks):
            rows = torch.tensor([row for row, other in enumerate(tasks) if other == name], device=self.device)
            part: Mapping[str, Any] = given
            arguments = kwargs
            if len(rows) < batch:
                part, arguments = (
                    {key: value[rows] if _is_batched(value, batch) else value for key, value in values.items()}
                    for values in (given, kwargs)
                )
            view = View(task_key(name))
            n_tokens = len(rows) * trunk.states[0].shape[1]
            if len(rows) < batch and n_tokens < _SMALL_PRODUCT:  # its own sub-batch, to the bit
                answer = self._logits(view, part, **arguments)
            else:
                with replay(trunk, rows if len(rows) < batch else None):
                    answer = self._logits(view, part, **arguments)
            logits = logits.to(answer.dtype)
            logits[rows, spans[name]] = answer
        return replace(result, logits=logits)

    def _check_listed(self, name: Any) -> str:
        """A name in a list of tasks, if it is a committed task's."""
        if name == self.learning and name is not None:
            raise TaskError(f"The task '{name}' is being learned: a list may name committed tasks only, {self.tasks}.")
        if not isinstance(name, str):
            raise TaskError(f"task= lists {name!r}, expected names of tasks, of {self.tasks}.")
        return self._resolve_task(name)

    @torch.no_grad()
    def route(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        abstain: bool | float = False,
    ) -> RoutedOutput:
        """Say which task each sequence belongs to, without answering it: the trunk runs, and nothing above it.

        Args:
            input_ids: token ids, `(batch, sequence)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`; ignored by backbones without them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: in place of `input_ids`, `(batch, sequence, hidden)`.
            abstain: as in `forward`.

        Returns:
            What `forward` returns without a task, but `logits`.

        Raises:
            TaskError: if no task is committed, or one was committed without router sums.
            ValueError: if a sequence has no token, or `abstain` is no share.
        """
        _check_share(abstain)
        if not self.tasks:
            self._resolve_task(None)
        values = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        given = {name: value for name, value in zip(_MODEL_INPUTS, values, strict=True) if value is not None}
        trunk = TrunkPass()
        if _batch_size(given):
            with record() as trunk:
                self._run(View(task_key(self.tasks[0])), given)
        return self._route(trunk, given, abstain)

    @torch.no_grad()
    def _route(self, trunk: TrunkPass, inputs: Mapping[str, Tensor], abstain: bool | float) -> RoutedOutput:
        """The router's choice for each sequence of a recorded batch."""
        discriminant = self.router.discriminant(self.tasks)
        if not trunk.states:
            scores = torch.zeros(0, len(self.tasks), device=self.device)
            if not abstain:
                return RoutedOutput(tasks=[], router_scores=scores)
            return RoutedOutput(
                tasks=[], router_scores=scores, abstained=scores[:, 0].bool(), outlier_scores=scores[:, 0]
            )
        mask = inputs.get("attention_mask")
        empty = [] if mask is None else (mask.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"The sequences {empty} have no token (attention_mask is 0): nothing to route.")
        features = self.router.features(mean_pool(trunk.states, mask))
        scores = discriminant.log_posteriors(features, self.tasks).exp()
        best = self._most_likely(scores)
        if not abstain:
            return RoutedOutput(tasks=list(best), router_scores=scores)
        outliers = self.router.outlier_scores(features, best, self.tasks)
        abstained = outliers > NormalDist().inv_cdf(1 - (ABSTAIN_SHARE if abstain is True else abstain))
        return RoutedOutput(
            tasks=[None if away else name for away, name in zip(abstained.tolist(), best, strict=True)],
            router_scores=scores,
            abstained=abstained,
            outlier_scores=outliers,
        )

    def _most_likely(self, scores: Tensor) -> list[str]:
        """The likeliest task of each sequence, turned away or not."""
        return [self.tasks[index] for index in scores.argmax(-1).tolist()]

    def _view(self, name: str, attention_mask: Tensor | None) -> View:
        if self.learner is None or name != self.learner.name:
            return View(task_key(name))
        probe = self.learner.active_probe if self.training else None
        return View(LEARNING, probe=probe, token_mask=attention_mask)

    def _run(self, view: View, inputs: Mapping[str, Any], **kwargs: Any) -> Any:
        """Run the backbone on one subnetwork; arguments that it does not know are left out of `inputs`."""
        accepted = self._backbone_arguments
        given = {key: value for key, value in inputs.items() if value is not None and key in accepted}
        given.update((key, value) for key, value in kwargs.items() if value is not None)
        past = given.pop("past_key_values", given.pop("cache", None))
        if past is not None:
            given["cache" if "cache" in accepted else "past_key_values"] = past
        if "use_cache" in accepted:
            given.setdefault("use_cache", past is not None)
        if self._has_decoder:
            given = self._with_decoder_inputs(given)
        if view.probe is not None:
            view = replace(view, decoder_token_mask=given.get("decoder_attention_mask"), batch=_batch_size(given))
        with use_view(view):
            output = self.backbone(**given, return_dict=True)
        if self._has_decoder and not hasattr(output, "hidden_states"):
            output.hidden_states, output.attentions = output.decoder_hidden_states, output.decoder_attentions
        return output

    def _with_decoder_inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Let the decoder read the text itself where nothing else is given to it, as BART does to classify."""
        if any(given.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds")):
            return given
        if given.get("input_ids") is None:
            raise ValueError(
                f"A {self.backbone.config.model_type} backbone got no input_ids for its decoder to read. Pass "
                "decoder_input_ids or decoder_inputs_embeds with inputs_embeds."
            )
        given = dict(given)
        shift = getattr(self.backbone, "_shift_right", None)  # BART shifts by itself
        if shift is not None:
            given["decoder_input_ids"] = shift(given["input_ids"])
        given.setdefault("decoder_attention_mask", given.get("attention_mask"))
        return given

    def _head(self, view: View, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.heads[view.key](hidden, attention_mask)

    def _logits(self, view: View, inputs: Mapping[str, Tensor], **kwargs: Any) -> Tensor:
        return self._head(view, self._run(view, inputs, **kwargs).last_hidden_state, inputs.get("attention_mask"))

    def _distil(self, loss: Tensor, logits: Tensor, name: str, inputs: dict[str, Any]) -> Tensor:
        """Mix in the distance from the logits of the task's own unpruned network (Hinton et al., arXiv 1503.02531)."""
        assert self.learner is not None
        teacher, config = self.learner.teacher(), self.learner.config
        if not teacher:
            return loss
        with torch.no_grad(), self._in_eval_mode():
            view = View(LEARNING, teacher=True)
            target = torch.func.functional_call(self, teacher, kwargs={**inputs, "view": view}).logits
        record = self.record(name)
        if record.problem_type == "regression":
            distance = F.mse_loss(logits, target)
        elif record.problem_type == "multi_label_classification":
            distance = F.binary_cross_entropy_with_logits(logits, target.sigmoid())
        else:
            heat = config.temperature
            distance = F.kl_div(
                F.log_softmax(logits / heat, -1),
                F.log_softmax(target / heat, -1),
                reduction="batchmean",
                log_target=True,
            ) * (heat * heat)
        return (1 - config.distillation) * loss + config.distillation * distance

    # -- saving ---------------------------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        include_pool: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the checkpoint folder, or leave it as it was. Shards of tasks that it holds already are not touched.

        While a task is being learned, what resuming needs is written beside them, for the Trainer.

        Args:
            save_directory: the folder.
            is_main_process: only the main process writes.
            state_dict: gathered by the Trainer in distributed training.
            push_to_hub: upload the folder afterwards (`repo_id`, `token`, ... as in transformers).
            max_shard_size: accepted for compatibility; there is one shard per task, whatever its size.
            include_pool: `False` leaves out what is still free: a smaller release that can only infer.
            kwargs: for `push_to_hub`; ignored without it.

        Raises:
            CheckpointError: if the folder holds something that this would lose or change, or a committed task is not
                what it was.
            OSError: if writing failed; the folder's checkpoint is unchanged.
        """
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file, expected a folder.")
        self._check_unchanged()
        config = EideticConfig.from_dict(self.config.to_dict())
        config.architectures = [type(self).__name__]
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.learning = self.learning
        config.pool = self.config.pool and include_pool
        resumable = self.learner is not None
        written = write_checkpoint(folder, state_dict or self.state_dict(), config, config.pool, resumable)
        if not resumable and include_pool:
            self.config.files = written.files
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", folder.name)
            self.push_to_hub(repo_id, **kwargs)

    def _check_unchanged(self) -> None:
        """Refuse to save a committed task that is not, to the bit, what its certificate says."""
        cache: dict[str, bytes] = {}
        for task in self.config.tasks:
            then = task.certificate["environment"]["dtype"]
            if then != str(self.dtype).removeprefix("torch."):
                raise CheckpointError(
                    f"This model computes in {self.dtype}, but the task '{task.name}' was committed in {then}. Saving "
                    f"would change its shard. Load the checkpoint with dtype=torch.{then} to save it."
                )
            tensors = self.task_tensors(task.name)
            digests = tensor_digests(tensors, cache)
            if digest_of_digests(digests) != task.certificate["weights_sha256"]:
                report = self._verify_task(task, cache)
                raise CheckpointError(
                    f"The committed task '{task.name}' has changed in memory, first in {report.first_difference}. It "
                    "was not saved; load the last good checkpoint."
                )


@dataclass
class RoutedOutput(SequenceClassifierOutput):
    """What a batch of several tasks answers.

    Attributes:
        logits: over the labels of all tasks, in the order of `config.id2label`, `(batch, labels)`; minus infinity
            outside of a sequence's own task.
        tasks: name of each sequence's task; `None` where the router turned it away. Its logits are still the most
            likely task's.
        router_scores: posterior of each of `model.tasks`, `(batch, tasks)`; `None` if the tasks were given.
        abstained: which sequences belong to no task, `(batch,)` bool; `None` if that was not asked.
        outlier_scores: how far each sequence lies from its task, in standard deviations of the task's own sequences,
            `(batch,)`; `None` if `abstain` was not asked.
    """

    tasks: list[str | None] | None = None
    router_scores: Tensor | None = None
    abstained: Tensor | None = None
    outlier_scores: Tensor | None = None


def _batch_size(inputs: Mapping[str, Any]) -> int:
    return len(next((inputs[name] for name in ("input_ids", "inputs_embeds") if name in inputs), ()))


def _check_share(abstain: bool | float) -> None:
    if not isinstance(abstain, bool) and not 0 < abstain < 1:
        raise ValueError(f"abstain={abstain!r}: expected True, False or a share between 0 and 1.")


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch


class _CheckpointWithView:
    """Gradient checkpointing whose replay, in the backward pass and outside of `forward`, runs the same task."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, layer: Callable, *args: Any, **kwargs: Any) -> Any:
        view = current_view()

        def replayed(*a: Any, **k: Any) -> Any:
            with use_view(view):
                return layer(*a, **k)

        return self.function(replayed, *args, **kwargs)


def task_loss(task: TaskRecord, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of a batch: cross-entropy, binary cross-entropy per label, or squared error.

    Raises:
        ValueError: if the labels' shape or values do not fit the task.
    """
    n_labels = len(task.labels)
    allowed: dict[str, list[tuple[int, ...]]] = {
        "single_label_classification": [(len(logits),)],
        "multi_label_classification": [tuple(logits.shape)],
        "regression": [tuple(logits.shape), *([(len(logits),)] if n_labels == 1 else [])],
    }
    shapes = allowed[task.problem_type]
    if tuple(labels.shape) not in shapes:
        raise ValueError(
            f"Task '{task.name}' ({task.problem_type}, {n_labels} labels) got labels of shape {tuple(labels.shape)}; "
            f"expected {' or '.join(map(str, shapes))}."
        )
    if task.problem_type == "single_label_classification":
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"Task '{task.name}' needs whole numbers as labels, got {labels.dtype}.")
        if labels.device.type == "cpu" and labels.numel():
            wrong = labels[((labels < 0) & (labels != -100)) | (labels >= n_labels)]
            if wrong.numel():
                raise ValueError(
                    f"Task '{task.name}' has {n_labels} labels (0 to {n_labels - 1}: {task.labels[:5]}...), got label "
                    f"{int(wrong[0])}."
                )
        return F.cross_entropy(logits.float(), labels.long())
    if task.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
    return F.mse_loss(logits.float().reshape(labels.shape), labels.float())


def _module_name(group_name: str) -> str:
    return group_name.replace(".", "_")


def _convert_own(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> None:
    """Apply `freeze` or `thaw` to a module's own tensors, not to its children's."""
    children, module._modules = module._modules, {}
    try:
        convert(module)
    finally:
        module._modules = children


def _check_transfer(forward_transfer: Any) -> None:
    is_list = isinstance(forward_transfer, list) and all(isinstance(name, str) for name in forward_transfer)
    if forward_transfer not in ("all", "none") and not is_list:
        raise ValueError(f"forward_transfer={forward_transfer!r}: expected 'all', 'none' or a list of task names.")


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}


def _restrict(config: EideticConfig, names: list[str]) -> None:
    """Keep the named tasks, and the tasks whose units they read; and no pool, since the rest is unknown."""
    known = {task.name: task for task in config.tasks}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TaskError(f"tasks={names!r}: the checkpoint has {list(known)}, not {unknown or 'nothing to choose'}.")
    needed, todo = set(), list(names)
    while todo:
        name = todo.pop()
        needed.add(name)
        todo.extend(ancestor for ancestor in known[name].ancestors if ancestor not in needed)
    config.tasks = [task for task in config.tasks if task.name in needed]
    config.served = [name for name in names if name in known]
    config.pool = False
    config.set_labels()


AutoConfig.register(EideticConfig.model_type, EideticConfig, exist_ok=True)
AutoModel.register(EideticConfig, EideticModel, exist_ok=True)
AutoModelForSequenceClassification.register(EideticConfig, EideticModel, exist_ok=True)
