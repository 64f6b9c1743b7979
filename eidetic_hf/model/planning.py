"""How far a model's room goes: what coming tasks may take, how many bytes that is, and what is left.

Nothing is learned for that. A shard's size follows from shapes alone: a model with the coming tasks in its
configuration is made on the meta device, where tensors have shapes and no memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..compat import no_init_weights
from ..configuration import DEFAULT_TASK_TYPE, EideticConfig, TaskError, TaskRecord
from ..kinds import check_kind, check_task, kind_of
from ..network.backbone import hidden_size
from ..network.growth import CopyGrowth
from ..network.units import UNIT_TYPES
from ..views import POOL, View, owner_of, task_key
from .audit import BOOKS, EVERYBODYS, ROUTER
from .certificate import PROBE_SHAPE, Evidence, environment_of
from .checkpoint.layout import by_owner
from .life import read_by
from .loading import cast_floats
from .parts import Parts, record_of
from .pruning import PruningConfig
from .router import size_of_kept, to_pool
from .router.features import MAX_FEATURES
from .router.sums import directions_kept
from .routing import layers_of_router
from .settings import written

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of base's units, that a plan for copies goes through
# How safetensors calls what shards hold, in the order in which it lays tensors out.
_DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class PlanRow:
    """What one coming task may take; or with copies, each of them.

    Attributes:
        share: `PruningConfig(keep=share)`, of the units that are free then; with copies `PruningConfig(own=share)`.
        units: that it gets, by kind (`heads`, `neurons`, `cross_heads`).
        bytes: of its shard.
        free: units that are free after it, by kind; empty with copies, where none is taken from anybody.
    """

    share: float
    units: dict[str, int]
    bytes: int
    free: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Budgets for coming tasks. As a text it is a table.

    Attributes:
        growth: of the model, `"fixed"` or `"copy"`.
        copies: whether tasks copy units, so that each row is a choice for all of them.
        tasks: number of coming tasks.
        like: what the task is like that stands for each of them.
        backbone_bytes: what the pretrained backbone takes.
        rows: with a fixed pool one for each task, in order; with copies one for each share that may be chosen, where
            all tasks take the same.
    """

    growth: str
    copies: bool
    tasks: int
    like: str
    backbone_bytes: int
    rows: list[PlanRow]

    def total_bytes(self, row: PlanRow) -> int:
        """Bytes of the shards of all coming tasks; of a row's share, with copies."""
        return self.tasks * row.bytes if self.copies else sum(each.bytes for each in self.rows)

    def __str__(self) -> str:
        title = f"{self.tasks} more tasks like {self.like}, growth={self.growth!r}, "
        title += f"on a backbone of {_readable(self.backbone_bytes)}"
        return "\n".join([title, *(self._choices() if self.copies else self._shares_of_a_pool())])

    def _choices(self) -> list[str]:
        """A line for each share of base's units."""
        head = ["own=", *self.rows[0].units, "a task's shard", "of the backbone", f"{self.tasks} tasks", "of it"]
        lines = []
        for row in self.rows:
            sizes = [*self._size(row.bytes), *self._size(self.total_bytes(row))]
            lines.append([f"{row.share:g}", *map(str, row.units.values()), *sizes])
        return _table(head, lines)

    def _shares_of_a_pool(self) -> list[str]:
        """A line for each task, then what it comes to."""
        types = list(self.rows[0].units)
        head = ["task", "keep=", *types, "shard", "of the backbone", *(f"free {name}" for name in types)]
        lines = []
        for number, row in enumerate(self.rows, 1):
            units, free = map(str, row.units.values()), map(str, row.free.values())
            lines.append([str(number), f"{row.share:.4g}", *units, *self._size(row.bytes), *free])
        size, share = self._size(self.total_bytes(self.rows[-1]))
        end = [f"all shards together: {size}, {share} of the backbone"]
        for name in types:
            without = sum(not row.units[name] for row in self.rows)
            if without:
                end.append(
                    f"{name} do not go round (each layer gives a task one at least; {without} tasks get none): add "
                    "some with model.expand"
                )
        return [*_table(head, lines), *end]

    def _size(self, count: int) -> list[str]:
        return [_readable(count), f"{count / self.backbone_bytes:.1%}"]


