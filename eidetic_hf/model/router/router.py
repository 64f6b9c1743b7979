"""`Router`: what each task left behind, what users told it since, and the classifiers that follow from both."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...configuration import TaskError
from ...network.storage import Slots, own_tensors
from ...views import task_key, task_name
from .discriminant import UNITS, Discriminant, distances, thinned, whole_covariance
from .features import LEVELS, STEPS_PER_DEVIATION, Layout
from .sums import RouterSums, TaskStatistics, directions_kept, kept_of, statistics_of

# What is told about a task after its commit: examples, and as how many sequences each counts, below 0 if forgotten.
EXAMPLES, EXAMPLE_LABELS, EXAMPLE_WEIGHTS = "examples", "labels", "weights"
PRIOR, THRESHOLD = "prior", "threshold"
EXAMPLE_SHARE = 0.01  # of a task's sequences: what an example counts that a user adds
SAME_SHIFT, SAME_SCALE = 0.05, 1e-3  # by how much the same reference differs on another machine, at the most
NEAREST, OVERLAPS = 3, 8  # labels that explain a route, and tasks that another is held against


class _Pooled(NamedTuple):
    """The sum of some tasks' covariances.

    Attributes:
        names: of the tasks.
        columns: which of the features were read.
        directions: how many of each task's were read.
        total: sum of `whole_covariance`, `(columns, columns)` float64, in whole numbers.
    """

    names: frozenset[str]
    columns: Tensor
    directions: int
    total: Tensor


class Router(nn.Module):
    """Says how likely each task is for a sequence.

    `reference` holds what turns pooled states into features, the same for every task and kept in the trunk's shard;
    `sums` what each task left behind, in its own shard; and `told` what users have added to it since, or taken away,
    in a shard that every save writes anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reference = Slots()
        self.sums = nn.ModuleDict()
        self.told = nn.ModuleDict()
        self._solved: dict[tuple[tuple[str, ...], int], Discriminant] = {}
        self._pooled: _Pooled | None = None
        self._solving = threading.Lock()  # the sum of covariances is brought up to date in place
        self._read: Callable[..., Tensor] = _cannot_read
        self._labels_of: Callable[[str], list[str]] = _no_labels
        self._first_look: Callable[[], tuple[int, float]] = _no_first_look

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_solved": {}, "_pooled": None, "_solving": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_solving": threading.Lock()})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Follow the model to another device, never to another dtype: rounded sums would be other sums."""
        for slots in cast(list[Slots], [self.reference, *self.sums.values(), *self.told.values()]):
            for name, buffer in own_tensors(slots).items():
                slots.put(name, buffer.to(fn(buffer).device))
        self._solved.clear()
        return self

    # -- features -------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether features can be computed."""
        return self.reference.get("shift") is not None

    @property
    def n_features(self) -> int:
        """Number of features."""
        shift = self.reference.get("shift")
        if shift is None:  # `hasattr` has to be possible: torch.jit.trace asks for every name
            raise AttributeError("The router has no scale yet: it gets one with the first task.")
        return shift.numel()

    def layout(self, trunk_layers: int) -> Layout:
        """Which numbers are features.

        Args:
            trunk_layers: of the model.
        """
        parts, columns = self.reference.get("parts"), self.reference.need("columns")
        if parts is None:
            return Layout.before_depths(trunk_layers, columns)
        return Layout(tuple((layer, what, width) for layer, what, width in parts.tolist()), columns)

    def set_reference(self, layout: Layout, pooled: Tensor, backbone_bytes: int) -> None:
        """Fix which numbers are features, the shift and scale of each, and how much a task may leave behind.

        Args:
            layout: which numbers.
            pooled: what `features` takes, of sequences that represent no task.
            backbone_bytes: of the backbone, of which a task takes about a hundredth.
        """
        device, directions = pooled.device, directions_kept(len(layout.columns), backbone_bytes)
        self.reference.put("columns", layout.columns.to(device))
        self.reference.put("parts", torch.tensor(layout.parts, device=device))
        self.reference.put("directions", torch.tensor(directions, device=device))
        chosen = self._chosen(pooled)
        deviation = chosen.std(0)
        self.reference.put("shift", chosen.mean(0))
        self.reference.put("scale", torch.where(deviation > 0, STEPS_PER_DEVIATION / deviation, 0))

    def reads_alike(self, reference: Mapping[str, Tensor]) -> bool:
        """Whether another router reads the same numbers at the same scale, up to rounding on another machine.

        Args:
            reference: the other's; it may have none, and then no task left anything to it.
        """
        ours, theirs = ({n: t.cpu() for n, t in part.items()} for part in (own_tensors(self.reference), reference))
        if not theirs:
            return True
        for name in ("parts", "columns"):
            if (name in ours) != (name in theirs) or (name in ours and not torch.equal(ours[name], theirs[name])):
                return False
        moved = (ours["shift"] - theirs["shift"]).abs() * ours["scale"]  # in whole numbers of a feature
        same_scale = torch.allclose(ours["scale"], theirs["scale"], rtol=SAME_SCALE, atol=0)
        return same_scale and bool((moved < SAME_SHIFT).all())

    def clear_reference(self) -> None:
        """Forget the scale: the trunk may still change."""
        self.reference.clear()

    def _chosen(self, pooled: Tensor) -> Tensor:
        """The numbers that are features; the first ones, where only the first parts are given."""
        columns = self.reference.need("columns")
        return pooled.float().index_select(1, columns[columns < pooled.shape[1]])

    def features(self, pooled: Tensor) -> Tensor:
        """Pooled states side by side, `(batch, numbers)`, as whole numbers, `(batch, features)` float32.

        Of the first parts alone they are the first features.
        """
        chosen = self._chosen(pooled)
        shift, scale = (self.reference.need(name)[: chosen.shape[1]] for name in ("shift", "scale"))
        return ((chosen - shift) * scale).round().clamp(-LEVELS, LEVELS)

    # -- what tasks left behind -----------------------------------------------------------------------------------

    def kept(self, sums: RouterSums) -> dict[str, Tensor]:
        """What is kept of sums, by the names of slots."""
        directions = self.reference.get("directions")
        return kept_of(sums, self.n_features if directions is None else int(directions))

    def put(self, task: str, sums: RouterSums) -> None:
        """Keep what is to be kept of a task's sums."""
        slots, device = Slots(), self.reference.need("shift").device
        for name, tensor in self.kept(sums).items():
            slots.put(name, tensor.to(device))
        self._let_go(task)
        self.sums[task_key(task)], self.told[task_key(task)] = slots, Slots()

    def remove(self, task: str) -> None:
        """Drop what a task left, if it left anything: the router is then as if the task had never been."""
        self._let_go(task)
        key = task_key(task)
        for kept in (self.sums, self.told):
            if key in kept:
                del kept[key]

    def _let_go(self, task: str) -> None:
        """Take a task out of what was computed from it."""
        self._solved.clear()
        if self._pooled is not None and task in self._pooled.names:
            self._pooled = self._without(self._pooled, [task])

    def forget(self) -> None:
        """Solve again from what there is."""
        self._solved.clear()
        self._pooled = None

    def make_room(self, task: str) -> None:
        """Let a checkpoint put what a task left."""
        self.sums[task_key(task)], self.told[task_key(task)] = Slots(), Slots()
        self.forget()

    def has(self, task: str) -> bool:
        """Whether a task left anything behind."""
        key = task_key(task)
        return key in self.sums and self._left(task).get("count") is not None

    def _left(self, task: str) -> Slots:
        return cast(Slots, self.sums[task_key(task)])

    def statistics(self, task: str, columns: Tensor | None = None, directions: int | None = None) -> TaskStatistics:
        """How a task's sequences are spread, as it was kept (`KeyError` if it left nothing); see `statistics_of`."""
        return statistics_of(self._left(task), columns, directions)

    def distances(self, sums: RouterSums) -> dict[str, float]:
        """How unlike the sequences of a task that is not committed are to those of all that are, see `distances`."""
        names, new = self.known(), self.kept(sums)
        columns, directions = self._thinned(names, len(names) + 1)

        def statistics(name: str) -> TaskStatistics:
            return statistics_of(self._left(name) if name else new, columns, directions)

        return distances("", names, statistics)

    def _summary(self, task: str, kept: TaskStatistics, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences per label, and means of labels, with what users added and took away."""
        slots = cast(Slots, self.told[task_key(task)])
        examples = slots.get(EXAMPLES)
        if examples is None or not len(examples):
            return kept.count, kept.means
        labels, weights = (slots.need(name).cpu() for name in (EXAMPLE_LABELS, EXAMPLE_WEIGHTS))
        weights, labels = weights.double(), labels.long()
        count = kept.count.index_add(0, labels, weights)
        total = (kept.means * kept.count.unsqueeze(1)).index_add(
            0, labels, examples.cpu()[:, columns].double() * weights.unsqueeze(1)
        )
        left = count > 0.5  # of a label whose every sequence was forgotten nothing is left
        means = torch.where(left.unsqueeze(1), total / count.clamp(min=1).unsqueeze(1), kept.means)
        return torch.where(left, count, 0), means

    # -- what users tell ------------------------------------------------------------------------------------------

    def read_by(
        self,
        read: Callable[..., Tensor],
        labels_of: Callable[[str], list[str]],
        first_look: Callable[[], tuple[int, float]] | None = None,
    ) -> None:
        """Say how texts become features, and what the labels of a task are called.

        Args:
            read: takes texts and a tokenizer, and returns features, `(texts, features)`.
            labels_of: takes the name of a task.
            first_look: returns how many of the first features decide by themselves, and how likely a task has to be by
                them; none do, if not given.
        """
        self._read, self._labels_of = read, labels_of
        self._first_look = first_look or _no_first_look

    def add_examples(
        self,
        task: str,
        texts: Any,
        labels: Sequence[str | int] | None = None,
        tokenizer: Any = None,
        weight: int | None = None,
    ) -> None:
        """Show the router texts of a task, as when it sent them elsewhere; nothing of the task itself changes.

        No old text is needed. What is kept of each text are its features, in a shard of their own that every save
        writes anew (`eidetic-router.safetensors`); `forget_examples` takes it back without a trace.

        Args:
            task: name of a committed task.
            texts: one or several; or what a tokenizer makes of them.
            labels: of the texts, names or numbers; by default the label of the task that each is nearest to.
            tokenizer: of the texts; by default that of the folder that the model or its backbone was loaded from.
            weight: as how many sequences each counts; by default a hundredth of those that the task was learned from.

        Raises:
            TaskError: if the task is unknown to the router.
            ValueError: if there is no text, no tokenizer, no such label, or the weight is less than 1.
        """
        self._tell(task, texts, labels, tokenizer, weight, 1)

    def forget_examples(
        self,
        task: str,
        texts: Any,
        labels: Sequence[str | int] | None = None,
        tokenizer: Any = None,
        weight: int | None = None,
    ) -> None:
        """Take texts out of what the router knows of a task: what `add_examples` added, or it was learned from.

        Args:
            task: name of a committed task.
            texts: as for `add_examples`.
            labels: of the texts; by default those under which they were added, and else as for `add_examples`.
            tokenizer: as for `add_examples`.
            weight: as how many sequences each counts; by default as it was added, and 1 for one that was not.

        Raises:
            TaskError: if the task is unknown to the router, or nothing of it would be left.
            ValueError: as for `add_examples`.
        """
        self._tell(task, texts, labels, tokenizer, weight, -1)

    def _tell(self, task: str, texts: Any, labels: Any, tokenizer: Any, weight: int | None, sign: int) -> None:
        self._check_known(task)
        if weight is not None and (not isinstance(weight, int) or weight < 1):
            raise ValueError(f"weight={weight!r}: expected a whole number of sequences, 1 or more.")
        rows = self._read(texts, tokenizer).cpu().to(torch.int8)
        numbers, told = self._numbers(task, rows, labels), self._examples(task)
        for row, number in zip(rows, numbers, strict=True):
            key = (number, row.numpy().tobytes())
            if sign > 0:
                counts = weight or max(1, round(EXAMPLE_SHARE * self.statistics(task).size))
            else:
                key = _added_as(row, told, None if labels is None else number) or key
                counts = -(weight or max(told.get(key, 0), 1))
            told[key] = told.get(key, 0) + counts
        count = self.statistics(task).count.clone()
        for (number, _), each in told.items():
            count[number] += each
        if not float(count.clamp(min=0).sum()) > 0:
            raise TaskError(f"No text of '{task}' would be left; remove the task with model.remove_task({task!r}).")
        self._put_examples(task, told)

    def _check_known(self, task: str) -> None:
        if not self.has(task):
            known = [name for key in self.sums if (name := task_name(key)) is not None and self.has(name)]
            raise TaskError(f"The router knows nothing of a task {task!r}; it knows {known}.")

    def _numbers(self, task: str, rows: Tensor, labels: Sequence[str | int] | None) -> list[int]:
        """Numbers of the labels of texts."""
        count = self.statistics(task).count
        if len(count) == 1:
            return [0] * len(rows)
        if labels is None:
            near = self.discriminant([task]).nearest_labels(rows.float().to(self.reference.need("shift").device), 1)
            return [found[0][1] for found in near]
        labels, names = [labels] * len(rows) if isinstance(labels, str | int) else list(labels), self._labels_of(task)
        numbers = [names.index(label) if label in names else label for label in labels]
        if len(numbers) != len(rows) or not all(isinstance(n, int) and 0 <= n < len(count) for n in numbers):
            raise ValueError(
                f"labels={labels!r} for {len(rows)} texts: expected as many, of {names}, or their numbers."
            )
        return cast(list[int], numbers)

    def _examples(self, task: str) -> dict[tuple[int, bytes], int]:
        """As how many sequences each example counts that users told of a task, by its label and features."""
        slots = cast(Slots, self.told[task_key(task)])
        rows = slots.get(EXAMPLES)
        if rows is None:
            return {}
        labels, weights = (slots.need(name).tolist() for name in (EXAMPLE_LABELS, EXAMPLE_WEIGHTS))
        kept = (row.numpy().tobytes() for row in rows.cpu())
        return {(label, row): weight for label, row, weight in zip(labels, kept, weights, strict=True)}

    def _put_examples(self, task: str, told: Mapping[tuple[int, bytes], int]) -> None:
        left = sorted(key for key, weight in told.items() if weight)  # in whatever order they were told
        device = self.reference.need("shift").device
        values: list[Tensor | None] = [None, None, None]
        if left:
            rows = [torch.frombuffer(bytearray(row), dtype=torch.int8) for _, row in left]
            numbers, weights = [number for number, _ in left], [told[key] for key in left]
            values = [torch.stack(rows), torch.tensor(numbers, dtype=torch.int16), torch.tensor(weights)]
        slots = cast(Slots, self.told[task_key(task)])
        for name, value in zip((EXAMPLES, EXAMPLE_LABELS, EXAMPLE_WEIGHTS), values, strict=True):
            slots.put(name, None if value is None else value.to(device))
        self._solved.clear()

    def set_prior(self, task: str, prior: float) -> None:
        """Say how likely a task is beforehand, against 1 for each of the others; kept in the checkpoint.

        Raises:
            TaskError: if the task is unknown to the router.
            ValueError: if the prior is not above 0.
        """
        self._check_known(task)
        if not 0 < prior < math.inf:
            raise ValueError(f"prior={prior!r}: expected a number above 0.")
        self._set(task, PRIOR, None if prior == 1 else prior)

    def prior(self, task: str) -> float:
        """How likely a task is beforehand, against 1 for one of which nobody said anything."""
        return self._told(task, PRIOR, 1.0)

    def log_priors(self, tasks: Sequence[str]) -> Tensor | None:
        """Logs of the priors of tasks, `(tasks,)` float64; `None` if all are alike."""
        priors = [self.prior(task) for task in tasks]
        if all(prior == 1 for prior in priors):
            return None
        return torch.tensor(priors, dtype=torch.float64, device=self.reference.need("shift").device).log()

    def set_threshold(self, task: str, share: float | None) -> None:
        """Say which share of a task's own sequences `abstain` may turn away, whatever a call says of the others.

        Args:
            task: name of the task.
            share: above 0 and below 1; `None` for what the call says.

        Raises:
            TaskError: if the task is unknown to the router.
            ValueError: if it is no share.
        """
        self._check_known(task)
        if share is not None and not 0 < share < 1:
            raise ValueError(f"share={share!r}: expected a number between 0 and 1, or None.")
        self._set(task, THRESHOLD, share)

    def threshold(self, task: str, default: float) -> float:
        """The share of a task's own sequences that may be turned away."""
        return self._told(task, THRESHOLD, default)

    def _set(self, task: str, name: str, value: float | None) -> None:
        slots = cast(Slots, self.told[task_key(task)])
        device = self.reference.need("shift").device
        slots.put(name, None if value is None else torch.tensor(value, dtype=torch.float64, device=device))

    def _told(self, task: str, name: str, default: float) -> float:
        key = task_key(task)
        value = cast(Slots, self.told[key]).get(name) if key in self.told else None
        return default if value is None else float(value)

    def explain(self, texts: Any, tasks: Sequence[str] | None = None, tokenizer: Any = None) -> list[dict[str, Any]]:
        """Why texts go where they go.

        Args:
            texts: one or several; or what a tokenizer makes of them.
            tasks: those to choose among; all that the router knows, if not given.
            tokenizer: as for `add_examples`.

        Returns:
            For each text `task`, the likeliest; `probability`, its posterior; `margin`, by how much that is above the
            next one's; `runner_up`, that one; `decided_by`, the `first layer` or `all layers` that the router reads,
            as the model's `routing` has it; and, by all layers, `outlier_score`, see `RoutedOutput`, and `nearest`,
            the labels whose texts are nearest: `task`, `label`, and `distance`, as outlier scores are made of.

        Raises:
            TaskError: if there is no task to choose among, or one is unknown to the router.
            ValueError: if there is no text, or no tokenizer.
        """
        names = list(tasks) if tasks is not None else self.known()
        if not names:
            raise TaskError("There is no task to choose among: the router knows of none, or tasks=[] names none.")
        for name in names:
            self._check_known(name)
        features = self._read(texts, tokenizer)
        solved = self.discriminant(names)
        posteriors = solved.log_posteriors(features, names, self.log_priors(names)).exp()
        first, sure = self._first_look()
        at_once = torch.zeros(len(features), dtype=torch.bool, device=features.device)
        if first:
            early = self.discriminant(names, first).log_posteriors(features[:, :first], names, self.log_priors(names))
            at_once = early.exp().amax(1) >= sure
            posteriors = torch.where(at_once.unsqueeze(1), early.exp(), posteriors)
        order = posteriors.argsort(1, descending=True)
        best = [names[row[0]] for row in order.tolist()]
        outliers = solved.outlier_scores(features, best).tolist()
        found = []
        for row, near in enumerate(solved.nearest_labels(features, NEAREST)):
            first, second = order[row, 0], order[row, min(1, len(names) - 1)]
            rival = len(names) > 1
            found.append(
                {
                    "task": best[row],
                    "probability": float(posteriors[row, first]),
                    "runner_up": names[int(second)] if rival else None,
                    "margin": float(posteriors[row, first] - (posteriors[row, second] if rival else 0)),
                    "decided_by": "first layer" if bool(at_once[row]) else "all layers",
                    "outlier_score": outliers[row],
                    "nearest": [
                        {"task": task, "label": self._label(task, number), "distance": distance}
                        for task, number, distance in near
                    ],
                }
            )
        return found

    def _label(self, task: str, number: int) -> str | None:
        names = self._labels_of(task)
        return names[number] if len(names) > number and len(self.statistics(task).count) > 1 else None

    def known(self) -> list[str]:
        """Names of the tasks that left something behind."""
        return [name for key in self.sums if (name := task_name(key)) is not None and self.has(name)]

    def overlaps(self, task: str, others: Sequence[str]) -> dict[str, float]:
        """Estimates of how often the texts of a task are told apart from those of others, the lowest first.

        Args:
            task: that left something behind.
            others: the same; of many the eight nearest are looked at.
        """
        if len(others) > OVERLAPS:
            means = {name: self.statistics(name).mean for name in (task, *others)}
            scale = self.statistics(task).deviation.clamp(min=1)
            near = {name: float(((means[name] - means[task]) / scale).square().sum()) for name in others}
            others = sorted(others, key=lambda name: (near[name], name))[:OVERLAPS]
        solved = self.discriminant(sorted([task, *others]))
        found = {other: solved.told_apart(task, other) for other in others}
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

    # -- answers --------------------------------------------------------------------------------------------------

    def _thinned(self, names: Sequence[str], n_tasks: int) -> tuple[Tensor, int]:
        factors = [self._left(name).get("factor") for name in names]
        widest = max((factor.shape[1] for factor in factors if factor is not None), default=self.n_features)
        return thinned(self.n_features, widest, n_tasks)

    def _with(self, pooled: _Pooled, names: Sequence[str], sign: int = 1) -> _Pooled:
        for name in names:
            kept = self.statistics(name, pooled.columns, pooled.directions)
            pooled.total.add_(whole_covariance(kept), alpha=sign)
        return pooled._replace(names=pooled.names.union(names) if sign > 0 else pooled.names.difference(names))

    def _without(self, pooled: _Pooled, names: Sequence[str]) -> _Pooled:
        return self._with(pooled, names, -1)

    def _pool(self, names: Sequence[str]) -> _Pooled:
        """The sum of covariances of tasks: brought up to date, or added up anew where that is less work."""
        columns, directions = self._thinned(names, len(names))
        old, wanted = self._pooled, frozenset(names)
        if (
            old is None
            or (len(old.columns), old.directions) != (len(columns), directions)
            or len(old.names ^ wanted) >= len(wanted)
        ):
            empty = torch.zeros(len(columns), len(columns), dtype=torch.float64)
            old = _Pooled(frozenset(), columns, directions, empty)
        self._pooled = None  # an interruption leaves no half of a sum behind
        old = self._without(old, sorted(old.names - wanted))
        self._pooled = self._with(old, sorted(wanted - old.names))
        return self._pooled

    @partial(torch.compiler.disable, reason="what a router chooses is in no graph: pass task='<name>' for a full one")
    def discriminant(self, tasks: Sequence[str], first: int | None = None) -> Discriminant:
        """The classifier over these tasks.

        Args:
            tasks: their names.
            first: how many of the features it may read; all, if not given.

        Raises:
            TaskError: if one of them left nothing behind.
        """
        lacking = [task for task in tasks if not self.has(task)]
        if lacking:
            raise TaskError(
                f"The router knows nothing of {lacking}: committed without router sums, as when commit_task is called "
                "without them. Pass task=..., or load the model with tasks=[...] of the others."
            )
        first = self.n_features if first is None else first
        key = (tuple(tasks), first)
        found = self._solved.get(key)
        if found is None:
            with self._solving:
                found = self._solved.get(key) or self._solve(sorted(tasks), first)
                self._solved[key] = found
        return found

    def _solve(self, names: list[str], first: int) -> Discriminant:
        """The classifier over tasks by the first features; sorted: the order in which they came must not matter."""
        pooled = self._pool(names)
        read = pooled.columns < first
        columns = pooled.columns[read]
        kept = {name: self.statistics(name, columns, 0) for name in names}
        beside = torch.cat([each.between() for each in kept.values()])
        solved = Discriminant.fit(
            self.statistics,
            {name: self._summary(name, each, columns) for name, each in kept.items()},
            columns,
            pooled.total[read][:, read] / (UNITS * len(names)),
            beside.T @ beside / len(names),
        )
        return solved.to(self.reference.need("shift").device)


def _added_as(row: Tensor, told: Mapping[tuple[int, bytes], int], label: int | None) -> tuple[int, bytes] | None:
    """The example that a text was added as; in a batch of another shape a feature may have been rounded otherwise.

    Args:
        row: features of the text, `(features,)` int8.
        told: as how many sequences each example counts.
        label: that it was added with; `None` for any.
    """
    found = []
    for key, weight in told.items():
        if weight > 0 and label in (None, key[0]):
            apart = (torch.frombuffer(bytearray(key[1]), dtype=torch.int8).short() - row.short()).abs()
            if int(apart.max()) <= 1:
                found.append((int(apart.sum()), key))
    return min(found)[1] if found else None


def _cannot_read(texts: Any, tokenizer: Any) -> Tensor:
    raise RuntimeError("This router belongs to no model, so it can not read texts: ask model.router.")


def _no_labels(task: str) -> list[str]:
    return []


def _no_first_look() -> tuple[int, float]:
    return 0, 0.0
