"""Reading a checkpoint folder: whole, in part, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from safetensors.torch import load_file, save_file
from support.backbones import CONFIGS, tiny_backbone, tiny_model
from support.data import learn, logits_of, make_batch
from support.folders import (
    FIRST,
    INDEX,
    LEARNING,
    POOL,
    REST,
    SECOND,
    SHARDS,
    answers,
    changed,
    child_environment,
    edit_json,
    hashes,
    same,
)
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig

from eidetic_hf import CheckpointError, EideticConfig, EideticModel, PruningConfig, TaskError
from eidetic_hf.configuration import FORMAT_VERSION
from eidetic_hf.model.checkpoint.folder import LOCK
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.model.checkpoint.shard import Shard
from eidetic_hf.network.layers import TaskLinear


def test_loaded_model_equals_the_saved_one(saved: Path, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(saved)
    state = trained.state_dict()
    assert changed(loaded.state_dict(), state) == []
    assert same(answers(loaded), answers(trained))
    assert loaded.verify().ok and not loaded.training and list(loaded.parameters()) == []
    assert loaded.capacity() == trained.capacity()


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_backbone_given_as_a_model_can_be_loaded_again(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.verify().ok
    assert torch.equal(logits_of(loaded, "only"), logits_of(model, "only"))


def test_a_backbone_given_as_a_folder_can_be_loaded_again(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "bert")
    model = EideticModel.from_backbone(tmp_path / "bert", trunk_layers=1, growth="fixed")
    learn(model, "only", tmp_path / "run")
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "bert")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "model")), answers(model))


def test_a_model_whose_first_task_trained_the_trunk_can_be_loaded_again(tmp_path: Path) -> None:
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="fixed")
    for seed, name in enumerate(("first", "second")):
        learn(model, name, tmp_path / "run", seed)
        model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.verify().ok and same(answers(loaded), answers(model))


def test_a_model_without_free_units_and_one_that_was_expanded_can_be_loaded_again(tmp_path: Path) -> None:
    model = tiny_model()
    for seed, (name, on_exhausted) in enumerate([("all", "private"), ("none", "private"), ("new", "expand")]):
        pruning = PruningConfig(keep=1.0, on_exhausted=on_exhausted, expand_by=0.25)
        learn(model, name, tmp_path / "run", seed, pruning)
        model.save_pretrained(tmp_path / "model")
        loaded = EideticModel.from_pretrained(tmp_path / "model")
        assert loaded.verify().ok and same(answers(loaded), answers(model))
        assert loaded.capacity() == model.capacity()
    assert model.config.expanded and model.capacity()["owned"]["none"] == 0


def test_a_model_in_bfloat16_can_be_loaded_again(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path / "model")
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16 and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "only"), logits_of(model, "only"))


ANSWER = """
import sys
import torch
from safetensors.torch import load_file, save_file
from eidetic_hf import EideticModel

folder, inputs, outputs, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = EideticModel.from_pretrained(folder)
assert model.verify().ok
with torch.no_grad():
    save_file({name: model(**load_file(inputs), task=name).logits for name in model.tasks}, outputs)
