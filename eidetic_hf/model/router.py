"""The router: which task does a sequence belong to? In closed form, from sums that each task left behind.

Features are taken from the last trunk layer: its mean over a sequence's real tokens, and its state of the token that
has seen the whole sequence; of both together at most `MAX_FEATURES` numbers, evenly spread, each rounded to a whole
number from -127 to 127. So all sums over them are whole numbers, too, and adding them up is exact: in any order of
tasks, of batches or of processes the same bits come out, the same as from all data at once. A task leaves its count of
sequences, the sum of its features per label, and half of its matrix of second moments; no text, no gradient. They lie
in the task's own shard, so removing a task removes its sums.

Everything else is computed from the sums when it is first needed, with the tasks in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..configuration import TaskError
from ..network.storage import Slots, own_tensors
from ..views import task_key

MAX_FEATURES = 640
MEAN_SHARE = 0.6  # of them that are taken from the mean; the others from the one token
LEVELS = 127
# A feature's whole number is 1 for this share of its standard deviation over sequences of random tokens. That of a
# mean over real texts is about the same, so that LEVELS is far out of reach.
STEPS_PER_DEVIATION = 10
# The label view's share in the joint score, and how far a task's covariance may be its own in either view: the
# choice that did best on two unlike sequences of tasks (docs/routing.md).
LABEL_WEIGHT, OWN_AROUND_TASK, OWN_AROUND_LABEL = 0.3, 0.9, 0.5
# Share of the distance to the center in an outlier score; and how much wider than normal its distribution is, seen on
# the same two sequences of tasks.
CENTER_SHARE, HEAVY_TAILS = 0.7, 2.5
MAX_TASK_DIRECTIONS, MAX_LABEL_DIRECTIONS = 64, 128
TASKS_AT_ONCE, ROWS_AT_ONCE = 16, 128  # tasks whose matrices are unpacked at a time, and their rows in a product
REFERENCE_SEED, REFERENCE_SHAPE = 20250209, (128, 48)


@dataclass
class RouterSums:
    """What a task leaves behind for the router; whole numbers throughout.

    Attributes:
        count: sequences per label, `(labels,)` int64; one entry for tasks that have no single label.
        total: sums of their features, `(labels, features)` int64.
        moment: sum of x xᵀ over all of them, the lower triangle row by row, `(features * (features + 1) / 2,)` int64.
    """

    count: Tensor
    total: Tensor
    moment: Tensor

    @classmethod
    def zeros(cls, n_labels: int, n_features: int) -> RouterSums:
        """Sums over nothing."""
        size = n_features * (n_features + 1) // 2
        count, total, moment = (torch.zeros(s, dtype=torch.int64) for s in (n_labels, (n_labels, n_features), size))
        return cls(count, total, moment)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add sequences: features `(sequences, features)`, whole numbers of any dtype, and labels `(sequences,)`."""
        exact = features.double().cpu()  # products of up to 127 * 127: exact in float64 for 5e11 sequences
        labels = labels.cpu()
        self.count += torch.bincount(labels, minlength=len(self.count))
        self.total += torch.zeros(self.total.shape, dtype=torch.float64).index_add_(0, labels, exact).long()
        self.moment += lower_triangle(exact.T @ exact).long()

    def merged(self, other: RouterSums) -> RouterSums:
        """The sums over both."""
        return RouterSums(self.count + other.count, self.total + other.total, self.moment + other.moment)


