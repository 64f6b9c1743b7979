"""`EideticModel`: a pretrained backbone that learns text tasks one after another and never changes a learned one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
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
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from ..configuration import EideticConfig, TaskError, TaskRecord
from ..kinds import kind_of
from ..kinds.heads import LanguageModelHead
from ..kinds.pretrained_head import LanguageHead, load_with_head, read_language_head
from ..network.architecture import LAYERS, Architecture, ArchitectureError, choose_trunk, find, layers_of, leftovers
from ..network.architectures import architecture_of, is_declared
from ..network.backbone import ENCODER as ENCODER_FAMILY
from ..network.backbone import base_model, family_of, hidden_size
from ..network.layers import TaskNorm
from ..network.network import WITHOUT_ROOM
from ..network.storage import Segment, Slots, WeightCache, freeze
from ..network.trunk import TrunkPass, record, share_trunk
from ..network.units import UnitGroup
from ..network.vocabulary import LateRows, read_by_view, table_of
from ..network.wiring import cut_error, join_tied, refresh_buffers, replace_module, wire_stack
from ..views import LEARNING, POOL, TRUNK, View, owner_of, task_key, use_view
from .checkpoint import CheckpointError, read_config, read_generation_config, read_tensors, write_checkpoint
from .generation import GeneratingNetwork
from .life import check_transfer
from .pruning import KINDS
from .router import Router

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


class EideticModel(GeneratingNetwork):
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
    # The Trainer then divides by the accumulation steps itself, as the loss here is a mean.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: EideticConfig,
        backbone: PreTrainedModel | None = None,
        empty: bool = False,
        language_head: LanguageHead | None = None,
    ) -> None:
        super().__init__(config)
        own = None if language_head is None else language_head.generation_config
        self.generation_config = own or GenerationConfig.from_model_config(config.base_config)
        architecture = architecture_of(config.base_config)
        if backbone is None:
            backbone = AutoModel.from_config(config.base_config)
        layers = layers_of(architecture, backbone)
        for path in architecture.unused:
            replace_module(backbone, path, None)
        self.backbone = backbone
        self.groups = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.language_head = nn.ModuleDict()
        self.output_embeddings = Slots()
        self.input_rows = LateRows(table_of(backbone.get_input_embeddings()))
        self.output_rows = LateRows(self.output_embeddings)
        self.probes = nn.ModuleDict()
        self.router = Router()
        self.learner = None
        self._pending, self._transfer, self._thawed = {}, {}, None
        self._backbone_arguments = set(inspect.signature(backbone.forward).parameters)
        self._wire(architecture, layers, empty)
        # Somebody may hold the Parameters of a backbone that was given, an optimizer for example: then copy them.
        freeze(self.backbone, copy=not empty)
        self._keep_language_head(language_head)
        for name, n_units in config.expanded.items():
            cast(UnitGroup, self.groups[_module_name(name)]).expand(n_units, 0.0)
        norms = self._norms()
        for task in config.tasks:
            self._rebuild(task, norms)
        self._resize_pool()
        if self.input_rows.has_grown:
            read_by_view(self.input_rows, self.backbone)
        if not empty:
            self.pack()
        self.post_init()
        self._set_labels()
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
                random backbone whose trunk the first task trains. A pretrained language-model head is kept, and what
                a language model starts from.
            trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
            forward_transfer: which earlier tasks a new task reads: `"all"`, `"none"` or a list of names.
            kwargs: further arguments for the `from_pretrained` of the backbone's class, such as `revision` or
                `attn_implementation`.

        Raises:
            ArchitectureError: if the backbone's architecture is not declared.
            ValueError: if `trunk_layers` is out of range or `forward_transfer` is not understood.
        """
        pretrained = not isinstance(backbone, PreTrainedConfig)
        head = None
        if isinstance(backbone, PreTrainedModel):
            architecture_of(backbone.config)
            model = base_model(backbone)
            head = read_language_head(backbone, model)
        elif isinstance(backbone, PreTrainedConfig):
            architecture_of(backbone)
            model = AutoModel.from_config(backbone, **kwargs)
        else:
            config = AutoConfig.from_pretrained(backbone, **_hub_arguments(kwargs))
            if isinstance(config, EideticConfig):
                raise ValueError(f"{backbone} is an EideticModel already. Load it with EideticModel.from_pretrained.")
            architecture_of(config)
            kwargs.setdefault("dtype", torch.float32)
            model, head = load_with_head(backbone, config, **kwargs)
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
        check_transfer(forward_transfer)
        if head is not None:
            config.language_head = head.parts if head.agrees else {"unreadable": head.owner}
            config.output_embeddings = None if head.embeddings is None else list(head.embeddings.shape)
        elif not pretrained and not model.config.tie_word_embeddings:
            config.output_embeddings = list(cast(Tensor, model.get_input_embeddings().weight).shape)
        eidetic = cls(config, backbone=model, language_head=head)
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
        if family_of(own_config.base_config) != ENCODER_FAMILY:
            stored = read_generation_config(pretrained_model_name_or_path, hub)
            model.generation_config = stored or model.generation_config
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

    def _wire(self, architecture: Architecture, layers: nn.ModuleList, empty: bool) -> None:
        """Put the task layers in place of the backbone's above the trunk."""
        join_tied(self.backbone, empty)
        refresh_buffers(self.backbone)
        unowned: list[str] = []
        self.weight_cache = WeightCache()
        for prefix, stack in architecture.stacks.items():
            stacked = cast(nn.ModuleList, self.backbone.get_submodule(stack.layers))
            first = self.config.trunk_layers if prefix == LAYERS else 0
            for group in wire_stack(prefix, stack, stacked, first, self.backbone.config, self.weight_cache):
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
            return self._run(View(LEARNING), {"input_ids": ids, "decoder_input_ids": ids}).last_hidden_state

        groups, norms = self._groups(), self._norms()
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.2
        with torch.no_grad(), self._in_eval_mode():
            for kind in KINDS:
                error = cut_error([group for group in groups if group.unit_type == kind], groups, norms, run)
                if error > tolerance:
                    raise ArchitectureError(
                        f"A '{self.backbone.config.model_type}' backbone does not run right with fewer {kind}: its "
                        f"output is off by {error:.2g} times what cutting half of them makes. Its code counts {kind} "
                        "or lays them out in another way than declared; see docs/architectures.md (counts, Fused)."
                    )

    def _keep_language_head(self, given: LanguageHead | None) -> None:
        """Make, or make room for, the pretrained language-model head and output embeddings of their own."""
        config = self.config
        vocab_size, width = cast(Tensor, self.get_input_embeddings().weight).shape
        std = getattr(self.backbone.config, "initializer_range", 0.02)
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
        self.config.set_labels(self.answers)
        self.num_labels = self.config.num_labels

    def _rebuild(self, task: TaskRecord, norms: list[TaskNorm]) -> None:
        """Make room for a committed task's tensors."""
        key, ancestors = task_key(task.name), [task_key(name) for name in task.ancestors]
        for group in self._groups():
            group.rebuild(key, ancestors, task.units[group.name])
        for norm in norms:
            norm.rebuild(key)
        self._rebuild_vocabulary(task)
        self.heads[key] = freeze(self._new_head(task))
        self.probes[key] = Slots()
        self.router.make_room(task.name)

    def _rebuild_vocabulary(self, task: TaskRecord) -> None:
        """Make room for the tokens that a committed task took."""
        for rows in self._tables():
            if rows is self.input_rows or kind_of(task).reads_output_embeddings(task):
                rows.rebuild(task_key(task.name), task.vocab_size or len(rows.own))

    def _resize_pool(self) -> None:
        """Take what tasks own out of the pool's place, before a checkpoint fills both."""
        if self.config.pool:
            for rows in self._tables():
                rows.rebuild_pool(self.config.vocab_size)
        for group in self._groups():
            owned = sum(group.count(key) for key in group.order)
            if owned or not self.config.pool:
                group.resize_pool(group.count(POOL) - owned if self.config.pool else 0)

    def _fill(self, tensors: dict[str, Tensor]) -> None:
        """Take over a checkpoint's tensors, each in fresh, aligned memory."""
        modules, vocabulary = dict(self.named_modules()), self.get_input_embeddings()
        expected = {name for name in self.state_dict() if self.config.pool or owner_of(name) != POOL}
        for name in sorted(tensors):
            module_name, _, leaf = name.rpartition(".")
            module = modules.get(module_name)
            if module is None or (leaf not in module._buffers and not module_name.startswith(WITHOUT_ROOM)):
                raise CheckpointError(f"The checkpoint holds {name}, for which config.json leaves no place.")
            old = module._buffers.get(leaf)
            if old is not None and old.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{name} has the shape {tuple(tensors[name].shape)}, config.json expects {tuple(old.shape)}."
                )
            # The copy matters: a product over unaligned data may round differently. `pack` copies segments, and of the
            # embeddings only those that language models score tokens with are more than looked up.
            tensor = tensors.pop(name)
            as_read = isinstance(module, Segment) or (isinstance(module, nn.Embedding) and module is not vocabulary)
            module._buffers[leaf] = tensor if as_read else tensor.clone()
            expected.discard(name)
        missing = sorted(expected)
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks {len(missing)} tensors that config.json expects: {missing[:3]}."
            )
        self.pack()

    # -- the backbone's forward pass ------------------------------------------------------------------------------

    def _trunk(self, inputs: Mapping[str, Any]) -> TrunkPass:
        """Run the trunk alone."""
        with record() as trunk:
            self._run(View(LEARNING), inputs)
        return trunk

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
        if self.input_rows.has_grown:
            given = self.input_rows.readable(given, view, self._reader(view))
        if view.probe is not None:
            tokens = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
            view = replace(view, decoder_token_mask=given.get("decoder_attention_mask"), batch=len(tokens))
        with use_view(view):
            return self.backbone(**given, return_dict=True)

    def _reader(self, view: View) -> str:
        """What an error calls the reader of a batch."""
        if view.whole_vocabulary:
            return "the model"
        return f"the task '{self.task_of(view)}'"

    # -- saving ---------------------------------------------------------------------------------------------------

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
        config.architectures = [EideticModel.__name__]  # whichever class it was loaded with
        config.dtype = str(self.dtype).removeprefix("torch.")
        config.learning = self.learning
        config.pool = self.config.pool and include_pool
        if not config.pool:
            config.forget_free_tokens()
        resumable = self.learner is not None
        writes = family_of(config.base_config) != ENCODER_FAMILY
        generation_config = self.generation_config if writes else None
        written = write_checkpoint(
            folder, state_dict or self.state_dict(), config, config.pool, resumable, generation_config
        )
        if not resumable and include_pool:
            self.config.files = written.files
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", folder.name)
            self.push_to_hub(repo_id, **kwargs)


