"""A folder against its certificates, by hashes: every value and every tensor of it, one at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import tiny_backbone, tiny_model
from support.certified import MODELS, another, commit, edit_tensor, leaves, vouch, with_leaf
from support.folders import child_environment, edit_json
from support.topics import commit_topic

from eidetic_hf import CheckpointError, EideticModel, TaskError
from eidetic_hf.model import certificate
from eidetic_hf.model.audit import tensor_digest
from eidetic_hf.model.checkpoint import shard
from eidetic_hf.model.checkpoint.layout import CONFIG_FILE, INDEX_FILE, sha256_of
from eidetic_hf.model.integrity import hash_shard, section_of, verify_folder
from eidetic_hf.views import BASE, POOL, TOLD, owner_of

# What changes no committed answer and no route, so that a model in memory may have it otherwise: a folder's index
# still says that it was edited. The first names are those of config.json, `tasks` and `base_config` have their own.
OF_NO_ANSWER = {
    "architectures": "which class was saved",
    "dtype": "of what is loaded; the shards have theirs",
    "_name_or_path": "where it was loaded from",
    "transformers_version": "which version saved it",
    "forward_transfer": "what a new task reads by default",
    "id2label": "written from the labels of the tasks",
    "label2id": "written from the labels of the tasks",
    "problem_type": "each task has its own",
    "chunk_size_feed_forward": "the backbone's counts",
    "output_attentions": "what is put out beside the answer",
    "output_hidden_states": "what is put out beside the answer",
    "return_dict": "how it is put out",
    "is_encoder_decoder": "follows from the backbone, whatever stands here",
    "served": "which tasks answer",
    "default_versions": "which version answers where none is named",
    "expanded": "units that are free",
    "pool": "whether more can be learned",
    "language_head": "what a new language model starts from",
    "learning_ancestors": "of a task that is being learned",
    "format_version": "who may read it",
    "base": "where the backbone is, when it is not here",
}
OF_NO_ANSWER_OF_A_TASK = {"metrics": "for the model card", "data": "for the model card"}
# Of a backbone's configuration, beside what only training looks at.
OF_NO_ANSWER_OF_A_BACKBONE = {
    "_name_or_path", "architectures", "dtype", "output_attentions", "output_hidden_states", "return_dict", "use_cache",
    "id2label", "label2id", "problem_type",
}  # fmt: skip


EVERY = os.environ.get("EIDETIC_EVERY") == "1"  # every value and tensor, not one for all that are alike


def is_of_no_answer(path: tuple[str | int, ...]) -> bool:
    first = path[0]
    if first == "tasks":
        return path[2] in OF_NO_ANSWER_OF_A_TASK
    if first == "base_config":
        name = str(path[1])
        return name in OF_NO_ANSWER_OF_A_BACKBONE or "dropout" in name or name.startswith("initializer")
    return first in OF_NO_ANSWER


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each model; copy it before you change it."""
    found = {}
    for kind, make in MODELS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        make().save_pretrained(found[kind])
    return found


@pytest.fixture(params=MODELS)
def copied(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    return copy_of(folders[request.param], tmp_path)


def copy_of(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "copy", dirs_exist_ok=True))


def test_what_was_saved_is_what_was_committed(copied: Path) -> None:
    report = verify_folder(copied)
    assert report.ok and report.edited == [] and report.router is not None and report.router.first_difference is None
    names = [task["name"] for task in json.loads((copied / "config.json").read_text())["tasks"]]
    assert [task.task for task in report.tasks] == names
    assert all(task.settings_match and task.weights_match and task.logits_match is None for task in report.tasks)
    assert EideticModel.from_pretrained(copied).verify().ok


