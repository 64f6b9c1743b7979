"""Every check on every architecture: `recipes/architecture_matrix.py` prints them as a table."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.backbones import ALL_CONFIGS, VOCABULARY, tiny_backbone, tiny_model
from support.data import learn, logits_of, make_batch
from support.exactness import poison
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BartForConditionalGeneration,
    CohereConfig,
    LlamaConfig,
    OlmoConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from eidetic_hf import Architecture, ArchitectureError, EideticModel, UnitPaths
from eidetic_hf import register_architecture as register
from eidetic_hf.model import answering
from eidetic_hf.model.request import Request
from eidetic_hf.network import architectures
from eidetic_hf.network.architecture import Fused
from eidetic_hf.network.backbone import DECODER, ENCODER_DECODER, family_of
from eidetic_hf.network.units import UnitGroup
from eidetic_hf.network.wiring import Adapted, TiedWeight, _adapt
from eidetic_hf.recipe.report import _layer_label, units_picture
from eidetic_hf.views import LEARNING, View, task_key, use_view

TASKS = ("first", "second", "third")
FAMILIES = {name: family_of(config()) for name, config in ALL_CONFIGS.items()}
DECODERS = tuple(name for name, family in FAMILIES.items() if family == DECODER)
ENCODER_DECODERS = tuple(name for name, family in FAMILIES.items() if family == ENCODER_DECODER)
# What transformers itself does not offer.
WITHOUT_SDPA = tuple(name for name in ALL_CONFIGS if not type(tiny_backbone(name))._supports_sdpa)
WITHOUT_CHECKPOINTING = tuple(
    name for name in ALL_CONFIGS if not type(tiny_backbone(name)).supports_gradient_checkpointing
)


def over(names: Any = ALL_CONFIGS) -> Any:
    """A check of each of these architectures; a worker of pytest-xdist takes all of one's."""
    each = pytest.mark.parametrize(
        "architecture", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
    )
    return lambda check: pytest.mark.matrix(each(check))


@dataclass
class Learned:
    """A model that learned three tasks in turn, and what was seen on the way.

    Attributes:
        model: the model. Copy it before you change it.
        folder: its checkpoint, saved after every commit.
        then: each task's logits right after its commit.
        moved: tasks whose logits differed after a later commit.
        rewritten: shards whose bytes a later save changed.
    """

    model: EideticModel
    folder: Path
    then: dict[str, torch.Tensor] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)


