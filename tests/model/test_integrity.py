"""A folder against its certificates, by hashes: every value and every tensor of it, one at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.certified import MODELS, another, edit_tensor, leaves, vouch, with_leaf
from support.folders import child_environment, edit_json

from eidetic_hf import CheckpointError, EideticModel, TaskError
from eidetic_hf.model.integrity import hash_shard, section_of, verify_folder

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
OF_NO_ANSWER_OF_A_TASK = {"metrics": "for the model card"}
# Of a backbone's configuration, beside what only training looks at.
OF_NO_ANSWER_OF_A_BACKBONE = {
    "_name_or_path", "architectures", "dtype", "output_attentions", "output_hidden_states", "return_dict", "use_cache",
    "id2label", "label2id", "problem_type",
}  # fmt: skip


def is_of_no_answer(path: tuple[str | int, ...]) -> bool:
    first = path[0]
    if first == "tasks":
        return path[2] in OF_NO_ANSWER_OF_A_TASK
    if first == "base_config":
        name = str(path[1])
        return name in OF_NO_ANSWER_OF_A_BACKBONE or "dropout" in name or name.startswith("initializer")
    return first in OF_NO_ANSWER


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of each model; copy it before you change it."""
    folder = tmp_path_factory.mktemp(request.param)
    MODELS[request.param]().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def one_of(kind: str, folder: Path) -> Path:
    MODELS[kind]().save_pretrained(folder)
    return folder


def test_what_was_saved_is_what_was_committed(saved: Path) -> None:
    report = verify_folder(saved)
    assert report.ok and report.edited == [] and report.router is not None and report.router.first_difference is None
    names = [task["name"] for task in json.loads((saved / "config.json").read_text())["tasks"]]
    assert [task.task for task in report.tasks] == names
    assert all(task.settings_match and task.weights_match and task.logits_match is None for task in report.tasks)
    assert EideticModel.from_pretrained(saved).verify().ok


