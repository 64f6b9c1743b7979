"""A kind of task of a user's own, the one of docs/examples/ordinal.py: from training to a process that loads it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.backbones import tiny_model
from support.data import arguments, learn, make_batch, make_data
from support.exactness import poison
from support.kind_cases import counting, kind_model
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

import eidetic_hf
from eidetic_hf import EideticModel, EideticTrainer, PruningConfig, TaskError, kinds
from eidetic_hf.configuration import TaskRecord
from eidetic_hf.kinds import TASK_KINDS, kind_of, label_spans, register_kind
from eidetic_hf.kinds.base import Kind

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LABELS = ["bad", "poor", "good", "best"]
WORDS = {"one": (10, 60), "two": (65, 115)}


@pytest.fixture(scope="module")
def ordinal() -> Iterator[ModuleType]:
    """The module of the example; its kind is known as long as the tests of this file run."""
    sys.path.insert(0, str(EXAMPLES))
    module = importlib.import_module("ordinal")
    yield module
    sys.path.remove(str(EXAMPLES))
    del sys.modules["ordinal"]
    kinds._KINDS.pop("ordinal")


def star_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The label is what the second token says; all others are from `low` to `high`."""
    ids, labels = counting(seed, rows, low, high), make_data(seed, rows, labels=4)["labels"][:]
    for row, label in zip(ids, labels, strict=True):
        row[1] = 3 + label
    ids = [(row + [0] * 12)[:12] for row in ids]
    mask = [[int(token != 0) for token in row] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def batch_from(data: Dataset) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(data[name][:]) for name in ("input_ids", "attention_mask")}


@dataclass
class Learned:
    """A model with two ordinal tasks and one of another kind; what it answered at commit; and where it is saved."""

    model: EideticModel
    trainer: EideticTrainer
    answers: dict[str, torch.Tensor]
    folder: Path