@functools.cache
def _learned(architecture: str, folder: Path) -> Learned:
    learned = Learned(model_of(architecture), folder / "model")
    hashes: dict[str, str] = {}
    for seed, name in enumerate(TASKS):
        learn(learned.model, name, folder, seed, max_steps=6)
        learned.then[name] = logits_of(learned.model, name)
        for earlier, logits in learned.then.items():
            if not torch.equal(logits, logits_of(learned.model, earlier)):
                learned.moved.append(f"{earlier} while {name} was learned")
        learned.model.save_pretrained(learned.folder)
        for file in learned.folder.glob("eidetic-t*.safetensors"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if hashes.setdefault(file.name, digest) != digest:
                learned.rewritten.append(file.name)
    return learned


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the learned models of this run are kept."""
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture
def learned(architecture: str, base: Path) -> Learned:
    """The model of an architecture that learned three tasks: made once."""
    folder = base / architecture
    folder.mkdir(exist_ok=True)
    return _learned(architecture, folder)


def model_of(architecture: str, lively: bool = False, dtype: torch.dtype = torch.float32) -> EideticModel:
    """A tiny model with a trunk of one layer, or of none where no layer can be left out of learning.

    With `lively` weights, attention is far from uniform.
    """
    backbone = tiny_backbone(architecture)
    if lively:
        generator = torch.Generator().manual_seed(1)
        for parameter in backbone.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3, generator=generator)
    return EideticModel.from_backbone(
        backbone.to(dtype), trunk_layers=0 if architecture == "albert" else 1, growth="fixed"
    )


def begun(architecture: str) -> EideticModel:
    """A model on lively weights that has begun to learn a task, in evaluation mode."""
    model = model_of(architecture, lively=True)
    model.add_task("begun", labels=["x", "y", "z"])
    model.begin_task("begun")
    return model.eval()


def inputs_of(architecture: str, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch as the backbone takes it: with something for the decoder to read, where there is one."""
    if architecture not in ENCODER_DECODERS:
        return batch
    beside = {f"decoder_{name}": value for name, value in batch.items()}
    return {**batch, **beside}


# -- the guarantee ----------------------------------------------------------------------------------------------------


@over()
def test_exactness(learned: Learned) -> None:
    """Every task's logits are equal to the last bit after later ones were learned, and nothing is a Parameter."""
    assert learned.moved == []
    assert learned.model.verify().ok
    assert list(learned.model.parameters()) == []
    logits = list(learned.then.values())
    assert all(one.isfinite().all() and one.std() > 1e-4 for one in logits)
    assert not torch.equal(logits[0], logits[1])


@over()
def test_poison(learned: Learned) -> None:
    """NaN in everything outside of `task_tensors` does not move a task's logits by one bit."""
    for name, logits in learned.then.items():
        assert torch.equal(logits, logits_of(poison(learned.model, name), name))


@over()
def test_closed_set(learned: Learned) -> None:
    """NaN in a tensor of `task_tensors` reaches the logits: one of each role, of one task."""
    model = copy.deepcopy(learned.model)
    roles: dict[str, str] = {}
    for tensor_name in model.task_tensors("second"):
        roles[re.sub(r"\.\d+\.", ".N.", tensor_name)] = tensor_name  # the last of those that differ in a number
    assert len(roles) > 15
    for tensor_name in roles.values():
        tensor = model.task_tensors("second")[tensor_name]
        before = tensor.clone()
        tensor.fill_(torch.nan)
        model.network.pack()
        assert logits_of(model, "second").isnan().any(), f"{tensor_name} is in the closed set, but not read"
        model.task_tensors("second")[tensor_name].copy_(before)
    model.network.pack()
    assert torch.equal(logits_of(model, "second"), learned.then["second"])


@over()
def test_save_and_load(learned: Learned) -> None:
    """A loaded model gives the same bits, and saving later tasks left every older shard byte-identical."""
    assert learned.rewritten == []
    loaded = EideticModel.from_pretrained(learned.folder)
    for name, logits in learned.then.items():
        assert torch.equal(logits, logits_of(loaded, name))
    assert loaded.verify().ok
    assert set(loaded.state_dict()) == set(learned.model.state_dict())
    alone = EideticModel.from_pretrained(learned.folder, tasks=["second"])
    assert torch.equal(learned.then["second"], logits_of(alone, "second"))


@over()
def test_bf16(architecture: str, tmp_path: Path) -> None:
    """A model in bfloat16 keeps its bits, too, and so does what is loaded from its checkpoint."""
    model, then = model_of(architecture, dtype=torch.bfloat16), {}
    assert model.dtype == torch.bfloat16
    for seed, name in enumerate(TASKS[:2]):
        learn(model, name, tmp_path, seed, max_steps=4)
        then[name] = logits_of(model, name)
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    for name, logits in then.items():
        assert torch.equal(logits, logits_of(model, name))
        assert torch.equal(logits, logits_of(loaded, name))
    assert loaded.verify().ok


@over()
def test_copies(learned: Learned) -> None:
    """A deep copy and a pickle of the model answer alike, and share no memory with it."""
    own = {tensor.untyped_storage().data_ptr() for tensor in learned.model.state_dict().values()}
    for twin in (copy.deepcopy(learned.model), pickle.loads(pickle.dumps(learned.model))):
        for name, logits in learned.then.items():
            assert torch.equal(logits, logits_of(twin, name))
        assert own.isdisjoint(t.untyped_storage().data_ptr() for t in twin.state_dict().values() if t.numel())


@over()
def test_threads(learned: Learned) -> None:
    """Two threads that serve two tasks at once get what each gets alone: counts of heads follow the thread."""
    batches = [make_batch(seed, rows=3, length=9) for seed in range(6)]
    alone = {name: [logits_of(learned.model, name, batch) for batch in batches] for name in TASKS[:2]}
    together: dict[str, list[torch.Tensor]] = {name: [] for name in alone}
    barrier = threading.Barrier(2, timeout=60)

    def serve(name: str) -> None:
        for batch in batches:
            barrier.wait()
            with torch.no_grad():
                together[name].append(learned.model(**batch, task=name).logits)

    threads = [threading.Thread(target=serve, args=(name,)) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, answers in alone.items():
        assert all(torch.equal(a, b) for a, b in zip(answers, together[name], strict=True))


# -- the backbone's own code ------------------------------------------------------------------------------------------


@over()
def test_dense(architecture: str) -> None:
    """With every unit, the network computes what the backbone does."""
    backbone = tiny_backbone(architecture).eval()
    inputs = inputs_of(architecture, **make_batch())
    with torch.no_grad():
        expected = backbone(**inputs).last_hidden_state
        model = EideticModel.from_backbone(backbone, growth="fixed")
        model.add_task("all", labels=["x", "y"])
        model.begin_task("all")
        model.eval()
        actual = model.network.run(View(LEARNING), inputs).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@over()
def test_cut(architecture: str) -> None:
    """Units that are cut out leave what units that are silent leave: the backbone's code runs right on fewer."""
    model = begun(architecture)
    inputs = inputs_of(architecture, **make_batch())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        whole = model.network.run(View(LEARNING), inputs).last_hidden_state
        for group in model.groups.values():
            kept = torch.rand(group.total, generator=generator) < 0.5
            kept[int(torch.randint(0, group.total, (), generator=generator))] = True
            group.kept().copy_(kept)
            group.forget_views()
        cut = model.network.run(View(LEARNING), inputs).last_hidden_state
        for group in model.groups.values():
            output = group.members[-1]
            output.segment(LEARNING).weight[~group.kept().repeat_interleave(output.width)] = 0
            group.kept().fill_(True)
            group.forget_views()
        silent = model.network.run(View(LEARNING), inputs).last_hidden_state
    torch.testing.assert_close(cut, silent, atol=1e-5, rtol=1e-4)
    assert (whole - silent).abs().max() > 0.05


@over()
def test_units(architecture: str) -> None:
    """Every layer above the trunk has its units, as many as the configuration says."""
    model = model_of(architecture)
    grouped = getattr(model.config.base_config, "num_key_value_heads", None) or 4
    first = 0 if architecture == "albert" else 1
    depth = 1 if architecture == "albert" else 3
    expected = {f"layers.{n}.{kind}" for n in range(first, depth) for kind in ("heads", "neurons")}
    if architecture in ENCODER_DECODERS:
        expected |= {f"decoder_layers.{n}.{kind}" for n in range(3) for kind in ("heads", "cross_heads", "neurons")}
    assert {group.name for group in model.groups.values()} == expected
    assert {group.total for group in model.groups.values() if group.unit_type != "neurons"} == {grouped}
    assert {group.total for group in model.groups.values() if group.unit_type == "neurons"} == {64}
    kinds = set(model.capacity()["free_share_by_kind"])
    assert kinds == {group.unit_type for group in model.groups.values()}


@over()
def test_attention(architecture: str, learned: Learned) -> None:
    """Eager and SDPA attention agree to rounding, where transformers has both."""
    eager = EideticModel.from_pretrained(learned.folder, attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"
    if architecture in WITHOUT_SDPA:
        for name, logits in learned.then.items():
            torch.testing.assert_close(logits_of(eager, name), logits, atol=1e-3, rtol=1e-3)
        return
    sdpa = EideticModel.from_pretrained(learned.folder, attn_implementation="sdpa")
    assert sdpa.backbone.config._attn_implementation == "sdpa"
    for name in learned.then:
        torch.testing.assert_close(logits_of(eager, name), logits_of(sdpa, name), atol=1e-5, rtol=1e-4)


@over()
def test_gradient_checkpointing(architecture: str) -> None:
    """Recomputed activations give the same loss and gradients, and layers do run twice."""
    model = begun(architecture).train()
    batch = {**make_batch(), "labels": torch.tensor([0, 1, 2, 0, 1])}
    if architecture in WITHOUT_CHECKPOINTING:
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model.gradient_checkpointing_enable()
        return
    found = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        calls = []
        hooks = [
            group.members[0].register_forward_hook(lambda *_, name=group.name, calls=calls: calls.append(name))
            for group in model.groups.values()
        ]
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()], {c: calls.count(c) for c in calls}))
        for hook in hooks:
            hook.remove()
    (loss, gradients, once), (again, recomputed, twice) = found
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:10])
    assert twice == {name: 2 * calls for name, calls in once.items()}


