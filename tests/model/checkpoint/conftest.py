"""Checkpoint folders of two tasks, and of a third that was learned later."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from support.data import learn

from eidetic_hf import EideticModel


@pytest.fixture(scope="session")
def trainer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Trainer leaves its checkpoints while `grown` learns its third task."""
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="session")
def grown(trained: EideticModel, trainer_folder: Path) -> EideticModel:
    """A copy of `trained` that has learned `third`, too."""
    model = copy.deepcopy(trained)
    learn(model, "third", trainer_folder, seed=2, save_strategy="steps", save_steps=6)
    return model


@pytest.fixture(scope="session")
def saved(trained: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `trained`. Shared: use `folder` to change it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    copy.deepcopy(trained).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def grown_saved(grown: EideticModel, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `grown`, saved over a copy of `saved`."""
    path = Path(shutil.copytree(saved, tmp_path_factory.mktemp("grown") / "model"))
    copy.deepcopy(grown).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture
def model(trained: EideticModel) -> EideticModel:
    """A copy of `trained` of the test's own."""
    return copy.deepcopy(trained)
