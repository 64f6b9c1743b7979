"""The guarantee, for every architecture: a committed task's logits never move by one bit."""

from __future__ import annotations

import copy
import hashlib
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import ARCHITECTURES as DECLARED
from support.backbones import tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from support.exactness import poison

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.model import certificate
from eidetic_hf.views import LEARNING, task_key

# One architecture for `make check`, all of them for `make test`.
ARCHITECTURES = ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in DECLARED if name != "bert")]
WAYS = {
    "adamw": {"optim": "adamw_torch"},
    "adamw_fused": {"optim": "adamw_torch_fused"},
    "adamw_foreach": {"optim": "adamw_torch", "optim_args": "foreach=True"},
    "bf16_autocast": {"bf16": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "accumulation_and_clipping": {
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.1,
        "label_smoothing_factor": 0.1,
    },
    "adafactor": {"optim": "adafactor"},
}


def learn_three(model: EideticModel, folder: Path, **kwargs: object) -> dict[str, torch.Tensor]:
    """Learn three tasks in turn; returns each task's logits right after its commit, checked after every later one."""
    then: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(("first", "second", "third")):
        learn(model, name, folder, seed, **kwargs)
        then[name] = logits_of(model, name)
        for earlier, logits in then.items():
            assert torch.equal(logits, logits_of(model, earlier)), f"{earlier} moved while {name} was learned"
    return then


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_earlier_tasks_stay_equal_to_the_last_bit(architecture: str, way: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    learn_three(model, tmp_path, **WAYS[way])
    assert model.verify().ok
    assert list(model.parameters()) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_sgd_object_whose_momentum_is_carried_over_moves_no_committed_tensor(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    optimizer, then = None, {}
    for seed, name in enumerate(("first", "second", "third")):
        model.add_task(name, labels=["x", "y", "z"])
        model.begin_task(name, PruningConfig(keep=0.4))
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        else:
            optimizer.add_param_group({"params": list(model.parameters())})
        trainer = EideticTrainer(
            model=model,
            task=name,
            args=arguments(tmp_path),
            pruning=PruningConfig(keep=0.4),
            train_dataset=make_data(seed),
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        trainer.train()
        then[name] = logits_of(model, name)
        optimizer.step()  # on stale gradients and momentum of every task so far
        for earlier, logits in then.items():
            assert torch.equal(logits, logits_of(model, earlier))
    assert model.verify().ok


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_outside_of_task_tensors_is_read(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    then = learn_three(model, tmp_path)
    for name, logits in then.items():
        assert torch.equal(logits, logits_of(poison(model, name), name))


@pytest.mark.slow
def test_every_tensor_in_task_tensors_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    learn_three(model, tmp_path)
    for tensor_name in model.task_tensors("second"):
        changed = copy.deepcopy(model)
        tensor = changed.task_tensors("second")[tensor_name]
        tensor.fill_(torch.nan)
        changed.network.pack()
        assert logits_of(changed, "second").isnan().any(), f"{tensor_name} is in the closed set, but not read"


@pytest.mark.parametrize(
    ("transfer", "keep_ancestors"), [("none", 1.0), (["first"], 1.0), ("all", 0.5)], ids=["none", "list", "masked"]
)
def test_a_view_that_is_no_prefix_is_exact_and_reads_nothing_else(
    transfer: str | list[str], keep_ancestors: float, tmp_path: Path
) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path, 0)
    learn(model, "other", tmp_path, 1)
    model.add_task("third", labels=["x", "y", "z"], forward_transfer=transfer)
    pruning = PruningConfig(keep=0.5, keep_ancestors=keep_ancestors)
    EideticTrainer(
        model=model, task="third", args=arguments(tmp_path), pruning=pruning, train_dataset=make_data(2)
    ).train()
    then = logits_of(model, "third")
    learn(model, "fourth", tmp_path, 3)
    assert torch.equal(then, logits_of(model, "third"))
    assert torch.equal(then, logits_of(poison(model, "third"), "third"))
    group = model.groups["layers_2_neurons"]
    view = group.view(task_key("third"))
    assert (view.positions is None, view.start > 0) == ((True, True) if transfer == "none" else (False, False))
    own, first, other = (group.count(key) for key in ("@third", "@first", "@other"))
    if transfer == "all":
        assert view.count < own + first + other
        assert (group.gates.get("@third") == 0).any()
    else:
        assert view.count == own + (0 if transfer == "none" else first)
    assert model.verify().ok


def test_a_prefix_runs_on_views_without_a_copy(trained: EideticModel) -> None:
    logits_of(trained, "second")
    for group in trained.groups.values():
        for member in group.members:
            weight = member._plan("@second")[0]
            assert weight.untyped_storage().data_ptr() == member._rows.packed[0].untyped_storage().data_ptr()
            assert member.segments["@first"].weight.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def test_a_task_computes_with_its_own_units_only(trained: EideticModel) -> None:
    shapes, handles = {}, []
    for name, module in trained.backbone.named_modules():
        if name.endswith(("intermediate", "attention.self")):
            handles.append(
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: shapes.__setitem__(
                        name, (output[0] if isinstance(output, tuple) else output).shape[-1]
                    )
                )
            )
    logits_of(trained, "first")
    units = trained.record("first").units
    assert shapes["encoder.layer.2.intermediate"] == units["layers.2.neurons"] < 64
    assert shapes["encoder.layer.1.attention.self"] == 8 * units["layers.1.heads"] < 32
    for handle in handles:  # others are transformers' own
        handle.remove()


LOAD_AND_ANSWER = """
import sys
from safetensors.torch import load_file, save_file
from eidetic_hf import EideticModel
folder, batch, out = sys.argv[1:]
model, inputs = EideticModel.from_pretrained(folder), load_file(batch)
assert model.verify().ok
assert "bit for bit" in str(model.verify().tasks[0])
save_file({name: model(**inputs, task=name).logits.detach() for name in model.tasks}, out)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_process_gives_the_same_bits_and_old_shards_keep_their_bytes(architecture: str, tmp_path: Path) -> None:
    model, folder = tiny_model(architecture), tmp_path / "model"
    then, hashes = {}, {}
    for seed, name in enumerate(("first", "second", "third")):
        learn(model, name, tmp_path, seed)
        then[name] = logits_of(model, name)
        model.save_pretrained(folder)
        for file in folder.glob("eidetic-t*.safetensors"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert hashes.setdefault(file.name, digest) == digest
    assert set(hashes) == {"eidetic-trunk.safetensors", *(f"eidetic-task-{name}.safetensors" for name in then)}
    save_file(make_batch(), tmp_path / "batch.safetensors")
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    command = [
        sys.executable,
        "-c",
        threads + LOAD_AND_ANSWER,
        folder,
        tmp_path / "batch.safetensors",
        tmp_path / "out",
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    now = load_file(tmp_path / "out")
    for name, logits in then.items():
        assert torch.equal(logits, now[name])


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_threads_serving_two_tasks_get_the_single_threaded_logits(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path, seed)
    batches = [make_batch(seed, rows=7, length=14) for seed in range(20)]
    alone = {name: [logits_of(model, name, batch) for batch in batches] for name in model.tasks}
    together: dict[str, list[torch.Tensor]] = {name: [] for name in model.tasks}
    barrier = threading.Barrier(2)

    def serve(name: str) -> None:
        for batch in batches:
            barrier.wait()
            with torch.no_grad():
                together[name].append(model(**batch, task=name).logits)

    threads = [threading.Thread(target=serve, args=(name,)) for name in model.tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in model.tasks:
        assert all(torch.equal(a, b) for a, b in zip(alone[name], together[name], strict=True))
    assert not torch.equal(alone["first"][0], alone["second"][0])


def test_training_a_task_while_another_thread_serves_an_old_one_keeps_its_bits(
    trained: EideticModel, tmp_path: Path
) -> None:
    model = copy.deepcopy(trained)
    batch, then = make_batch(), logits_of(model, "first")
    model.add_task("third", labels=["x", "y", "z"])
    model.begin_task("third")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    data = make_data(3)[:8]
    for _ in range(3):
        optimizer.zero_grad()
        model(**{name: torch.tensor(value) for name, value in data.items()}).loss.backward()
        optimizer.step()
        assert torch.equal(then, logits_of(model, "first", batch))
        model.train()
    assert not any(parameter.grad is None for parameter in model.parameters())
    assert all(LEARNING in name for name, _ in model.named_parameters())


def test_a_random_backbones_trunk_is_trained_by_the_first_task_alone(tmp_path: Path) -> None:
    from support.backbones import CONFIGS

    torch.manual_seed(0)
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="fixed")
    before = model.backbone.embeddings.word_embeddings.weight.clone()
    learn_three(model, tmp_path)
    after = model.backbone.embeddings.word_embeddings.weight
    assert not torch.equal(before, after)
    assert not isinstance(after, torch.nn.Parameter)
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.backbone.embeddings.word_embeddings.weight, after)
    assert loaded.verify().ok


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_do_not_depend_on_padding_beyond_rounding(implementation: str, tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path)
    model.save_pretrained(tmp_path / "model")
    model = EideticModel.from_pretrained(tmp_path / "model", attn_implementation=implementation)
    assert model.backbone.config._attn_implementation == implementation
    batch = make_batch()
    padded = {name: torch.nn.functional.pad(value, (0, 9)) for name, value in batch.items()}
    torch.testing.assert_close(
        logits_of(model, "first", padded), logits_of(model, "first", batch), atol=1e-5, rtol=1e-4
    )


def test_verify_names_the_first_tensor_that_changed(trained: EideticModel) -> None:
    model = copy.deepcopy(trained)
    name = "backbone.encoder.layer.2.output.dense.segments.@first.weight"
    model.state_dict()[name][0, 0] += 1e-3
    report = model.verify()
    assert not report
    assert [task.first_difference for task in report.tasks] == [name, name]  # `second` reads first's units, too
    assert "CHANGED" in str(report)


def elsewhere(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    """Let this process take itself for another environment from here on."""
    here = certificate.environment_of
    monkeypatch.setattr(certificate, "environment_of", lambda model: {**here(model), **facts})


def test_verify_in_another_environment_holds_the_logits_to_rounding_and_says_so(
    trained: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(trained)
    elsewhere(monkeypatch, threads=4096)
    report = model.verify()
    assert report.ok
    assert re.search(r"equal to rounding \(other environment: threads \d+ -> 4096\)", str(report.tasks[0]))
    model.probes["@first"].get("logits")[0, 0] += 0.5
    assert not model.verify()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("llama", "backbone.rotary_emb.inv_freq"), ("phi3", "inv_freq"), ("bert", "backbone.embeddings.position_ids")],
)
def test_what_no_checkpoint_holds_is_verified_too(architecture: str, name: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path)
    for changed in (model, EideticModel.from_pretrained(tmp_path)):
        assert changed.verify()
        assert changed.to(torch.float64).to(torch.float32).verify()  # a cast moves none of them
        before = logits_of(changed, "only")
        name, buffer = next((own, tensor) for own, tensor in changed.named_buffers() if name in own)
        assert name not in changed.state_dict()
        buffer.copy_(buffer * 1.5 if buffer.is_floating_point() else buffer.flip(-1))
        assert not torch.equal(logits_of(changed, "only"), before)
        report = changed.verify()
        assert not report and report.tasks[0].first_difference == name
    old = EideticModel.from_pretrained(tmp_path)
    del old.record("only").certificate["computed"]
    assert old.verify()  # as an earlier version wrote it


def test_frequencies_of_another_environment_are_held_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    elsewhere(monkeypatch, transformers="5.0")
    frequencies = model.backbone.rotary_emb.inv_freq
    frequencies *= 1 + 1e-6
    assert model.verify().ok and model.verify().tasks[0].environment_changes.keys() == {"transformers"}
    frequencies *= 1.5
    assert model.verify().tasks[0].largest_logit_difference > 1e-4