@over()
def test_importance(architecture: str) -> None:
    """Units get scores of importance, in every layer, and padding tokens have no part in them."""
    batch, labels = make_batch(), torch.tensor([0, 1, 2, 0, 1])
    padded = {name: nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 77
    found = []
    for inputs in (batch, padded):
        model = begun(architecture)
        answer, _ = answering.answer(model, "begun", View(LEARNING, probe="fisher"), Request(inputs))
        nn.functional.cross_entropy(answer["logits"], labels).backward()
        found.append([group.reading().clone() for group in model.groups.values()])
    for scores, with_padding in zip(*found, strict=True):
        assert (scores > 0).sum() > len(scores) / 3
        torch.testing.assert_close(scores, with_padding, atol=float(scores.max()) * 1e-4, rtol=1e-3)


@over()
def test_padding(learned: Learned) -> None:
    """More padding changes no logit beyond rounding."""
    batch = make_batch()
    padded = {name: nn.functional.pad(value, (0, 9)) for name, value in batch.items()}
    for name in TASKS[:2]:
        torch.testing.assert_close(
            logits_of(learned.model, name, padded), logits_of(learned.model, name, batch), atol=1e-5, rtol=1e-4
        )


@over()
def test_mixed_batches(learned: Learned) -> None:
    """Rows of one task in a batch of several are those of its own sub-batch, bit for bit."""
    model = learned.model
    names = [TASKS[n] for n in torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(1))]
    batch = make_batch(3, rows=30)
    with torch.no_grad():
        mixed = model(**batch, task=names).logits
        for start, name in enumerate(TASKS):
            rows = [row for row, other in enumerate(names) if other == name]
            alone = model(**{key: value[rows] for key, value in batch.items()}, task=name).logits
            assert torch.equal(mixed[rows, 3 * start : 3 * start + 3], alone)
        routed = model(**batch)
        assert set(routed.tasks) <= set(TASKS)
        answers = {name: model(**batch, task=name).logits for name in TASKS}
    for row, name in enumerate(routed.tasks):
        start = 3 * TASKS.index(name)
        torch.testing.assert_close(routed.logits[row, start : start + 3], answers[name][row], atol=1e-5, rtol=1e-4)


