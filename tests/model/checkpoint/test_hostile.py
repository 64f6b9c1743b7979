"""Folders that somebody has changed to do harm: what they ask for is refused in words, or has no effect."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.folders import edit_json
from support.hostile import CONFIG, INDEX, LOCK, REMOVALS, changes, make
from support.trials import BYTES, GOOD, SECONDS, Trials, write_bases
from torch.nn.modules import module as torch_modules
from transformers import AutoModel, BertConfig

from eidetic_hf import CheckpointError, EideticModel, TaskError
from eidetic_hf.model.checkpoint.folder import COMMITTED
from eidetic_hf.model.checkpoint.limits import DEEPEST, check_config

GOLDEN = Path(__file__).parents[2] / "golden"
TRUNK = "eidetic-trunk.safetensors"
TRIALS = int(os.environ.get("HOSTILE_TRIALS", "120"))

# What may come of a folder: it is refused in words, is what it was, or `verify` says that it is not. Of settings in
# config.json a certificate says only what it covers.
ALLOWED = (*GOOD, "told", "settings")

pytestmark = pytest.mark.timeout(30)  # a hang is a failure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint of eight tasks, to change."""
    return Path(shutil.copytree(GOLDEN / "format_2/bert", tmp_path / "model", copy_function=shutil.copyfile))


def refused(folder: Path, match: str, **kwargs: Any) -> str:
    """What the error says with which a folder is refused; it takes a moment, and names what was wrong."""
    start = time.process_time()
    with pytest.raises((CheckpointError, TaskError), match=match) as error:
        EideticModel.from_pretrained(folder, **kwargs)
    assert time.process_time() - start < 2
    return str(error.value)


# -- whatever somebody thinks of --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bases")
    write_bases(path)
    return path


@pytest.fixture(scope="module")
def load(bases: Path) -> Iterator[Trials]:
    with Trials(bases) as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900 + TRIALS)
def test_a_changed_folder_is_refused_in_words_or_is_what_it_was(load: Trials, bases: Path) -> None:
    drawn = {path.name: changes(path) for path in bases.iterdir() if path.name != "backbone"}

    @settings(
        max_examples=TRIALS, derandomize=True, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(sorted(drawn)).flatmap(lambda base: st.tuples(st.just(base), drawn[base])))
    def each(trial: tuple[str, list[Any]]) -> None:
        found = load(*trial)
        assert found["outcome"] in ALLOWED, found
        assert not found.get("left") and not found.get("outside"), found
        assert found["cpu"] < SECONDS and found["bytes"] < BYTES, found

    each()


