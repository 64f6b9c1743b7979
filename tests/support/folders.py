"""What lies in the checkpoint folders of the tests, and what to compare of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support.data import logits_of
from torch import Tensor

import eidetic_hf
from eidetic_hf import EideticModel
from eidetic_hf.model.checkpoint.folder import LOCK
from eidetic_hf.model.checkpoint.layout import sha256_of

TRUNK, POOL, INDEX = "eidetic-trunk.safetensors", "eidetic-pool.safetensors", "model.safetensors.index.json"
LEARNING = "eidetic-learning.safetensors"
FIRST, SECOND, THIRD = (f"eidetic-task-{name}.safetensors" for name in ("first", "second", "third"))
SHARDS = {TRUNK, FIRST, SECOND, POOL}
REST = {"config.json", INDEX, "README.md"}
# A committed tensor of every sort, of `first` and `second`.
CHANGED = [
    "backbone.embeddings.word_embeddings.weight",
    "backbone.encoder.layer.0.output.dense.bias",
    "backbone.encoder.layer.1.attention.self.query.segments.@first.weight",
    "backbone.encoder.layer.2.output.dense.segments.@second.weight",
    "backbone.encoder.layer.2.output.dense.biases.@second",
    "backbone.encoder.layer.1.output.LayerNorm.tasks.@first.weight",
    "groups.layers_1_neurons.gates.@second",
    "heads.@second.classifier.bias",
]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but hidden ones."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of every shard of a folder."""
    return {name: sha256 for name, sha256 in hashes(folder).items() if name.endswith(".safetensors")}


def answers(model: EideticModel) -> dict[str, Tensor]:
    """Logits of every task that the model answers for."""
    return {name: logits_of(model, name) for name in model.tasks}


def same(answers_now: dict[str, Tensor], answers_then: dict[str, Tensor]) -> bool:
    """Whether both answer for the same tasks, bit for bit."""
    return list(answers_now) == list(answers_then) and all(
        torch.equal(logits, answers_then[name]) for name, logits in answers_now.items()
    )


def changed(now: dict[str, Tensor], then: dict[str, Tensor]) -> list[str]:
    """Names of the tensors whose bytes differ (NaN equals NaN)."""

    def content(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    assert set(now) == set(then)
    return [name for name in now if not torch.equal(content(now[name]), content(then[name]))]


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds exactly one complete checkpoint, and nothing of an interrupted save."""
    files = json.loads((folder / "config.json").read_text())["files"]
    found = hashes(folder)
    left = {name for name in os.listdir(folder) if name.startswith(".")} - {LOCK}
    return set(found) == {*files, *REST} and not left and all(found[n] == f["sha256"] for n, f in files.items())


def child_environment() -> dict[str, str]:
    """The environment for a process that imports the same package."""
    source = str(Path(eidetic_hf.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
