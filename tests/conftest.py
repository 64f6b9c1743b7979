"""The environment of every test, and what several of them share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# Tiny products run faster on one thread, and the suite runs in two workers. Tests that need more ask for them.
os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import pytest
import torch
from support.backbones import tiny_model
from support.data import learn
from support.hub_client import connected
from support.hub_server import HubServer

from eidetic_hf import EideticModel

datasets.disable_progress_bars()
torch.set_num_threads(1)


# Tasks of all kinds, learned by a recipe or without: whatever looks at them waits for that first.
SLOW_FIXTURES = {"models", "reading", "unlike", "writing"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what waits for a slow fixture. Keep a file's tests in one worker, but those of one architecture apart.

    The marks are set as each test is collected: pytest-xdist reads its groups before a conftest's
    `pytest_collection_modifyitems` runs.
    """
    if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)
    if not any(item.iter_markers("xdist_group")):
        item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection: every training collects twice, and would walk all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Let PyTorch use two threads per product, as on a machine with two cores."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """A tiny BERT that has learned `first` and `second`. Shared: copy it before you change it."""
    model = tiny_model()
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path_factory.mktemp(name), seed)
    return model


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on localhost that the client takes for the Hub, with a cache of the test's own."""
    with connected(tmp_path / "hub-home") as server:
        yield server