# -- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["tasks", 3, "units", "layers.2.neurons"], "x", r'tasks\[3\]\.units\["layers\.2\.neurons"\] is .x., exp'),
        (["tasks", 0, "units", "layers.2.neurons"], -1, r"is -1, expected a whole number from 0"),
        (["tasks", 0, "units", "layers.2.neurons"], 10**9, r"is 1000000000, expected a whole number from 0 to"),
        (["tasks", 0, "units", "layers.2.neurons"], 1000, r"Tasks own \d+ units of layers\.2\.neurons"),
        (["tasks", 0, "units", "layers.9.neurons"], 1, r"units in groups that this backbone has not, .*layers\.9"),
        (["tasks", 0, "labels"], {"x": 1}, r"tasks\[0\]\.labels is an object of 1, expected a list"),
        (["tasks", 0, "labels", 1], 7, r"tasks\[0\]\.labels\[1\] is 7, expected a text"),
        (["tasks", 0, "name"], "../../x", r"'\.\./\.\./x' cannot name a task"),
        (["tasks", 1, "name"], "topics", r"tasks\[1\]\.name is 'topics', expected a name that no task before it has"),
        (["tasks", 0, "ancestors"], ["topics"], r"tasks\[0\]\.ancestors\[0\] is 'topics', expected the name"),
        (["tasks", 0, "certificate", "weights_sha256"], "x", r"weights_sha256 is 'x', expected a SHA-256"),
        (["tasks", 0, "certificate"], {}, r"weights_sha256 is None, expected a SHA-256"),
        (["tasks", 0, "vocab_size"], 2**40, r"tasks\[0\]\.vocab_size is \d+, expected a whole number"),
        (["tasks", 5, "head", "transform", "eps"], "x", r"head\.transform\.eps is 'x', expected a number"),
        (["tasks", 0, "problem_type"], 5, r"config\.json of .*problem_type=5 is unknown"),
        (["tasks"], None, r"disagree about"),
        (["tasks"], 3, r"tasks is 3, expected a list"),
        (["trunk_layers"], None, r"trunk_layers is None, expected the number of layers"),
        (["trunk_layers"], 10**6, r"config\.json of"),
        (["growth"], ["fixed"], r"growth is a list of 1, expected a text"),
        (["served"], ["nobody"], r"served is a list of 1, expected null, or names of tasks"),
        (["default_versions"], {"topics": 9}, r"default_versions\.topics is 9, expected a version of a task"),
        (["files", TRUNK, "bytes"], "many", r'files\["eidetic-trunk\.safetensors"\]\.bytes is .many.'),
        (["files", "../../etc/passwd"], {"bytes": 1, "sha256": "0" * 64}, r"expected the name of a file of"),
        (["output_embeddings"], [10**9, 10**9], r"output_embeddings is a list of 2"),
        (["expanded"], {"layers.7.heads": 1}, r"expanded has 'layers\.7\.heads', and this backbone has no"),
        (["dtype"], "nn", r"dtype is 'nn', expected one of"),
        (["to_dict"], 1, r"to_dict is 1, expected nothing of this name"),
        (["base_config"], None, r"base_config is None, expected an object"),
        (["base_config", "to_dict"], 1, r"base_config\.to_dict is 1, expected nothing of this name"),
        (["base_config", "model_type"], "no-such", r"base_config\.model_type is 'no-such', expected a type of model"),
        (["base_config", "model_type"], "eidetic", r"base_config\.model_type is 'eidetic'"),
        (["base_config", "model_type"], "timm_wrapper", r"config\.json of .* does not make a model"),
        (["base_config", "model_type"], "llama", r"config\.json|disagree|lacks|no place"),
        (["base_config", "hidden_size"], 0, r"config\.json of .* does not make a model"),
        (["base_config", "hidden_size"], "wide", r"config\.json of .* does not make a model: .*hidden_size"),
        (["base_config", "vocab_size"], 10**18, r"base_config\.vocab_size is 10{18}, expected a number of no more"),
        (["base_config", "num_hidden_layers"], 10**9, r"num_hidden_layers is 10{9}, expected a number of no"),
        (["base_config", "layer_norm_eps"], float("nan"), r"layer_norm_eps is nan, expected a finite number"),
        (["base_config", "quantization_config"], {"bits": 4}, r"quantization_config is an object of 1, expected"),
        (["base_config", "pruned_heads"], list(range(10**6)), r"base_config is an object of \d+, expected no more"),
        (["base_config", "chunk_size_feed_forward"], 10**4, r"chunk_size_feed_forward is 10000, expected 0, or a"),
        (["base_config", "output_hidden_states"], 0.5, r"output_hidden_states is 0\.5, expected true or false or"),
        (["base_config", "decoder_start_token_id"], -1, r"decoder_start_token_id is -1, expected the number of a"),
        (["base_config", "chunk_size_feed_forward"], "x", r"chunk_size_feed_forward is 'x', expected a whole number"),
    ],
)  # fmt: skip
def test_a_value_that_no_save_writes_is_named_with_its_place(
    folder: Path, place: list[Any], value: Any, said: str
) -> None:
    def change(values: Any) -> None:
        for key in place[:-1]:
            values = values[key]
        values[place[-1]] = value

    edit_json(folder / CONFIG, change)
    message = refused(folder, said)
    assert len(message) < 1000


@pytest.mark.parametrize(
    "place",
    [["base_config", "hidden_size"], ["base_config", "intermediate_size"], ["base_config", "vocab_size"]],
    ids=lambda place: place[-1],
)
def test_a_backbone_of_terabytes_takes_no_memory(folder: Path, place: list[str]) -> None:
    edit_json(folder / CONFIG, lambda values: values[place[0]].update({place[1]: 2**24}))
    refused(folder, r"does not make a model|has the shape")