"""


@pytest.mark.slow
def test_a_new_process_answers_with_the_same_bits(grown: EideticModel, grown_saved: Path, tmp_path: Path) -> None:
    save_file(make_batch(), tmp_path / "inputs.safetensors")
    arguments = [
        grown_saved,
        tmp_path / "inputs.safetensors",
        tmp_path / "outputs.safetensors",
        torch.get_num_threads(),
    ]
    subprocess.run([sys.executable, "-c", ANSWER, *map(str, arguments)], check=True, env=child_environment())
    logits = load_file(tmp_path / "outputs.safetensors")
    assert same({name: logits[name] for name in grown.tasks}, answers(grown))


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_the_auto_classes_load_the_folder(auto: Any, saved: Path, trained: EideticModel) -> None:
    loaded = auto.from_pretrained(saved)
    assert type(loaded) is EideticModel
    assert same(answers(loaded), answers(trained))


def test_under_a_device_of_torch_the_model_is_loaded_there_and_the_meta_device_is_refused(saved: Path) -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        EideticModel.from_pretrained(saved)
    with torch.device("meta"):
        loaded = EideticModel.from_pretrained(saved, device_map="cpu")
    assert {tensor.device.type for _, tensor in loaded.named_buffers()} == {"cpu"}
    assert loaded.verify().ok


@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_a_model_that_is_loaded_in_inference_mode_learns_on(growth: str, tmp_path: Path) -> None:
    model = tiny_model(growth=growth)
    learn(model, "first", tmp_path / "run", pruning=PruningConfig(own=0.1) if growth == "copy" else None)
    model.save_pretrained(tmp_path / "model")
    with torch.inference_mode():
        loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert not [name for name, tensor in loaded.state_dict().items() if tensor.is_inference()]
    then = logits_of(loaded, "first")
    learn(loaded, "second", tmp_path / "on", 1, pruning=PruningConfig(own=0.1) if growth == "copy" else None)
    assert torch.equal(logits_of(loaded, "first"), then) and loaded.verify().ok


def test_loading_info_says_as_transformers_does_that_nothing_was_amiss(saved: Path) -> None:
    model, info = EideticModel.from_pretrained(saved, output_loading_info=True)
    assert model.verify().ok
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}


def test_auto_config_loads_the_folder(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert type(config) is EideticConfig and [task.name for task in config.tasks] == ["first", "second"]
    assert isinstance(config.base_config, BertConfig)
    assert [config.id2label[index] for index in range(6)] == [f"{t}/{x}" for t in ("first", "second") for x in "xyz"]


@pytest.mark.parametrize(
    "auto",
    [
        EideticModel,
        AutoModel,
        AutoModelForSequenceClassification,
    ],
)
def test_loading_one_task_reads_only_the_shards_that_it_needs(auto: Any, trained: EideticModel, folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / POOL).write_bytes(b"poison")
    loaded = auto.from_pretrained(folder, tasks=["first"])
    assert loaded.tasks == ["first"] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "first"), logits_of(trained, "first"))


def test_loading_a_task_reads_its_ancestors_shards_but_does_not_answer_for_them(
    trained: EideticModel, folder: Path
) -> None:
    (folder / POOL).unlink()
    loaded = EideticModel.from_pretrained(folder, tasks=["second"])
    assert loaded.tasks == ["second"] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, "second"), logits_of(trained, "second"))
    assert list(loaded.config.id2label.values()) == ["second/x", "second/y", "second/z"]
    with pytest.raises(TaskError, match=r"no task 'first'. Committed are \['second'\]"):
        loaded(**make_batch(), task="first")
    (folder / FIRST).unlink()
    with pytest.raises(CheckpointError, match=f"no {FIRST}: the checkpoint is incomplete"):
        EideticModel.from_pretrained(folder, tasks=["second"])


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_task_without_forward_transfer_needs_no_other_tasks_shard(tmp_path: Path, name: str) -> None:
    model = tiny_model(forward_transfer="none")
    for seed, task in enumerate(("first", "second")):
        learn(model, task, tmp_path / "run", seed)
    model.save_pretrained(tmp_path / "model")
    for file in {FIRST, SECOND, POOL} - {f"eidetic-task-{name}.safetensors"}:
        (tmp_path / "model" / file).unlink()
    loaded = EideticModel.from_pretrained(tmp_path / "model", tasks=[name])
    assert loaded.tasks == [name] and loaded.verify().ok
    assert torch.equal(logits_of(loaded, name), logits_of(model, name))


@pytest.mark.parametrize("names", [["first"], ["second"], ["first", "second"]])
def test_a_model_of_some_tasks_learns_nothing_and_is_not_saved_over_the_whole(
    folder: Path, saved: Path, names: list[str], tmp_path: Path
) -> None:
    loaded = EideticModel.from_pretrained(folder, tasks=names)
    with pytest.raises(TaskError, match="Load the whole checkpoint to learn a new task"):
        loaded.add_task("third", labels=["x", "y"])
    with pytest.raises(CheckpointError, match="another folder"):
        loaded.save_pretrained(folder)
    assert hashes(folder) == hashes(saved)
    loaded.save_pretrained(tmp_path / "part")
    assert same(answers(EideticModel.from_pretrained(tmp_path / "part")), answers(loaded))
    for task, file in (("first", FIRST), ("second", SECOND)):
        if task in names:
            assert hashes(tmp_path / "part")[file] == hashes(saved)[file]


def test_loading_a_read_only_folder_works_and_changes_nothing(folder: Path, trained: EideticModel) -> None:
    (folder / LOCK).unlink()
    before = hashes(folder)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        loaded = EideticModel.from_pretrained(folder)
        names = set(os.listdir(folder))
    finally:
        folder.chmod(0o755)
    assert same(answers(loaded), answers(trained))
    assert hashes(folder) == before and names == SHARDS | REST


def test_a_loaded_model_does_not_depend_on_the_files_any_more(folder: Path, trained: EideticModel) -> None:
    loaded = EideticModel.from_pretrained(folder)
    for name in SHARDS:  # in place, as a memory map would see it
        with open(folder / name, "r+b") as file:
            file.write(b"\xff" * (folder / name).stat().st_size)
    assert same(answers(loaded), answers(trained))
    assert loaded.verify().ok


def test_a_loaded_model_is_packed(saved: Path) -> None:
    layers = [module for module in EideticModel.from_pretrained(saved).modules() if isinstance(module, TaskLinear)]
    assert layers and all(layer.is_packed() for layer in layers)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, 12])
def test_a_trainer_checkpoint_is_no_release_and_says_how_to_resume(
    grown: EideticModel, trainer_folder: Path, step: int
) -> None:
    folder = trainer_folder / f"checkpoint-{step}"
    assert (folder / LEARNING).is_file()
    with pytest.raises(CheckpointError, match=r"in the middle of learning 'third'.*resume_from_checkpoint="):
        EideticModel.from_pretrained(folder)


LENGTHS = [int.from_bytes(magic, "little") for magic in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_shard_whose_header_length_looks_like_the_start_of_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / FIRST
    for size in range(length - 200, length):  # a safetensors file starts with the length of its header
        name = "n" * size
        save_file({name: torch.ones(2)}, path, metadata={"format": "pt"})
        if path.read_bytes()[:8] == length.to_bytes(8, "little"):
            break
    recorded = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    assert torch.equal(Shard(path, recorded, {name}, "").read()[name], torch.ones(2))


@pytest.mark.parametrize("where", ["config.json", INDEX])
def test_a_folder_in_a_future_format_is_not_read(folder: Path, where: str) -> None:
    future = FORMAT_VERSION + 1
    edit_json(folder / where, lambda v: (v if where == "config.json" else v["metadata"]).update(format_version=future))
    with pytest.raises(CheckpointError, match="Upgrade with: pip install -U eidetic-hf"):
        EideticModel.from_pretrained(folder)


# -- settings that come with the call ---------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [EideticModel, AutoModel, AutoModelForSequenceClassification])
def test_settings_of_the_configuration_reach_the_backbone(auto: Any, saved: Path) -> None:
    settings = {"output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"}
    model = auto.from_pretrained(saved, **settings, forward_transfer="none")
    answer = model(**make_batch(), task="first")
    assert len(answer.hidden_states) == 4 and len(answer.attentions) == 3
    assert model.config.base_config is model.backbone.config
    assert model.backbone.config._attn_implementation == model.config._attn_implementation == "eager"
    assert model.config.forward_transfer == "none"
    assert model(**make_batch(), task="first", output_hidden_states=False).hidden_states is None
    with pytest.raises(ValueError, match="output_hidden_states with several tasks in a batch"):
        model(**make_batch())


def test_what_is_set_in_the_configuration_later_reaches_the_backbone(saved: Path) -> None:
    model = EideticModel.from_pretrained(saved)
    with torch.no_grad():
        assert model(**make_batch(), task="first").hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(**make_batch(), task="first").hidden_states) == 4
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == "sdpa"
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        assert len(model(**make_batch(), task="first").attentions) == 3
    assert model.verify().tasks[0].environment_changes == {"attention": ("sdpa", "eager")}


@pytest.mark.parametrize("given", [{"trunk_layers": 2}, {"vocab_size": 130}])
def test_a_setting_that_the_weights_have_decided_is_refused(given: dict[str, int], saved: Path) -> None:
    (name,) = given
    with pytest.raises(
        ValueError, match=f"{name}={given[name]} was asked for, and the weights of this checkpoint have"
    ):
        AutoModelForSequenceClassification.from_pretrained(saved, **given)
    config = EideticModel.from_pretrained(saved, tasks=["first"]).config
    assert EideticModel.from_pretrained(saved, config=config).tasks == ["first"]


def test_what_a_backbone_keeps_in_float32_stays_in_it(tmp_path: Path) -> None:
    model = tiny_model("t5")
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path)
    half = EideticModel.from_pretrained(tmp_path, dtype=torch.float16)
    kept = {name: tensor for name, tensor in half.state_dict().items() if ".wo." in name}
    assert len(kept) == 11 and half.dtype == torch.float16
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in kept.items())
    others = {name for name, tensor in half.state_dict().items() if tensor.dtype == torch.float32} - set(kept)
    assert not [name for name in others if name.startswith("backbone.")]
    torch.testing.assert_close(logits_of(half, "only").float(), logits_of(model, "only"), atol=3e-3, rtol=1e-2)
    rounded = EideticModel.from_pretrained(tmp_path, dtype="bfloat16").state_dict()
    assert {rounded[name].dtype for name in kept} == {torch.bfloat16}


def test_a_record_that_reads_what_is_not_there_is_refused_with_file_and_field(folder: Path) -> None:
    edit_json(folder / "config.json", lambda values: values["tasks"][1].update(ancestors=["nobody"]))
    with pytest.raises(CheckpointError, match=r"config\.json of .*: tasks\[1\]\.ancestors\[0\] is 'nobody', expected"):
        EideticModel.from_pretrained(folder)


@pytest.mark.parametrize("device_map", ["cpu", "auto", "balanced", {"": "cpu"}, {"backbone": "cpu", "heads": "cpu"}])
def test_a_device_map_is_one_device(device_map: Any, saved: Path, trained: EideticModel) -> None:
    model = EideticModel.from_pretrained(saved, device_map=device_map)
    assert torch.equal(logits_of(model, "first"), logits_of(trained, "first"))
    with pytest.raises(ValueError, match=r"spreads the model over 2 devices, and it lies on one"):
        EideticModel.from_pretrained(saved, device_map={"backbone": "cpu", "heads": "meta"})


def test_a_model_without_values_says_how_to_load_it(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.add_task("only", labels=["x", "y"])
    model.begin_task("only")
    model.commit_task()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"in place of init_empty_weights and load_checkpoint_and_dispatch"):
        EideticModel(AutoConfig.from_pretrained(tmp_path))
    with init_empty_weights():
        empty = EideticModel(AutoConfig.from_pretrained(tmp_path), empty=True)
    dispatched = load_checkpoint_and_dispatch(empty, tmp_path, device_map={"": "cpu"})
    with pytest.raises(RuntimeError, match=r"load_checkpoint_and_dispatch does. Load .* EideticModel.from_pretrained"):
        dispatched(**make_batch())
    with init_empty_weights():
        assert EideticModel.from_pretrained(tmp_path).verify()
    with torch.device("meta"), pytest.raises(RuntimeError, match="You are using `from_pretrained` with a meta device"):
        EideticModel.from_pretrained(tmp_path)
    with init_empty_weights(include_buffers=True), pytest.raises(RuntimeError, match=r"has no values|meta device"):
        EideticModel.from_pretrained(tmp_path)


def test_the_card_says_what_to_import_before_an_auto_class(saved: Path) -> None:
    use = (saved / "README.md").read_text().partition("## Use")[2]
    assert "pip install eidetic-hf" in use and "`import eidetic_hf` before any Auto class" in use
    assert use.partition("```python\n")[2].startswith("import eidetic_hf  # before the pipeline")


def test_twenty_thousand_labels_are_loaded_in_a_moment(tmp_path: Path) -> None:
    model = tiny_model()
    model.add_task("many", labels=[f"label {number}" for number in range(20_000)])
    model.begin_task("many", PruningConfig(importance="random"))
    model.commit_task()
    model.save_pretrained(tmp_path)
    start = time.process_time()
    loaded = EideticModel.from_pretrained(tmp_path)
    assert time.process_time() - start < 2, "it takes 0.2 s; 4 s if it grows with the square of the labels"
    assert loaded.config.num_labels == 20_000