def _table(head: list[str], lines: list[list[str]]) -> list[str]:
    """Lines of cells, one under the other."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)) for row in (head, *lines)]


def _readable(count: int) -> str:
    """A number of bytes for a person, in units of 1000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def plan(model: Parts, tasks: int, like: str | None) -> Plan:
    """Propose budgets for coming tasks, see `EideticModel.plan`."""
    if not isinstance(tasks, int) or isinstance(tasks, bool) or tasks < 1:
        raise ValueError(f"tasks={tasks!r}: expected how many tasks are to come, a whole number above 0.")
    if model.learner is not None:
        raise TaskError(f"'{model.learner.name}' is being learned; plan before it begins, or after its commit.")
    if not model.config.pool:
        raise TaskError(
            "This model has no pool: it was released for inference only, or loaded with tasks=[...], and learns "
            "nothing more. Load the whole checkpoint."
        )
    record = _example(model, like)
    copies = model.network.growth.copies
    budgets = [_copied(model, own) for own in SHARES] if copies else _taken(model, tasks)
    records = _coming(model, record, [units for _, units in budgets])
    free = {group.name: group.count(POOL) for group in model.network.unit_groups()}
    rows = []
    for (share, units), size in zip(budgets, _shard_bytes(model, records), strict=True):
        free = {name: left - units[name] for name, left in free.items()}
        rows.append(PlanRow(share, _by_type(units), size, {} if copies else _by_type(free)))
    labels = f", {len(record.labels)} labels" if record.labels else ""
    what = f"{record.task_type}{labels}" if like is None and not record.units else f"'{record.name}'"
    return Plan(model.config.growth, copies, tasks, what, _backbone_bytes(model), rows)


def _example(model: Parts, like: str | None) -> TaskRecord:
    """A task that stands for those to come: the one named, or the last that owns units, or one of two labels."""
    if like is not None:
        return record_of(model, like)
    owners = [task for task in model.config.tasks if any(task.units.values())]
    if owners:
        return owners[-1]
    record = TaskRecord("task", DEFAULT_TASK_TYPE, labels=["0", "1"])
    check_task(record, {})
    check_kind(record, model.config)
    kind_of(record).complete(record, model.config, model.network.vocabulary())
    return record


# -- units ------------------------------------------------------------------------------------------------------------


def _copied(model: Parts, own: float) -> tuple[float, dict[str, int]]:
    """A share, and how many units of each group a task copies with it."""
    growth = cast(CopyGrowth, model.network.growth)
    return own, {group.name: growth.n_copies(group, own) for group in model.network.unit_groups()}


def _taken(model: Parts, tasks: int) -> list[tuple[float, dict[str, int]]]:
    """For each coming task a share of what is free then, and how many units of each group it gets with it.

    All get the same number; as if each took its units evenly from all layers.
    """
    groups = model.network.unit_groups()
    free = {group.name: group.count(POOL) for group in groups}
    budgets = []
    for left in range(tasks, 0, -1):
        share, taken = 1 / left, dict.fromkeys(free, 0)
        for unit_type in UNIT_TYPES:
            names = [group.name for group in groups if group.unit_type == unit_type]
            taken |= _evenly({name: free[name] for name in names}, share)
        budgets.append((share, taken))
        free = {name: count - taken[name] for name, count in free.items()}
    return budgets


def _evenly(free: Mapping[str, int], share: float) -> dict[str, int]:
    """How many units of each group of a kind a task keeps with `keep=share`, see `Learner.prune`."""
    total = sum(free.values())
    if not total:
        return dict.fromkeys(free, 0)
    floor = PruningConfig().floor * share
    taken = {name: max(math.floor(floor * count), min(count, 1)) for name, count in free.items()}
    for _ in range(min(max(round(share * total), 1), total) - sum(taken.values())):
        name = max(free, key=lambda name: share * free[name] - taken[name])
        if taken[name] >= free[name]:
            name = max(free, key=lambda name: free[name] - taken[name])
        taken[name] += 1
    return taken


def _by_type(units: Mapping[str, int]) -> dict[str, int]:
    """Units of groups, added up by kind."""
    found: dict[str, int] = {}
    for name, count in units.items():
        unit_type = name.rpartition(".")[2]
        found[unit_type] = found.get(unit_type, 0) + count
    return found


# -- bytes ------------------------------------------------------------------------------------------------------------


