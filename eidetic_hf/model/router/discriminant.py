"""The closed form: which task a sequence belongs to, from what the tasks left behind.

Two views of a sequence are weighed against each other. The first tells tasks apart: linear discriminants between task
means, against the covariance within tasks. The second tells labels apart: linear discriminants between the means of
all labels, against the covariance within labels; a task is the mixture of its labels. In the few directions in which
the groups of a view differ most, a task's Gaussian has a covariance that is to a share its own. Every task counts
alike, however many sequences it left.

Everything is computed in the order of the tasks' names: the order in which they were learned can not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .sums import TaskStatistics, similar

# Chosen on validation texts of two unlike sequences of tasks, and kept for others (docs/routing.md).
LABEL_WEIGHT = 0.2  # of the label view in the joint score
OWN_AROUND_TASK, OWN_AROUND_LABEL = 0.9, 0.5  # how far a task's covariance may be its own in either view
RIDGE, LEAST_RIDGE = 0.3, 0.003  # times (features / sequences)²: what is added to a covariance, of its mean variance
SHARPNESS = 14.4  # by the root of the number of features: of the joint score as a log probability, 1 at most
SPREAD_WEIGHT, HEAVY_TAILS = 1.5, 2.2  # of the distance to a label in an outlier score; how wide that is distributed
MAX_TASK_DIRECTIONS, MAX_LABEL_DIRECTIONS = 64, 128
# Among more tasks than this, a task's own covariance is looked at only where it is one of a row's likeliest.
ALL_LOOKED_AT, LOOKED_AT = 64, 4
# Multiplications to add up the covariances of all tasks: among many, fewer features and directions of each are read.
WORK = 3.2e10
# Covariances are added up in whole numbers of this fraction: exact, so that one can be taken out again.
UNITS = 2.0**16

Summary = tuple[Tensor, Tensor]  # of a task: sequences per label, `(labels,)`, and their means, `(labels, features)`


def thinned(n_features: int, directions: int, n_tasks: int) -> tuple[Tensor, int]:
    """Which features, and how many directions of each task, are read among so many tasks.

    The same for all numbers of tasks up to the next power of two.
    """
    work = n_features**2 * max(directions, 1) * similar(n_tasks)
    share = min(1.0, (WORK / work) ** (1 / 3))
    kept = max(round(share * n_features), min(n_features, 64))
    return torch.arange(kept) * n_features // kept, max(round(share * directions), min(directions, 16))


def whole_covariance(statistics: TaskStatistics) -> Tensor:
    """A task's covariance in whole numbers of `1 / UNITS`, `(features, features)` float32."""
    return (statistics.covariance() * UNITS).round()


