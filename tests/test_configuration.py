"""Records of tasks and the configuration that holds them: plain values, found by name."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import threading
from pathlib import Path

import pytest
from transformers import BertConfig

import eidetic_hf
from eidetic_hf import EideticConfig, EideticModel
from eidetic_hf.configuration import TaskError, TaskRecord
from eidetic_hf.kinds import TASK_KINDS
from eidetic_hf.views import task_key, task_name


def records(*names: str) -> list[TaskRecord]:
    return [TaskRecord(name) for name in names]


def test_an_option_reads_as_an_attribute_and_what_is_none_says_what_there_is() -> None:
    record = TaskRecord("news", labels=["a", "b"], options={"pooling": "first", "deep": [1, 2]})
    assert record.pooling == "first"
    assert record.deep == [1, 2]
    with pytest.raises(
        AttributeError, match=r"'news' \(sequence-classification\) has no 'poling'; its options are \['p"
    ):
        _ = record.poling


def test_a_record_survives_copying_and_pickling() -> None:
    record = TaskRecord("news", labels=["a", "b"], options={"pooling": "first"}, units={"layers.1.heads": 3})
    for again in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert again == record
        assert again.pooling == "first"
    assert copy.deepcopy(record).options is not record.options
    with pytest.raises(AttributeError, match="__nothing__"):
        _ = TaskRecord.__new__(TaskRecord).__nothing__


def test_a_record_is_one_flat_object_in_json() -> None:
    record = TaskRecord("news", labels=["a", "b"], options={"pooling": "first", "own": None}, vocab_size=44)
    values = record.to_dict()
    assert "options" not in values
    assert (values["pooling"], values["own"], values["vocab_size"], values["name"]) == ("first", None, 44, "news")
    assert TaskRecord.from_dict(json.loads(json.dumps(values))) == record


def test_an_option_never_takes_the_place_of_a_field() -> None:
    record = TaskRecord("news", labels=["a", "b"], options={"labels": ["other"]})
    assert record.labels == record.to_dict()["labels"] == ["a", "b"]


def test_records_are_found_by_name_whatever_was_done_to_the_list() -> None:
    config = EideticConfig(base_config=BertConfig(), tasks=records("a", "b", "c"))
    assert [config.task(name).name for name in "abc"] == ["a", "b", "c"]
    assert config.task("d") is None
    config.tasks.append(TaskRecord("d"))
    assert config.task("d") is config.tasks[3]
    config.tasks.pop(0)
    assert config.task("a") is None
    assert config.task("c") is config.tasks[1]
    config.tasks[0] = TaskRecord("e")
    assert config.task("b") is None
    assert config.task("e") is config.tasks[0]
    config.tasks = records("c", "a")
    assert (config.task("a"), config.task("c"), config.task("d")) == (config.tasks[1], config.tasks[0], None)
    other = copy.copy(config)
    other.tasks = records("x", "a", "c")
    assert (config.task("a"), other.task("a")) == (config.tasks[1], other.tasks[1])


def test_a_configuration_in_use_is_never_seen_without_its_tasks() -> None:
    config = EideticConfig(base_config=BertConfig(), tasks=records(*(f"t{i}" for i in range(20))))
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(len(config.tasks))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(20):
            values = config.to_dict()
    finally:
        stop.set()
        thread.join()
    assert seen == {20}
    assert [task["name"] for task in values["tasks"]] == [f"t{i}" for i in range(20)]
    assert "_positions" not in values
    assert EideticConfig.from_dict(values).tasks == config.tasks


def test_labels_in_a_configuration_are_those_that_were_written(trained: EideticModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    config = EideticConfig.from_pretrained(tmp_path)
    assert config.id2label == {n: f"{task}/{label}" for n, (task, label) in enumerate(
        (task, label) for task in ("first", "second") for label in "xyz"
    )}  # fmt: skip
    assert config.label2id["second/x"] == 3


def test_the_configuration_names_no_kind_but_the_one_of_records_that_name_none() -> None:
    tree = ast.parse(Path(eidetic_hf.configuration.__file__).read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if text in TASK_KINDS] == ["sequence-classification"]


@pytest.mark.parametrize("name", ["agnews", "tags.v2", "_a-B.c"])
def test_a_key_says_which_task_it_is_of(name: str) -> None:
    assert task_name(task_key(name)) == name
    assert task_name("learning") is None


@pytest.mark.parametrize("read", ["every", ["b"], ["a", 1], None, {"a": 1}, [["a"]]])
def test_ancestors_are_tasks_that_come_before(read: object) -> None:
    tasks = [{"name": "a"}, {"name": "b", "ancestors": read}]
    with pytest.raises(
        TaskError, match=r"The task 'b' has ancestors=.*; expected 'all', or names of tasks.*: \['a'\]"
    ):
        EideticConfig(tasks=tasks)


def test_a_task_that_reads_all_before_it_does_not_list_them_in_json() -> None:
    tasks = [{"name": "a"}, {"name": "b", "ancestors": ["a"]}, {"name": "c", "ancestors": ["b"]}, {"name": "d"}]
    config = EideticConfig(tasks=[*tasks, {"name": "e", "ancestors": ["a", "b", "c", "d"]}])
    written = config.to_dict()["tasks"]
    assert [task["ancestors"] for task in written] == [[], "all", ["b"], [], "all"]
    assert EideticConfig(tasks=written).tasks == config.tasks
    assert config.tasks[1].ancestors == ["a"], "the record itself still lists them"