def train(model: EideticModel, name: str, folder: Path, steps: int) -> EideticTrainer:
    model.add_task(name, task_type="ordinal", labels=LABELS, head_dropout=0.0)
    trainer = EideticTrainer(
        model=model,
        task=name,
        args=arguments(folder, max_steps=steps, learning_rate=1e-2),
        pruning=PruningConfig(keep=0.3),
        train_dataset=star_data(0, 64, *WORDS[name]),
        eval_dataset=star_data(1000, 32, *WORDS[name]),
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def learned(ordinal: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """Shared: copy the model before you change it."""
    folder = tmp_path_factory.mktemp("ordinal")
    model = kind_model("bert")
    trainer = train(model, "one", folder / "runs", 60)
    learn(model, "plain", folder / "runs", max_steps=6)
    train(model, "two", folder / "runs", 12)
    model.eval()
    batch = batch_from(star_data(7, 6))
    with torch.no_grad():
        answers = {name: model(**batch, task=name).logits for name in model.tasks}
    model.save_pretrained(folder / "model")
    return Learned(model, trainer, answers, folder / "model")


def test_a_kind_of_ones_own_learns_and_is_measured_by_its_own_metrics(learned: Learned) -> None:
    metrics = learned.trainer.evaluate()
    assert metrics["eval_mean_absolute_error"] < 0.5, "by chance more than 1"
    assert metrics["eval_accuracy"] > 0.7
    assert {name for name in metrics if name.startswith("eval_")} >= {"eval_loss", "eval_mean_absolute_error"}


def test_what_it_answers_are_probabilities_that_no_later_task_changes(learned: Learned) -> None:
    one = learned.answers["one"]
    assert one.shape == (6, 4)
    torch.testing.assert_close(one.exp().sum(1), torch.ones(6))
    assert learned.model.verify().ok
    batch = batch_from(star_data(7, 6))
    with torch.no_grad():
        for name, answer in learned.answers.items():
            assert torch.equal(learned.model(**batch, task=name).logits, answer)
            assert torch.equal(poison(learned.model, name)(**batch, task=name).logits, answer)


def test_the_thresholds_stay_in_order(learned: Learned, ordinal: ModuleType) -> None:
    head = ordinal.OrdinalHead(8, 4, "mean", 0.0, 0.02)
    with torch.no_grad():
        head.distances.copy_(torch.tensor([-30.0, 3.0]))
        answer = head(torch.randn(5, 3, 8) * 100, None)
    assert answer.isfinite().all()
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(5))
    assert ordinal.OrdinalHead(8, 2, "mean", 0.0, 0.02)(torch.randn(5, 3, 8), None).shape == (5, 2)


def test_it_routes_among_its_tasks_and_its_labels_lie_side_by_side(learned: Learned) -> None:
    model = learned.model
    assert kinds.flat_labels(model.config, "ordinal") == [f"{name}/{label}" for name in WORDS for label in LABELS]
    assert label_spans(model.config, "ordinal") == {"one": slice(0, 4), "two": slice(4, 8)}
    right = 0
    for name, words in WORDS.items():
        batch = batch_from(star_data(5, 12, *words))
        found = model.route(**batch).tasks
        right += found.count(name)
        mixed = model(**batch, task=["one", "two"] * 6).logits
        assert mixed.shape == (12, 8)
        assert (mixed[0, 4:] == -torch.inf).all()
        assert torch.equal(mixed[0::2, :4], model(**{k: v[0::2] for k, v in batch.items()}, task="one").logits)
    assert right > 16, "by chance 8 of 24"


LOADING = """
import sys
import torch
{imports}
from eidetic_hf import EideticModel
model = EideticModel.from_pretrained(sys.argv[1])
ids, mask = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save({{name: model(ids, mask, task=name).logits for name in model.tasks}}, sys.argv[3])
print(bool(model.verify()), model.record("one").options)
"""


def load_elsewhere(learned: Learned, folder: Path, imports: str) -> subprocess.CompletedProcess:
    """Load the model in a new process, and let it answer a batch to a file."""
    batch = batch_from(star_data(7, 6))
    torch.save((batch["input_ids"], batch["attention_mask"]), folder / "batch.pt")
    files = [str(learned.folder), str(folder / "batch.pt"), str(folder / "answers.pt")]
    path = os.pathsep.join([str(EXAMPLES), str(Path(eidetic_hf.__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-c", LOADING.format(imports=imports), *files],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_process_answers_alike_once_it_knows_the_kind(learned: Learned, tmp_path: Path) -> None:
    done = load_elsewhere(learned, tmp_path, "import ordinal")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True {'pooling': 'mean', 'head_dropout': 0.0}"
    found = torch.load(tmp_path / "answers.pt")
    assert list(found) == ["one", "plain", "two"]
    assert all(torch.equal(found[name], answer) for name, answer in learned.answers.items())


def test_a_process_that_does_not_know_the_kind_says_which_one_and_what_to_do(learned: Learned, tmp_path: Path) -> None:
    done = load_elsewhere(learned, tmp_path, "")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "TaskError: config.json of " in last
    assert "Task 'one': task_type='ordinal' is unknown; expected one of ['sequence-class" in last
    assert "import the module that calls eidetic_hf.kinds.register_kind" in last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"]}, "Task 'stars': one label leaves nothing to put in order"),
        ({}, "Task 'stars' has no labels"),
        ({"labels": LABELS, "pooling": "all"}, r"Task 'stars': pooling='all' is unknown; expected one of \['mean'"),
        ({"labels": LABELS, "normalize": True}, "normalize=True is for feature-extraction, not for ordinal"),
        ({"labels": LABELS, "dropout": 0.2}, r"ordinal has no option 'dropout'; .* Did you mean 'head_dropout'\?"),
    ],
)
def test_its_options_are_checked_like_those_of_every_kind(
    ordinal: ModuleType, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        tiny_model().add_task("stars", task_type="ordinal", **options)


def test_its_data_and_targets_are_checked(learned: Learned) -> None:
    record = learned.model.record("one")
    data = star_data(0, 4).remove_columns("labels").add_column("labels", [0, 1, 2, 4])
    with pytest.raises(ValueError, match="the train_dataset has the label 4, outside of 0 to 3"):
        kind_of(record).check_dataset(record, "train_dataset", data)
    with pytest.raises(ValueError, match=r"got labels of shape \(5, 1\); expected \(5,\)"):
        learned.model(**make_batch(), labels=torch.zeros(5, 1, dtype=torch.long), task="one")


def test_the_median_is_what_is_measured(ordinal: ModuleType) -> None:
    logits = np.log([[0.45, 0.1, 0.15, 0.3], [0.1, 0.1, 0.1, 0.7], [1, 1e-9, 1e-9, 1e-9]])
    found = TASK_KINDS["ordinal"].metrics(TaskRecord("t", "ordinal", LABELS), logits, np.array([1, 1, -100]))
    assert found == {"mean_absolute_error": 1.0, "accuracy": 0.5}


# -- registering ------------------------------------------------------------------------------------------------------


class Plain(Kind):
    """As little as a kind can be."""

    name = "plain"
    output_class = SequenceClassifierOutput

    def make_head(self, config: Any, task: Any) -> nn.Module:
        return nn.Identity()

    def answer(self, head: Any, hidden: Any, inputs: Any, vocabulary: Any) -> Any:
        return {"logits": hidden[:, 0]}

    def loss(self, task: Any, answer: Any, targets: Any) -> Any:
        return answer["logits"].sum()

    def metrics(self, task: Any, predictions: Any, labels: Any) -> dict[str, float]:
        return {}


class Nameless(Plain):
    name = ""


class Greedy(Plain):
    @dataclass(frozen=True)
    class Options:
        units: int = 3


class Unfinished(Kind):
    name = "unfinished"
    output_class = SequenceClassifierOutput


@pytest.mark.parametrize("name", ["sequence-classification", "ordinal"])
def test_a_name_is_given_once(ordinal: ModuleType, name: str) -> None:
    before = TASK_KINDS[name]
    kind = Plain()
    kind.name = name
    with pytest.raises(ValueError, match=rf"There is a kind of task '{name}' already, of the class .*\."):
        register_kind(kind)
    assert TASK_KINDS[name] is before


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Plain, TypeError, r"Register an object of it: register_kind\(Plain\(\)\)"),
        ("plain", TypeError, "a class derived from Kind, got 'plain'"),
        (Nameless(), ValueError, "Nameless.name is ''; expected the name of the kind"),
        (Greedy(), ValueError, "Greedy.Options has a field 'units', which every task has already"),
    ],
)
def test_what_can_not_be_a_kind_is_not_registered(kind: Any, error: type[Exception], message: str) -> None:
    before = dict(TASK_KINDS)
    with pytest.raises(error, match=message):
        register_kind(kind)
    assert dict(TASK_KINDS) == before


def test_a_kind_that_lacks_a_method_says_which() -> None:
    with pytest.raises(TypeError, match=r"abstract class Unfinished.*answer.*loss.*make_head.*metrics"):
        Unfinished()  # type: ignore[abstract]


def test_nobody_changes_the_registry_but_by_registering() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        TASK_KINDS["mine"] = Plain()  # type: ignore[index]


def test_the_documentation_shows_the_example_as_it_is() -> None:
    code = (EXAMPLES / "ordinal.py").read_text(encoding="utf-8").partition("\n\n# -- what recipes")[0]
    assert code in (EXAMPLES.parent / "kinds.md").read_text(encoding="utf-8")
