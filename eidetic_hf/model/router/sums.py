"""What a task leaves behind for the router: exact sums while its texts are read, and then what is kept of them.

Sums over features are whole numbers: adding them up is exact, so that the same bits come out in any order of batches
and of processes. What is kept is made of them once, at the commit, and lies in the task's own shard; it depends on
that task's texts alone. The matrix of second moments grows with the square of the features: of the correlations the
strongest directions are kept, in eight bits, so that a task takes about a hundredth of the backbone's bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...network.storage import Slots

KEPT = ("count", "means", "deviation", "factor", "scale", "correlations", "total", "moment")
MEAN_UNITS = 256  # a mean is kept in 256ths of a level: 127 of them are just within 16 bits
SHARE_OF_BACKBONE = 0.009  # of the backbone's bytes, for the directions of a task
MIN_DIRECTIONS, MAX_DIRECTIONS = 64, 512
POWER_STEPS, SPARE_DIRECTIONS, DIRECTIONS_SEED = 3, 16, 0
EXACT_ROWS = 1024  # so many products of up to 127 * 127 add up exactly in float32


@dataclass
class RouterSums:
    """Sums over a task's sequences; whole numbers throughout.

    Attributes:
        count: sequences per label, `(labels,)` int64; one entry for tasks that have no single label.
        total: sums of their features, `(labels, features)` int64.
        moment: sum of x xᵀ over all of them, `(features, features)` int64.
    """

    count: Tensor
    total: Tensor
    moment: Tensor

    @classmethod
    def zeros(cls, n_labels: int, n_features: int) -> RouterSums:
        """Sums over nothing."""
        shapes = (n_labels, (n_labels, n_features), (n_features, n_features))
        count, total, moment = (torch.zeros(shape, dtype=torch.int64) for shape in shapes)
        return cls(count, total, moment)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add sequences: features `(sequences, features)`, whole numbers of any dtype, and labels `(sequences,)`."""
        labels = labels.cpu()
        self.count += torch.bincount(labels, minlength=len(self.count))
        for rows, own in zip(features.cpu().split(EXACT_ROWS), labels.split(EXACT_ROWS), strict=True):
            exact = rows.float()
            self.total += torch.zeros(self.total.shape).index_add_(0, own, exact).long()
            self.moment += (exact.T @ exact).long()

    def merged(self, other: RouterSums) -> RouterSums:
        """The sums over both."""
        return RouterSums(self.count + other.count, self.total + other.total, self.moment + other.moment)


def lower_triangle(matrix: Tensor) -> Tensor:
    """The lower triangle of a square matrix, row by row."""
    rows, columns = torch.tril_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def symmetric(triangle: Tensor, size: int) -> Tensor:
    """The symmetric matrix, `(size, size)`, of its lower triangle `(size * (size + 1) / 2,)`."""
    rows, columns = torch.tril_indices(size, size)
    found = triangle.new_empty(size, size)
    found[rows, columns] = triangle
    found[columns, rows] = triangle
    return found


def directions_kept(n_features: int, backbone_bytes: int) -> int:
    """How many directions of a task's correlations are kept: those that take a hundredth of the backbone or less."""
    within = int(SHARE_OF_BACKBONE * backbone_bytes / max(n_features, 1)) // 32 * 32
    return min(n_features, max(MIN_DIRECTIONS, min(within, MAX_DIRECTIONS)))


@dataclass(frozen=True)
class TaskStatistics:
    """How the sequences of a task are spread, as it is kept.

    The covariance around the labels' means has the exact deviations on its diagonal; its correlations are
    `factor @ factor.T`, or all of them where a task of few features, or of an older model, kept them.

    Attributes:
        count: sequences per label, `(labels,)` float64.
        means: mean of each label's sequences, `(labels, features)` float64; zero for a label without one.
        deviation: standard deviations around the labels' means, `(features,)` float64.
        factor: strongest directions of the correlations, `(features, directions)` float32; or `None`.
        correlations: all of them, `(features, features)` float64; or `None`.
    """

    count: Tensor
    means: Tensor
    deviation: Tensor
    factor: Tensor | None
    correlations: Tensor | None

    @property
    def size(self) -> float:
        """Number of sequences."""
        return float(self.count.sum())

    @property
    def mean(self) -> Tensor:
        """Mean over all sequences, `(features,)` float64."""
        return (self.means * self.count.unsqueeze(1)).sum(0) / self.size

    def covariance(self) -> Tensor:
        """Around the labels' means, `(features, features)` float32."""
        deviation = self.deviation.float()
        if self.correlations is not None:
            found = self.correlations.float() * (deviation.unsqueeze(1) * deviation)
        else:
            assert self.factor is not None
            scaled = self.factor * deviation.unsqueeze(1)
            found = scaled @ scaled.T
        found.diagonal().copy_(deviation.square())
        return found

    def between(self) -> Tensor:
        """What its covariance around its own mean has beside that, B with Bᵀ B, `(labels, features)` float64."""
        return (self.means - self.mean) * (self.count / self.size).sqrt().unsqueeze(1)

    def projected(self, basis: Tensor) -> Tensor:
        """Its covariance around the labels' means in a space of few directions, `(directions, directions)` float64.

        Args:
            basis: `(features, directions)`.
        """
        scaled = self.deviation.unsqueeze(1) * basis
        if self.correlations is not None:
            return scaled.T @ self.correlations @ scaled
        assert self.factor is not None
        factor = self.factor.double()
        left = factor.T @ scaled
        rest = (1 - factor.square().sum(1)).unsqueeze(1)
        return left.T @ left + scaled.T @ (rest * scaled)