@dataclass
class Groups:
    """Groups of sequences, tasks or the labels of tasks, as Gaussians: one of the two views.

    Attributes:
        owner: number of each group's task, `(groups,)`.
        log_weights: log share of each group among its task's, `(groups,)`.
        basis: from features to the few directions, `(features, directions)`; the covariance within groups is 1 there.
        centers: means in these directions, `(groups, directions)`.
        slopes: inverse covariance times mean, in all features, `(features, groups)`; `None` where the few directions
            hold all that means differ in.
        offsets: what a group's score does not owe to the sequence, `(groups,)`.
        own_share: how far a task's covariance may be its own.
        roots: of the tasks that were looked at: R with Rᵀ R the inverse of its covariance, R times the centers of its
            groups, and log det R.
    """

    owner: Tensor
    log_weights: Tensor
    basis: Tensor
    centers: Tensor
    slopes: Tensor | None
    offsets: Tensor
    own_share: float
    roots: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, means: Tensor, within: Tensor, owner: Tensor, log_weights: Tensor, at_most: int, own_share: float
    ) -> Groups:
        """Solve for linear discriminants.

        Args:
            means: of the groups, around the center of all tasks, `(groups, features)`.
            within: covariance within groups, positive definite, `(features, features)`.
            owner: number of each group's task.
            log_weights: log share of each group among its task's.
            at_most: number of directions.
            own_share: how far a task's covariance may be its own.
        """
        root = _cholesky(within)  # W = L Lᵀ; with Z = L⁻ᵀ U, U spans what whitened means differ in
        white = torch.linalg.solve_triangular(root, means.T, upper=False)  # (features, groups)
        around = white - white.mean(1, keepdim=True)
        if around.shape[1] < around.shape[0]:
            strength, found = torch.linalg.eigh(around.T @ around)
            found = around @ (found / strength.clamp(min=1e-300).sqrt())
        else:
            strength, found = torch.linalg.eigh(around @ around.T)
        strong = strength > 1e-10 * strength[-1].clamp(min=1e-300)
        n_strong = int(strong.sum())
        found, n_kept = found[:, -at_most:], min(n_strong, at_most)
        found = found[:, len(found.T) - n_kept :]
        slopes = None
        if n_strong > n_kept:  # the few directions do not hold all
            slopes = torch.linalg.solve_triangular(root.T, white, upper=True)
        basis = torch.linalg.solve_triangular(root.T, found, upper=True)
        centers = means @ basis
        size = (centers if slopes is None else white.T).square().sum(1)
        return cls(owner, log_weights, basis, centers, slopes, log_weights - 0.5 * size, own_share)

    def linear(self, x: Tensor, z: Tensor) -> Tensor:
        """Log density of each group with the covariance of all, up to what is the same for all, `(batch, groups)`."""
        return (z @ self.centers.T if self.slopes is None else x @ self.slopes) + self.offsets

    def by_task(self, log: Tensor, n_tasks: int) -> Tensor:
        """Scores of the tasks out of those of their groups, `(batch, tasks)`."""
        if log.shape[1] == n_tasks:
            return log
        index = self.owner.expand_as(log)
        top = log.new_full((len(log), n_tasks), -torch.inf).scatter_reduce(1, index, log, "amax")
        total = torch.zeros_like(top).scatter_add(1, index, (log - top.gather(1, index)).exp())
        return top + total.log()

    def look_at(self, task: int, covariance: Callable[[Tensor], Tensor], size: float) -> None:
        """Compute what `roots` has of a task, where it is looked at first.

        Args:
            task: its number.
            covariance: returns that of its sequences around their groups in a basis.
            size: number of its sequences.
        """
        if task not in self.roots:
            k = self.basis.shape[1]
            eye = torch.eye(k, dtype=self.basis.dtype, device=self.basis.device)
            share = self.own_share * size / (size + k)
            own = covariance(self.basis.cpu()).to(self.basis.device)
            factor = _cholesky(share * own + (1 - share + 1e-6) * eye)
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
            centers = self.centers[self.owner == task] @ inverse.T
            self.roots[task] = (inverse, centers, inverse.diagonal().log().sum())

    def own(self, task: int, z: Tensor, linear: Tensor) -> Tensor:
        """Score of a task with its own covariance, on the scale of `linear`, `(batch,)`.

        Args:
            task: its number, looked at before.
            z: sequences in the few directions, `(batch, directions)`.
            linear: what `linear` returned for its groups, `(batch, its groups)`.
        """
        mine = self.owner == task
        root, centers, log_det = self.roots[task]
        white = z @ root.T
        distances = white.square().sum(1, keepdim=True) - 2 * white @ centers.T + centers.square().sum(1)
        shared = (z.unsqueeze(1) - self.centers[mine]).square().sum(2)
        return (linear + 0.5 * (shared - distances)).logsumexp(1) + log_det