def _coming(model: Parts, like: TaskRecord, units: list[dict[str, int]]) -> list[TaskRecord]:
    """Records of coming tasks, each with its units; a fixed pool's read those before them, as the model says."""
    config, records = copy(model.config), list[TaskRecord]()
    width = len(task_key(like.name)) - 1  # names of this length, so that the header of a shard has it
    for number, each in enumerate(units):
        record = deepcopy(like)
        record.name, record.units = f"{number:_>{width}}", each
        record.ancestors = [] if model.network.growth.copies else read_by(config, model.config.forward_transfer)
        if model.network.input_rows.has_grown:
            record.vocab_size = model.network.input_rows.total
        config.tasks = [*config.tasks, record]
        records.append(record)
    return records


def _shard_bytes(model: Parts, records: list[TaskRecord]) -> list[int]:
    """Sizes of the shards of coming tasks, to the byte."""
    values = {name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "tasks")}
    with torch.device("meta"), no_init_weights():
        config = EideticConfig(**values, tasks=[*deepcopy(model.config.tasks), *records])
        drawn = cast(Any, type(model))(config, empty=True)
        cast_floats(drawn, model.dtype)
        tensors = by_owner(cast(nn.Module, drawn).state_dict())
        found = []
        for record in records:
            key = task_key(record.name)
            sums = _sums(model, record)
            found.append(_file_bytes({**tensors[key], **_evidence(model, drawn, record, len(sums)), **sums}))
    return found


def _evidence(model: Parts, drawn: Parts, record: TaskRecord, n_sums: int) -> dict[str, Tensor]:
    """What a certificate keeps in a task's shard, on the meta device; see `certify`.

    Args:
        model: the model.
        drawn: the same with the task, on the meta device.
        record: of the task.
        n_sums: how many tensors it leaves to the router.
    """
    key, kind, config = task_key(record.name), kind_of(record), drawn.network.backbone.config
    inputs = {name: torch.zeros(PROBE_SHAPE, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    batch = kind.probe_inputs(dict(inputs))
    prepared = kind.prepare(batch, config)
    read = prepared.get("decoder_input_ids", prepared["input_ids"])
    hidden = torch.zeros(*read.shape, hidden_size(config), dtype=drawn.dtype)
    vocabulary = drawn.network.vocabulary(View(key) if kind.reads_vocabulary else None)
    answer = kind.probe_answer(kind.answer(drawn.heads[key], hidden, batch, vocabulary))
    evidence, kept = Evidence(drawn), {**inputs, "logits": kind.probe_kept(answer)}
    record = replace(record, certificate={"environment": environment_of(model)})
    kept["settings"] = torch.zeros(len(written(evidence.settings.of(record))), dtype=torch.uint8)
    places = sum(cast(Any, group).units.get(key) is not None for group in drawn.network.groups.values())
    for part, count in ((BOOKS, len(inputs) + places), (ROUTER, n_sums)):
        kept[f"{part}_digests"] = torch.zeros(count, 32, dtype=torch.uint8)
    for section in evidence.sections(record):
        if section.owner in (key, *EVERYBODYS):
            count = len(evidence.tensors(section))
            kept[f"{section.part}_digests"] = torch.zeros(count, 32, dtype=torch.uint8)
    return {f"probes.{key}.{name}": tensor for name, tensor in kept.items()}


def _sums(model: Parts, record: TaskRecord) -> dict[str, Tensor]:
    """What the router keeps of a task, on the meta device."""
    router, width = model.router, model.network.projections[0].in_features
    features = min(len(to_pool(layers_of_router(model))) * width, MAX_FEATURES)
    features = router.n_features if router.is_ready else features
    directions = router.reference.get("directions")
    kept = directions_kept(features, model.network.backbone_bytes()) if directions is None else int(directions)
    tensors = size_of_kept(kind_of(record).n_prototypes(record), features, kept)
    return {f"router.sums.{task_key(record.name)}.{name}": tensor for name, tensor in tensors.items()}


def _file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that `write_shard` writes: a header that names each tensor, and the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start, dtypes = 0, list(_DTYPES)
    for name in sorted(tensors, key=lambda name: (dtypes.index(tensors[name].dtype), name)):
        dtype, shape, stop = tensors[name].dtype, list(tensors[name].shape), start + tensors[name].nbytes
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + math.ceil(length / 8) * 8 + start


def _backbone_bytes(model: Parts) -> int:
    """What the pretrained backbone takes: with a fixed pool the units that tasks have taken belong to it, too."""
    total = 0
    for name, tensor in cast(nn.Module, model).state_dict().items():
        is_unit = ".segments." in name and not model.network.growth.copies
        if name.startswith(("backbone.", "output_embeddings.")) and (is_unit or owner_of(name) in (*EVERYBODYS, POOL)):
            total += tensor.nbytes
    return total