def _exact(sums: RouterSums) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each label, and standard deviations and correlations around them, of sums."""
    count, total = sums.count.double(), sums.total.double()
    size = float(count.sum())
    means = total / count.clamp(min=1).unsqueeze(1)
    covariance = sums.moment.double() / size - (means.T * (count / size)) @ means
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=1e-30), 0)
    correlations = covariance * scale.unsqueeze(1) * scale
    correlations.diagonal().fill_(1)
    return means, deviation, correlations


def kept_of(sums: RouterSums, directions: int) -> dict[str, Tensor]:
    """What is kept of a task's sums, by the names of slots.

    Args:
        sums: over its sequences.
        directions: of its correlations; all features of them or more keep every correlation.

    Returns:
        `count` `(labels,)` int32; `means` `(labels, features)` int16 in 256ths of a level; `deviation` `(features,)`
        float32; and `factor` `(features, directions)` int8 with `scale` `(directions,)` float32, or `correlations`
        `(features * (features + 1) / 2,)` float32.
    """
    means, deviation, correlations = _exact(sums)
    kept = {
        "count": sums.count.int(),
        "means": (means * MEAN_UNITS).round().to(torch.int16),
        "deviation": deviation.float(),
    }
    if directions >= len(deviation):
        return {**kept, "correlations": lower_triangle(correlations).float()}
    factor = _strongest(correlations.float(), directions)
    # The steps of a direction are as small as its largest entry allows: weak ones tell tasks apart, too.
    scale = factor.abs().amax(0).clamp(min=1e-30) / 127
    return {**kept, "factor": (factor / scale).round().to(torch.int8), "scale": scale}


def _strongest(correlations: Tensor, directions: int) -> Tensor:
    """F of few columns with F Fᵀ near a matrix of correlations, by subspace iteration (Halko et al., arXiv 0909.4061).

    Args:
        correlations: `(features, features)` float32.
        directions: columns of F.
    """
    size = len(correlations)
    generator = torch.Generator().manual_seed(DIRECTIONS_SEED)
    basis = torch.randn(size, min(directions + SPARE_DIRECTIONS, size), generator=generator)
    for _ in range(POWER_STEPS):
        basis, _ = torch.linalg.qr(correlations @ basis)
    strength, inner = torch.linalg.eigh(basis.T @ correlations @ basis)
    factor = basis @ inner[:, -directions:].flip(1) * strength[-directions:].flip(0).clamp(min=0).sqrt()
    # No more than all of a feature's variance: what is left over has to be no less than nothing.
    return factor / factor.square().sum(1, keepdim=True).sqrt().clamp(min=1)


def statistics_of(
    slots: Slots | Mapping[str, Tensor], columns: Tensor | None = None, directions: int | None = None
) -> TaskStatistics:
    """What is kept of a task, ready to compute with; of the sums that older models kept, too.

    Args:
        slots: what `kept_of` returned.
        columns: which of the features are wanted; all, if not given.
        directions: how many of the strongest directions; all, if not given.
    """
    kept = {name: value.cpu() for name in KEPT if (value := slots.get(name)) is not None}
    some = slice(None) if columns is None else columns
    count, factor, correlations = kept["count"].double(), None, None
    if "total" in kept:
        whole = symmetric(kept["moment"], kept["total"].shape[1])
        means, deviation, correlations = _exact(RouterSums(kept["count"], kept["total"], whole))
    else:
        means, deviation = kept["means"].double() / MEAN_UNITS, kept["deviation"].double()
        if "factor" in kept:
            factor = kept["factor"][some, :directions].float() * kept["scale"][:directions]
        else:
            correlations = symmetric(kept["correlations"].double(), len(deviation))
    if correlations is not None and columns is not None:
        correlations = correlations[columns][:, columns]
    return TaskStatistics(count, means[:, some], deviation[some], factor, correlations)


def size_of_kept(n_labels: int, n_features: int, directions: int) -> dict[str, Tensor]:
    """What `kept_of` returns, on the meta device."""
    with torch.device("meta"):
        kept = {
            "count": torch.zeros(n_labels, dtype=torch.int32),
            "means": torch.zeros(n_labels, n_features, dtype=torch.int16),
            "deviation": torch.zeros(n_features),
        }
        if directions >= n_features:
            return {**kept, "correlations": torch.zeros(n_features * (n_features + 1) // 2)}
        return {
            **kept,
            "factor": torch.zeros(n_features, directions, dtype=torch.int8),
            "scale": torch.zeros(directions),
        }


def similar(count: int) -> int:
    """The next power of two: what is computed for a number of tasks is for all numbers up to it the same."""
    return 1 << max(math.ceil(math.log2(max(count, 1))), 0)
