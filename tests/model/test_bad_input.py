"""What a person, a file or a failure can get wrong: the error says what to do, and nothing is lost."""

from __future__ import annotations

import copy
import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from support.backbones import CONFIGS, tiny_backbone, tiny_model
from support.data import arguments, learn, logits_of, make_batch, make_data
from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedConfig, TrainerCallback

from eidetic_hf import (
    ArchitectureError,
    CheckpointError,
    EideticModel,
    EideticTrainer,
    PruningConfig,
    TaskError,
)
from eidetic_hf.model import checkpoint, life
from eidetic_hf.network.layers import TaskLinear, TaskNorm
from eidetic_hf.network.units import UnitGroup

FIRST, SECOND = "eidetic-task-first.safetensors", "eidetic-task-second.safetensors"
TRUNK, POOL, INDEX = "eidetic-trunk.safetensors", "eidetic-pool.safetensors", "model.safetensors.index.json"


def answers(model: EideticModel) -> dict[str, Tensor]:
    """Logits of every task that the model answers for."""
    return {name: logits_of(model, name) for name in model.tasks}


def same(now: dict[str, Tensor], then: dict[str, Tensor]) -> bool:
    """Whether both hold the same names and the same bytes."""

    def content(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    return list(now) == list(then) and all(torch.equal(content(now[name]), content(then[name])) for name in now)


@contextmanager
def unharmed(model: EideticModel) -> Iterator[None]:
    """Assert that what happens inside changes no tensor, no task and no logit, and leaves nothing to train."""
    tasks, logits = model.tasks, answers(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert model.tasks == tasks and model.learning is None
    assert [name for name, _ in model.named_parameters()] == []
    assert same(dict(model.state_dict()), state)
    assert same(answers(model), logits)
    assert model.verify().ok


@pytest.fixture
def model(trained: EideticModel) -> EideticModel:
    """A copy of `trained` of the test's own."""
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def saved(trained: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `trained`. Shared: use `folder` to change it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    copy.deepcopy(trained).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` of the test's own."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def trainer_for(model: EideticModel, task: str, folder: Path, data: Any = None, **kwargs: Any) -> EideticTrainer:
    """A trainer on random data, or on `data`."""
    data = make_data(seed=2) if data is None else data
    return EideticTrainer(model=model, task=task, args=arguments(folder), train_dataset=data, **kwargs)


def with_labels(labels: list[Any]) -> datasets.Dataset:
    """A data set with these labels."""
    data = make_data(rows=len(labels)).remove_columns("labels")
    return datasets.Dataset.from_dict({**data[:], "labels": labels})


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: model(**make_batch(), task="third"),
        lambda model, folder: model.begin_task("third"),
        lambda model, folder: trainer_for(model, "third", folder),
        lambda model, folder: model.task_tensors("third"),
        lambda model, folder: model.verify(["third"]),
    ],
    ids=["forward", "begin_task", "EideticTrainer", "task_tensors", "verify"],
)
def test_an_unknown_task_is_refused_and_the_known_ones_are_named(
    model: EideticModel, tmp_path: Path, use: Callable[[EideticModel, Path], Any]
) -> None:
    with unharmed(model), pytest.raises(TaskError, match=r"no task 'third'.*ommitted are \['first', 'second'\]"):
        use(model, tmp_path)


def test_a_name_that_is_taken_is_refused(model: EideticModel) -> None:
    with unharmed(model):
        with pytest.raises(TaskError, match=r"'first' already \(committed\). Choose another name"):
            model.add_task("first", labels=["x", "y"])
        model.add_task("third", labels=["x", "y"])
        with pytest.raises(TaskError, match=r"'third' already \(added\). Choose another name"):
            model.add_task("third", labels=["x", "y", "z"])
        assert model.record("third").labels == ["x", "y"]


@pytest.mark.parametrize(
    "name", ["", ".hidden", "..", "a/b", "a\\b", "n" * 65, "two words", "tab\t", "end\n", "ä", "a%2Eb", 5, None, b"x"]
)
def test_a_malformed_name_is_refused(model: EideticModel, name: Any) -> None:
    with unharmed(model), pytest.raises(TaskError, match="cannot name a task: expected 1 to 64 letters, digits"):
        model.add_task(name, labels=["x", "y"])


@pytest.mark.parametrize(
    ("arguments_", "message"),
    [
        ({"labels": None}, r"no labels. Give labels=\[...\] in the order of the logits"),
        ({"labels": []}, r"no labels. Give labels=\[...\] in the order of the logits"),
        ({"labels": None, "problem_type": "multi_label_classification"}, r"no labels. Give labels=\[...\]"),
        ({"labels": ["x", "y", "x"]}, "labels must be distinct strings"),
        ({"labels": [0, 1]}, "labels must be distinct strings"),
        ({"labels": ["x"]}, "one label .* leaves nothing to classify; give two"),
        ({"labels": "xyz"}, "labels"),
        ({"labels": [["x"], ["y"]]}, "labels must be distinct strings"),
        ({"labels": ["x", "y"], "task_type": "translation"}, "task_type='translation' is unknown; expected one of"),
        ({"labels": ["x", "y"], "problem_type": "sorting"}, "problem_type='sorting' is unknown; expected one of"),
        ({"labels": ["x", "y"], "pooling": "last-ish"}, "pooling='last-ish' is unknown; expected one of"),
        (
            {"labels": ["x", "y"], "forward_transfer": ["third"]},
            r"'third', which is not committed; committed are \['fi",
        ),
        ({"labels": ["x", "y"], "head_dropout": 1.5}, "head_dropout=1.5"),
    ],
)
def test_a_task_that_makes_no_sense_is_not_added(
    model: EideticModel, arguments_: dict[str, Any], message: str
) -> None:
    with unharmed(model):
        with pytest.raises(TaskError, match=message):
            model.add_task("third", **arguments_)
        with pytest.raises(TaskError, match="no task 'third'"):
            model.record("third")
        model.add_task("third", labels=["x", "y"])  # the name is still free


@pytest.mark.parametrize("transfer", ["some", "first", "", 5, 0.5, True, ["first", 5], {"first"}, ("first",)])
def test_a_forward_transfer_that_is_not_understood_is_refused(model: EideticModel, transfer: Any) -> None:
    message = r"forward_transfer=.*expected 'all', 'none' or a list of task names"
    with unharmed(model), pytest.raises(ValueError, match=message):
        model.add_task("third", labels=["x", "y"], forward_transfer=transfer)
    with pytest.raises(ValueError, match=message):
        tiny_model(forward_transfer=transfer)


def test_a_committed_task_is_not_learned_again(model: EideticModel, tmp_path: Path) -> None:
    message = "'first' is committed: it will never change. Add a task of another name"
    with unharmed(model):
        with pytest.raises(TaskError, match=message):
            model.begin_task("first")
        with pytest.raises(TaskError, match=message):
            trainer_for(model, "first", tmp_path).train()


def test_one_task_is_learned_at_a_time(model: EideticModel, tmp_path: Path) -> None:
    with unharmed(model):
        for name in ("third", "fourth"):
            model.add_task(name, labels=["x", "y", "z"])
        model.begin_task("third")
        learner = model.learner
        message = r"'third' is being learned. Finish it, or drop it with model.abandon_task\(\)"
        for name in ("third", "fourth"):
            with pytest.raises(TaskError, match=message):
                model.begin_task(name)
        with pytest.raises(TaskError, match=message):
            trainer_for(model, "fourth", tmp_path).train()
        assert model.learner is learner and list(model.parameters())
        model.abandon_task()


def test_a_commit_without_learning_is_refused(model: EideticModel) -> None:
    with unharmed(model), pytest.raises(TaskError, match=r"No task is being learned; begin one with model.begin_task"):
        model.commit_task()


def test_a_task_that_was_added_but_not_learned_does_not_answer(model: EideticModel) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y"])
        with pytest.raises(TaskError, match=r"'third' has been added, but not learned. Train it with EideticTrainer"):
            model(**make_batch(), task="third")
        with pytest.raises(TaskError, match="'third' is not committed yet"):
            model.task_tensors("third")


def test_a_model_without_tasks_answers_nothing() -> None:
    with pytest.raises(TaskError, match=r"No task is committed.*Learn one with EideticTrainer"):
        tiny_model()(**make_batch())


@pytest.mark.parametrize("task", [5, b"first", {"first"}, Path("first")])
def test_a_task_that_is_no_name_is_refused(model: EideticModel, task: Any) -> None:
    with unharmed(model), pytest.raises(TaskError, match=r"task=.*expected .*\['first', 'second'\]"):
        model(**make_batch(), task=task)


@pytest.mark.parametrize("units", [0, -1, -0.5, math.nan])
def test_an_expansion_by_nothing_is_refused(model: EideticModel, units: float) -> None:
    with unharmed(model), pytest.raises(ValueError, match="expected a number above 0"):
        model.expand(units)


# -- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *[({"keep": keep}, r"keep=.*expected a share in \(0, 1\]") for keep in (0, -0.1, 1.5, "0.3", True, math.nan)],
        *[({"keep_ancestors": keep}, r"keep_ancestors=.*expected a share in \(0, 1\]") for keep in (0, 2, "1")],
        *[({"tolerance": t}, r"tolerance=.*expected a number >= 0") for t in (-0.01, "1", math.nan, True)],
        *[({"importance": name}, r"importance=.*expected one of \['fisher', 'taylor'") for name in ("l3", None, 5)],
        ({"start": 0.6, "end": 0.3}, r"end=0.3\): expected a share in \[start=0.6, 1\]"),
        ({"start": -0.1}, r"start=-0.1\): expected a share in \[0, 1\)"),
        ({"start": 1.0}, r"start=1.0\): expected a share in \[0, 1\)"),
        ({"end": 1.1}, r"end=1.1\): expected a share in"),
        ({"rounds": 0}, "rounds=0.*expected a whole number >= 1"),
        ({"events": 2.5}, "events=2.5.*expected a whole number >= 1"),
        ({"floor": 1.5}, "floor=1.5.*expected a share in"),
        ({"recycle": "compost"}, "recycle='compost'.*expected one of"),
        ({"distillation": 1.0}, "distillation=1.0.*expected a weight in"),
        ({"temperature": 0}, "temperature=0.*expected a number > 0"),
        ({"on_exhausted": "cry"}, "on_exhausted='cry'.*expected one of"),
        ({"expand_by": 0}, "expand_by=0.*expected a share > 0"),
    ],
)
def test_a_pruning_configuration_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningConfig(**values)


def test_a_tolerance_without_evaluation_data_is_refused(model: EideticModel, tmp_path: Path) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"])
        trainer = trainer_for(model, "third", tmp_path, pruning=PruningConfig(tolerance=0.1))
        with pytest.raises(ValueError, match=r"(?i)give the trainer an eval_dataset"):
            trainer.train()


def test_a_pool_without_a_free_unit_is_an_error_where_that_was_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    learn(model, "first", tmp_path, pruning=PruningConfig(keep=1.0), max_steps=2)
    with unharmed(model):
        model.add_task("second", labels=["x", "y"])
        with pytest.raises(
            TaskError, match=r"No unit is free.*smaller PruningConfig.keep, or use on_exhausted='private'"
        ):
            model.begin_task("second", PruningConfig(on_exhausted="error"))


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3], r"has the label 3, outside of 0 to 2 \(\['x', 'y', 'z'\]\)"),
        ([0, 1, -1], "has the label -1, outside of 0 to 2"),
        (["x", "y", "z"], "has the label 'x', outside of 0 to 2.*Map the names to their numbers first"),
        ([0.0, 1.0], "has the label 0.0, outside of 0 to 2"),
        ([0, None, 1], "has the label None, outside of 0 to 2"),
        ([[0, 1, 0], [1, 0, 0]], "train_dataset"),
        ([], "the train_dataset is empty"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_found_before_training(
    model: EideticModel, tmp_path: Path, labels: list[Any], message: str
) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"])
        with pytest.raises(ValueError, match=f"Task 'third'.*{message}"):
            trainer_for(model, "third", tmp_path, with_labels(labels))


def test_evaluation_data_is_checked_too(model: EideticModel, tmp_path: Path) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"])
        for data in (with_labels([7]), {"easy": make_data(), "hard": with_labels([7])}):
            with pytest.raises(ValueError, match="the eval_dataset has the label 7, outside of 0 to 2"):
                trainer_for(model, "third", tmp_path, eval_dataset=data)


def test_data_without_a_column_of_labels_is_refused(model: EideticModel, tmp_path: Path) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"])
        message = r"no column 'labels' or 'label'; it has \['input_ids', 'attention_mask'\]"
        with pytest.raises(ValueError, match=message):
            trainer_for(model, "third", tmp_path, make_data().remove_columns("labels"))


def test_training_without_data_is_refused(model: EideticModel, tmp_path: Path) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"])
        with pytest.raises(ValueError, match="needs a train_dataset"):
            EideticTrainer(model=model, task="third", args=arguments(tmp_path)).train()


def test_a_trainer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"got BertModel. Make one with EideticModel.from_backbone"):
        EideticTrainer(model=tiny_backbone(), task="first", args=arguments(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("problem_type", "labels", "message"),
    [
        ("multi_label_classification", [[0.0, 1.0]] * 8, r"labels of shape \(8, 2\); expected \(8, 3\)"),
        ("multi_label_classification", [0, 1] * 4, r"labels of shape \(8,\); expected \(8, 3\)"),
        ("regression", [[0.0, 1.0]] * 8, r"labels of shape \(8, 2\); expected \(8, 3\)"),
        ("regression", ["x", "y"] * 4, "Task 'third'.*numbers as labels"),
    ],
)
def test_labels_of_the_wrong_shape_stop_the_training_and_nothing_is_lost(
    model: EideticModel, tmp_path: Path, problem_type: str, labels: list[Any], message: str
) -> None:
    with unharmed(model):
        model.add_task("third", labels=["x", "y", "z"], problem_type=problem_type)
        with pytest.raises(ValueError, match=message):
            trainer_for(model, "third", tmp_path, with_labels(labels)).train()


@pytest.fixture(scope="module")
def many() -> EideticModel:
    """A model with one task per problem type. Shared: only run it."""
    model = tiny_model()
    for name, problem_type, labels in (
        ("single", "single_label_classification", ["x", "y", "z"]),
        ("multi", "multi_label_classification", ["x", "y", "z"]),
        ("score", "regression", ["score"]),
        ("pair", "regression", ["x", "y"]),
    ):
        model.add_task(name, labels=labels, problem_type=problem_type)
        model.begin_task(name)
        model.commit_task()
    return model


INTEGER, FLOAT = torch.int64, torch.float32


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("single", torch.zeros(5, 1, dtype=INTEGER), r"labels of shape \(5, 1\); expected \(5,\)"),
        ("single", torch.zeros(5, 3, dtype=INTEGER), r"labels of shape \(5, 3\); expected \(5,\)"),
        ("single", torch.zeros(4, dtype=INTEGER), r"labels of shape \(4,\); expected \(5,\)"),
        ("single", torch.tensor(1), r"labels of shape \(\); expected \(5,\)"),
        ("single", torch.zeros(5, dtype=FLOAT), r"whole numbers as labels, got torch.float32"),
        ("single", torch.zeros(5, dtype=torch.bool), "whole numbers as labels, got"),
        ("single", torch.tensor([0, 1, 2, 3, 0]), r"3 labels \(0 to 2: .*got label 3"),
        ("single", torch.tensor([0, 1, 2, -1, 0]), r"3 labels \(0 to 2: .*got label -1"),
        ("single", torch.tensor([0, 1, 2, -1, -100]), r"3 labels .*got label -1"),
        ("multi", torch.zeros(5), r"labels of shape \(5,\); expected \(5, 3\)"),
        ("multi", torch.zeros(5, 2), r"labels of shape \(5, 2\); expected \(5, 3\)"),
        ("multi", torch.zeros(3, 5), r"labels of shape \(3, 5\); expected \(5, 3\)"),
        ("score", torch.zeros(4), r"labels of shape \(4,\); expected \(5, 1\) or \(5,\)"),
        ("score", torch.zeros(5, 2), r"labels of shape \(5, 2\); expected \(5, 1\) or \(5,\)"),
        ("pair", torch.zeros(5), r"labels of shape \(5,\); expected \(5, 2\)"),
        ("pair", torch.zeros(5, 1), r"labels of shape \(5, 1\); expected \(5, 2\)"),
        ("pair", torch.zeros(10), r"labels of shape \(10,\); expected \(5, 2\)"),
    ],
)
def test_labels_of_the_wrong_shape_dtype_or_value_are_refused(
    many: EideticModel, task: str, labels: Tensor, message: str
) -> None:
    with unharmed(many), pytest.raises(ValueError, match=f"Task '{task}'.*{message}"):
        many(**make_batch(), task=task, labels=labels)


@pytest.mark.parametrize(
    ("task", "labels", "other"),
    [
        ("single", torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32)),
        ("multi", torch.ones(5, 3), torch.ones(5, 3, dtype=INTEGER)),
        ("multi", torch.ones(5, 3), torch.ones(5, 3, dtype=torch.bool)),
        ("score", torch.ones(5), torch.ones(5, 1)),
        ("score", torch.ones(5), torch.ones(5, dtype=INTEGER)),
        ("pair", torch.ones(5, 2), torch.ones(5, 2, dtype=torch.float64)),
    ],
)
def test_labels_that_mean_the_same_give_the_same_loss(
    many: EideticModel, task: str, labels: Tensor, other: Tensor
) -> None:
    losses = [many(**make_batch(), task=task, labels=each).loss for each in (labels, other)]
    assert torch.equal(losses[0], losses[1]) and losses[0].isfinite()


# -- backbones --------------------------------------------------------------------------------------------------------


class MadeUpConfig(PreTrainedConfig):
    """Of an architecture that nobody will declare."""

    model_type = "made-up-for-this-test"


@pytest.mark.parametrize("config", [MadeUpConfig(), CLIPTextConfig()], ids=lambda config: config.model_type)
def test_a_backbone_of_an_undeclared_architecture_is_refused(config: PreTrainedConfig) -> None:
    message = rf"'{config.model_type}' is not declared; declared are \[.*'bert'.*register_architecture"
    with pytest.raises(ArchitectureError, match=message):
        EideticModel.from_backbone(config, growth="fixed")


@pytest.mark.parametrize("trunk_layers", [-1, 3, 99, 1.5, "1"])
def test_a_trunk_that_leaves_no_layer_is_refused(trunk_layers: Any) -> None:
    with pytest.raises(ValueError, match=r"trunk_layers=.*has 3 layers, so expected a number from 0 to 2"):
        tiny_model(trunk_layers=trunk_layers)


def test_a_plain_model_folder_is_no_eidetic_one(tmp_path: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"type 'bert', not an EideticModel.*use EideticModel.from_backbone\("):
        EideticModel.from_pretrained(tmp_path / "bert")


def test_an_eidetic_folder_is_no_backbone(folder: Path, trained: EideticModel) -> None:
    with pytest.raises(ValueError, match=r"an EideticModel already. Load it with EideticModel.from_pretrained"):
        EideticModel.from_backbone(folder, growth="fixed")
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


# -- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def refused(folder: Path, message: str, trained: EideticModel, saved: Path, **kwargs: Any) -> Iterator[None]:
    """Assert that the folder, once damaged inside, is not loaded, is left alone, and is whole again when repaired."""
    yield
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        EideticModel.from_pretrained(folder, **kwargs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for path in saved.iterdir():
        shutil.copyfile(path, folder / path.name)
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", [TRUNK, FIRST, SECOND, POOL])
@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_shard_is_not_read(
    folder: Path, trained: EideticModel, saved: Path, name: str, length: int
) -> None:
    with refused(folder, f"{name} is truncated: [0-9]+ bytes, expected [0-9]+. Copy it again", trained, saved):
        (folder / name).write_bytes((folder / name).read_bytes()[:length])


@pytest.mark.parametrize("name", [TRUNK, FIRST, SECOND, POOL, INDEX, "config.json"])
def test_a_missing_file_is_named(folder: Path, trained: EideticModel, saved: Path, name: str) -> None:
    with refused(folder, f"has no {name}: the checkpoint is incomplete. Copy it again", trained, saved):
        (folder / name).unlink()


def test_swapped_shards_are_not_read(folder: Path, trained: EideticModel, saved: Path) -> None:
    with refused(folder, f"{FIRST} is (truncated|not the file that was saved).*[Cc]opy it again", trained, saved):
        for name, other in ((FIRST, SECOND), (SECOND, FIRST)):
            (folder / name).write_bytes((saved / other).read_bytes())


def test_swapped_shards_of_equal_size_are_not_read(tmp_path: Path) -> None:
    model = tiny_model(forward_transfer="none")
    for name in ("a", "b"):
        model.add_task(name, labels=["x", "y"])
        model.begin_task(name, PruningConfig(keep=1.0, importance="random"))
        for group in model.network.unit_groups():
            group.progress.get("kept")[len(group.progress.get("kept")) // 4 :] = False
        model.commit_task()
    for group in model.network.unit_groups():
        group.forget_views()
    model.save_pretrained(tmp_path)
    one, two = tmp_path / "eidetic-task-a.safetensors", tmp_path / "eidetic-task-b.safetensors"
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    with pytest.raises(CheckpointError, match=r"task-a.safetensors is (truncated|not the file that was saved)"):
        EideticModel.from_pretrained(tmp_path)
    one.write_bytes(content[0])
    two.write_bytes(content[1])
    assert same(answers(EideticModel.from_pretrained(tmp_path)), answers(model))


@pytest.mark.parametrize("name", [TRUNK, FIRST, SECOND, POOL])
@pytest.mark.parametrize("offset", [0, 8, 20, -1, -100], ids=["length", "brace", "header", "last", "data"])
def test_one_flipped_bit_is_found(folder: Path, trained: EideticModel, saved: Path, name: str, offset: int) -> None:
    with refused(
        folder,
        f"{name} is (not the file that was saved: its SHA-256|no safetensors file).*Copy it again",
        trained,
        saved,
    ):
        content = bytearray((folder / name).read_bytes())
        content[offset] ^= 1
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("protocol", [2, 4, 5, "torch.save", "torch.save, legacy"])
def test_a_pickle_in_place_of_a_shard_is_not_opened(
    folder: Path, trained: EideticModel, saved: Path, protocol: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the pickle was opened")

    with refused(folder, f"{FIRST} is a pickle, not a safetensors file. It was not opened", trained, saved):
        content = {"weight": torch.zeros(3)}
        if isinstance(protocol, int):
            (folder / FIRST).write_bytes(pickle.dumps(content, protocol))
        else:
            torch.save(content, folder / FIRST, _use_new_zipfile_serialization="legacy" not in protocol)
        for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
            monkeypatch.setattr(module, name, opened)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "only safetensors files are read, never pickles"),
        ("../x.safetensors", "outside of the checkpoint folder. Not read"),
        ("/etc/passwd", "outside of the checkpoint folder. Not read"),
        ("subdir/x.safetensors", "outside of the checkpoint folder. Not read"),
        ("..\\x.safetensors", "outside of the checkpoint folder. Not read"),
        ("c:\\x.safetensors", "outside of the checkpoint folder. Not read"),
        ("..", "Not read|never pickles"),
        ("", "Not read|never pickles"),
        (5, "outside of the checkpoint folder. Not read"),
        (None, "outside of the checkpoint folder. Not read"),
        (SECOND, f"expected '{FIRST}'. The index was edited"),
        ("eidetic-task-other.safetensors", f"expected '{FIRST}'. The index was edited"),
    ],
)
def test_an_index_that_points_elsewhere_is_not_followed(
    folder: Path, trained: EideticModel, saved: Path, file: Any, message: str
) -> None:
    with refused(folder, f"maps heads.@first.classifier.bias to .*({message})", trained, saved):
        edit_json(folder / INDEX, lambda index: index["weight_map"].update({"heads.@first.classifier.bias": file}))


def remove_shard(index: dict[str, Any], file: str) -> None:
    index["weight_map"] = {name: where for name, where in index["weight_map"].items() if where != file}


@pytest.mark.parametrize("file", [TRUNK, FIRST, SECOND, POOL])
def test_a_shard_that_the_index_does_not_list_is_missed(
    folder: Path, trained: EideticModel, saved: Path, file: str
) -> None:
    with refused(folder, rf"disagree about \['{file}'\].*copy the whole folder again", trained, saved):
        edit_json(folder / INDEX, lambda index: remove_shard(index, file))


@pytest.mark.parametrize("kwargs", [{}, {"tasks": ["first"]}], ids=["whole", "part"])
@pytest.mark.parametrize("with_pool", [True, False], ids=["pool", "release"])
def test_a_task_that_the_config_does_not_list_is_missed(
    model: EideticModel, trained: EideticModel, tmp_path: Path, with_pool: bool, kwargs: dict[str, Any]
) -> None:
    for name in ("folder", "saved"):
        model.save_pretrained(tmp_path / name, include_pool=with_pool)
    message = rf"disagree about \['{SECOND}'\].*copy the whole folder again"
    with refused(tmp_path / "folder", message, trained, tmp_path / "saved", **kwargs):
        edit_json(tmp_path / "folder" / "config.json", lambda config: config["tasks"].pop())


def test_an_ancestor_that_the_config_does_not_list_is_missed(folder: Path, trained: EideticModel, saved: Path) -> None:
    with refused(folder, "disagree about.*copy the whole folder again", trained, saved, tasks=["second"]):
        edit_json(folder / "config.json", lambda config: config["tasks"].pop(0))


def test_a_tensor_that_the_index_does_not_list_is_missed(folder: Path, trained: EideticModel, saved: Path) -> None:
    with refused(folder, r"the index disagree about \['heads.@first.classifier.bias'\]", trained, saved):
        edit_json(folder / INDEX, lambda index: index["weight_map"].pop("heads.@first.classifier.bias"))


@pytest.mark.parametrize("content", ["", "{", "not json", "\x00\x01", *(text for text in ("[]", "null", "5"))])
def test_a_config_that_is_no_json_object_is_refused(
    folder: Path, trained: EideticModel, saved: Path, content: str
) -> None:
    with refused(folder, "config.json is not", trained, saved):
        (folder / "config.json").write_text(content)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "null", "5"])
def test_an_index_that_is_none_is_refused(folder: Path, trained: EideticModel, saved: Path, content: str) -> None:
    with refused(
        folder, f"{INDEX} is (no safetensors index: weight_map is|not JSON|not a JSON object)", trained, saved
    ):
        (folder / INDEX).write_text(content)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"tasks=\[\]: the checkpoint has \['first', 'second'\]"),
        (["unknown"], r"the checkpoint has \['first', 'second'\], not \['unknown'\]"),
        (["first", "unknown"], r"the checkpoint has \['first', 'second'\], not \['unknown'\]"),
        ("first", r"the checkpoint has \['first', 'second'\]"),
    ],
)
def test_tasks_that_the_checkpoint_does_not_have_are_refused(
    folder: Path, trained: EideticModel, names: Any, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        EideticModel.from_pretrained(folder, tasks=names)
    assert same(answers(EideticModel.from_pretrained(folder)), answers(trained))


# -- failures ---------------------------------------------------------------------------------------------------------


class FailAt(TrainerCallback):
    """Raises after a number of steps."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


def learn_third(model: EideticModel, folder: Path, *callbacks: TrainerCallback, **pruning: Any) -> None:
    """Learn a third task from a fixed seed, whether it was added before or not."""
    if "third" not in model.added:
        model.add_task("third", labels=["x", "y", "z"])
    pruning = {"keep": 0.4, **pruning}
    trainer_for(model, "third", folder, pruning=PruningConfig(**pruning), callbacks=[*callbacks]).train()


@pytest.fixture(scope="module")
def uninterrupted(trained: EideticModel, tmp_path_factory: pytest.TempPathFactory) -> EideticModel:
    """A copy of `trained` that has learned `third` without any failure."""
    model = copy.deepcopy(trained)
    learn_third(model, tmp_path_factory.mktemp("uninterrupted"))
    return model


def learns_as_if_nothing_had_happened(model: EideticModel, uninterrupted: EideticModel, folder: Path) -> bool:
    """Learn the task again; whether the model is equal, bit for bit, to one whose training never failed."""
    learn_third(model, folder)
    state = uninterrupted.state_dict()
    ours = model.state_dict()
    return same({name: ours[name] for name in state}, dict(state)) and same(answers(model), answers(uninterrupted))


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["RuntimeError", "KeyboardInterrupt"]
)
@pytest.mark.parametrize("step", [2, 5, 9], ids=["fit", "prune", "recover"])
def test_training_that_fails_leaves_the_model_as_it_was_and_can_be_repeated(
    model: EideticModel, uninterrupted: EideticModel, tmp_path: Path, step: int, error: BaseException
) -> None:
    phases = []

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            phases.append(model.learner.phase(state.global_step))

    with unharmed(model), pytest.raises(type(error)):
        learn_third(model, tmp_path, Note(), FailAt(step, error))
    assert phases[-1] == {2: "fit", 5: "prune", 9: "recover"}[step]
    assert learns_as_if_nothing_had_happened(model, uninterrupted, tmp_path)


@pytest.mark.slow
def test_failed_training_with_distillation_can_be_repeated(
    model: EideticModel, uninterrupted: EideticModel, tmp_path: Path
) -> None:
    with unharmed(model), pytest.raises(RuntimeError, match="boom"):
        learn_third(model, tmp_path, FailAt(9, RuntimeError("boom")), distillation=0.5)
    assert learns_as_if_nothing_had_happened(model, uninterrupted, tmp_path)


def fail_at_call(patch: pytest.MonkeyPatch, owner: Any, name: str, at: int, error: type[BaseException]) -> list[int]:
    """Fail at the `at`-th call of a method, before it does anything; returns the calls so far."""
    real, calls = getattr(owner, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) - 1 == at:
            raise error("boom")
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)
    return calls


COMMIT_STEPS = [
    (life, "certify", 0),
    (TaskNorm, "commit", 1),
    (UnitGroup, "commit", 3),
    (TaskLinear, "stage", 2),
    (TaskLinear, "replace", 1),
    (TaskLinear, "replace", 5),
]


@pytest.mark.parametrize(
    ("owner", "name", "at"), COMMIT_STEPS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_commit_that_fails_is_taken_back_and_can_be_repeated(
    model: EideticModel,
    uninterrupted: EideticModel,
    tmp_path: Path,
    owner: type,
    name: str,
    at: int,
) -> None:
    with unharmed(model):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            fail_at_call(patch, owner, name, at, KeyboardInterrupt)
            learn_third(model, tmp_path)
        assert not model.is_committed("third") and model.learning == "third", "what is trained is not lost"
        model.abandon_task()
    assert learns_as_if_nothing_had_happened(model, uninterrupted, tmp_path)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(UnitGroup, "begin", 2), (TaskLinear, "begin", 3), (TaskNorm, "begin", 1), (life, "new_head", 0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_beginning_that_fails_is_taken_back_and_can_be_repeated(
    model: EideticModel, uninterrupted: EideticModel, tmp_path: Path, owner: type, name: str, at: int
) -> None:
    with unharmed(model), pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="boom"):
        fail_at_call(patch, owner, name, at, RuntimeError)
        learn_third(model, tmp_path)
    assert learns_as_if_nothing_had_happened(model, uninterrupted, tmp_path)


@pytest.mark.parametrize("name", ["certify", "new_head"])
def test_a_failure_in_the_first_task_of_a_random_backbone_takes_the_trunk_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = EideticModel.from_backbone(CONFIGS["bert"](), trunk_layers=1, growth="fixed")
    with unharmed(model):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="boom"):
            fail_at_call(patch, life, name, 0, RuntimeError)
            learn_third(model, tmp_path)
        model.abandon_task()  # what is trained is not lost: it could be committed again
    learn_third(model, tmp_path)
    assert model.tasks == ["third"] and model.verify().ok


def test_a_model_saved_after_a_failure_is_the_one_from_before(
    model: EideticModel, folder: Path, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError):
        learn_third(model, tmp_path / "run", FailAt(5, RuntimeError("boom")))
    model.save_pretrained(folder)
    for name in (TRUNK, FIRST, SECOND, POOL):
        assert checkpoint.sha256_of(folder / name) == checkpoint.sha256_of(saved / name)


def test_an_argument_that_from_pretrained_does_not_know_is_named(saved: Path) -> None:
    with pytest.raises(
        TypeError, match=r"'dtyp', which it does not know. Did you mean 'dtype'\? It takes config, tasks, dtype"
    ):
        EideticModel.from_pretrained(saved, dtyp="float32")
    assert EideticModel.from_pretrained(saved, torch_dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ({"tsk": "first"}, "task"),
        ({"abstane": True}, "abstain"),
        ({"output_hidden_sates": True}, "output_hidden_states"),
        ({"attention_maks": torch.ones(5, 12)}, "attention_mask"),
        ({"pair_input_idz": torch.ones(5, 12)}, "pair_input_ids"),
    ],
)
def test_an_argument_of_forward_that_nobody_takes_names_the_nearest(
    trained: EideticModel, given: dict[str, Any], near: str
) -> None:
    with pytest.raises(TypeError, match=rf"got '{next(iter(given))}', which it does not know\. Did you mean '{near}'"):
        trained(**make_batch(), **given)


def test_what_the_backbones_own_forward_takes_is_taken(trained: EideticModel) -> None:
    batch = make_batch()
    expected = logits_of(trained, "first")
    with torch.no_grad():
        beside = {"encoder_hidden_states": None, "nobody_takes_it": None, "output_attentions": False}
        assert torch.equal(trained(**batch, task="first", **beside).logits, expected)
        assert len(trained(**batch, task="first", output_hidden_states=True).hidden_states) == 4
        ids = batch["input_ids"]
        forwards = trained(ids, task="first", is_causal=True).logits  # which its layers take, and not it
        assert not torch.equal(forwards, trained(ids, task="first").logits)


def test_an_argument_of_generate_that_nobody_takes_names_the_nearest() -> None:
    model = tiny_model("gpt2")
    model.add_task("text", task_type="causal-lm")
    model.begin_task("text")
    model.commit_task()
    prompt = torch.tensor([[4, 5, 6]])
    for wrong, near in (("tsk", "task"), ("max_new_tokns", "max_new_tokens"), ("attention_maks", "attention_mask")):
        with pytest.raises(ValueError, match=rf"not used by the model: \['{wrong}'\].* Did you mean '{near}'\?"):
            model.generate(prompt, **{wrong: 1})


def test_an_argument_that_no_backbone_takes_names_the_nearest(tmp_path: Path, saved: Path) -> None:
    tiny_backbone().save_pretrained(tmp_path)
    for source in (tmp_path, CONFIGS["bert"]()):
        with pytest.raises(TypeError, match=r"'trunk_layer'\. Did you mean 'trunk_layers'\?"):
            EideticModel.from_backbone(source, trunk_layer=1, growth="fixed")
    with pytest.raises(TypeError, match=r"got 'tsks', which it does not know. Did you mean 'tasks'\?"):
        EideticModel.from_pretrained(saved, tsks=["first"])