def edits_of(values: dict[str, Any]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Values of config.json, and lists turned around; of those that are alike in records of a kind the first one."""
    found = [(path, another(value)) for path, value in leaves(values)]
    for number, task in enumerate(values["tasks"]):
        if len(task["labels"]) > 1:
            found.append((("tasks", number, "labels"), task["labels"][::-1]))
    if EVERY:
        return found
    kinds = [task["task_type"] for task in values["tasks"]]
    alike: dict[Any, Any] = {}
    for path, value in found:
        # Labels and options are each kind's own; units and certificates are alike in all.
        is_common = path[0] != "tasks" or path[2] in ("units", "certificate", "preparation", "special_tokens")
        depth = 3 if "units" in path else 5
        kind = "" if is_common else kinds[path[1]]
        alike.setdefault((kind, *(each for each in path[:depth] if not isinstance(each, int))), (path, value))
    return list(alike.values())


def test_no_value_of_config_json_can_be_edited_unnoticed(copied: Path) -> None:
    path = copied / "config.json"
    values = json.loads(path.read_text())
    edits, passed, refused = edits_of(values), [], 0
    for place, value in edits:
        path.write_text(json.dumps(with_leaf(values, place, value)))
        try:
            report = verify_folder(copied)
        except Exception:
            refused += 1
            continue
        if report.ok or "config.json: edited since the model was saved" not in report.edited:
            passed.append(place)
    print(f"config.json: {len(edits)} edits, {refused} refused")
    assert len(edits) > 80 and passed == []


def test_what_changes_an_answer_is_named_by_its_key_even_if_the_index_was_edited_too(copied: Path) -> None:
    """By hashes, and by the model that is loaded, which is not saved then."""
    path = copied / "config.json"
    values = json.loads(path.read_text())
    backbone = EideticModel.from_pretrained(copied).config.base_config.to_dict()
    edits = [(place, value) for place, value in edits_of(values) if not is_of_no_answer(place)]
    passed, refused = [], 0
    for place, value in edits:
        # Both models of BERT have the same backbone.
        if place[0] == "files" or (place[0] == "base_config" and len(values["tasks"]) > 5 and not EVERY):
            continue
        path.write_text(json.dumps(with_leaf(values, place, value)))
        vouch(copied)
        try:
            by_hashes, model = verify_folder(copied), EideticModel.from_pretrained(copied)
        except Exception:  # what an error says is for the tests of reading
            refused += 1
            continue
        try:
            certificate.check_unchanged(model)
            from_model = model.verify()  # what follows from the configuration is computed there alone
        except CheckpointError:
            from_model = None
        is_named = by_hashes.ok is False or "computed" in place
        is_equal = place[0] == "base_config" and model.config.base_config.to_dict() == backbone  # T5 ties in any case
        if not is_named or (from_model is not None and from_model.ok and not is_equal):
            passed.append((place, value, is_named))
    print(f"of an answer: {len(edits)} edits, {refused} refused")
    assert len(edits) > 30 and passed == []


def test_every_tensor_that_a_certificate_vouches_for_is_named(copied: Path) -> None:
    index = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    unvouched = [name for name in index if section_of(name) is None and not name.startswith("probes.")]
    assert {name.partition(".")[0] for name in unvouched} <= {"backbone", "groups", "language_head", "router"}
    assert all(owner_of(name) in (POOL, BASE, TOLD) for name in unvouched), "free, base's places, what users told"
    chosen: dict[str, str] = {}
    for name in sorted(set(index) - set(unvouched)):
        alike = name if EVERY else re.sub(r"\d+|@[^.]+", "*", name)
        if index[name] not in ("eidetic-pool.safetensors",) and load_file(copied / index[name])[name].numel():
            chosen.setdefault(alike, name)
    passed = []
    for name in chosen.values():
        files = {each: (copied / each).read_bytes() for each in (index[name], CONFIG_FILE, INDEX_FILE)}
        edit_tensor(copied, index[name], name)
        report = verify_folder(copied)
        found = [each.first_difference for each in (*report.tasks, report.router) if each is not None]
        if report.ok or (not name.startswith("probes.") and name not in found):
            passed.append((name, found))
        for each, content in files.items():
            (copied / each).write_bytes(content)
    print(f"tensors: {len(chosen)} edits")
    assert len(chosen) > 30 and passed == [] and verify_folder(copied).ok


def test_what_routes_is_named_by_the_model_that_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["copies"]
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    names = [name for name in index if name.startswith(("router.sums.@alpha.", "router.reference."))]
    assert {name.rpartition(".")[2] for name in names} >= {"count", "means", "columns", "scale", "shift", "private"}
    for name in names:
        copied = copy_of(folder, tmp_path)
        edit_tensor(copied, index[name], name)
        model = EideticModel.from_pretrained(copied)
        report = model.verify()
        assert not report.ok and all(task.ok for task in report.tasks) and report.router.first_difference == name
        with pytest.raises(CheckpointError, match=f"knows of tasks has changed in memory, first in {name}"):
            model.save_pretrained(tmp_path / "again")


def test_what_users_told_the_router_is_listed_and_certified_by_nobody(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(folders["copies"], tmp_path)
    report = verify_folder(folder)
    assert report.router.told == {"beta": "1 examples", "gamma": "1 forgotten, prior 3"}
    assert str(report.router) == "router: equal bit for bit; told since: beta: 1 examples; gamma: 1 forgotten, prior 3"
    model = EideticModel.from_pretrained(folder)
    assert str(model.verify().router) == str(report.router)
    model.router.set_prior("gamma", 1)
    model.save_pretrained(folder)
    assert verify_folder(folder).router.told == {"beta": "1 examples", "gamma": "1 forgotten"}


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_generation_config_may_be_changed_and_saved_and_an_edited_one_is_reported(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(folders["writers"], tmp_path)
    model = EideticModel.from_pretrained(folder)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    assert verify_folder(folder).ok
    edit_json(folder / "generation_config.json", lambda values: values.update(max_new_tokens=9))
    report = verify_folder(folder)
    assert not report and report.edited == ["generation_config.json: edited since the model was saved"]
    assert all(task.ok for task in report.tasks)
    assert EideticModel.from_pretrained(folder).generation_config.max_new_tokens == 9
    (folder / "generation_config.json").unlink()
    assert verify_folder(folder).edited == ["generation_config.json: is not there, and was saved"]


def test_a_file_that_is_laid_out_otherwise_was_not_edited(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(folders["writers"], tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert verify_folder(folder).ok


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "is not the file that was saved: its SHA"),
        (lambda path: path.unlink(), "has no eidetic-task-writes"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    damage: Any, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(folders["writers"], tmp_path)
    damage(folder / "eidetic-task-writes.safetensors")
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_a_shard_is_hashed_tensor_by_tensor_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "probes.@a.first": torch.zeros(0, 3),
        "probes.@a.long": torch.randn(100, 7),
        "probes.@a.bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(33).to(torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "last": torch.zeros(0, dtype=torch.int64),
    }
    path = tmp_path / "some.safetensors"
    save_file(tensors, path)
    recorded = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    for block in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(shard, "CHUNK", block)
        found = hash_shard(shard.Shard(path, recorded, set(tensors), "Copy it again."))
        assert found.digests == {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
        assert all(torch.equal(found.kept[name], tensors[name]) for name in tensors if name.startswith("probes."))


def test_one_task_is_looked_at_with_those_that_it_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(folders["copies"], tmp_path)
    (folder / "eidetic-task-gamma.safetensors").unlink()
    assert [task.task for task in verify_folder(folder, tasks=["alpha@2"]).tasks] == ["alpha@2"]
    with pytest.raises(CheckpointError, match="gamma"):
        verify_folder(folder, tasks=["gamma"])
    with pytest.raises(TaskError, match="There is no task 'delta'"):
        verify_folder(folder, tasks=["delta"])


def test_no_code_of_a_backbone_is_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(folders["copies"], tmp_path)
    script = (
        "import sys; from eidetic_hf.model.integrity import verify_folder; "
        f"assert verify_folder({str(folder)!r}).ok; "
        "print([name for name in sys.modules if '.modeling_bert' in name or name.startswith('datasets')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=child_environment())
    assert done.stdout.strip() == "[]", done.stderr


# -- what may change after a commit -----------------------------------------------------------------------------------


def test_a_folder_that_names_its_backbone_is_held_against_what_its_tasks_say_of_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    tiny_backbone("bert").save_pretrained(tmp_path / "backbone")
    model = EideticModel.from_backbone(tmp_path / "backbone", trunk_layers=1)
    commit(model, "task", labels=["x", "y"])
    model.save_pretrained(tmp_path / "model", include_base=False)
    assert verify_folder(tmp_path / "model").ok
    edit_json(tmp_path / "model" / "config.json", lambda values: values["base"].update(sha256="0" * 64))
    vouch(tmp_path / "model")
    assert verify_folder(tmp_path / "model").edited == [
        "config.json: names another backbone than 'task' was learned on (base.sha256)"
    ]


def test_what_may_change_after_a_commit_raises_no_alarm(folders: dict[str, Path], tmp_path: Path) -> None:
    """Versions, served tasks, other names, what users tell the router, tokens that come later, attention."""
    folder = copy_of(folders["copies"], tmp_path)
    model = EideticModel.from_pretrained(folder, attn_implementation="eager")
    assert all(task.settings_match for task in model.verify().tasks)
    assert EideticModel.from_pretrained(folder, tasks=["alpha@2", "beta"]).verify().ok
    model = EideticModel.from_pretrained(folder)
    model.set_default_version("alpha", 1)
    model.router.set_prior("beta", 2.0)
    model.resize_token_embeddings(model.config.vocab_size + 5)
    model.config.base_config.hidden_dropout_prob = 0.3
    model.remove_task("gamma")
    other = MODELS["copies"]()
    assert model.merge(other, prefix="their-") == ["their-gamma"]  # the others are here already
    model.load_task(folder, "gamma", name="third")
    assert model.verify().ok
    model.save_pretrained(tmp_path / "again")
    report = verify_folder(tmp_path / "again")
    assert report.ok and len(report.tasks) == 5 and not report.router.uncertified
    assert EideticModel.from_pretrained(tmp_path / "again").verify().ok


def test_a_task_whose_route_stays_behind_has_none_to_certify(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["copies"]
    model = tiny_model(growth="copy", router_layers=[0])
    commit_topic(model, 3)
    model.load_task(folder, "alpha")
    assert model.router.known() == ["delta"] and model.verify().ok
    model.save_pretrained(tmp_path / "both")
    report = verify_folder(tmp_path / "both")
    assert report.ok and report.router.tasks == ["delta"]
    assert EideticModel.from_pretrained(tmp_path / "both").verify().ok


@pytest.mark.parametrize(
    ("edit", "first"),
    [
        (lambda model: setattr(model.config.base_config, "layer_norm_eps", 1e-6), "base_config.layer_norm_eps: 1e-06, "
         "at commit 1e-12"),
        (lambda model: model.record("alpha").labels.reverse(), 'labels.0: "z", at commit "x"'),
        (lambda model: model.record("alpha").options.update(pooling="first"), 'options.pooling: "first", at commit '
         '"mean"'),
        (lambda model: model.record("alpha").preparation.update(max_length=3), "preparation.max_length: 3, at commit "
         "nothing"),
        (lambda model: setattr(model.config, "trunk_pretrained", False), "trunk_pretrained: false, at commit true"),
        (lambda model: setattr(model.record("alpha"), "vocab_size", 99), "vocab_size: 99, at commit null"),
    ],
)  # fmt: skip
def test_a_setting_that_was_edited_in_memory_is_named_and_not_saved(edit: Any, first: str, tmp_path: Path) -> None:
    model = MODELS["copies"]()
    edit(model)
    found = {task.task: task for task in model.verify().tasks}["alpha"]
    assert found.first_difference == f"settings.{first}" and found.settings_match is False and found.weights_match
    assert str(found) == f"alpha: CHANGED, first in settings.{first}"
    with pytest.raises(CheckpointError, match="'alpha' has changed in memory, first in settings"):
        model.save_pretrained(tmp_path)