@over((*DECODERS, *ENCODER_DECODERS))
def test_cache(architecture: str, learned: Learned) -> None:
    """Token by token with a key/value cache, a decoder's states are those of one pass, up to rounding."""
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    read, fixed = "input_ids", {}
    view = View(task_key("second"))
    if architecture in ENCODER_DECODERS:
        read, fixed = "decoder_input_ids", {"input_ids": ids.flip(1)}
    with torch.no_grad():
        whole = learned.model.network.run(view, {**fixed, read: ids})
        assert whole.get("cache", whole.get("past_key_values")) is None  # nothing is kept unless asked for
        output = learned.model.network.run(view, {**fixed, read: ids[:, :4]}, use_cache=True)
        states = [output.last_hidden_state]
        for position in range(4, 9):
            past = output.get("cache", output.get("past_key_values"))
            output = learned.model.network.run(
                view, {**fixed, read: ids[:, position : position + 1]}, past_key_values=past
            )
            states.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(states, 1), whole.last_hidden_state, atol=1e-5, rtol=1e-4)


@over()
def test_compile(learned: Learned) -> None:
    """A compiled model answers each task as the model does; the tasks' graphs are not mixed up."""
    torch._dynamo.reset()
    compiled = torch.compile(learned.model, backend="eager", dynamic=False)
    batch = make_batch()
    with torch.no_grad():
        for name in ("first", "second", "first"):
            expected = logits_of(learned.model, name, batch)
            torch.testing.assert_close(compiled(**batch, task=name).logits, expected, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


# -- what is particular to some ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "phi3"])
def test_a_compiled_model_is_one_graph_per_task(architecture: str, learned: Learned) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(learned.model, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        for name in ("first", "second", "first", "second"):
            expected = logits_of(learned.model, name)
            torch.testing.assert_close(compiled(**make_batch(), task=name).logits, expected, atol=1e-5, rtol=1e-4)
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", [*ENCODER_DECODERS])
def test_tied_embeddings_are_one_tensor_in_memory_and_in_the_checkpoint(architecture: str, learned: Learned) -> None:
    loaded = EideticModel.from_pretrained(learned.folder)
    for model in (learned.model, loaded, copy.deepcopy(loaded), copy.deepcopy(loaded).to(torch.float64)):
        shared = model.backbone.shared.weight
        for stack in (model.backbone.encoder, model.backbone.decoder):
            assert isinstance(stack.embed_tokens, TiedWeight)
            assert stack.embed_tokens.weight is model.backbone.shared.weight
        names = [name for name, tensor in model.state_dict().items() if tensor.shape == shared.shape]
        assert names == ["backbone.shared.weight"]
        assert "backbone.shared.weight" in model.task_tensors("first")
    with torch.no_grad():
        loaded.backbone.shared.weight.fill_(torch.nan)
    assert logits_of(loaded, "first").isnan().all()


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "gemma3_text"])
def test_a_random_backbones_trunk_is_trained_by_the_first_task_alone(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EideticModel.from_backbone(ALL_CONFIGS[architecture](), trunk_layers=1, growth="fixed")
    embeddings = model.get_input_embeddings()
    before = embeddings.weight.clone()
    learn(model, "first", tmp_path, 0, max_steps=6)
    trained, then = embeddings.weight.clone(), logits_of(model, "first")
    learn(model, "second", tmp_path, 1, max_steps=6)
    assert not torch.equal(before, trained)
    assert torch.equal(trained, embeddings.weight) and not isinstance(embeddings.weight, nn.Parameter)
    assert torch.equal(then, logits_of(model, "first"))
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(then, logits_of(EideticModel.from_pretrained(tmp_path / "model"), "first"))


def test_the_trunk_of_albert_is_its_embeddings() -> None:
    assert EideticModel.from_backbone(tiny_backbone("albert"), growth="fixed").config.trunk_layers == 0
    with pytest.raises(ValueError, match=r"albert runs the same layer at every depth.*Only trunk_layers=0"):
        EideticModel.from_backbone(tiny_backbone("albert"), trunk_layers=1, growth="fixed")


@pytest.mark.parametrize("trunk_layers", [0, 2])
@pytest.mark.parametrize("architecture", ["t5", "gpt2", "deberta-v2-own-keys", "modernbert"])
def test_a_trunk_of_another_depth_is_exact(architecture: str, trunk_layers: int, tmp_path: Path) -> None:
    model = EideticModel.from_backbone(tiny_backbone(architecture), trunk_layers=trunk_layers, growth="fixed")
    for seed, name in enumerate(TASKS[:2]):
        learn(model, name, tmp_path, seed, max_steps=4)
    assert model.eval().verify().ok
    batch, names = make_batch(rows=24), ["first", "second"] * 12
    mixed = model(**batch, task=names).logits
    for start, name in enumerate(TASKS[:2]):
        alone = model(**{key: value[start::2] for key, value in batch.items()}, task=name).logits
        assert torch.equal(mixed[start::2, 3 * start : 3 * start + 3], alone)


def test_relative_position_biases_belong_to_the_heads_of_each_layer(tmp_path: Path) -> None:
    model = model_of("t5")
    tables = [name for name in model.state_dict() if "relative_attention_bias" in name]
    # The trunk's own, and one for each self-attention above it.
    assert len([name for name in tables if name.endswith("relative_attention_bias.weight")]) == 1
    assert len([name for name in tables if name.endswith("segments.pool.weight")]) == 2 + 3
    learn(model, "first", tmp_path, 0, max_steps=4)
    owned = model.task_tensors("first")["backbone.decoder.block.2.layer.0.SelfAttention.relative_attention_bias"
                                        ".segments.@first.weight"]  # fmt: skip
    assert owned.shape == (model.record("first").units["decoder_layers.2.heads"], 32)
    model.expand(2, ["decoder_layers.2.heads"])
    then = logits_of(model, "first")
    learn(model, "second", tmp_path, 1, max_steps=4)
    assert torch.equal(then, logits_of(model, "first"))
    assert model.verify().ok


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2", "phi3"])
def test_expanded_units_are_learned_and_old_tasks_stay(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture)
    learn(model, "first", tmp_path, 0, max_steps=4)
    then = logits_of(model, "first")
    added = model.expand(2)
    assert set(added.values()) == {2}
    assert torch.equal(then, logits_of(model, "first"))
    learn(model, "second", tmp_path, 1, max_steps=4)
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert torch.equal(then, logits_of(loaded, "first"))
    assert torch.equal(logits_of(model, "second"), logits_of(loaded, "second"))


@pytest.mark.parametrize(("architecture", "class_"), [("t5", T5ForConditionalGeneration),
                                                      ("bart", BartForConditionalGeneration)])  # fmt: skip
def test_the_backbone_is_taken_out_of_a_model_with_a_head(architecture: str, class_: type) -> None:
    torch.manual_seed(0)
    whole = class_(ALL_CONFIGS[architecture]()).eval()
    inputs = inputs_of(architecture, **make_batch())
    with torch.no_grad():
        expected = whole(**inputs, output_hidden_states=True).decoder_hidden_states[-1]
        model = EideticModel.from_backbone(whole, trunk_layers=1, growth="fixed")
        model.add_task("all", labels=["x", "y"])
        model.begin_task("all")
        actual = model.eval().network.run(View(LEARNING), inputs).last_hidden_state
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_picture_of_units_has_a_panel_per_kind_and_keeps_the_decoders_layers_apart() -> None:
    assert str(units_picture([], model_of("t5").capacity())).count('id="axes_') == 3
    assert str(units_picture([], model_of("bert").capacity())).count('id="axes_') == 2
    assert [_layer_label(name) for name in ("layers.11.heads", "decoder_layers.11.heads")] == ["11", "d11"]


def test_casting_a_model_leaves_its_rotary_frequencies_in_float32() -> None:
    fresh = model_of("llama").backbone.rotary_emb.inv_freq
    for model in (model_of("llama", dtype=torch.bfloat16), model_of("llama").to(torch.bfloat16)):
        assert model.dtype == torch.bfloat16
        assert torch.equal(model.backbone.rotary_emb.inv_freq, fresh)


def test_positions_that_depend_on_earlier_sequences_are_refused() -> None:
    config = ALL_CONFIGS["llama"]()
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ArchitectureError, match=r"rope_type is 'dynamic'.*Set another rope_type"):
        EideticModel.from_backbone(AutoModel.from_config(config), growth="fixed")