@pytest.mark.parametrize(
    "change", [{"tasks": 3}, {"base_config": 5}, {"base_config": {}}, {"files": 1}, {"served": 1}]
)
def test_the_auto_classes_refuse_a_configuration_in_words(folder: Path, change: dict[str, Any]) -> None:
    edit_json(folder / CONFIG, lambda values: values.update(change))
    with pytest.raises(ValueError, match=r"config\.json (does not hold the configuration of an EideticModel|of .*:)"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("layers", [300, 4000])
def test_layers_that_the_files_cannot_fill_are_not_made(folder: Path, layers: int) -> None:
    edit_json(folder / CONFIG, lambda values: values["base_config"].update(num_hidden_layers=layers))
    refused(folder, r"many times more than the files of the checkpoint can fill|units in groups|lacks \d+ tensors")


def test_a_users_own_configuration_has_no_such_bounds() -> None:
    config = BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=150, intermediate_size=8, vocab_size=9)
    model = EideticModel.from_backbone(config)
    assert len(list(model.buffers())) > 2000
    assert not torch_modules._global_parameter_registration_hooks


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("empty", "is not JSON"),
        ("bom", "is not JSON"),
        ("latin", "is not JSON"),
        ("utf-16", "is not JSON"),
        ("cut", "is not JSON"),
        ("nul", "is not JSON"),
        ("comments", "is not JSON"),
        ("long number", "is not JSON"),
        ("twice", "twice in one object"),
        ("deep list", "is not JSON"),
        ("deep object", "is not JSON"),
        ("large", "bytes|larger than"),
        ("array", "not a JSON object, but a list"),
        ("number", "not a JSON object, but a float"),
    ],
)
@pytest.mark.parametrize("file", [CONFIG, INDEX])
def test_a_file_that_is_no_json_object_is_named(folder: Path, file: str, way: str, said: str) -> None:
    make(folder, folder, [["text", file, way]])
    assert file in refused(folder, said)


def test_a_generation_configuration_that_nobody_can_read_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "format_2/t5", tmp_path / "model", copy_function=shutil.copyfile))
    make(folder, folder, [["set", "generation_config.json", ["_from_model_config"], {"$deep": 900, "of": "["}]])
    refused(folder, r"generation_config\.json of .* does not say how texts are written: .*RecursionError")


def test_values_may_lie_in_each_other_only_so_deep(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    inner: Any = 1
    for _ in range(DEEPEST):
        inner = [inner]
    with pytest.raises(CheckpointError, match=r"tasks\[0\]\.preparation\.x.*expected no more than 64"):
        values["tasks"][0]["preparation"] = {"x": inner}
        check_config("here", values)


def test_every_configuration_that_was_ever_saved_passes() -> None:
    paths = sorted(GOLDEN.glob("*/*/config.json"))
    assert {path.parts[-3] for path in paths} == {"copies", "format_1", "format_2", "format_3"}
    for path in paths:
        check_config(path.parent.name, json.loads(path.read_text()))


def test_a_million_labels_are_refused_in_a_moment(folder: Path) -> None:
    edit_json(folder / CONFIG, lambda values: values["tasks"][0].update(labels=[f"{n}" for n in range(10**6)]))
    refused(folder, r"shape|lacks|bytes")


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, INDEX, TRUNK, "eidetic-task-topics.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "folder", "socket", "link to zero", "loop of links", "dangling link"])
def test_what_is_no_file_is_neither_read_nor_waited_for(folder: Path, tmp_path: Path, file: str, what: str) -> None:
    (outside := tmp_path / "outside").mkdir()
    make(folder, outside, [["place", file, what]])
    assert file in refused(folder, "no file|not a regular file|can not be|outside of|has no|link")


@pytest.mark.parametrize("file", [CONFIG, INDEX, TRUNK])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path, file: str) -> None:
    (outside := tmp_path / "outside").mkdir()
    make(folder, outside, [["place", file, "link to a copy outside"]])
    assert (outside / "copy").is_file() and file in refused(folder, "outside of the checkpoint folder")


def test_the_links_of_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (blobs := tmp_path / "repository" / "blobs").mkdir(parents=True)
    (snapshot := tmp_path / "repository" / "snapshots" / "0123").mkdir(parents=True)
    for path in folder.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / digest)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", digest))
    assert EideticModel.from_pretrained(snapshot, tasks=["topics"]).verify().ok


@pytest.mark.parametrize("recorded", [False, True], ids=["as they were recorded", "recorded anew"])
def test_shards_in_each_others_place_are_told(folder: Path, recorded: bool) -> None:
    pair = [f"eidetic-task-{name}.safetensors" for name in ("topics", "names")]
    make(folder, folder, [["swap", *pair, recorded]])
    refused(folder, r"eidetic-task-(topics|names)\.safetensors")


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("recorded", [False, True], ids=["as it was recorded", "recorded anew"])
def test_no_header_is_longer_than_its_file(folder: Path, length: int, recorded: bool) -> None:
    make(folder, folder, [["bytes", TRUNK, ["length", length], recorded]])
    assert TRUNK in refused(folder, "safetensors")


