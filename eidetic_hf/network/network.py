"""`Network`: a backbone in which tasks own units, and one pass on one task's subnetwork."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..compat import forward_arguments
from ..configuration import EideticConfig, TaskError
from ..views import BASE, LEARNING, POOL, TRUNK, View, owner_of, task_key, task_name, use_view
from .architecture import LAYERS, Architecture, ArchitectureError, find, layers_of, leftovers
from .architectures import architecture_of
from .backbone import (
    DECODER,
    DECODER_TEXTS,
    ENCODER,
    batch_size,
    evaluation_mode,
    family_of,
    is_nested,
)
from .growth import growth_of
from .layers import TASK_MODULES, TaskLinear, TaskNorm
from .storage import Slots, WeightCache, device_of, dtype_of, freeze, own_tensors, set_tensor, stored_tensors, thaw
from .trunk import TrunkPass, pool_states, record_layers, share_layers
from .units import UNIT_TYPES, UnitGroup, beside_key
from .vocabulary import LateRows, TokenTable, read_by_view, table_of
from .wiring import AtRest, cut_error, join_tied, refresh_buffers, replace_module, swap_class, wire_stack

# How a batch of several tasks is computed.
JOINT, APART = "joint", "apart"


class Section(NamedTuple):
    """Some of the tensors of one owner: whoever reads one of them reads all of them.

    Attributes:
        owner: key of the task that owns them, or the trunk, or base.
        part: `trunk`, `base` and `output_embeddings`, which every task reads that knows them; `private`, which only
            the owner does; `units`, which those do whose ancestor it is; `input_rows` and `output_rows`, tokens that
            came later.
    """

    owner: str
    part: str


@dataclass(frozen=True)
class Thawed:
    """A tensor of the trunk that the first task of a random backbone trains.

    Attributes:
        module: that has it.
        leaf: its name there.
        before: its value before.
    """

    module: nn.Module
    leaf: str
    before: Tensor


class Network:
    """A backbone in which tasks own units. Invariant: what a committed task reads is in no Parameter, and never moves.

    A plain object. The model registers the same modules under the same names (`backbone`, `groups`,
    `output_embeddings`, `input_rows`, `output_rows`), so that their tensors are in its state dict.

    Args:
        config: of the model.
        backbone: the base model, whose modules are taken over.
        empty: leave out what only moves values, for a network that a checkpoint is about to fill.

    Attributes:
        backbone: the base model, with task layers above its trunk.
        groups: the books of units, by name.
        norms: the norms above the trunk.
        projections: the projections above the trunk.
        output_embeddings: the `weight` that scores tokens, where it is not the input embeddings'.
        input_rows: rows of the input embeddings that the vocabulary has grown by.
        output_rows: the same for `output_embeddings`.
        growth: how tasks come to units.
        depth: how many layers a sequence goes through, of those that the trunk's are the first of.
        cache: bounds the memory of the copies that layers make of what some task sees and is no slice.
        arguments: names of all that the backbone's `forward` does something with.
        mixed_batches: how a batch of several tasks is computed, see `EideticModel.mixed_batches`.
    """

    def __init__(self, config: EideticConfig, backbone: PreTrainedModel, empty: bool) -> None:
        architecture = architecture_of(config.base_config)
        self._shares_positions = architecture.shares_positions
        layers = layers_of(architecture, backbone)
        for path in architecture.unused:
            replace_module(backbone, path, None)
        self.config, self.backbone = config, backbone
        self.growth = growth_of(config.growth)
        self.depth = backbone.config.num_hidden_layers if architecture.repeats_layers else len(layers)
        self.cache = WeightCache()
        self.mixed_batches = JOINT if self.growth.copies and not self._shares_positions else APART
        self.groups = nn.ModuleDict()
        self.output_embeddings = Slots()
        self.input_rows = LateRows(table_of(backbone.get_input_embeddings()))
        self.output_rows = LateRows(self.output_embeddings)
        # RoBERTa's positions, whose table has a padding index, begin with the first token that is no padding anyway.
        tables = [m for n, m in backbone.named_modules() if n.endswith("position_embeddings")]
        self._counts_positions = family_of(backbone.config) == DECODER or any(
            getattr(table, "padding_idx", None) is None for table in tables
        )
        self._accepted, handed_on = forward_arguments(backbone.forward)
        self.arguments = self._accepted | handed_on
        join_tied(backbone, empty)
        refresh_buffers(backbone)
        self._wire(architecture, layers)
        named = [(name, module) for name, module in backbone.named_modules() if isinstance(module, TASK_MODULES)]
        self._owned = {name: module for name, module in named}
        self.norms = [module for _, module in named if isinstance(module, TaskNorm)]
        self.projections = [module for _, module in named if isinstance(module, TaskLinear)]
        # Somebody may hold the Parameters of a backbone that was given, an optimizer for example: then copy them.
        freeze(backbone, copy=not empty)
        for module in backbone.modules():
            if isinstance(module, PreTrainedModel):
                swap_class(module, AtRest)

    def _wire(self, architecture: Architecture, layers: nn.ModuleList) -> None:
        """Put the task layers in place of the backbone's above the trunk."""
        config, unowned = self.config, list[str]()
        for prefix, stack in architecture.stacks.items():
            stacked = cast(nn.ModuleList, self.backbone.get_submodule(stack.layers))
            first = config.trunk_layers if prefix == LAYERS else 0
            for group in wire_stack(prefix, stack, stacked, first, self.backbone.config, self.cache, self.growth):
                self.groups[module_name(group.name)] = group
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
        # Where base is there for ever, the router may read any depth of it; else what the trunk puts out.
        taking_part = len(layers) if self.growth.copies else config.trunk_layers + 1
        share_layers(embeddings, list(layers[:taking_part]))

    # -- what it is made of ---------------------------------------------------------------------------------------

    def unit_groups(self) -> list[UnitGroup]:
        """The books of units, in the order of the layers."""
        return cast(list[UnitGroup], list(self.groups.values()))

    def tables(self) -> list[LateRows]:
        """The tables of embeddings that grow with the vocabulary: the input's, and the output's if it has its own."""
        return [self.input_rows, *([] if self.output_embeddings.get("weight") is None else [self.output_rows])]

    def vocabulary(self, view: View | None = None) -> TokenTable:
        """The output embeddings: the input embeddings, unless the backbone has others.

        Those that a view knows, if one is given.
        """
        return self.tables()[-1].table(view)

    @property
    def device(self) -> torch.device:
        """Device of the network's tensors."""
        return device_of(self.backbone)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's floating-point tensors."""
        return dtype_of(self.backbone)

    def capacity(self, names: list[str]) -> dict[str, Any]:
        """How the units are shared out among the committed tasks, see `EideticModel.capacity`."""
        groups = {
            group.name: {**{name: group.count(task_key(name)) for name in names}, "free": group.count(POOL)}
            for group in self.unit_groups()
        }
        by_type = {}
        for unit_type in UNIT_TYPES:
            rows = [row for name, row in groups.items() if name.endswith(f".{unit_type}")]
            if rows:
                all_units = max(sum(sum(row.values()) for row in rows), 1)
                by_type[unit_type] = sum(row["free"] for row in rows) / all_units
        total = sum(sum(row.values()) for row in groups.values())
        free = sum(row["free"] for row in groups.values())
        return {
            "total": total,
            "free": free,
            "free_share": free / max(total, 1),
            "free_share_by_kind": by_type,
            "owned": {name: sum(row[name] for row in groups.values()) for name in names},
            "groups": groups,
        }

    # -- who reads what -------------------------------------------------------------------------------------------

    def reads(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """How many units each of some committed tasks reads, and whose they are.

        Returns:
            For each unit group `base`, the number of units that are the backbone's for everybody to read (0 where
            tasks take them out of a pool), and `tasks`: for each task `base`, how many of these it reads, and
            `tasks`, how many it reads of each task, itself included.
        """
        found = {}
        for group in self.unit_groups():
            tasks = {}
            for name in names:
                by_owner = group.reads(task_key(name))
                base = by_owner.pop(BASE, 0)
                tasks[name] = {"base": base, "tasks": {task_name(owner): n for owner, n in by_owner.items()}}
            found[group.name] = {"base": group.count(BASE), "tasks": tasks}
        return found

    def sections_of(self, key: str, ancestors: list[str], tokens: int, with_output: bool) -> list[Section]:
        """What a committed task's hidden states and scores of tokens are made of: whose tensors, and which of them.

        Args:
            key: of the task.
            ancestors: keys of the tasks whose units it reads.
            tokens: how many tokens it knows; 0 for those that the backbone came with.
            with_output: whether it reads the model's output embeddings.
        """
        sections = [Section(TRUNK, "trunk"), Section(key, "private")]
        sections += [Section(BASE, BASE)] if self.growth.copies else []
        sections += [Section(owner, "units") for owner in [*ancestors, key]]
        sections += [Section(owner, "input_rows") for owner in self.input_rows.owners(tokens)]
        if with_output:
            if self.output_embeddings.get("weight") is not None:
                sections.append(Section(TRUNK, "output_embeddings"))
            sections += [Section(owner, "output_rows") for owner in self.output_rows.owners(tokens)]
        return sections

    def tensors_of(self, section: Section) -> dict[str, Tensor]:
        """The tensors of one section by name. Its cost does not grow with the number of other tasks."""
        owner, part = section
        if part == "trunk":
            return {
                f"{name}.{leaf}": tensor
                for name, module in _outside_of(self.backbone, "backbone", TASK_MODULES)
                for leaf, tensor in stored_tensors(module).items()
            }
        if part == "output_embeddings":
            return {"output_embeddings.weight": self.output_embeddings.need("weight")}
        if part in ("input_rows", "output_rows"):
            rows = self.input_rows if part == "input_rows" else self.output_rows
            return {f"{part}.{owner}": rows.need(owner)}
        found = {}
        for name, module in self._owned.items():
            if part != BASE or isinstance(module, TaskLinear):
                found.update(module.tensors_of(f"backbone.{name}", owner, private=part == "private"))
        if part == "private":
            for name, group in self.groups.items():
                gates = cast(UnitGroup, group).gates.get(owner)
                if gates is not None:
                    found[f"groups.{name}.gates.{owner}"] = gates
        return found

    # -- a pass ---------------------------------------------------------------------------------------------------

    def run(self, view: View, inputs: Mapping[str, Any], **kwargs: Any) -> Any:
        """Run the backbone on one subnetwork; arguments that it does not know are left out of `inputs`.

        Args:
            view: which subnetwork, see `View`.
            inputs: sequences in two dimensions, `(sequences, tokens)`, and what a decoder reads.
            kwargs: further arguments for the backbone.

        Returns:
            What the backbone puts out, with `last_hidden_state` `(sequences, tokens, hidden)`.

        Raises:
            ValueError: if the task does not know a token.
        """
        accepted = self._accepted
        given = {key: value for key, value in inputs.items() if value is not None and key in accepted}
        given.update((key, value) for key, value in kwargs.items() if value is not None)
        past = given.pop("past_key_values", given.pop("cache", None))
        if past is not None:
            given["cache" if "cache" in accepted else "past_key_values"] = past
        if "use_cache" in accepted:
            given.setdefault("use_cache", past is not None)
        self._place_behind_padding(given)
        if self.input_rows.has_grown:
            given = self.input_rows.readable(given, view, _reader(view))
        if view.beside:
            decoder = next((given[name] for name in DECODER_TEXTS if name in given), None)
            view = replace(view, batch=batch_size(given) if decoder is None else len(decoder))
        if view.probe is not None:
            tokens = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
            view = replace(view, decoder_token_mask=given.get("decoder_attention_mask"), batch=len(tokens))
        self.cache.note_use([beside_key(key) for key, _ in view.beside] or [view.key])
        with use_view(view):
            return self.backbone(**given, return_dict=True)

    def set_mixed_batches(self, way: str) -> None:
        """Choose how a batch of several tasks is computed, see `EideticModel.mixed_batches`.

        Raises:
            TaskError: if there is no such way, or this network does not have it.
        """
        if way not in (JOINT, APART):
            raise TaskError(f"mixed_batches={way!r}: expected {JOINT!r} or {APART!r}.")
        if way == JOINT and not self.growth.copies:
            raise TaskError(
                f"mixed_batches={way!r} is for growth='copy', where all tasks read the same base; with "
                f"growth={self.growth.name!r} their networks have different shapes, and each runs by itself."
            )
        if way == JOINT and self._shares_positions:
            raise TaskError(
                f"mixed_batches={way!r}: a {self.backbone.config.model_type!r} computes its relative positions once "
                "for all sequences of a batch, so that these can not be of several tasks. Leave it at 'apart'."
            )
        self.mixed_batches = way

    def runs_beside(self, keys: Sequence[str]) -> bool:
        """Whether rows of several tasks are computed side by side: as was chosen, if they know the same tokens."""
        return self.mixed_batches == JOINT and all(
            len({rows.size(View(key)) for key in keys}) == 1 for rows in self.tables()
        )

    def _place_behind_padding(self, given: dict[str, Any]) -> None:
        """Let positions begin with the first real token, where padding stands before it.

        Else what a text gives, and where it is sent, would depend on the other texts of its batch.
        """
        mask = given.get("attention_mask")
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # a look at the mask would break the graph
            or not isinstance(mask, Tensor)  # generation makes masks of four dimensions, and one per type of layer
            or mask.dim() != 2
            or not self._counts_positions
            or "position_ids" not in self._accepted
            or any(name in given for name in ("position_ids", "past_key_values", "cache"))
            or bool(mask[:, :1].all())
        ):
            return
        given["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)

    def record_trunk(self, inputs: Mapping[str, Any], learning: bool = False, **kwargs: Any) -> TrunkPass:
        """Run the trunk alone, on every token of the vocabulary.

        Args:
            inputs: as in `run`.
            learning: whether to read new tokens as the task being learned has them now.
            kwargs: as in `run`.
        """
        with record_layers(self.config.trunk_layers) as trunk:
            self.run(View(LEARNING, whole_vocabulary=not learning), inputs, **kwargs)
        return trunk

    def record_base(
        self, trunk: TrunkPass, inputs: Mapping[str, Any], until: int, rows: Tensor | None = None, **kwargs: Any
    ) -> TrunkPass:
        """Go on from what the trunk put out through the layers of base, as the backbone came, which no task alters.

        Args:
            trunk: what `record_trunk` returned.
            inputs: of the rows, as in `run`.
            until: number of layers, the trunk's among them.
            rows: numbers of the rows of the recorded batch to go on with, `(rows,)`; `None` for all of them.
            kwargs: as in `run`.
        """
        with record_layers(until, trunk, rows) as found:
            self.run(View(BASE, whole_vocabulary=True), inputs, **kwargs)
        if rows is None:  # then one may go on from here as from the trunk
            found.states, found.rest = {**trunk.states, **found.states}, {**trunk.rest, **found.rest}
            found.given = None
        return found

    def summarize(
        self, trunk: TrunkPass, inputs: Mapping[str, Tensor], parts: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """What recorded states say of each row of a batch, `(batch, hidden)` each; see `pool_states`.

        Of several sequences in a row each counts for as much as it has tokens, in whatever order they stand.
        """
        mask, is_several = inputs.get("attention_mask"), is_nested(inputs)
        flat = mask.flatten(0, 1) if is_several and mask is not None else mask
        edge = "first" if family_of(self.backbone.config) == ENCODER else "last"
        pooled = pool_states(trunk, parts, flat, edge)
        if not is_several:
            return pooled
        rows = [part.unflatten(0, (batch_size(inputs), -1)) for part in pooled]
        weights = rows[0].new_ones(rows[0].shape[:2]) if mask is None else mask.sum(2).float()
        return [(part * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True).clamp(min=1) for part in rows]

    def backbone_bytes(self) -> int:
        """Size of what the backbone came with."""
        return sum(
            tensor.nbytes
            for name, tensor in self.backbone.state_dict().items()
            if owner_of(f"backbone.{name}") in (TRUNK, BASE, POOL)
        )

    def _private(self) -> list[tuple[nn.Module, str, Tensor]]:
        """What of the backbone lies beside base's units above the trunk: its norms and output biases."""
        found: list[tuple[nn.Module, str, Tensor]] = []
        for module in self._owned.values():
            own = module.tasks[POOL] if isinstance(module, TaskNorm) else cast(TaskLinear, module).biases
            leaves = stored_tensors(own)
            found += [(own, leaf, leaves[leaf]) for leaf in leaves if isinstance(module, TaskNorm) or leaf == POOL]
        return found

    def base_private(self) -> Tensor:
        """What base's layers read beside its units, one after another, `(numbers,)`; see `put_base_private`."""
        return torch.cat([tensor.detach().flatten() for _, _, tensor in self._private()])

    def put_base_private(self, values: Tensor) -> None:
        """Take back what `base_private` returned, where a checkpoint without a pool lacks it."""
        entries = self._private()
        for (module, leaf, tensor), part in zip(entries, values.split([t.numel() for *_, t in entries]), strict=True):
            set_tensor(module, leaf, part.view_as(tensor).to(tensor.dtype).clone())

    # -- the life of a task ---------------------------------------------------------------------------------------

    def begin(self, ancestors: list[str], own: float = 1.0) -> None:
        """Begin a task: its working copies are Parameters from here on.

        Args:
            ancestors: keys of the tasks whose units it may read.
            own: share of base's units that it copies, where units are copied.
        """
        for group in self.unit_groups():
            group.begin(self.growth.keys(ancestors), own)
        for norm in self.norms:
            norm.begin()
        self.input_rows.begin()

    def commit(self, key: str, undo: ExitStack, recycle_std: float | None) -> None:
        """Give the kept units and the norms to `key`, as buffers.

        Args:
            key: of the task.
            undo: takes what brings the network back to what it was.
            recycle_std: standard deviation of what returns to the pool; `None` for its pretrained value.
        """
        for group in self.unit_groups():
            undo.callback(group.undo_commit, key, group.snapshot())
            group.commit(key, recycle_std)
        for norm in self.norms:
            undo.callback(norm.drop, key)
            norm.commit(key)

    def commit_tokens(self, key: str, takes: tuple[bool, bool] | None, undo: ExitStack) -> None:
        """Settle which tokens `key` knows; if it takes those of the pool, in either table, they are its own.

        Args:
            key: of the task.
            takes: whether it takes them, in each table; `None` if it knows the backbone's own tokens alone.
            undo: takes what brings the tables back to what they were.
        """
        for rows, taken in zip(self.tables(), takes or (None, None), strict=False):
            undo.callback(rows.undo_commit, key, rows.snapshot())
            rows.commit(key, taken)

    def end(self) -> None:
        """Drop everything that belongs to the task being learned."""
        for group in self.unit_groups():
            group.end()
        for norm in self.norms:
            norm.end()
        for rows in (self.input_rows, self.output_rows):
            rows.end()

    def thaw_trunk(self, with_output: bool) -> list[Thawed]:
        """Make the trunk of a random backbone trainable; the output embeddings only if asked for."""
        modules = [module for _, module in _outside_of(self.backbone, "backbone", TASK_MODULES)]
        thawed = []
        for module in [*modules, *([self.output_embeddings] if with_output else [])]:
            before = stored_tensors(module)
            trained = own_tensors(thaw(module, recurse=False))
            thawed += [Thawed(module, leaf, before[leaf]) for leaf in before if trained[leaf] is not before[leaf]]
        return thawed

    def freeze_trunk(self, thawed: list[Thawed], restore: bool, undo: ExitStack | None = None) -> None:
        """Freeze what `thaw_trunk` returned.

        Args:
            thawed: what it returned.
            restore: at the values from before, else at those that it was trained to.
            undo: takes what lets it be trained again.
        """
        for entry in thawed:
            trained = own_tensors(entry.module)[entry.leaf]
            if undo is not None:
                undo.callback(set_tensor, entry.module, entry.leaf, trained)
            set_tensor(entry.module, entry.leaf, entry.before if restore else trained.detach().clone())

    # -- tasks that come and go ----------------------------------------------------------------------------------

    def keep_books(self, undo: ExitStack) -> None:
        """Let `undo` bring back who owns what; what is registered comes back with its `Arrangement`."""
        undo.callback(self.forget_views)
        for group in self.unit_groups():
            undo.callback(group.put_books, group.books())
        for rows in self.tables():
            undo.callback(rows.put_books, rows.books())

    def forget_views(self) -> None:
        """Look up again what every committed task sees."""
        for group in self.unit_groups():
            group.forget_views()
        self.make_views()

    def join(self, key: str) -> dict[str, int]:
        """Settle what a task owns that was learned elsewhere; returns the units that there are more, by group."""
        return {group.name: self.growth.join(group, key) for group in self.unit_groups()}

    def leave(self, key: str, like: Network | None, std: float) -> dict[str, int]:
        """Let a committed task go that no other reads.

        Args:
            key: of the task.
            like: the same network before any task, whose values free units return to; `None` if there is no pool.
            std: standard deviation of units that no backbone came with.

        Returns:
            The units that there are less, by group.
        """
        missing = {}
        for name, group in self.groups.items():
            theirs = None if like is None else cast(UnitGroup, like.groups[name])
            group = cast(UnitGroup, group)
            missing[group.name] = self.growth.leave(group, key, theirs, std)
        for norm in self.norms:
            norm.drop(key)
        for rows in self.tables():
            rows.drop(key, self.config.pool)
        return missing

    # -- from and to a checkpoint ---------------------------------------------------------------------------------

    def rebuild(self, key: str, ancestors: list[str], units: Mapping[str, int]) -> None:
        """Make room for a committed task's units and norms, which a checkpoint will fill."""
        for group in self.unit_groups():
            group.rebuild(key, self.growth.keys(ancestors), units[group.name])
        for norm in self.norms:
            norm.rebuild(key)

    def rebuild_tokens(self, key: str, tokens: int | None, with_output: bool) -> None:
        """Make room for the tokens that a committed task took."""
        for rows in self.tables():
            if rows is self.input_rows or with_output:
                rows.rebuild(key, tokens or len(rows.own))

    def rebuild_pool(self) -> None:
        """Take what tasks own out of the pool's place, before a checkpoint fills both."""
        if self.config.pool:
            for rows in self.tables():
                rows.rebuild_pool(self.config.vocab_size)
        for group in [] if self.growth.copies else self.unit_groups():
            owned = sum(group.count(key) for key in group.order)
            if owned > group.count(POOL) and self.config.pool:
                raise TaskError(
                    f"Tasks own {owned} units of {group.name}, and the backbone has {group.count(POOL)}, with those "
                    "that it was expanded by."
                )
            if owned or not self.config.pool:
                group.resize_pool(group.count(POOL) - owned if self.config.pool else 0)
        if self.input_rows.has_grown:
            read_by_view(self.input_rows, self.backbone)

    def pack(self) -> None:
        """Lay every projection's segments, and every table's rows, into one aligned tensor each."""
        for projection in self.projections:
            projection.pack()
        for rows in (self.input_rows, self.output_rows):
            rows.pack()
        self.make_views()

    def lay(self) -> None:
        """Make memory for all that `pack` lays, for files to be read into; `make_views` comes after that.

        Raises:
            ValueError: if what is to lie together is of different dtypes.
        """
        for projection in self.projections:
            projection.lay()
        for rows in (self.input_rows, self.output_rows):
            rows.lay()

    def make_views(self) -> None:
        """Look up what every committed task sees, so that a graph can be traced before the task has run."""
        if self.device.type != "meta":
            for group in self.unit_groups():
                group.make_views()

    # -- the declaration ------------------------------------------------------------------------------------------

    def check_architecture(self) -> None:
        """Hold the backbone's own code against what a subnetwork asks of it, see `EideticModel.check_architecture`."""
        ids = torch.arange(16, device=self.device).reshape(2, 8) % self.backbone.config.vocab_size

        def run() -> Tensor:
            return self.run(View(LEARNING), {"input_ids": ids, "decoder_input_ids": ids}).last_hidden_state

        groups = self.unit_groups()
        tolerance = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.2
        with torch.no_grad(), evaluation_mode(self.backbone):
            for unit_type in UNIT_TYPES:
                cut = [group for group in groups if group.unit_type == unit_type]
                error = cut_error(cut, groups, self.norms, run)
                if error > tolerance:
                    raise ArchitectureError(
                        f"A '{self.backbone.config.model_type}' backbone does not run right with fewer {unit_type}: "
                        f"its output is off by {error:.2g} times what cutting half of them makes. Its code counts "
                        f"{unit_type} or lays them out in another way than declared; see docs/architectures.md "
                        "(counts, Fused)."
                    )


def module_name(group_name: str) -> str:
    """A unit group's name as the name of a module: without dots."""
    return group_name.replace(".", "_")


def _outside_of(root: nn.Module, name: str, kinds: Any) -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it by name, without those of some classes and what is below them."""
    if isinstance(root, kinds):
        return
    yield name, root
    for child_name, child in root.named_children():
        yield from _outside_of(child, f"{name}.{child_name}", kinds)


def _reader(view: View) -> str:
    """What an error calls the reader of a batch."""
    if view.whole_vocabulary:
        return "the model"
    if view.beside:
        return "the tasks " + ", ".join(f"'{task_name(key)}'" for key, _ in view.beside)
    return "the task being learned" if view.key == LEARNING else f"the task '{task_name(view.key)}'"