def lower_triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of a square matrix, row by row."""
    rows, columns = torch.tril_indices(*matrix.shape)
    return matrix[rows, columns]


def symmetric(triangles: Tensor, size: int) -> Tensor:
    """Symmetric matrices, `(..., size, size)`, of their lower triangles `(..., size * (size + 1) / 2)`."""
    rows, columns = torch.tril_indices(size, size)
    place = torch.empty(size, size, dtype=torch.long)
    place[rows, columns] = place[columns, rows] = torch.arange(len(rows))
    return triangles[..., place]


def _compact(tensor: Tensor) -> Tensor:
    """The same whole numbers as int32, if they fit."""
    return tensor.int() if tensor.numel() == 0 or int(tensor.abs().max()) < 2**31 else tensor


def reference_inputs(vocab_size: int, longest: int | None = None, hidden: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask, `(sequences, tokens)`, of uneven lengths.

    All begin and end with the same token, as texts do whose tokenizer frames them.

    Args:
        vocab_size: number of tokens.
        longest: tokens that the backbone has positions for; `None` if that has no limit.
        hidden: the backbone's hidden size: a wide one, of which each pass takes long, reads fewer.
    """
    rows, tokens = REFERENCE_SHAPE
    rows = max(rows // max(hidden // 1024, 1) ** 2, 16)
    tokens = min(tokens, longest or tokens)
    generator = torch.Generator().manual_seed(REFERENCE_SEED)
    ids = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    lengths = torch.randint(min(4, tokens), tokens + 1, (rows,), generator=generator)
    ids[:, 0] = ids[0, 0]
    ids.scatter_(1, lengths.unsqueeze(1) - 1, int(ids[0, 1]))
    return ids, (torch.arange(tokens) < lengths.unsqueeze(1)).long()


def _columns(parts: int, hidden: int) -> Tensor:
    """Which of the joined numbers, `parts * hidden`, are features: all, or as many as may be, evenly spread."""
    if parts * hidden <= MAX_FEATURES:
        return torch.arange(parts * hidden)
    first = min(hidden, MAX_FEATURES if parts == 1 else round(MEAN_SHARE * MAX_FEATURES))
    counts = [first] if parts == 1 else [first, MAX_FEATURES - first]
    return torch.cat([hidden * part + torch.arange(n) * hidden // n for part, n in enumerate(counts)])


def count_features(parts: int, hidden: int) -> int:
    """Number of features that are made of so many pooled trunk states of this width."""
    return len(_columns(parts, hidden))


def distances(sums: RouterSums, others: Mapping[str, RouterSums]) -> dict[str, float]:
    """How unlike a task's sequences are to those of others: squared Mahalanobis distances between their means.

    Args:
        sums: of the task.
        others: of the others, by name; the common covariance within tasks is over all of them.
    """
    names = sorted(others)  # added up in the same order, whichever came first
    tasks = [*(others[name] for name in names), sums]
    sizes = [float(task.count.sum()) for task in tasks]
    means = torch.stack([task.total.double().sum(0) / size for task, size in zip(tasks, sizes, strict=True)])
    within = symmetric(sum((task.moment.double() for task in tasks), torch.zeros(())), means.shape[1])
    within -= (means.T * torch.tensor(sizes, dtype=torch.float64)) @ means
    seen = (means[:-1] - means[-1]) @ _inverse_root(_shrunk(within / sum(sizes), sum(sizes))).T
    return dict(zip(names, seen.square().sum(1).tolist(), strict=True))


@dataclass(frozen=True)
class _Space:
    """Gaussians of tasks in a space of few directions that tell groups of sequences apart.

    Attributes:
        basis: from features to this space, `(features, directions)`.
        origin: a point of the space that coordinates are counted from, `(directions,)`.
        curvatures: per task, what its inverse covariance adds to the log density for each product of two coordinates,
            `(tasks, directions * (directions + 1) / 2)`: a batch meets all tasks in one matrix product.
        offsets: what a group's log density (a task's, or that of a label of a task) does not owe to the sequence,
            `(groups,)`.
        slopes: inverse covariance times mean of each group, `(groups, directions)`.
        owner: number of each group's task, `(groups,)`.
    """

    basis: Tensor
    origin: Tensor
    curvatures: Tensor
    offsets: Tensor
    slopes: Tensor
    owner: Tensor

    def log_densities(self, features: Tensor) -> Tensor:
        """Log density of each task, up to a common constant, `(batch, tasks)`."""
        x = features @ self.basis - self.origin
        rows, columns = torch.tril_indices(x.shape[1], x.shape[1], device=x.device)
        bent = self.curvatures @ (x[:, rows] * x[:, columns]).T  # (tasks, batch)
        log = self.offsets.unsqueeze(1) + self.slopes @ x.T + bent[self.owner]  # (groups, batch)
        n_tasks = len(self.curvatures)
        if len(log) == n_tasks:
            return log.T
        index = self.owner.unsqueeze(1).expand_as(log)
        top = torch.full((n_tasks, len(features)), -torch.inf, dtype=log.dtype, device=log.device)
        top = top.scatter_reduce(0, index, log, "amax")
        total = torch.zeros_like(top).index_add_(0, self.owner, (log - top[self.owner]).exp())
        return (top + total.log()).T


@dataclass
class Discriminant:
    """The classifier over a set of tasks, all of it computed from their sums.

    Two views of a sequence are weighed against each other. The first tells tasks apart: a ridge regression on the
    tasks spans a space of (tasks - 1) directions, in which every task is a Gaussian with a covariance of its own. The
    second tells labels apart: the directions of a linear discriminant over (task, label) prototypes, in which a
    task is a mixture of Gaussians around its labels' means. Where tasks overlap, the first is right more often; where
    they have many labels, the second.

    Attributes:
        names: the tasks, sorted.
        by_task: the first view.
        by_label: the second view.
        root: inverse Cholesky factor of the shrunk covariance within labels, `(features, features)`.
        prototypes: means of all labels, seen through `root`, `(labels, features)`.
        center: mean of all tasks' means, seen through `root`, `(features,)`.
        owner: number of each label's task, `(labels,)`.
        moments: mean and standard deviation of the distances of a task's own sequences, `(2,)`, for the tasks that
            were asked for so far.
    """

    names: list[str]
    by_task: _Space
    by_label: _Space
    root: Tensor
    prototypes: Tensor
    center: Tensor
    owner: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def fit(cls, sums: Mapping[str, RouterSums], n_features: int) -> Discriminant:
        """Solve for the classifier of tasks, given in the order of their names.

        The shrinkage of a covariance towards a multiple of the identity is p / (n + p), for p features and n
        sequences: half where there are as many of both, none in the limit of much data.
        """
        tasks = list(sums.values())
        counts = [task.count.double() for task in tasks]
        sizes = torch.stack([count.sum() for count in counts])
        means = torch.stack([task.total.double().sum(0) for task in tasks]) / sizes.unsqueeze(1)
        seen = [count > 0 for count in counts]  # a label that no sequence had has no prototype
        prototypes = torch.cat(
            [task.total.double()[s] / c[s].unsqueeze(1) for task, c, s in zip(tasks, counts, seen, strict=True)]
        )
        label_counts = torch.cat([count[s] for count, s in zip(counts, seen, strict=True)])
        n_labels = torch.stack([s.sum() for s in seen])
        owner = torch.repeat_interleave(torch.arange(len(tasks)), n_labels)
        center = means.mean(0)
        n = float(sizes.sum())
        within = torch.zeros(len(tasks[0].moment), dtype=torch.float64)
        total = torch.zeros_like(within)
        for task, size in zip(tasks, sizes, strict=True):
            moment = task.moment.double()
            within += moment
            total += moment / size
        within = symmetric(within, n_features) - (prototypes.T * label_counts) @ prototypes
        within = _shrunk(within / max(n - len(prototypes), 1), n)
        total = symmetric(total, n_features) / len(tasks) - torch.outer(center, center)
        total = _shrunk(total, n)
        to_tasks = _directions(means - center, total, MAX_TASK_DIRECTIONS)
        to_labels = _directions(prototypes - prototypes.mean(0), within, MAX_LABEL_DIRECTIONS)
        root = _inverse_root(within)
        around_task, around_label = _projected([task.moment for task in tasks], to_tasks, to_labels)
        around_task /= sizes.view(-1, 1, 1)
        around_task -= _outer(means @ to_tasks)
        squares = _outer(prototypes @ to_labels) * label_counts.view(-1, 1, 1)
        around_label.index_add_(0, owner, squares, alpha=-1)
        around_label /= (sizes - n_labels).clamp(min=1).view(-1, 1, 1)
        flat = torch.arange(len(tasks))
        weights = torch.log(label_counts / sizes[owner])
        return cls(
            names=list(sums),
            by_task=_space(to_tasks, around_task, OWN_AROUND_TASK, sizes, means, flat, None),
            by_label=_space(to_labels, around_label, OWN_AROUND_LABEL, sizes, prototypes, owner, weights),
            root=root,
            prototypes=prototypes @ root.T,
            center=center @ root.T,
            owner=owner,
        )

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        tensors = [value for part in (self, self.by_task, self.by_label) for value in vars(part).values()]
        tensors += self.moments.values()
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def to(self, device: torch.device) -> Discriminant:
        """The same on another device."""
        moved: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, _Space):
                value = _Space(**{f.name: getattr(value, f.name).to(device) for f in fields(value)})
            moved[part.name] = value.to(device) if isinstance(value, Tensor) else value
        return Discriminant(**moved)

    def log_posteriors(self, features: Tensor, tasks: list[str]) -> Tensor:
        """Log posterior of each task, every task being as likely beforehand, `(batch, tasks)` float64.

        Args:
            features: `(batch, features)`.
            tasks: the order of the columns.
        """
        x = features.double()
        joined = (1 - LABEL_WEIGHT) * self.by_task.log_densities(x) + LABEL_WEIGHT * self.by_label.log_densities(x)
        places = {name: place for place, name in enumerate(self.names)}
        columns = torch.tensor([places[task] for task in tasks], device=joined.device)
        return torch.log_softmax(joined, -1)[:, columns]

    def outlier_scores(self, features: Tensor, tasks: list[str]) -> Tensor:
        """How far each sequence lies from its task, in standard deviations of the task's own sequences, `(batch,)`.

        The distance is a relative one (Ren et al., arXiv 2106.09022): the squared Mahalanobis distance to the nearest
        label's mean, less a share of the one to the center of all tasks, since what is unusual in every respect,
        such as a very short text, says little. Mean and deviation come from the sums: `measure_own` has to be called
        for each task before.
        """
        seen = features.double() @ self.root.T
        numbers = torch.tensor([self.names.index(task) for task in tasks], device=seen.device, dtype=torch.long)
        to_labels = torch.cdist(seen, self.prototypes).square()
        nearest = to_labels.masked_fill(numbers.unsqueeze(1) != self.owner, torch.inf).amin(1)
        relative = nearest - CENTER_SHARE * (seen - self.center).square().sum(1)
        mean, deviation = torch.stack([self.moments[task] for task in tasks]).unbind(1)
        return (relative - mean) / deviation

    def measure_own(self, task: str, sums: RouterSums) -> None:
        """Work out how the distances of a task's own sequences are distributed."""
        own = self.owner.cpu() == self.names.index(task)
        count = sums.count.double()
        seen = count > 0
        prototypes = sums.total.double()[seen] / count[seen].unsqueeze(1)
        inner = symmetric(sums.moment.double(), sums.total.shape[1]) - (prototypes.T * count[seen]) @ prototypes
        root, offsets = self.root.cpu(), self.prototypes.cpu()[own] - self.center.cpu()
        covariance = root @ (inner / max(float(count.sum()) - len(prototypes), 1)) @ root.T
        self.moments[task] = _outlier_moments(covariance, offsets, count[seen]).to(self.root.device)


def _outer(vectors: Tensor) -> Tensor:
    """The outer product of each row with itself, `(rows, size, size)`."""
    return vectors.unsqueeze(2) * vectors.unsqueeze(1)


def _projected(triangles: list[Tensor], *bases: Tensor) -> list[Tensor]:
    """Zᵀ M Z of symmetric matrices M for each basis Z, `(matrices, directions, directions)`.

    Args:
        triangles: lower triangles of the matrices, `(features * (features + 1) / 2,)` each.
        bases: `(features, directions)` each.
    """
    size = len(bases[0])
    joined = torch.cat(bases, 1)
    widths = [basis.shape[1] for basis in bases]
    half = joined.new_zeros(TASKS_AT_ONCE, size, size)  # M = H + Hᵀ; above the diagonal it stays zero
    product = joined.new_empty(TASKS_AT_ONCE, size, joined.shape[1])
    inner = [joined.new_empty(len(triangles), width, width) for width in widths]
    for start in range(0, len(triangles), TASKS_AT_ONCE):
        # Kept as int32 where they fit: then not all have the same dtype.
        chunk = triangles[start : start + TASKS_AT_ONCE]
        widest = max((triangle.dtype for triangle in chunk), key=lambda dtype: dtype.itemsize)
        some = torch.stack([triangle.to(widest) for triangle in chunk])
        n = len(some)
        for row in range(size):
            place = row * (row + 1) // 2
            half[:n, row, : row + 1] = some[:, place : place + row + 1]
        half.diagonal(dim1=1, dim2=2).div_(2)
        for first in range(0, size, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, size)
            torch.matmul(half[:n, first:last, :last], joined[:last], out=product[:n, first:last])
        for basis, part, found in zip(bases, product[:n].split(widths, -1), inner, strict=True):
            once = basis.T @ part
            found[start : start + n] = once + once.mT
    return inner


def _outlier_moments(covariance: Tensor, offsets: Tensor, counts: Tensor) -> Tensor:
    """Mean and standard deviation of |w|² - c |w + o|², w being normal around 0 and o the offset of a label.

    Args:
        covariance: of w, `(features, features)`.
        offsets: of each label's mean from the center, `(labels, features)`.
        counts: sequences of each label.
    """
    share, weights = CENTER_SHARE, counts / counts.sum()
    by_label = (1 - share) * covariance.trace() - share * offsets.square().sum(1)
    mean = (weights * by_label).sum()
    across = 4 * share**2 * ((offsets @ covariance) * offsets).sum(1)
    variance = (
        2 * (1 - share) ** 2 * covariance.square().sum() + (weights * (across + (by_label - mean).square())).sum()
    )
    return torch.stack([mean, HEAVY_TAILS * variance.clamp(min=1e-12).sqrt()])


def _shrunk(covariance: Tensor, n: float) -> Tensor:
    """A covariance, drawn towards a multiple of the identity by p / (n + p)."""
    p = len(covariance)
    share = p / (n + p)
    level = covariance.trace() / p
    floor = level if float(level) > 0 else torch.ones((), dtype=covariance.dtype)
    return (1 - share) * covariance + share * floor * torch.eye(p, dtype=covariance.dtype)


def _inverse_root(covariance: Tensor) -> Tensor:
    """R with R C Rᵀ = 1, lower triangular."""
    return torch.linalg.inv(torch.linalg.cholesky(covariance))


def _directions(centered: Tensor, covariance: Tensor, at_most: int) -> Tensor:
    """The directions in which group means differ most, against a covariance C: Z with Zᵀ C Z = 1.

    Args:
        centered: means of the groups around their center, `(groups, features)`.
        covariance: `(features, features)`.
        at_most: number of directions to keep.
    """
    root = torch.linalg.cholesky(covariance)  # C = L Lᵀ; with Z = L⁻ᵀ U, U are the eigenvectors of L⁻¹ B L⁻ᵀ
    whitened = torch.linalg.solve_triangular(root, centered.T, upper=False)
    strength, found = torch.linalg.eigh(whitened @ whitened.T)
    strength, found = strength[-at_most:], found[:, -at_most:]
    strong = strength > 1e-12 * strength[-1].clamp(min=1e-300)
    return torch.linalg.solve_triangular(root.T, found[:, strong], upper=True)


def _space(
    basis: Tensor, own: Tensor, weight: float, sizes: Tensor, groups: Tensor, owner: Tensor, log_weights: Tensor | None
) -> _Space:
    """Gaussians whose covariance is a task's own, as far as its number of sequences allows, else that of all."""
    k = basis.shape[1]
    shares = (weight * sizes / (sizes + k)).view(-1, 1, 1)
    common = own.mean(0)
    eye = torch.eye(k, dtype=own.dtype)
    roots = torch.linalg.cholesky(
        shares * own + (1 - shares) * common + 1e-6 * common.diagonal().mean().clamp(min=1e-300) * eye
    )
    inverses = torch.cholesky_inverse(roots)
    rows, columns = torch.tril_indices(k, k)
    curvatures = -inverses[:, rows, columns]
    curvatures[:, rows == columns] /= 2
    means = groups @ basis
    origin = means.mean(0)
    means -= origin
    slopes = torch.cat([means[owner == task] @ inverse for task, inverse in enumerate(inverses)])
    offsets = -roots.diagonal(dim1=1, dim2=2).log().sum(1)[owner] - 0.5 * (slopes * means).sum(1)
    return _Space(basis, origin, curvatures, offsets if log_weights is None else offsets + log_weights, slopes, owner)


class Router(nn.Module):
    """Says how likely each task is for a sequence.

    `reference` holds what turns trunk states into features, the same for every task and kept in the trunk's shard;
    `sums` what each task left behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reference = Slots()
        self.sums = nn.ModuleDict()
        self._solved: dict[tuple[str, ...], Discriminant] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Follow the model to another device, never to another dtype: rounded sums would be other sums."""
        for slots in cast(list[Slots], [self.reference, *self.sums.values()]):
            for name, buffer in own_tensors(slots).items():
                slots.put(name, buffer.to(fn(buffer).device))
        self._solved.clear()
        return self

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

    def set_reference(self, pooled: Tensor) -> None:
        """Fix which numbers are features, and the shift and scale of each.

        Args:
            pooled: what `features` takes, of sequences that represent no task.
        """
        self.reference.put("columns", _columns(*pooled.shape[1:]).to(pooled.device))
        chosen = self._chosen(pooled)
        deviation = chosen.std(0)
        self.reference.put("shift", chosen.mean(0))
        self.reference.put("scale", torch.where(deviation > 0, STEPS_PER_DEVIATION / deviation, 0))

    def clear_reference(self) -> None:
        """Forget the scale: the trunk may still change."""
        self.reference.clear()

    def _chosen(self, pooled: Tensor) -> Tensor:
        return pooled.float().flatten(1).index_select(1, self.reference.need("columns"))

    def features(self, pooled: Tensor) -> Tensor:
        """Pooled trunk states `(batch, parts, hidden)` as whole numbers, `(batch, features)` float32."""
        centered = (self._chosen(pooled) - self.reference.need("shift")) * self.reference.need("scale")
        return centered.round().clamp(-LEVELS, LEVELS)

    # -- sums -----------------------------------------------------------------------------------------------------

    def put(self, task: str, sums: RouterSums) -> None:
        """Keep a task's sums."""
        slots = Slots()
        device = self.reference.need("shift").device
        for name in ("count", "total", "moment"):
            slots.put(name, _compact(getattr(sums, name)).to(device))
        self.sums[task_key(task)] = slots
        self._solved.clear()

    def remove(self, task: str) -> None:
        """Drop a task's sums, if it has any: the router is then as if the task had never been."""
        key = task_key(task)
        if key in self.sums:
            del self.sums[key]
        self._solved.clear()

    def forget(self) -> None:
        """Solve again from the sums that there are."""
        self._solved.clear()

    def make_room(self, task: str) -> None:
        """Let a checkpoint put a task's sums."""
        self.sums[task_key(task)] = Slots()
        self._solved.clear()

    def has(self, task: str) -> bool:
        """Whether a task left sums behind."""
        key = task_key(task)
        return key in self.sums and cast(Slots, self.sums[key]).get("count") is not None

    def sums_of(self, task: str) -> RouterSums:
        """A task's sums (`KeyError` if it left none)."""
        stored = self._stored(task)
        return RouterSums(stored.count.long(), stored.total.long(), stored.moment.long())

    def _stored(self, task: str) -> RouterSums:
        """A task's sums in the dtype that they are kept in."""
        slots = cast(Slots, self.sums[task_key(task)])
        return RouterSums(*(slots.need(name).cpu() for name in ("count", "total", "moment")))

    # -- answers --------------------------------------------------------------------------------------------------

    @partial(torch.compiler.disable, reason="what a router chooses is in no graph: pass task='<name>' for a full one")
    def discriminant(self, tasks: list[str]) -> Discriminant:
        """The classifier over these tasks.

        Raises:
            TaskError: if one of them left no sums.
        """
        lacking = [task for task in tasks if not self.has(task)]
        if lacking:
            raise TaskError(
                f"The router knows nothing of {lacking}: committed without router sums, as when commit_task is called "
                "without them. Pass task=..., or load the model with tasks=[...] of the others."
            )
        key = tuple(tasks)
        if key not in self._solved:
            names = sorted(tasks)  # the order in which they were learned must not matter
            solved = Discriminant.fit({name: self._stored(name) for name in names}, self.n_features)
            self._solved[key] = solved.to(self.reference.need("shift").device)
        return self._solved[key]

    def outlier_scores(self, features: Tensor, tasks: list[str], among: list[str]) -> Tensor:
        """How far each sequence lies from its task, see `Discriminant.outlier_scores`, `(batch,)`.

        Args:
            features: `(batch, features)`.
            tasks: the task of each sequence.
            among: the tasks that the router chose from.
        """
        discriminant = self.discriminant(among)
        for task in sorted(set(tasks) - set(discriminant.moments)):
            discriminant.measure_own(task, self.sums_of(task))
        return discriminant.outlier_scores(features, tasks)