@pytest.mark.parametrize(
    "way",
    [
        ["dtype", "F8_E4M3"], ["dtype", None], ["dtype", ["F32"]], ["shape", [-1]], ["shape", [2**62, 2**62]],
        ["shape", None], ["offsets", [0, 2**62]], ["offsets", [-4, 0]], ["offsets", None], ["offsets", [0]],
        ["shift", 4], ["exchange", 5], ["entry", None], ["extra", "backbone.x"], ["without", True], ["without", False],
        ["renamed", "x"], ["reshaped", "flat"], ["cast", "F16"], ["deep", 10**5], ["json", "[]"],
        ["metadata", {"$deep": 10**5, "of": "["}],
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_lies_is_told_though_every_hash_fits(folder: Path, way: list[Any]) -> None:
    make(folder, folder, [["header", TRUNK, 6, way, True]])
    try:
        model = EideticModel.from_pretrained(folder)
    except CheckpointError as error:
        assert "safetensors" in str(error) or "The checkpoint" in str(error) or "has the shape" in str(error)
    else:
        assert not model.verify().ok


def test_a_list_of_removals_that_waits_or_never_ends_is_not_read_to_the_end(folder: Path) -> None:
    (folder / COMMITTED).mkdir()
    os.mkfifo(folder / COMMITTED / REMOVALS)
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok
    (folder / COMMITTED).mkdir(exist_ok=True)
    (folder / COMMITTED / REMOVALS).mkdir()
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok
    (folder / COMMITTED / REMOVALS).rmdir()
    (folder / COMMITTED / REMOVALS).touch()
    os.truncate(folder / COMMITTED / REMOVALS, 10**12)
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok


def test_a_list_of_removals_elsewhere_is_not_read(folder: Path, tmp_path: Path) -> None:
    (listed := tmp_path / "listed").write_text("README.md\n")
    (folder / COMMITTED).mkdir()
    (folder / COMMITTED / REMOVALS).symlink_to(listed)
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok
    assert (folder / "README.md").is_file() and listed.is_file()


def test_a_prepared_change_elsewhere_is_none(folder: Path, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "canary").write_text("alive")
    (folder / COMMITTED).symlink_to(outside)
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok
    assert (outside / "canary").read_text() == "alive"


def test_a_lock_elsewhere_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    (canary := tmp_path / "canary").write_text("alive")
    (folder / LOCK).unlink(missing_ok=True)
    (folder / LOCK).symlink_to(canary)
    (folder / COMMITTED).mkdir()
    assert EideticModel.from_pretrained(folder, tasks=["topics"]).verify().ok
    assert canary.read_text() == "alive"


# -- code -------------------------------------------------------------------------------------------------------------


def test_no_code_of_a_folder_is_run(folder: Path) -> None:
    for name in ("code.py", "modeling_eidetic.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('it ran')\n")
    named = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    asked = {"auto_map": named, "_attn_implementation": "nobody/kernel", "attn_implementation": "nobody/kernel"}

    def change(values: dict[str, Any]) -> None:
        values.update(asked)
        values["base_config"].update(asked)

    edit_json(folder / CONFIG, change)
    model = EideticModel.from_pretrained(folder, tasks=["topics"])
    assert model.verify().ok and model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "auto_map") and not hasattr(model.config.base_config, "auto_map")


def test_a_pickle_in_place_of_a_shard_is_not_opened(folder: Path) -> None:
    make(folder, folder, [["bytes", TRUNK, ["pickle"], True]])
    refused(folder, TRUNK)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b/c", "..", "", 5, "x" * 500])
def test_a_backbone_is_named_by_no_path(tmp_path: Path, name: Any) -> None:
    folder = Path(shutil.copytree(GOLDEN / "copies/bert", tmp_path / "model", copy_function=shutil.copyfile))
    edit_json(folder / CONFIG, lambda values: values.update(base={"name": name, "revision": None, "sha256": "0" * 64}))
    refused(folder, r"base\.name is .*, expected the name of a folder beside this one, or of a repository")


# -- what is left -----------------------------------------------------------------------------------------------------


def test_a_refused_folder_leaves_nothing_behind(folder: Path) -> None:
    before = torch.get_default_dtype(), torch.get_default_device(), sys.getrecursionlimit(), torch.nn.init.normal_
    edit_json(folder / CONFIG, lambda values: values["base_config"].update(num_hidden_layers=4000))
    refused(folder, "config.json")
    edit_json(folder / CONFIG, lambda values: values["base_config"].update(num_hidden_layers=3))
    make(folder, folder, [["header", TRUNK, 6, ["reshaped", "flat"], True]])
    refused(folder, "shape|safetensors")
    after = torch.get_default_dtype(), torch.get_default_device(), sys.getrecursionlimit(), torch.nn.init.normal_
    assert before == after and not torch_modules._global_parameter_registration_hooks
    assert not torch_modules._global_buffer_registration_hooks