def edits_of(values: dict[str, Any]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every value of config.json, and every list turned around."""
    found = [(path, another(value)) for path, value in leaves(values)]
    for number, task in enumerate(values["tasks"]):
        if len(task["labels"]) > 1:
            found.append((("tasks", number, "labels"), task["labels"][::-1]))
    return found


def test_no_value_of_config_json_can_be_edited_unnoticed(copied: Path) -> None:
    path = copied / "config.json"
    values = json.loads(path.read_text())
    edits, passed = edits_of(values), []
    for place, value in edits:
        path.write_text(json.dumps(with_leaf(values, place, value)))
        try:
            report = verify_folder(copied)
        except (ValueError, OSError, KeyError, TypeError):
            continue
        if report.ok or "config.json: edited since the model was saved" not in report.edited:
            passed.append(place)
    assert len(edits) > 150 and passed == []


def test_what_changes_an_answer_is_named_by_its_key_even_if_the_index_was_edited_too(copied: Path) -> None:
    """Also by the model that is loaded. Of alike records and keys the first one stands for all."""
    path = copied / "config.json"
    values = json.loads(path.read_text())
    passed, seen = [], set()
    for place, value in edits_of(values):
        first = values["tasks"][place[1]]["task_type"] if place[0] == "tasks" else ""
        alike = (first, *(each for each in place[:4] if not isinstance(each, int)))
        if is_of_no_answer(place) or alike in seen or place[0] == "files":
            continue
        seen.add(alike)
        path.write_text(json.dumps(with_leaf(values, place, value)))
        vouch(copied)
        try:
            by_hashes, model = verify_folder(copied), EideticModel.from_pretrained(copied)
        except Exception:
            continue
        from_model = model.verify()
        found = [
            [each.first_difference for each in (*report.tasks, report.router)] for report in (by_hashes, from_model)
        ]
        if by_hashes.ok or from_model.ok or not any(found[0]) or not any(found[1]):
            passed.append((place, value, by_hashes.ok, from_model.ok))
    assert len(seen) > 30 and passed == []


def test_every_tensor_that_a_certificate_vouches_for_is_named(copied: Path, tmp_path: Path) -> None:
    index = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    kept = {"config.json", "model.safetensors.index.json", *index.values()}
    original = {name: (copied / name).read_bytes() for name in kept}
    passed = []
    for name, file in index.items():
        is_evidence = name.startswith("probes.")
        if section_of(name) is None and not is_evidence:
            continue
        if load_file(copied / file)[name].numel() == 0:
            continue
        edit_tensor(copied, file, name)
        report = verify_folder(copied)
        found = [each.first_difference for each in (*report.tasks, report.router) if each is not None]
        if report.ok or (not is_evidence and name not in found):
            passed.append((name, found))
        for each in ("config.json", "model.safetensors.index.json", file):
            (copied / each).write_bytes(original[each])
    assert passed == []
    assert verify_folder(copied).ok
    unvouched = {name.partition(".")[0] for name in index if section_of(name) is None and "probes" not in name}
    assert unvouched <= {"backbone", "groups", "language_head", "router"}, "the pool's, base's places, what users told"


def test_what_routes_is_named_by_the_model_that_is_loaded(tmp_path: Path) -> None:
    folder = one_of("copies", tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = [name for name in index if name.startswith(("router.sums.@alpha.", "router.reference."))]
    assert {name.rpartition(".")[2] for name in names} >= {
        "count",
        "means",
        "columns",
        "scale",
        "shift",
        "private"[:0] or "parts",
    }
    for name in names:
        copied = Path(shutil.copytree(folder, tmp_path / "edited", dirs_exist_ok=True))
        edit_tensor(copied, index[name], name)
        model = EideticModel.from_pretrained(copied)
        report = model.verify()
        assert not report.ok and all(task.ok for task in report.tasks) and report.router.first_difference == name
        with pytest.raises(
            CheckpointError, match=f"What the router knows of tasks has changed in memory, first in {name}"
        ):
            model.save_pretrained(tmp_path / "again")


def test_what_users_told_the_router_is_listed_and_certified_by_nobody(tmp_path: Path) -> None:
    folder = one_of("copies", tmp_path)
    report = verify_folder(folder)
    assert report.router.told == {"beta": "1 examples", "gamma": "1 forgotten, prior 3"}
    assert str(report.router) == "router: equal bit for bit; told since: beta: 1 examples; gamma: 1 forgotten, prior 3"
    model = EideticModel.from_pretrained(folder)
    assert str(model.verify().router) == str(report.router)
    model.router.set_prior("gamma", 1)
    model.save_pretrained(folder)
    assert verify_folder(folder).router.told == {"beta": "1 examples", "gamma": "1 forgotten"}


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_generation_config_may_be_changed_and_saved_and_an_edited_one_is_reported(tmp_path: Path) -> None:
    folder = one_of("writers", tmp_path)
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


def test_a_file_that_is_laid_out_otherwise_was_not_edited(tmp_path: Path) -> None:
    folder = one_of("writers", tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert verify_folder(folder).ok


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "is not the file that was saved: its SHA"),
        (lambda path: path.unlink(), "incomplete|no eidetic-task-writes"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(damage: Any, message: str, tmp_path: Path) -> None:
    folder = one_of("writers", tmp_path)
    damage(folder / "eidetic-task-writes.safetensors")
    with pytest.raises(CheckpointError, match=message):
        verify_folder(folder)


def test_tensors_without_data_and_over_several_blocks_are_hashed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eidetic_hf.model import integrity
    from eidetic_hf.model.audit import tensor_digest
    from eidetic_hf.model.checkpoint.layout import sha256_of

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
        monkeypatch.setattr(integrity, "BLOCK", block)
        found = hash_shard(path, recorded, set(tensors))
        assert found.digests == {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
        assert all(torch.equal(found.kept[name], tensors[name]) for name in tensors if name.startswith("probes."))


def test_one_task_is_looked_at_with_those_that_it_reads(tmp_path: Path) -> None:
    folder = one_of("copies", tmp_path)
    (folder / "eidetic-task-gamma.safetensors").unlink()
    assert [task.task for task in verify_folder(folder, tasks=["alpha@2"]).tasks] == ["alpha@2"]
    with pytest.raises(CheckpointError, match="gamma"):
        verify_folder(folder, tasks=["gamma"])
    with pytest.raises(TaskError, match="There is no task 'delta'. The model has"):
        verify_folder(folder, tasks=["delta"])


def test_no_code_of_a_backbone_is_imported(tmp_path: Path) -> None:
    folder = one_of("copies", tmp_path)
    script = (
        "import sys; from eidetic_hf.model.integrity import verify_folder; "
        f"assert verify_folder({str(folder)!r}).ok; "
        "print([name for name in sys.modules if '.modeling_bert' in name or name.startswith('datasets')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=child_environment())
    assert done.stdout.strip() == "[]", done.stderr


# -- what may change after a commit -----------------------------------------------------------------------------------


def test_a_folder_that_names_its_backbone_is_held_against_what_its_tasks_say_of_it(tmp_path: Path) -> None:
    MODELS["copies"]().backbone.save_pretrained  # noqa: B018
    from support.backbones import tiny_backbone
    from support.certified import commit

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


def test_what_may_change_after_a_commit_raises_no_alarm(tmp_path: Path) -> None:
    """Versions, served tasks, other names, what users tell the router, tokens that come later, attention."""
    folder = one_of("copies", tmp_path / "model")
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
    assert model.merge(other, prefix="their-") == ["their-alpha", "their-beta", "their-gamma", "their-alpha@2"]
    model.load_task(folder, "gamma", name="third")
    assert model.verify().ok
    model.save_pretrained(tmp_path / "again")
    report = verify_folder(tmp_path / "again")
    assert report.ok and len(report.tasks) == 8 and not report.router.uncertified
    assert EideticModel.from_pretrained(tmp_path / "again").verify().ok


def test_a_task_whose_route_stays_behind_has_none_to_certify(tmp_path: Path) -> None:
    from support.backbones import tiny_model
    from support.topics import commit_topic

    folder = one_of("copies", tmp_path / "model")
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
        (lambda model: model.record("alpha").options.update(pooling="first"), 'options.pooling: "first", at commit "mean"'),
        (lambda model: setattr(model.record("alpha"), "task_type", "x"), None),
        (lambda model: model.record("alpha").preparation.update(max_length=3), "preparation.max_length: 3, at commit "
         "nothing"),
        (lambda model: setattr(model.config, "trunk_pretrained", False), "trunk_pretrained: false, at commit true"),
        (lambda model: setattr(model.record("alpha"), "vocab_size", 99), "vocab_size: 99, at commit null"),
    ],
)  # fmt: skip
def test_a_setting_that_was_edited_in_memory_is_named_and_not_saved(
    edit: Any, first: str | None, tmp_path: Path
) -> None:
    if first is None:
        pytest.skip("an unknown kind can not even be asked")
    model = MODELS["copies"]()
    edit(model)
    found = {task.task: task for task in model.verify().tasks}["alpha"]
    assert found.first_difference == f"settings.{first}" and found.settings_match is False and found.weights_match
    assert str(found) == f"alpha: CHANGED, first in settings.{first}"
    with pytest.raises(CheckpointError, match="'alpha' has changed in memory, first in settings"):
        model.save_pretrained(tmp_path)
