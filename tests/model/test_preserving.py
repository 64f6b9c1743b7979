"""Base itself as a task: what the pretrained model answers, whatever is learned before or after."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.backbones import tiny_backbone, tiny_model
from support.command_line import call
from support.data import arguments, logits_of, make_batch, make_data
from support.exactness import poison
from support.pretrained import with_head
from transformers import PreTrainedModel

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model.checkpoint.layout import sha256_of

WITH_HEADS = ["bert", "modernbert", "gpt2", "llama", "t5"]  # llama's output embeddings are its own


def plain(architecture: str) -> PreTrainedModel:
    return with_head(architecture)[1]


def copying(architecture: str, **kwargs: Any) -> EideticModel:
    return EideticModel.from_backbone(plain(architecture), trunk_layers=1, growth="copy", **kwargs)


def learn(model: EideticModel, name: str, folder: Path, seed: int = 0) -> None:
    model.add_task(name, labels=["x", "y", "z"])
    data = make_data(seed)
    EideticTrainer(model, name, arguments(folder, max_steps=4), PruningConfig(own=0.2), train_dataset=data).train()


def batch_of(architecture: str) -> dict[str, torch.Tensor]:
    batch = make_batch()
    return {**batch, "decoder_input_ids": batch["input_ids"]} if architecture == "t5" else batch


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_base_answers_as_the_pretrained_model_before_and_after_other_tasks(architecture: str, tmp_path: Path) -> None:
    model, batch = copying(architecture), batch_of(architecture)
    learn(model, "first", tmp_path)
    first = logits_of(model, "first")
    record = model.preserve()
    assert record.name == "base" and record.task_type == with_head(architecture)[0] and not any(record.units.values())
    then = logits_of(model, "base", batch)
    with torch.no_grad():
        torch.testing.assert_close(then, plain(architecture)(**batch).logits)
    learn(model, "second", tmp_path, 1)
    assert model.tasks == ["first", "base", "second"] and model.verify().ok
    assert torch.equal(logits_of(model, "base", batch), then) and torch.equal(logits_of(model, "first"), first)
    assert torch.equal(logits_of(poison(model, "base"), "base", batch), then)
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model", tasks=["base"])
    assert loaded.tasks == ["base"] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "base", batch), then)


def test_base_computes_with_bases_own_tensors_and_so_to_the_bit_what_the_plain_model_does() -> None:
    ours, theirs = copying("bert"), plain("bert")
    for name, layer in theirs.bert.encoder.layer.named_modules():  # out-projections lie transposed in memory
        if name.endswith("output.dense") and int(name.split(".")[0]) >= 1:
            layer.weight.data = layer.weight.data.t().contiguous().t()
    ours.preserve()
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(logits_of(ours, "base"), theirs(**batch).logits)
    assert ours.network.cache.used == 0  # nothing was gathered


def test_the_shard_of_base_is_the_same_whenever_it_is_preserved(tmp_path: Path) -> None:
    hashes = []
    for number, order in enumerate((["base", "first"], ["first", "base"])):
        model = copying("gpt2")
        for name in order:
            if name == "base":
                model.preserve()
            else:
                learn(model, name, tmp_path)
        model.save_pretrained(tmp_path / str(number))
        hashes.append({path.name: sha256_of(path) for path in (tmp_path / str(number)).glob("*.safetensors")})
    assert hashes[0] == hashes[1] and "eidetic-task-base.safetensors" in hashes[0]


def test_base_writes_what_the_pretrained_model_writes() -> None:
    model, theirs = copying("gpt2"), plain("gpt2")
    model.preserve()
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompts, task="base", **options), theirs.generate(prompts, **options))


def test_base_without_a_head_gives_its_hidden_states(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    model.preserve("pretrained", normalize=False)
    batch = make_batch()
    with torch.no_grad():
        found = model(**batch, task="pretrained")
        states = tiny_backbone("bert").eval()(**batch).last_hidden_state
    torch.testing.assert_close(found.last_hidden_state, states)
    mask = batch["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(found.pooler_output, (states * mask).sum(1) / mask.sum(1))


def test_base_knows_the_tokens_that_it_came_with_and_no_later_ones(tmp_path: Path) -> None:
    model = copying("gpt2")
    model.resize_token_embeddings(124)
    model.preserve()
    then = logits_of(model, "base")
    with torch.no_grad():
        torch.testing.assert_close(then, plain("gpt2")(**make_batch()).logits)
    assert then.shape[-1] == 120 and model.input_rows.count("pool") == 4
    with pytest.raises(ValueError, match="holds the token 121"):
        model(input_ids=torch.tensor([[121]]), task="base")
    model.add_task("later", task_type="causal-lm")
    model.begin_task("later", PruningConfig(own=0.1))
    model.commit_task()
    model.save_pretrained(tmp_path)
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.verify().ok and torch.equal(logits_of(loaded, "base"), then)


def test_base_is_routed_to_only_with_texts_of_its_own(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    learn(model, "first", tmp_path)
    without = copy.deepcopy(model)
    without.preserve()
    routed = without.route(**make_batch())
    assert set(routed.tasks) == {"first"} and routed.router_scores.shape == (5, 2)
    texts = {name: value[:, :6] for name, value in make_batch(7, 32).items()}
    texts["input_ids"] = texts["input_ids"].clamp(max=5)
    model.preserve(batches=[texts])
    assert model.router.has("base") and not without.router.has("base")
    assert model.route(**texts).tasks.count("base") > 28
    assert model.route(**{name: torch.tensor(make_data(0)[name][:]) for name in texts}).tasks.count("first") > 56


def test_what_can_not_be_preserved_is_said_and_leaves_nothing_behind() -> None:
    with pytest.raises(TaskError, match=r"preserve\(name='base'\) is for growth='copy'"):
        tiny_model().preserve()
    model = EideticModel.from_backbone(tiny_backbone("bert"), trunk_layers=1, growth="copy")
    with pytest.raises(TaskError, match="cannot be masked-lm"):
        model.preserve(task_type="masked-lm")
    with pytest.raises(TaskError, match="has no labels"):
        model.preserve(task_type="sequence-classification")
    with pytest.raises(TaskError, match="the backbone came without the head"):
        model.preserve(task_type="question-answering")
    with pytest.raises(ValueError, match="input_ids"):
        model.preserve(batches=[{}])
    assert model.learning is None and not model.added and not model.tasks
    model.preserve()
    with pytest.raises(TaskError, match="There is a task 'base' already"):
        model.preserve()
    model.add_task("next", labels=["x", "y"])
    model.begin_task("next")
    with pytest.raises(TaskError, match="'next' is being learned"):
        model.preserve("again")
    assert model.learning == "next" and list(model.added) == ["next"]


def test_the_command_line_preserves_base_in_a_folder(tmp_path: Path) -> None:
    copying("gpt2").save_pretrained(tmp_path)
    done = call("preserve", tmp_path, "--name", "pretrained")
    assert done.exit_code == 0 and done.stdout.endswith("\npretrained: the backbone itself, causal-lm\n")
    loaded = EideticModel.from_pretrained(tmp_path)
    assert loaded.tasks == ["pretrained"] and loaded.verify().ok
    assert call("verify", tmp_path).exit_code == 0
    again = call("preserve", tmp_path, "--name", "pretrained")
    assert again.exit_code == 2 and "There is a task 'pretrained' already" in again.output
    nowhere = call("preserve", tmp_path / "nowhere")
    assert nowhere.exit_code == 2 and "is no folder here" in nowhere.output