def _module_name(group_name: str) -> str:
    return group_name.replace(".", "_")


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}


def _restrict(config: EideticConfig, names: list[str]) -> None:
    """Keep the named tasks, and the tasks whose units or tokens they read; and no pool, since the rest is unknown."""
    known = {task.name: task for task in config.tasks}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise TaskError(f"tasks={names!r}: the checkpoint has {list(known)}, not {unknown or 'nothing to choose'}.")
    needed, todo = set(), list(names)
    while todo:
        name = todo.pop()
        needed.add(name)
        read = [*known[name].ancestors, *config.owners_of_tokens(known[name])]
        todo.extend(other for other in read if other not in needed)
    config.tasks = [task for task in config.tasks if task.name in needed]
    config.served = [name for name in names if name in known]
    config.pool = False
    config.forget_free_tokens()
    config.set_labels()


class EideticForTokenClassification(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that label tokens."""

    answers = "token-classification"


class EideticForQuestionAnswering(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that answer questions."""

    answers = "question-answering"


class EideticForMultipleChoice(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks of multiple choice."""

    answers = "multiple-choice"


class EideticForCausalLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that continue texts."""

    answers = "causal-lm"


class EideticForSeq2SeqLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that write texts from texts."""

    answers = "seq2seq-lm"


class EideticForMaskedLM(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that fill gaps."""

    answers = "masked-lm"


class EideticForFeatureExtraction(EideticModel):
    """An `EideticModel` that, where no task is named, routes among the tasks that embed texts.

    `AutoModel` loads an `EideticModel`; this class is for those who want embeddings of a model that has other tasks.
    """

    answers = "feature-extraction"


AutoConfig.register(EideticConfig.model_type, EideticConfig, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, EideticModel),
    (AutoModelForSequenceClassification, EideticModel),
    (AutoModelForTokenClassification, EideticForTokenClassification),
    (AutoModelForQuestionAnswering, EideticForQuestionAnswering),
    (AutoModelForMultipleChoice, EideticForMultipleChoice),
    (AutoModelForCausalLM, EideticForCausalLM),
    (AutoModelForSeq2SeqLM, EideticForSeq2SeqLM),
    (AutoModelForMaskedLM, EideticForMaskedLM),
):
    _auto_class.register(EideticConfig, _model_class, exist_ok=True)
