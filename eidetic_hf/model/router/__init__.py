"""The router: which task does a sequence belong to? In closed form, from what each task left behind.

features.py       what is read of a sequence, in whole numbers
sums.py           exact sums over a task's sequences, and what is kept of them
discriminant.py   the classifier over some tasks
router.py         `Router`: all of it together
"""

from .discriminant import Discriminant, distances
from .features import Layout, layers_to_read, reference_inputs, to_pool
from .router import Router
from .sums import RouterSums, TaskStatistics, size_of_kept

__all__ = [
    "Discriminant",
    "Layout",
    "Router",
    "RouterSums",
    "TaskStatistics",
    "distances",
    "layers_to_read",
    "reference_inputs",
    "size_of_kept",
    "to_pool",
]
