"""Pretrained language-model heads: read from every architecture, with the answers that the pretrained model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.backbones import ALL_CONFIGS, BERT_LIKE, DECODER_LIKE, tiny_backbone
from support.data import make_batch
from support.pretrained import TRUNKS, with_head
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from eidetic_hf import EideticModel, PruningConfig, TaskError
from eidetic_hf.kinds.pretrained_head import head_parts, read_language_head
from eidetic_hf.network.backbone import base_model


def expected_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch, return_dict=True).logits


def batch_for(model: PreTrainedModel) -> dict[str, Tensor]:
    batch = make_batch(rows=3)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"].flip(1)
    return batch


@pytest.mark.parametrize("architecture", ALL_CONFIGS)
def test_a_language_model_starts_from_the_pretrained_ones_logits(architecture: str, tmp_path: Path) -> None:
    kind, pretrained = with_head(architecture)
    batch = batch_for(pretrained)
    expected = expected_logits(pretrained, batch)
    pretrained.save_pretrained(tmp_path)
    for source in (tmp_path, pretrained):  # a loaded model last: its modules are taken over
        model = EideticModel.from_backbone(source, trunk_layers=TRUNKS.get(architecture, 1), growth="fixed")
        model.add_task("texts", task_type=kind)
        model.begin_task("texts", PruningConfig(keep=1.0))
        with torch.no_grad():
            found = model(**batch, task="texts").logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ALL_CONFIGS)
def test_a_committed_language_model_reads_no_pretrained_head(architecture: str) -> None:
    kind, pretrained = with_head(architecture)
    batch = batch_for(pretrained)
    model = EideticModel.from_backbone(pretrained, trunk_layers=TRUNKS.get(architecture, 1), growth="fixed")
    model.add_task("first", task_type=kind)
    model.begin_task("first", PruningConfig(keep=0.5))
    model.commit_task()
    names = set(model.task_tensors("first"))
    assert not any(name.startswith("language_head.") for name in names)
    before = model(**batch, task="first").logits
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in names and tensor.is_floating_point():
                tensor.fill_(torch.nan)
    assert torch.equal(model(**batch, task="first").logits, before)


def test_a_pretrained_head_is_saved_for_the_next_language_model(tmp_path: Path) -> None:
    kind, pretrained = with_head("bert")
    expected = pretrained.cls.predictions.transform.dense.weight.detach().clone()
    model = EideticModel.from_backbone(pretrained, trunk_layers=1, growth="fixed")
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    loaded.add_task("texts", task_type=kind)
    loaded.begin_task("texts")
    assert torch.equal(loaded.heads["learning"].transform.dense.weight, expected)
    loaded.commit_task()
    loaded.save_pretrained(tmp_path / "small", include_pool=False)
    small = EideticModel.from_pretrained(tmp_path / "small")
    batch = batch_for(pretrained)
    assert "pool" not in small.language_head
    assert torch.equal(small(**batch, task="texts").logits, loaded(**batch, task="texts").logits)


def test_the_head_is_read_wherever_it_lies_and_from_nowhere_else() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**BERT_LIKE)).eval()
    found = read_language_head(model, base_model(model))
    assert found is not None
    assert found.agrees
    assert found.embeddings is None
    assert torch.equal(found.head.transform.dense.weight, model.cls.predictions.transform.dense.weight)
    assert found.parts["bias"] is True
    other = BertForSequenceClassification(BertConfig(**BERT_LIKE))
    assert read_language_head(other, base_model(other)) is None
    backbone = tiny_backbone()
    assert read_language_head(backbone, base_model(backbone)) is None


def test_output_embeddings_of_their_own_are_kept_and_only_language_models_read_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pretrained = LlamaForCausalLM(LlamaConfig(**DECODER_LIKE, tie_word_embeddings=False)).eval()
    batch = batch_for(pretrained)
    expected = expected_logits(pretrained, batch)
    model = EideticModel.from_backbone(pretrained, trunk_layers=1, growth="fixed")
    assert model.config.output_embeddings == [120, 32]
    model.add_task("texts", task_type="causal-lm")
    model.add_task("labels", labels=["x", "y"])
    for name in ("texts", "labels"):
        model.begin_task(name, PruningConfig(keep=0.5))
        if name == "texts":
            torch.testing.assert_close(model(**batch, task=name).logits, expected)
        model.commit_task()
    assert "output_embeddings.weight" in model.task_tensors("texts")
    assert "output_embeddings.weight" not in model.task_tensors("labels")
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch, task="texts").logits, model(**batch, task="texts").logits)
    assert loaded.verify().ok


def test_without_its_output_embeddings_a_backbone_is_no_language_model() -> None:
    model = EideticModel.from_backbone(
        LlamaForCausalLM(LlamaConfig(**DECODER_LIKE)).model, trunk_layers=1, growth="fixed"
    )
    with pytest.raises(TaskError, match="output embeddings of this 'llama' are not its input embeddings"):
        model.add_task("texts", task_type="causal-lm")
    assert model.add_task("labels", labels=["x", "y"]).pooling == "last"


def test_a_random_backbones_output_embeddings_are_learned_by_its_first_language_model() -> None:
    config = LlamaConfig(**DECODER_LIKE, tie_word_embeddings=False)
    model = EideticModel.from_backbone(config, trunk_layers=1, growth="fixed")
    model.add_task("texts", task_type="causal-lm")
    model.begin_task("texts", PruningConfig(keep=0.5))
    before = model.output_embeddings.need("weight").detach().clone()
    batch = batch_for(LlamaForCausalLM(config))
    loss = model(**batch, labels=batch["input_ids"], task="texts").loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    model.commit_task()
    after = model.output_embeddings.need("weight")
    assert not isinstance(after, nn.Parameter)
    assert not torch.equal(after, before)
    assert model.verify().ok


def test_a_random_backbone_whose_first_task_was_none_learns_no_language_model_later() -> None:
    model = EideticModel.from_backbone(
        LlamaConfig(**DECODER_LIKE, tie_word_embeddings=False), trunk_layers=1, growth="fixed"
    )
    before = model.output_embeddings.need("weight").clone()
    model.add_task("labels", labels=["x", "y"])
    model.add_task("early", task_type="causal-lm")
    model.begin_task("labels", PruningConfig(keep=0.5))
    assert "output_embeddings.weight" not in dict(model.named_parameters())
    model.commit_task()
    assert torch.equal(model.output_embeddings.need("weight"), before)
    with pytest.raises(TaskError, match="its first task, which trains the trunk, was no language model"):
        model.add_task("late", task_type="causal-lm")
    with pytest.raises(TaskError, match="was no language model"):
        model.begin_task("early")


def test_a_head_with_unknown_parts_is_noticed() -> None:
    torch.manual_seed(0)
    config = GraniteConfig(**DECODER_LIKE, logits_scaling=3.0, tie_word_embeddings=True)
    pretrained = AutoModelForCausalLM.from_config(config)
    found = read_language_head(pretrained, base_model(pretrained))
    assert found is not None
    assert not found.agrees


def test_fresh_heads_have_what_their_family_has() -> None:
    assert head_parts(ALL_CONFIGS["gpt2"]()) == {"bias": False}
    assert head_parts(ALL_CONFIGS["t5"]()) == {"bias": False, "scale": 32**-0.5}
    assert head_parts(ALL_CONFIGS["t5-gated"]()) == {"bias": False}
    assert head_parts(ALL_CONFIGS["gemma2"]())["softcap"] == 30.0
    assert head_parts(ALL_CONFIGS["bert"]())["transform"]["activation"] == "gelu"


def test_encoders_without_a_head_start_with_a_random_transform() -> None:
    model = EideticModel.from_backbone(tiny_backbone("electra"), trunk_layers=1, growth="fixed")
    assert model.config.language_head is None
    model.add_task("gaps", task_type="masked-lm")
    model.begin_task("gaps", PruningConfig(keep=0.5))
    head = model.heads["learning"]
    assert head.transform.dense.weight.shape == (16, 32)
    assert head.bias.shape == (120,)
    assert model(**make_batch(), task="gaps").logits.shape == (5, 12, 120)
