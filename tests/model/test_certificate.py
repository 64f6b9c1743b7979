"""What a certificate holds, and what it finds. That it is right about bits is what `test_exactness.py` holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.backbones import tiny_model
from support.folders import shards

from eidetic_hf import CheckpointError, EideticModel, PruningConfig
from eidetic_hf.model import audit, certificate
from eidetic_hf.network.network import Section
from eidetic_hf.network.storage import computed_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
MANY = 8


def commit(model: EideticModel, name: str, **options: object) -> None:
    """One more task, without training."""
    model.add_task(name, **{"labels": ["x", "y"], **options})
    model.begin_task(name, PruningConfig(keep=0.1, importance="random", on_exhausted="private"))
    model.commit_task()


@pytest.fixture(scope="module")
def many() -> EideticModel:
    """Several tasks, each of which reads all before it. Shared: put back what is changed."""
    model = tiny_model()
    for number in range(MANY):
        commit(model, f"task{number}")
    return model


@pytest.fixture(scope="module")
def saved(many: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of these."""
    folder = tmp_path_factory.mktemp("many")
    many.save_pretrained(folder)
    return folder


def test_a_late_task_takes_no_more_room_in_the_folder_than_an_early_one(saved: Path) -> None:
    def sizes(number: int) -> tuple[int, int]:
        tensors = load_file(saved / f"eidetic-task-task{number}.safetensors")
        evidence = {name: tensor for name, tensor in tensors.items() if name.startswith("probes.")}
        entry = json.loads((saved / "config.json").read_text())["tasks"][number]
        assert entry["name"] == f"task{number}"
        return sum(tensor.nbytes for tensor in evidence.values()), len(json.dumps(entry))

    assert sizes(1) == sizes(MANY - 1)
    values = json.loads((saved / "config.json").read_text())["tasks"]
    assert [task["ancestors"] for task in values] == [[], *["all"] * (MANY - 1)]
    loaded = EideticModel.from_pretrained(saved)
    assert loaded.record(f"task{MANY - 1}").ancestors == [f"task{number}" for number in range(MANY - 1)]


def test_a_commit_hashes_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hashed, real = tiny_model(), list[str](), audit.tensor_digest
    monkeypatch.setattr(audit, "tensor_digest", lambda name, tensor: hashed.append(name) or real(name, tensor))
    commit(model, "first")
    assert "backbone.embeddings.word_embeddings.weight" in hashed, "nobody vouches for the trunk before the first task"
    computed, numbers = computed_tensors(model.network.backbone, "backbone"), []
    for number in range(3):
        hashed.clear()
        commit(model, f"task{number}")
        assert all(f"@task{number}" in name or name == "logits" or name in computed for name in hashed)
        numbers.append(len(hashed))
    assert numbers[0] == numbers[2] > 10
    assert model.verify()


UNITS = "backbone.encoder.layer.2.output.dense.segments.@task1.weight"


@pytest.mark.parametrize(
    ("name", "first_reader", "readers"),
    [
        ("backbone.embeddings.word_embeddings.weight", 0, MANY),  # the trunk's
        (UNITS, 1, MANY - 1),  # the owner, and all that came later
        ("backbone.encoder.layer.2.output.dense.biases.@task1", 1, 1),
        ("groups.layers_1_neurons.gates.@task1", 1, 1),
        ("heads.@task1.classifier.bias", 1, 1),
    ],
)
def test_every_reader_of_a_tensor_that_changed_names_it(
    many: EideticModel, name: str, first_reader: int, readers: int
) -> None:
    tensor = many.state_dict()[name]
    before = tensor.clone()
    tensor[-1] += 1e-3
    try:
        found = [task.first_difference for task in many.verify().tasks]
        with pytest.raises(CheckpointError, match=rf"'task{first_reader}' has changed in memory, first in {name}"):
            certificate.check_unchanged(many)
    finally:
        tensor.copy_(before)
    expected = [name if first_reader <= number < first_reader + readers else None for number in range(MANY)]
    assert found == expected
    assert many.verify()


def test_digests_that_were_edited_with_what_they_are_of_are_found(many: EideticModel) -> None:
    units, digests = many.state_dict()[UNITS], many.probes["@task1"].get("units_digests")
    before = units.clone(), digests.clone()
    units[0, 0] += 1
    try:
        evidence = certificate.Evidence(many)
        section = Section("@task1", "units")
        digests.copy_(evidence.digests(evidence.tensors(section)))
        found = {task.task: task.first_difference for task in many.verify().tasks}
    finally:
        units.copy_(before[0])
        digests.copy_(before[1])
    edited = "(the stored digests differ from config.json)"
    assert found == {f"task{number}": edited if number else None for number in range(MANY)}


def test_evidence_that_is_missing_is_a_difference(many: EideticModel) -> None:
    probe = many.probes["@task1"]
    digests = probe.get("units_digests")
    probe.put("units_digests", None)
    try:
        found = many.verify(["task0", "task2"]).tasks
    finally:
        probe.put("units_digests", digests)
    assert found[0].ok
    assert found[1].first_difference == f"(the units of 'task1' has {len(digests)} tensors, at commit it had 0)"


def test_tokens_that_another_task_brought_are_evidence_of_that_task() -> None:
    model = tiny_model()
    commit(model, "plain")
    model.resize_token_embeddings(model.config.vocab_size + 3)
    commit(model, "gaps", task_type="masked-lm", labels=None)
    commit(model, "later", forward_transfer="none")
    assert "input_rows.@gaps" in model.task_tensors("later")
    assert model.probes["@later"].get("input_rows_digests") is None
    assert len(model.probes["@gaps"].get("input_rows_digests")) == 1
    assert model.verify()
    model.state_dict()["input_rows.@gaps"][0, 0] += 1
    found = [task.first_difference for task in model.verify().tasks]
    assert found == [None, "input_rows.@gaps", "input_rows.@gaps"]


def test_a_folder_of_format_1_is_learned_on_and_its_evidence_still_counts(tmp_path: Path) -> None:
    model = EideticModel.from_pretrained(GOLDEN / "format_1" / "t5")
    commit(model, "later")
    assert model.verify(["later"]).tasks[0].first_difference is None
    model.save_pretrained(tmp_path)
    old, new = shards(GOLDEN / "format_1" / "t5"), shards(tmp_path)
    assert {name: new[name] for name in old if "pool" not in name} == {
        name: sha256 for name, sha256 in old.items() if "pool" not in name
    }
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == 3
    loaded = EideticModel.from_pretrained(tmp_path)
    assert [task.first_difference for task in loaded.verify().tasks] == [None, None, None]
    name = next(name for name in loaded.task_tensors("later") if name.endswith("segments.@topics.weight"))
    loaded.state_dict()[name][0, 0] += 1
    assert [task.first_difference for task in loaded.verify().tasks] == [name, name, name]


def test_a_task_that_is_learned_in_another_dtype_vouches_for_all_that_it_reads() -> None:
    model = tiny_model()
    commit(model, "first")
    model.to(torch.bfloat16)
    commit(model, "cast")
    assert model.verify(["cast"]).ok
    assert not model.verify(["first"]).ok
    commit(model, "again")
    assert model.verify(["again"]).ok
