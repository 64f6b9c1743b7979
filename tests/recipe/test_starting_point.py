"""What a run starts from: backbones and tokenizers, given or made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_model
from support.recipe_files import (  # noqa: F401
    private_dataset_cache,
)
from transformers import PreTrainedTokenizerBase

from eidetic_hf.network.backbone import longest_sequence
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.starting_point import make_config, resolve_backbone, train_tokenizer


@pytest.mark.parametrize(
    ("architecture", "longest"), [("bert", 66), ("roberta", 65), ("distilbert", 66), ("t5", None)]
)
def test_the_longest_sequence_is_what_the_backbone_has_positions_for(architecture: str, longest: int | None) -> None:
    model = tiny_model(architecture)
    assert longest_sequence(model.backbone) == longest
    if longest is not None:
        ids = torch.full((1, longest), 5)
        model.add_task("a", labels=["x", "y"])
        model.begin_task("a")
        assert model(input_ids=ids, attention_mask=torch.ones_like(ids), task="a").logits.shape == (1, 2)
        with pytest.raises((IndexError, RuntimeError)):
            long = torch.full((1, longest + 1), 5)
            model(input_ids=long, attention_mask=torch.ones_like(long), task="a")


def test_a_package_backbone_is_a_folder_of_an_installed_package(tmp_path: Path) -> None:
    folder = Path(resolve_backbone("package:eidetic_hf/templates", tmp_path))
    assert (folder / "report.html").is_file()


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer("byte", [], "decoder")


def test_a_trained_tokenizer_reads_every_text_and_has_the_size_that_was_asked_for() -> None:
    texts = ["the cat and the hat and the rat", "that cat sat on the mat"] * 3
    tokenizer = train_tokenizer("bpe", texts, "decoder", vocab_size=270)
    assert len(tokenizer) == 270
    ids = tokenizer("the cät\n 猫")["input_ids"]
    assert tokenizer.decode(ids) == "the cät\n 猫"
    assert len(tokenizer("the")["input_ids"]) < 3, "frequent sequences are one token"
    with pytest.raises(RecipeError, match="`vocab_size: 5000` of `tokenizer:`: the training texts give"):
        train_tokenizer("bpe", texts, "decoder", vocab_size=5000)


def test_an_encoders_trained_tokenizer_frames_texts_and_pairs() -> None:
    tokenizer = train_tokenizer("byte", [], "encoder")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", "b")["input_ids"])
    assert tokens == ["<|cls|>", "a", "<|sep|>", "b", "<|sep|>"]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llamma"}, "`model_type: llamma` in `backbone:`: transformers knows no such model"),
        ({"model_type": "llama", "hidden": 3}, "Unknown key 'hidden' in `backbone:`"),
        ({"model_type": "llama", "hidden_size": "big"}, "`backbone:` is no configuration of 'llama'"),
        ({"model_type": "llama", "vocab_size": 10}, "the tokenizer has 261 tokens"),
    ],
)
def test_a_wrong_configuration_is_refused(
    byte_tokenizer: PreTrainedTokenizerBase, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        make_config(values, byte_tokenizer)
    assert message in str(error.value)


def test_a_random_backbone_has_the_tokenizers_vocabulary_and_special_tokens(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    config = make_config({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}, byte_tokenizer)
    assert (config.vocab_size, config.hidden_size) == (261, 32)
    assert config.eos_token_id == byte_tokenizer.eos_token_id and config.pad_token_id == byte_tokenizer.pad_token_id
    seq2seq = make_config({"model_type": "t5", "d_model": 32}, byte_tokenizer)
    assert seq2seq.decoder_start_token_id == byte_tokenizer.pad_token_id