def test_attributes_that_count_heads_follow_the_view_and_nothing_else() -> None:
    backbone = tiny_backbone("phi3")
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="fixed")
    trunk, above = (layer.self_attn for layer in model.backbone.layers[:2])
    assert isinstance(above, Adapted) and not isinstance(trunk, Adapted)
    model.add_task("begun", labels=["x", "y"])
    model.begin_task("begun")
    group = model.groups["layers_1_heads"]
    group.kept()[0] = False
    group.forget_views()
    with use_view(View(LEARNING)):
        assert above.num_key_value_heads == 1
        assert above.config.num_attention_heads == 2
        assert above.config._attn_implementation == trunk.config._attn_implementation
        with use_view(View(LEARNING, teacher=True)):
            assert above.config.num_attention_heads == 4
    assert model.backbone.config.num_attention_heads == trunk.config.num_attention_heads == 4


def test_one_module_may_count_the_units_of_two_groups() -> None:
    layer = nn.Module()
    layer.config = SimpleNamespace(n=4, m=6, other="kept")
    layer.width, layer.depth = 8, 12
    groups = [UnitGroup("layers.0.heads", 4), UnitGroup("layers.0.cross_heads", 6)]
    _adapt(layer, UnitPaths(counts=("config.n", "width")), groups[0])
    _adapt(layer, UnitPaths(counts=("config.m", "depth")), groups[1])
    for group in groups:
        group.ancestors[LEARNING] = []
        group.progress.put("kept", torch.tensor([True] + [False] * (group.total - 1)))
        group.forget_views()
    twin = copy.deepcopy(layer)
    with use_view(View(LEARNING)):
        for module in (layer, twin):
            assert (module.config.n, module.config.m, module.config.other) == (1, 1, "kept")
            assert (module.width, module.depth) == (2, 2)