@dataclass
class Discriminant:
    """The classifier over a set of tasks.

    Attributes:
        names: the tasks, sorted.
        columns: which of the features are read, `(columns,)`.
        center: mean of all tasks' means, `(columns,)`.
        tasks: the view that tells tasks apart.
        labels: the view that tells labels apart.
        label_numbers: of each group of `labels`, its number among its task's labels, `(groups,)`.
        sizes: number of each task's sequences.
        statistics: takes the name of a task and some features, and returns what is kept of it.
        moments: mean and standard deviation of the outlier scores of all tasks' own sequences, `(2,)`, once asked for.
    """

    names: list[str]
    columns: Tensor
    center: Tensor
    tasks: Groups
    labels: Groups
    label_numbers: Tensor
    sizes: list[float]
    statistics: Callable[[str, Tensor], TaskStatistics]
    moments: Tensor | None = None

    @classmethod
    def fit(
        cls,
        statistics: Callable[[str, Tensor], TaskStatistics],
        summaries: Mapping[str, Summary],
        columns: Tensor,
        within: Tensor,
        between: Tensor,
    ) -> Discriminant:
        """Solve for the classifier of tasks, given in the order of their names.

        Args:
            statistics: takes the name of a task and some features, and returns what is kept of it.
            summaries: of each task, of these columns.
            columns: which of the features are read.
            within: mean of the tasks' covariances around their labels' means, `(columns, columns)` float64.
            between: mean of what those around the tasks' own means have beside that, `(columns, columns)` float64.
        """
        sizes = [float(count.sum()) for count, _ in summaries.values()]
        means, prototypes, shares, owner = _stacked(summaries)
        n_tasks, n = len(sizes), sum(sizes)
        center = means.mean(0)
        p = len(columns)
        ridge = max(RIDGE * (p / n) ** 2, LEAST_RIDGE)
        flat = torch.arange(n_tasks)
        return cls(
            names=list(summaries),
            columns=columns,
            center=center,
            tasks=Groups.fit(
                means - center,
                _ridged(within + between, ridge),
                flat,
                torch.zeros(n_tasks, dtype=torch.float64),
                MAX_TASK_DIRECTIONS,
                OWN_AROUND_TASK,
            ),
            labels=Groups.fit(
                prototypes - center,
                _ridged(within, ridge),
                owner,
                shares.log(),
                MAX_LABEL_DIRECTIONS,
                OWN_AROUND_LABEL,
            ),
            label_numbers=torch.cat([(count > 0).nonzero().squeeze(1) for count, _ in summaries.values()]),
            sizes=sizes,
            statistics=statistics,
        )

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        views = (self.tasks, self.labels)
        tensors = [value for part in (self, *views) for value in vars(part).values()]
        tensors += [t for view in views for root in view.roots.values() for t in root]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))

    def to(self, device: torch.device) -> Discriminant:
        """The same on another device."""
        for part in (self, self.tasks, self.labels):
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    setattr(part, name, value.to(device))
        return self

    def _covariance(self, task: int, by_label: bool) -> Callable[[Tensor], Tensor]:
        """What returns the covariance of a task's sequences around its mean, or those of its labels, in a basis."""

        def project(basis: Tensor) -> Tensor:
            kept = self.statistics(self.names[task], self.columns.cpu())
            found = kept.projected(basis)
            if not by_label:
                beside = kept.between() @ basis
                found = found + beside.T @ beside
            return found

        return project

    def _look_at(self, tasks: Sequence[int]) -> None:
        for view, by_label in ((self.tasks, False), (self.labels, True)):
            for task in tasks:
                view.look_at(task, self._covariance(task, by_label), self.sizes[task])

    def scores(self, features: Tensor) -> Tensor:
        """Joint score of each task, `(batch, tasks)` float64; what is the same for all tasks is left out.

        Args:
            features: all of them, `(batch, features)`.
        """
        x = features.double()[:, self.columns] - self.center
        n_tasks, parts = len(self.names), []
        joint = x.new_zeros(len(x), n_tasks)
        for view, weight in ((self.tasks, 1 - LABEL_WEIGHT), (self.labels, LABEL_WEIGHT)):
            z = x @ view.basis
            linear = view.linear(x, z)
            joint += weight * view.by_task(linear, n_tasks)
            parts.append((view, weight, z, linear))
        looked_at = torch.ones_like(joint, dtype=torch.bool)
        if n_tasks > ALL_LOOKED_AT:
            looked_at = torch.zeros_like(looked_at).scatter(1, joint.topk(LOOKED_AT, 1).indices, True)
        tasks = looked_at.any(0).nonzero().flatten().tolist()
        self._look_at(tasks)
        for task in tasks:
            rows = looked_at[:, task]
            joint[rows, task] = sum(
                (
                    weight * view.own(task, z[rows], linear[rows][:, view.owner == task])
                    for view, weight, z, linear in parts
                ),
                torch.zeros((), dtype=joint.dtype, device=joint.device),
            )
        return joint

    @property
    def sharpness(self) -> float:
        """Of the joint score as a log probability: many features of one text say less than as many texts would."""
        return min(SHARPNESS / max(len(self.columns), 1) ** 0.5, 1.0)

    def log_posteriors(self, features: Tensor, tasks: list[str], log_priors: Tensor | None = None) -> Tensor:
        """Log posterior of each task, `(batch, tasks)` float64.

        Args:
            features: `(batch, features)`.
            tasks: the order of the columns.
            log_priors: of the tasks in this order, `(tasks,)`; every one is as likely beforehand, if not given.
        """
        places = self._places(tasks)
        order = places.argsort()  # added up in the order of names, whatever that of the columns: to the same bits
        scores = self.sharpness * self.scores(features)[:, places[order]]
        log = torch.log_softmax(scores if log_priors is None else scores + log_priors[order], -1)
        return log[:, order.argsort()]

    def _places(self, tasks: Sequence[str]) -> Tensor:
        places = {name: place for place, name in enumerate(self.names)}
        return torch.tensor([places[task] for task in tasks], device=self.center.device, dtype=torch.long)

    def outlier_scores(self, features: Tensor, tasks: list[str]) -> Tensor:
        """How far each sequence lies from its task, in standard deviations of tasks' own sequences, `(batch,)`.

        The distance is a relative one (Ren et al., arXiv 2106.09022): the squared Mahalanobis distance to the nearest
        label's mean, less the one to the center of all tasks, since what is unusual in every respect, such as a very
        short text, says little; and to it comes the distance to that label in the directions that tell labels apart.

        Args:
            features: `(batch, features)`.
            tasks: the task of each sequence.
        """
        if self.moments is None:
            self.moments = self._own_moments().to(self.center.device)
        numbers = self._places(tasks)
        found = self._distances(features).masked_fill(numbers.unsqueeze(1) != self.labels.owner, torch.inf).amin(1)
        mean, deviation = self.moments
        return (found - mean) / deviation

    def _distances(self, features: Tensor) -> Tensor:
        """Of sequences from all labels, `(batch, groups)`; see `outlier_scores`."""
        view = self.labels
        x = features.double()[:, self.columns] - self.center
        z = x @ view.basis
        spread = (z.square().sum(1, keepdim=True) - 2 * z @ view.centers.T + view.centers.square().sum(1)).clamp(min=0)
        return SPREAD_WEIGHT * spread - 2 * (view.linear(x, z) - view.log_weights)

    def _own_moments(self) -> Tensor:
        """Mean and standard deviation of -2 c·w - c² + k w², w being normal around 0 and c the mean of a label.

        Over the labels of all tasks, each task alike.
        """
        view = self.labels
        owner, basis = view.owner.cpu(), view.basis.cpu()
        centers, weights = view.centers.cpu(), view.log_weights.cpu().exp() / len(self.names)
        means, variances = torch.zeros_like(weights), torch.zeros_like(weights)
        for task in range(len(self.names)):
            mine = owner == task
            own = self._covariance(task, by_label=True)(basis)
            means[mine] = SPREAD_WEIGHT * own.trace() - centers[mine].square().sum(1)
            across = ((centers[mine] @ own) * centers[mine]).sum(1)
            variances[mine] = 4 * across + 2 * SPREAD_WEIGHT**2 * own.square().sum()
        mean = (weights * means).sum()
        variance = (weights * (variances + (means - mean).square())).sum()
        return torch.stack([mean, HEAVY_TAILS * variance.clamp(min=1e-12).sqrt()])

    def nearest_labels(self, features: Tensor, count: int) -> list[list[tuple[str, int, float]]]:
        """The labels whose means are nearest to each sequence: name of the task, number of the label, and distance.

        Args:
            features: `(batch, features)`.
            count: how many of each.
        """
        distances, places = self._distances(features).topk(min(count, len(self.label_numbers)), 1, largest=False)
        return [
            [
                (self.names[int(self.labels.owner[place])], int(self.label_numbers[place]), distance)
                for place, distance in zip(row, found, strict=True)
            ]
            for row, found in zip(places.tolist(), distances.tolist(), strict=True)
        ]

    def told_apart(self, task: str, other: str) -> float:
        """Estimate of how often the sequences of two tasks are told apart, each being as likely: 0.5 to 1.

        Along the direction between their means, with what each of them spreads there. That direction was found by the
        sequences that are to be told apart by it, and looks better for them than it is: by about the root of
        1 + features / sequences, as measured (docs/routing.md).
        """
        view, numbers = self.tasks, [self.names.index(name) for name in (task, other)]
        difference = view.centers[numbers[0]] - view.centers[numbers[1]]
        length = difference.norm()
        if float(length) == 0:
            return 0.5
        direction = difference / length
        deviations = []
        for number in numbers:
            own = self._covariance(number, by_label=False)(view.basis.cpu()).to(direction.device)
            deviations.append(float((direction @ own @ direction).clamp(min=0).sqrt()))
        n = sum(self.sizes[number] for number in numbers)
        length = length * (n / (n + len(self.columns))) ** 0.5
        return float(torch.special.ndtr(length / max(sum(deviations), 1e-12)))


