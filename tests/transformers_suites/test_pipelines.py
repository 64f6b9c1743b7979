"""transformers' pipeline tests, on models of this library.

The suite takes its models from the Hub; here they are made. What it then does with a pipeline is its own.
"""

from __future__ import annotations

import importlib
import unittest

import pytest
from transformers_suites import suites
from transformers_suites.adapter import base_config, byte_tokenizer, eidetic_config, model_class

if suites.folder() is None:
    pytest.skip(suites.MISSING, allow_module_level=True)

mixin = suites.suite("test_pipeline_mixin")

# The kind of task that answers each pipeline, and the backbones that it is tried on.
CASES = {
    "text-classification": ("sequence-classification", ("bert", "gpt2", "llama", "t5")),
    "zero-shot": ("sequence-classification", ("bert",)),
    "token-classification": ("token-classification", ("bert",)),
    "fill-mask": ("masked-lm", ("bert",)),
    "feature-extraction": ("feature-extraction", ("bert",)),
    "text-generation": ("causal-lm", ("gpt2", "llama")),
}


class PipelineSuite(mixin.PipelineTesterMixin):
    """The pipeline tests of one architecture."""

    architecture: str

    def run_task_tests(self, task: str, dtype: str = "float32") -> None:
        kind, architectures = CASES.get(task, (None, ()))
        if self.architecture not in architectures:
            self.skipTest(f"{task} is not asked of {self.architecture}")
        tokenizer = byte_tokenizer()
        base = base_config(self.architecture, vocab_size=len(tokenizer), max_position_embeddings=512)
        config = eidetic_config(base)
        config.num_labels = 3
        model = model_class(kind)(config)
        module, _, name = mixin.pipeline_test_mapping[task]["test"].rpartition(".")
        tests = getattr(importlib.import_module(module), name)()
        pipeline, examples = tests.get_test_pipeline(model, tokenizer, dtype=dtype)
        tests.run_pipeline_test(pipeline, examples)
        if pipeline.tokenizer.pad_token_id is not None:
            assert len(list(pipeline((examples[i % len(examples)] for i in range(10)), batch_size=4))) == 10


for architecture in ("bert", "gpt2", "llama", "t5"):
    name = f"Test_{architecture}"
    globals()[name] = type(name, (PipelineSuite, unittest.TestCase), {"architecture": architecture})