def test_embeddings_that_differ_though_the_configuration_ties_them_are_refused() -> None:
    backbone = tiny_backbone("bart")
    backbone.decoder.embed_tokens.weight = nn.Parameter(backbone.shared.weight.detach().clone())
    copied = EideticModel.from_backbone(copy.deepcopy(backbone), growth="fixed")
    assert copied.backbone.decoder.embed_tokens.weight is copied.backbone.shared.weight
    backbone.decoder.embed_tokens.weight.data += 1
    with pytest.raises(
        ArchitectureError, match=r"ties decoder.embed_tokens.weight to shared.weight .*but they differ"
    ):
        EideticModel.from_backbone(backbone, growth="fixed")


# -- unknown architectures --------------------------------------------------------------------------------------------


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("config_class", [CohereConfig, OlmoConfig, PhiConfig, Starcoder2Config],
                         ids=lambda c: c.model_type)  # fmt: skip
def test_an_undeclared_architecture_is_derived_from_its_tensor_parallel_plan(
    config_class: type[PreTrainedConfig], tmp_path: Path
) -> None:
    assert not architectures.is_declared(config_class())
    EideticModel.from_backbone(AutoModel.from_config(config_class(**SMALL)), trunk_layers=1, growth="copy")  # checked
    torch.manual_seed(0)
    model = EideticModel.from_backbone(AutoModel.from_config(config_class(**SMALL)), trunk_layers=1, growth="fixed")
    assert {group.name: group.total for group in model.groups.values()} == {
        "layers.1.heads": 2,
        "layers.1.neurons": 64,
    }
    norms = [module for module in model.modules() if type(module).__name__ == "TaskNorm"]
    assert len(norms) >= (0 if config_class is OlmoConfig else 2)  # OLMo's norms have no parameters
    then = {}
    for seed, name in enumerate(TASKS[:2]):
        learn(model, name, tmp_path, seed, max_steps=4)
        then[name] = logits_of(model, name)
    assert torch.equal(then["first"], logits_of(model, "first"))
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(then["second"], logits_of(EideticModel.from_pretrained(tmp_path / "model"), "second"))