def _stacked(summaries: Mapping[str, Summary]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means of tasks, `(tasks, features)`; and means of labels, their shares of their tasks, and numbers of these."""
    counts = [count for count, _ in summaries.values()]
    seen = [count > 0 for count in counts]  # a label that no sequence had has no prototype
    means = torch.stack([(mean * count.unsqueeze(1)).sum(0) / count.sum() for count, mean in summaries.values()])
    prototypes = torch.cat([mean[s] for (_, mean), s in zip(summaries.values(), seen, strict=True)])
    shares = torch.cat([count[s] / count.sum() for count, s in zip(counts, seen, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.stack([s.sum() for s in seen]))
    return means, prototypes, shares, owner


def _cholesky(covariance: Tensor) -> Tensor:
    """The Cholesky factor of a covariance; of one that rounding has left without, of the least more that has one."""
    level, added = covariance.diagonal().mean(), 0.0
    while True:
        lifted = covariance if not added else _ridged(covariance, added)
        root, failed = torch.linalg.cholesky_ex(lifted)
        if not int(failed) or not bool(level.isfinite()):
            return root
        added = max(10 * added, 1e-6)


def _ridged(covariance: Tensor, share: float) -> Tensor:
    """A covariance with a share of its mean variance added on the diagonal."""
    level = covariance.diagonal().mean()
    added = share * (level if float(level) > 0 else torch.ones_like(level))
    found = covariance.clone()
    found.diagonal().add_(added)
    return found


def distances(task: str, names: Sequence[str], statistics: Callable[[str], TaskStatistics]) -> dict[str, float]:
    """How unlike a task's sequences are to those of others: squared Mahalanobis distances between their means.

    Args:
        task: its name.
        names: of the others; the common covariance within tasks is the mean of all of theirs and its own.
        statistics: takes a name, and returns what is kept of the task: of not too many features, see `thinned`.
    """
    tasks = [statistics(name) for name in (*sorted(names), task)]  # added up in the same order, whichever came first
    within = sum((whole_covariance(kept).double() for kept in tasks), torch.zeros(())) / (UNITS * len(tasks))
    beside = torch.cat([kept.between() for kept in tasks])
    within = within + beside.T @ beside / len(tasks)
    size = sum(kept.size for kept in tasks)
    root = _cholesky(_ridged(within, max(RIDGE * (len(within) / size) ** 2, LEAST_RIDGE)))
    means = torch.stack([kept.mean for kept in tasks])
    seen = torch.linalg.solve_triangular(root, (means[:-1] - means[-1]).T, upper=False)
    return dict(zip(sorted(names), seen.square().sum(0).tolist(), strict=True))
