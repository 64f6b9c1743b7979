"""What a repository of a model costs on the way, in bytes. As a script it prints the table, see `main`."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from support.backbones import tiny_backbone
from support.hub_client import connected
from support.hub_server import HubServer
from support.quick import learn_quickly
from transformers import AutoModel, PreTrainedModel

from eidetic_hf import EideticModel

BACKBONE, MODEL, SMALL = "someone/backbone", "someone/model", "someone/tasks"
TASKS = ["one", "two", "three", "four", "five"]


@dataclass
class Transfer:
    """What went over the line while something was done.

    Attributes:
        what: was done.
        requests: how many.
        up: bytes of the requests' bodies.
        down: bytes of the answers' bodies.
        uploaded: bytes of content by file.
        downloaded: bytes of content by file.
    """

    what: str
    requests: int = 0
    up: int = 0
    down: int = 0
    uploaded: Counter[str] = field(default_factory=Counter)
    downloaded: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted(hub: HubServer, what: str) -> Iterator[Transfer]:
    """Count what is transferred inside."""
    hub.reset()
    result = Transfer(what)
    yield result
    result.requests, result.up, result.down = len(hub.requests), hub.received, hub.sent
    result.uploaded, result.downloaded = Counter(hub.uploaded), Counter(hub.downloaded)


def put_backbone(hub: HubServer, backbone: PreTrainedModel) -> None:
    """Put a backbone into a repository of its own."""
    with tempfile.TemporaryDirectory() as folder:
        backbone.save_pretrained(folder)
        hub.create(BACKBONE)
        hub.commit(BACKBONE, {path.name: path.read_bytes() for path in Path(folder).iterdir()})


def pulled(name: str, cache: Path, **options: object) -> EideticModel:
    """The model of a repository, on a machine that has nothing of it yet."""
    return EideticModel.from_pretrained(name, cache_dir=str(cache), **options)


def transfers(hub: HubServer, place: Path, growth: str, learn: Callable[[EideticModel, str, int], object]) -> Iterator:
    """Push and pull in every way there is, and say of each what went over the line.

    Args:
        hub: with the backbone.
        place: an empty folder.
        growth: of the model.
        learn: teaches a model a task of a name, from a seed.

    Yields:
        A `Transfer`, and the model or the models that were pushed and pulled.
    """
    model = EideticModel.from_backbone(BACKBONE, trunk_layers=1, growth=growth)
    for seed, name in enumerate(TASKS[:2]):
        learn(model, name, seed)
    with counted(hub, "first push, two tasks") as transfer:
        model.push_to_hub(MODEL)
    yield transfer, model
    with counted(hub, "push, nothing changed") as transfer:
        model.push_to_hub(MODEL)
    yield transfer, model
    learn(model, TASKS[2], 2)
    with counted(hub, "push of a third task") as transfer:
        model.push_to_hub(MODEL)
    yield transfer, model
    for seed, name in enumerate(TASKS[3:], 3):
        learn(model, name, seed)
    model.push_to_hub(MODEL)
    with counted(hub, "pull of all five tasks") as transfer:
        loaded = pulled(MODEL, place / "all")
    yield transfer, loaded
    with counted(hub, "pull of one task of five") as transfer:
        loaded = pulled(MODEL, place / "one", tasks=["four"])
    yield transfer, loaded
    if growth == "copy":
        with counted(hub, "push of five tasks without the backbone") as transfer:
            model.push_to_hub(SMALL, include_base=False)
        yield transfer, model
        with counted(hub, "pull of one of them, by those who have the backbone") as transfer:
            loaded = pulled(SMALL, place / "small", tasks=["four"], backbone=AutoModel.from_pretrained(BACKBONE))
        yield transfer, loaded


def main() -> None:
    """Print the table for a tiny random BERT, or for the backbone in a folder that is named."""
    backbone = AutoModel.from_pretrained(sys.argv[1], local_files_only=True) if sys.argv[1:] else tiny_backbone()
    print(f"{sum(p.numel() for p in backbone.parameters()):,} parameters")
    for growth in ("copy", "fixed"):
        with tempfile.TemporaryDirectory() as place, connected(Path(place) / "home") as hub:
            put_backbone(hub, backbone)
            torch.manual_seed(0)
            for transfer, _ in transfers(hub, Path(place), growth, learn_quickly):
                files = transfer.uploaded or transfer.downloaded
                names = sorted((transfer.uploaded or transfer.downloaded).items())
                files = ", ".join(f"{name.removeprefix('eidetic-')} {size:,}" for name, size in names)
                numbers = f"{transfer.requests} | {transfer.up:,} | {transfer.down:,}"
                print(f"{growth} | {transfer.what} | {numbers} | {files}")


if __name__ == "__main__":
    main()
