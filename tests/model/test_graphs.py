"""Graphs of torch.compile and torch.export, of a model that has not answered anything yet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.backbones import BERT_LIKE
from support.data import make_batch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig

from eidetic_hf import EideticModel, TaskError

pytestmark = pytest.mark.slow  # seconds for each graph
BATCH = make_batch()


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a task that reads its own units, and one that masks some of the other's out."""
    backbone = AutoModel.from_config(BertConfig(**{**BERT_LIKE, "num_hidden_layers": 2}))
    model, folder = (
        EideticModel.from_backbone(backbone, trunk_layers=1, growth="fixed"),
        tmp_path_factory.mktemp("graphs"),
    )
    for number, (name, transfer) in enumerate({"alone": "none", "masked": "all"}.items()):
        model.add_task(name, labels=["x", "y"], forward_transfer=transfer)
        model.begin_task(name)
        for group in model.network.unit_groups():
            group.kept()[::2] = False
            group.kept("_ancestors")[1::3] = False
            group.forget_learning_views()
        ids = torch.randint(10 + 20 * number, 15 + 20 * number, (8, 5))
        model.commit_task(router_sums=model.router_sums([{"input_ids": ids, "labels": torch.zeros(8).long()}]))
    model.save_pretrained(folder)
    return folder


def moved(folder: Path) -> EideticModel:
    return EideticModel.from_pretrained(folder, dtype="float64")


def copied(folder: Path) -> EideticModel:
    return copy.deepcopy(EideticModel.from_pretrained(folder))


def in_new_thread(function: Callable[[], Tensor]) -> Tensor:
    """What a function returns in a thread that has never run a model."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.no_grad()(function)).result()


@pytest.mark.parametrize("load", [EideticModel.from_pretrained, moved, copied])
@torch.no_grad()
def test_a_task_that_has_not_run_yet_is_one_full_graph_in_any_thread(load: Callable, folder: Path) -> None:
    expected = load(folder)(**BATCH, task="masked").logits
    model = load(folder)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(in_new_thread(lambda: compiled(**BATCH, task="masked").logits), expected)
    assert torch.equal(model(**BATCH, task="masked").logits, expected)  # and the graph leaves nothing behind


@torch.no_grad()
def test_a_router_that_has_not_run_yet_can_be_compiled(folder: Path) -> None:
    expected = EideticModel.from_pretrained(folder).route(**BATCH)
    routed = torch.compile(EideticModel.from_pretrained(folder).route, backend="eager")(**BATCH)
    assert routed.tasks == expected.tasks and torch.equal(routed.router_scores, expected.router_scores)


class OfOneTask(nn.Module):
    def __init__(self, model: EideticModel, task: str | None) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, task=self.task).logits


@torch.no_grad()
def test_a_task_that_has_not_run_yet_can_be_exported(folder: Path) -> None:
    task = "masked"
    expected = EideticModel.from_pretrained(folder)(**BATCH, task=task).logits
    model = EideticModel.from_pretrained(folder)
    exported = torch.export.export(OfOneTask(model, task), (), BATCH, strict=False).module()
    assert torch.equal(exported(**BATCH), expected)
    assert torch.equal(model(**BATCH, task=task).logits, expected)
    assert model.verify()


def test_a_router_is_not_exported_and_says_what_to_do(folder: Path) -> None:
    with pytest.raises(TaskError, match=r"A graph of one task can be exported, .* Pass task='<name>'"):
        torch.export.export(OfOneTask(EideticModel.from_pretrained(folder), None), (), BATCH, strict=False)


def test_a_batch_of_several_tasks_that_copy_units_is_one_graph(tmp_path: Path) -> None:
    backbone = AutoModel.from_config(BertConfig(**{**BERT_LIKE, "num_hidden_layers": 2}))
    model = EideticModel.from_backbone(backbone, trunk_layers=1, growth="copy")
    for name, parent in (("first", None), ("second", "first")):
        model.add_task(name, labels=["x", "y"], based_on=parent)
        model.begin_task(name)
        model.commit_task()
    model.save_pretrained(tmp_path)
    names = ["first", "second", "first", "second", "second"]
    with torch.no_grad():
        expected = model(**BATCH, task=names).logits
        cold = EideticModel.from_pretrained(tmp_path)
        found = torch.compile(cold, backend="eager", fullgraph=True)(**BATCH, task=names).logits
    assert torch.equal(found, expected)