def test_declared_architectures_are_what_their_plans_say() -> None:
    for model_type in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"):
        config = ALL_CONFIGS[model_type]()
        declared = architectures.architecture_of(config)  # how wide a head is, no plan says
        assert architectures._derived(config) == dataclasses.replace(declared, head_dim=None)


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("olmo2", "treats layers.*.self_attn.q_proj as 'colwise_gather_output'"),
        ("mixtral", "treats layers.*.mlp.experts.gate_up_proj as 'packed_colwise'"),
        ("xlnet", "no tensor-parallel plan"),
    ],
)
def test_an_architecture_whose_code_needs_all_units_is_not_derived(model_type: str, why: str) -> None:
    with pytest.raises(ArchitectureError, match=re.escape(why)) as error:
        EideticModel.from_backbone(AutoConfig.for_model(model_type), growth="fixed")
    assert f"register_architecture(Architecture(\n        model_type='{model_type}'" in str(error.value)


class MadeUpConfig(PreTrainedConfig):
    """Of an architecture that nobody else has."""

    model_type = "made-up-rows"

    def __init__(self, width: int = 32, depth: int = 3, n_head: int = 4, vocab_size: int = VOCABULARY, **kwargs: Any):
        self.width = self.hidden_size = width
        self.depth, self.n_head, self.vocab_size = depth, n_head, vocab_size
        super().__init__(**kwargs)


