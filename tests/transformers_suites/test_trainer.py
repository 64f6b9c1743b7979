"""transformers' tests of its `Trainer`, on `EideticTrainer` and models of this library."""

from __future__ import annotations

import inspect
import re
import unittest
from unittest import mock

import pytest
import transformers
from transformers_suites import suites
from transformers_suites.training import IN_TRANSFORMERS, IN_UTILITIES

if suites.folder() is None:
    pytest.skip(suites.MISSING, allow_module_level=True)

MODULES = (
    "test_trainer", "test_trainer_accelerator", "test_trainer_callback", "test_trainer_checkpointing",
    "test_trainer_data", "test_trainer_evaluation", "test_trainer_hyperparameter", "test_trainer_optimizers",
)  # fmt: skip
TRAINS = re.compile(r"[Tt]rainer\(")

utilities = suites.suite("trainer.trainer_test_utils")
for name, value in IN_UTILITIES.items():
    setattr(utilities, name, value)
with mock.patch.multiple(transformers, **IN_TRANSFORMERS):
    for module in MODULES:
        for name, found in vars(suites.suite(f"trainer.{module}")).items():
            is_test = inspect.isclass(found) and issubclass(found, unittest.TestCase)
            if is_test and found.__module__.endswith(module) and TRAINS.search(inspect.getsource(found)):
                globals()[name] = found
del found  # or the last class would be collected twice
