"""transformers' common model tests and generation tests, on models of this library."""

from __future__ import annotations

import fnmatch
import unittest
from typing import Any

import pytest
from transformers_suites import suites
from transformers_suites.adapter import WRITING, Tester, for_kind, model_class, targets

if suites.folder() is None:
    pytest.skip(suites.MISSING, allow_module_level=True)

common = suites.suite("test_modeling_common")
generation = suites.suite("generation.test_utils")

# Which kinds of task are tried on which backbone.
CASES = {
    "bert": (
        "sequence-classification", "token-classification", "question-answering", "multiple-choice", "masked-lm",
        "feature-extraction",
    ),
    "gpt2": ("causal-lm", "sequence-classification"),
    "llama": ("causal-lm", "sequence-classification"),
    "t5": ("seq2seq-lm", "sequence-classification"),
}  # fmt: skip
# Tests that train: their models have a task that is being learned. All others look at a committed one.
TRAINING = (
    "test_training*", "test_problem_types", "test_enable_input_require_grads*", "*gradient_checkpointing*",
    "test_retain_grad*", "test_torch_compile_for_training", "test_encoder_decoder_loss*", "test_causal_lm_loss*",
)  # fmt: skip
# Tests that count heads: their models have a task that keeps all of them. Elsewhere it keeps half.
COUNTING = ("*dict_output*", "*assisted_decoding*", "test_past_key_values_format", "test_attention_outputs")


class ModelSuite(common.ModelTesterMixin):
    """The common tests of one kind of task on one architecture."""

    architecture: str
    kind: str

    def setUp(self) -> None:
        def is_one_of(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(self._testMethodName, pattern) for pattern in patterns)

        self.model_tester = Tester(self.architecture, self.kind)
        self.is_encoder_decoder = self.model_tester.is_encoder_decoder
        keep = 1.0 if is_one_of(COUNTING) else 0.5
        self.all_model_classes = (model_class(self.kind, learning=is_one_of(TRAINING), keep=keep),)

    def _prepare_for_class(self, inputs: dict[str, Any], _: type, return_labels: bool = False) -> dict[str, Any]:
        """The suite looks classes up by their names in transformers; here the kind says what they read."""
        return {**for_kind(self.kind, inputs), **(targets(self.kind) if return_labels else {})}


for architecture, kinds in CASES.items():
    for kind in kinds:
        name = f"Test_{architecture}_{kind}".replace("-", "_")
        bases = (ModelSuite, *((generation.GenerationTesterMixin,) if kind in WRITING else ()), unittest.TestCase)
        globals()[name] = type(name, bases, {"architecture": architecture, "kind": kind})