class MadeUpBlock(nn.Module):
    """Attention with fused keys and values, which counts its heads; a gated MLP in one module; a scale of its own."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.n_head
        self.q, self.kv, self.o = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        normed = self.one(hidden)
        batch, length, _ = normed.shape
        parts = (self.q(normed), *self.kv(normed).chunk(2, -1))
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        hidden = hidden + self.o(mixed.transpose(1, 2).reshape(batch, length, -1)) * self.scale
        gate, up = self.up(self.two(hidden)).chunk(2, -1)
        return hidden + self.down(gate.sigmoid() * up)


class MadeUpModel(PreTrainedModel):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.rows = nn.ModuleList(MadeUpBlock(config) for _ in range(config.depth))
        self.end = nn.LayerNorm(config.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.tokens(input_ids)
        for row in self.rows:
            hidden = row(hidden, mask[:, None, None].bool())
        return BaseModelOutput(last_hidden_state=self.end(hidden))


MADE_UP = Architecture(
    "made-up-rows",
    layers="rows",
    heads=UnitPaths(inputs=("q", Fused("kv", (1, 1))), output="o", counts=("heads",)),
    neurons=UnitPaths(inputs=(Fused("up", (1, 1)),), output="down"),
    n_heads="n_head",
    final_norms=("end",),
    shared=("scale",),
)


@pytest.fixture
def made_up() -> Iterator[type[MadeUpModel]]:
    """A model class that transformers has never heard of."""
    AutoConfig.register("made-up-rows", MadeUpConfig, exist_ok=True)
    AutoModel.register(MadeUpConfig, MadeUpModel, exist_ok=True)
    yield MadeUpModel
    architectures._ARCHITECTURES.pop("made-up-rows", None)


def test_an_architecture_of_ones_own_takes_one_declaration(made_up: type[MadeUpModel], tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match="'made-up-rows' is not declared"):
        EideticModel.from_backbone(made_up(MadeUpConfig()), growth="fixed")
    register(MADE_UP)
    for growth in ("copy", "fixed"):
        model = EideticModel.from_backbone(made_up(MadeUpConfig()), trunk_layers=1, growth=growth)
        model.check_architecture()
    then = {}
    for seed, name in enumerate(TASKS):
        learn(model, name, tmp_path, seed, max_steps=4)
        then[name] = logits_of(model, name)
        model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    for name, logits in then.items():
        assert torch.equal(logits, logits_of(model, name))
        assert torch.equal(logits, logits_of(loaded, name))
    assert loaded.verify().ok
    scales = [f"backbone.rows.{n}.scale" for n in range(3)]
    assert all(name in model.task_tensors("first") for name in scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": replace(MADE_UP.heads, counts=())}, "does not run right with fewer heads"),
        ({"neurons": replace(MADE_UP.neurons, inputs=("up",))}, "does not run right with fewer neurons"),
        ({"shared": ()}, r"leaves parameters above the trunk that no task owns: \['rows.1.scale'.*declared as shared"),
        ({"heads": replace(MADE_UP.heads, inputs=("q", "k"))}, "heads in-projection at 'rows.0.k' does not exist"),
        ({"heads": replace(MADE_UP.heads, inputs=("one",))}, "'rows.0.one' is a LayerNorm, expected a Linear or"),
        ({"heads": replace(MADE_UP.heads, counts=("n",))}, "count of heads at 'rows.0.n' is None, expected a number"),
        ({"n_heads": "width", "heads": replace(MADE_UP.heads, counts=())}, "does not run right with fewer heads"),
        ({"final_norms": ("norm",)}, "the final norm at 'norm' does not exist"),
        ({"layers": "end"}, "the list of layers at 'end' is not a non-empty ModuleList"),
        ({"embeddings": "wte"}, "the embeddings at 'wte' do not exist"),
        ({"neurons": replace(MADE_UP.neurons, inputs=(), optional=("in",))}, "expected one of in"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_a_declaration_that_does_not_fit_is_refused(
    made_up: type[MadeUpModel], growth: str, change: dict[str, Any], message: str
) -> None:
    register(replace(MADE_UP, **change))
    torch.manual_seed(0)
    backbone = made_up(MadeUpConfig())
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    with pytest.raises(ArchitectureError, match=message):
        EideticModel.from_backbone(backbone, trunk_layers=1, growth=growth).check_architecture()


def test_three_units_can_not_share_thirty_two_features(made_up: type[MadeUpModel]) -> None:
    register(MADE_UP)
    with pytest.raises(ArchitectureError, match="has 32 features, which 3 units can not share evenly"):
        EideticModel.from_backbone(made_up(MadeUpConfig(n_head=3)), trunk_layers=1, growth="fixed")


def test_a_causal_model_with_a_head_gives_its_backbone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    model = EideticModel.from_backbone(tmp_path, trunk_layers=1, growth="fixed")
    assert {group.total for group in model.groups.values()} == {2, 64}
    assert tiny_model("llama").backbone.__class__ is model.backbone.__class__
