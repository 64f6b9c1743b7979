"""Checkpoints that earlier versions wrote, one folder for each format: every later version has to read them.

They are never written anew. `golden/make_golden.py` says what is in them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden.make_golden import LEARNING, answer_of, resumable
from safetensors.torch import load_file

from eidetic_hf import EideticModel
from eidetic_hf.model.checkpoint.layout import sha256_of
from eidetic_hf.model.integrity import verify_folder

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ("format_1", "format_2", "format_3")
COPIES = ("copies/bert", "format_3/copies")
FOLDERS = [*(f"{form}/{backbone}" for form in FORMATS for backbone in ("bert", "t5")), *COPIES]
# Other machines may round otherwise; on the one that wrote them, answers are equal to the last bit (`verify`).
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of every shard of a release."""
    return {path.name: sha256_of(path) for path in folder.glob("eidetic-*.safetensors")}


@pytest.fixture(params=FORMATS)
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The golden folders of a format in a place where they may be written to."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / request.param))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_golden_checkpoint_loads_verifies_and_answers_as_it_did(name: str) -> None:
    model = EideticModel.from_pretrained(GOLDEN / name)
    report = model.verify()
    assert len(report.tasks) == len(model.tasks) >= 2
    for task in report.tasks:
        assert task.weights_match and (task.logits_match or task.largest_logit_difference < 1e-4), str(task)
    answers = load_file((GOLDEN / name).with_name("answers.safetensors"))
    for task in model.tasks:
        torch.testing.assert_close(answer_of(model, task), answers[f"{Path(name).name}|{task}"], **ROUNDING)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_golden_checkpoint_saves_byte_identical_shards(name: str, tmp_path: Path) -> None:
    model = EideticModel.from_pretrained(GOLDEN / name)
    model.save_pretrained(tmp_path)
    assert shards(tmp_path) == shards(GOLDEN / name)
    again = EideticModel.from_pretrained(tmp_path)
    for task in model.tasks:
        assert torch.equal(answer_of(again, task), answer_of(model, task))


@pytest.mark.parametrize("form", FORMATS)
def test_the_golden_checkpoints_hold_what_they_are_there_for(form: str) -> None:
    assert json.loads((GOLDEN / form / "bert" / "config.json").read_text())["format_version"] == int(form[-1])
    bert = EideticModel.from_pretrained(GOLDEN / form / "bert")
    assert {bert.record(task).task_type for task in bert.tasks} == {
        "sequence-classification", "token-classification", "question-answering", "masked-lm", "multiple-choice",
        "feature-extraction",
    }  # fmt: skip
    assert bert.config.expanded == {"layers.1.neurons": 2, "layers.2.heads": 2}
    assert bert.config.vocab_size == 44 > bert.config.base_config.vocab_size
    gates = [group.gates.need("@names") for group in bert.groups.values()]
    assert all(bool((gate == 0).any()) for gate in gates), "names masks some units of its ancestors out"
    t5 = EideticModel.from_pretrained(GOLDEN / form / "t5")
    assert [t5.record(task).task_type for task in t5.tasks] == ["sequence-classification", "seq2seq-lm"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_golden_checkpoint_is_verified_by_its_hashes_as_far_as_its_format_has_them(name: str) -> None:
    report = verify_folder(GOLDEN / name)
    form = json.loads((GOLDEN / name / "config.json").read_text())["format_version"]
    assert report.ok and report.router is not None
    for task in report.tasks:
        assert (task.weights_match, task.settings_match, task.format) == (True, True if form == 3 else None, form)
    assert bool(report.router.uncertified) == (form < 3)
    assert str(report).count("settings not certified (format") == (0 if form == 3 else len(report.tasks))


def test_the_golden_router_was_told_more() -> None:
    report = verify_folder(GOLDEN / "format_3" / "copies")
    assert report.router.told == {"topics": "threshold 0.25", "names": "2 examples", "gaps": "prior 2"}
    model = EideticModel.from_pretrained(GOLDEN / "format_3" / "copies")
    assert model.verify().router.told == report.router.told and model.router.prior("gaps") == 2


@pytest.mark.parametrize("name", COPIES)
def test_the_golden_copies_hold_what_they_are_there_for(name: str, tmp_path: Path) -> None:
    model = EideticModel.from_pretrained(GOLDEN / name)
    assert model.config.growth == "copy" and model.tasks == ["topics", "names", "topics@2", "gaps", "base"]
    assert model.record("topics@2").ancestors == ["topics", "names"] and model.config.default_versions == {"topics": 2}
    assert model.record("gaps").vocab_size == 44 and set(model.record("base").units.values()) == {0}
    assert any(
        bool((group.gates.need("@names") == 0).sum() > group.count("@names")) for group in model.groups.values()
    )
    assert model.remove_task("topics", cascade=True) == ["topics", "names", "topics@2"]
    model.load_task(GOLDEN / name, "names")
    model.save_pretrained(tmp_path)
    theirs = shards(GOLDEN / name)
    assert all(digest == theirs[name] for name, digest in shards(tmp_path).items()) and model.verify()


def test_a_golden_trainer_checkpoint_resumes_in_the_middle_of_a_task(copied: Path, tmp_path: Path) -> None:
    before = shards(copied / "bert")
    model, trainer = resumable(copied, copied / "bert", tmp_path / "runs")
    committed = {task: answer_of(model, task) for task in model.tasks}
    trainer.train(resume_from_checkpoint=str(copied / "bert-learning"))
    task = LEARNING[0]
    assert model.tasks == [*committed, task]
    wanted = load_file(copied / "answers.safetensors")[f"bert-learning|{task}"]
    torch.testing.assert_close(answer_of(model, task), wanted, rtol=1e-2, atol=1e-3)
    assert all(torch.equal(answer_of(model, name), answer) for name, answer in committed.items())
    model.save_pretrained(copied / "bert")
    after = shards(copied / "bert")
    assert {name: after[name] for name in before if name != "eidetic-pool.safetensors"} == {
        name: digest for name, digest in before.items() if name != "eidetic-pool.safetensors"
    }


@pytest.mark.parametrize("form", [*FORMATS, "copies"])
def test_the_golden_folder_stays_small(form: str) -> None:
    assert sum(path.stat().st_size for path in (GOLDEN / form).rglob("*") if path.is_file()) < 2**20
