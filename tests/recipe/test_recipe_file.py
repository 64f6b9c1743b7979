"""Reading recipes: what is understood, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.recipe_files import (  # noqa: F401
    changed,
    private_dataset_cache,
    refusal,
    run,
    write_recipe,
    write_task,
)

from eidetic_hf.recipe.kinds.questions import QuestionSettings
from eidetic_hf.recipe.recipe_file import read_recipe


def test_columns_have_the_usual_names_of_the_kind_unless_others_are_given(tmp_path: Path) -> None:
    tasks = [
        write_task(tmp_path, "a", type="question-answering", columns={"context": "passage"}),
        write_task(tmp_path, "b", type="causal-lm"),
        write_task(tmp_path, "c", type="causal-lm", columns={"answer": "reply"}, template="Q: {prompt} A: "),
        write_task(tmp_path, "d", type="multiple-choice", columns={"choices": ["x", "y"]}, max_length=9),
    ]
    recipe = read_recipe(write_recipe(tmp_path, tasks))
    assert [task.columns for task in recipe.tasks] == [
        {"question": "question", "context": "passage", "answers": "answers"},
        {"text": "text"},
        {"prompt": "prompt", "answer": "reply"},
        {"text": "text", "choices": ["x", "y"], "label": "label"},
    ]
    assert [recipe.length_of(task) for task in recipe.tasks] == [16, 16, 16, 9]
    assert recipe.tasks[0].settings == QuestionSettings(stride=None, max_answer_length=30)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text().replace("learning_rate: 0.005", "learning_rate: 5e-3"))
    assert read_recipe(path).training["learning_rate"] == 0.005


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"trunk": 1}, ["Unknown key 'trunk' in the recipe", "Did you mean 'trunk_layers'?"]),
        ({"backbone": None}, ["has no `backbone:`"]),
        ({"tasks": []}, ["has no `tasks:`"]),
        ({"tasks": {"first": {}}}, ["`tasks:` is {'first': {}}, expected a list"]),
        ({"trunk_layers": "one"}, ["`trunk_layers: 'one'` in the recipe", "whole number"]),
        ({"trunk_layers": 9}, ["trunk_layers=9", "3 layers"]),
        ({"max_length": 0}, ["`max_length: 0`", ">= 3"]),
        ({"max_length": 1000}, ["`max_length: 1000`", "reads up to 66 tokens"]),
        ({"pooling": "max"}, ["`pooling: 'max'`", "['mean', 'first', 'last']"]),
        ({"head_lr_ratio": 0}, ["The recipe: head_lr_ratio=0", "above 0"]),
        ({"head_lr_ratio": "high"}, ["The recipe: head_lr_ratio='high'", "above 0"]),
        ({"growth": "wild"}, ["`growth: 'wild'` in the recipe", "['fixed', 'copy']"]),
        ({"forward_transfer": ["third"]}, ["names 'third'", "['first', 'second']"]),
        ({"training": {"learning_rat": 1}}, ["'learning_rat' in `training:` of the recipe", "'learning_rate'"]),
        ({"training": {"learning_rate": "fast"}}, ["`learning_rate: 'fast'`", "expected a number"]),
        ({"training": {"max_steps": 1.5}}, ["`max_steps: 1.5`", "whole number"]),
        ({"training": {"eval_strategy": "sometimes"}}, ["Task 'first', training: sometimes is not a valid"]),
        ({"training": {"output_dir": "x"}}, ["`output_dir`", "`output:`"]),
        ({"training": {"push_to_hub": True}}, ["`push_to_hub: True`", "eidetic-hf push OUTPUT/model OWNER/NAME"]),
        ({"pruning": {"kept": 1}}, ["'kept' in `pruning:` of the recipe", "'keep'"]),
        ({"pruning": {"keep": 7}}, ["Task 'first', pruning: PruningConfig(keep=7)", "(0, 1]"]),
        ({"backbone": "./nowhere"}, ["there is no folder", "nowhere"]),
        ({"backbone": "package:no_such_package/model"}, ["'no_such_package'", "pip install no-such-package"]),
        ({"backbone": "package:json/model"}, ["'json' has no folder 'model'"]),
        ({"backbone": ["a"]}, ["`backbone: ['a']`", "{model_type: ...}"]),
        ({"backbone": {"hidden_size": 3}}, ["has no `model_type:`"]),
        ({"backbone": {"model_type": "bert"}}, ["needs a tokenizer", "{train: bpe, vocab_size: 2048}"]),
        ({"tokenizer": {"train": "byte"}}, ["the backbone backbone knows its own tokens only"]),
        (
            {"backbone": {"model_type": "bert"}, "tokenizer": {"train": "words"}},
            ["`train: 'words'`", "['bpe', 'byte']"],
        ),
        ({"backbone": {"model_type": "bert"}, "tokenizer": {"train": "bpe"}}, ["`vocab_size: None`", "at least 300"]),
        (
            {"backbone": {"model_type": "bert"}, "tokenizer": {"train": "byte", "vocab_size": 9}},
            ["`vocab_size: 9`", "one token per byte needs none"],
        ),
    ],
)
def test_a_wrong_value_in_the_recipe_is_named(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    path = changed(write_recipe(tmp_path), **values)
    with pytest.raises(ValueError) as error:
        run(path)
    for part in parts:
        assert part in str(error.value)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"nam": "x"}, ["Unknown key 'nam' in task 'first'"]),
        ({"name": "a b"}, ["'a b' cannot name a task"]),
        ({"head_lr_ratio": -2}, ["Task 'first': head_lr_ratio=-2", "above 0"]),
        ({"name": None}, ["Task 1 of the recipe", "None cannot name a task"]),
        ({"name": "second"}, ["2 tasks named 'second'"]),
        ({"data": None}, ["Task 'first' has `data: None`", "datasets.load_dataset"]),
        ({"type": "translation"}, ["`type: 'translation'` in task 'first'", "sequence-classification"]),
        ({"problem_type": "many"}, ["`problem_type: 'many'`"]),
        ({"columns": {"txt": "a"}}, ["'txt' in `columns:` of task 'first'"]),
        ({"columns": {"text": "body"}}, ["no column 'body'", "['text', 'label']", "columns: {text: NAME}"]),
        ({"columns": {"text_pair": "other"}}, ["no column 'other'", "{text_pair: NAME}"]),
        ({"splits": {"test": "exam"}}, ["no split 'exam' for test", "['train', 'validation', 'test']"]),
        ({"labels": [True, False]}, ["`labels: [True, False]`", "quotes"]),
        ({"labels": ["red", "red"]}, ["every label may be given once"]),
        ({"labels": ["red", "green"]}, ["has the label 'blue'", "['red', 'green']"]),
        ({"metric": "pearson"}, ["`metric: pearson`", "['accuracy', 'f1', 'loss']"]),
        ({"metric": "no_such_metric"}, ["`metric: no_such_metric`", "could not be loaded", "accuracy, f1"]),
        ({"problem_type": "regression"}, ["the label ", "regression expects 1 finite number"]),
        ({"problem_type": "multi_label_classification"}, ["expected lists of label names"]),
        ({"based_on": "second"}, ["`based_on: second` of task", "with `growth: copy`"]),
        ({"forward_transfer": ["second"]}, ["names 'second', which is no task before it"]),
        ({"stride": 3}, ["`stride:` in task 'first' is for question-answering", "sequence-classification"]),
        ({"type": "question-answering", "stride": -1}, ["`stride: -1`", "a whole number of tokens >= 0"]),
        ({"type": "question-answering", "stride": True}, ["`stride: True`"]),
        ({"type": "masked-lm", "mlm_probability": 15}, ["`mlm_probability: 15`", "a share between 0 and 1"]),
        ({"type": "multiple-choice", "choice_marks": ["A"]}, ["`choice_marks: ['A']`", "a list of two or more texts"]),
        ({"type": "multiple-choice", "columns": {"choices": ["a"]}}, ["`choices: ['a']`", "a list of two or more"]),
        ({"type": "causal-lm", "template": "Q"}, ["`template: 'Q'`", "a text with {prompt} in it"]),
        ({"type": "causal-lm", "template": "{prompt}"}, ["`template:` in task 'first' is for prompts"]),
        ({"type": "causal-lm", "columns": {"prompt": "a", "text": "b"}}, ["prompts and a running text"]),
        ({"type": "causal-lm", "metric": "exact_match"}, ["`metric: exact_match`", "no right continuation"]),
        ({"type": "causal-lm", "score_written": 3}, ["`score_written: 3`", "no right continuation"]),
        ({"type": "seq2seq-lm", "score_written": -1}, ["`score_written: -1`", "a whole number of texts >= 0"]),
        ({"type": "seq2seq-lm", "metric": "f1", "score_written": 0}, ["`score_written: 0`", "`metric: f1` needs"]),
        ({"type": "causal-lm", "labels": ["a", "b"]}, ["`labels:` in task 'first': tasks of causal-lm have none"]),
        ({"type": "masked-lm", "problem_type": "regression"}, ["`problem_type:` in task 'first'"]),
        ({"type": "masked-lm", "metric": "f1"}, ["`type: masked-lm`", "['perplexity', 'accuracy', 'loss']"]),
        ({"type": "feature-extraction", "metric": "pearson"}, ["needs scores", "`columns: {score: NAME}`"]),
        ({"max_length": 67}, ["`max_length: 67` of task 'first'", "reads up to 66 tokens"]),
        (
            {"type": "question-answering", "training": {"train_sampling_strategy": "group_by_length"}},
            ["Task 'first', training: grouping by length would shuffle the windows"],
        ),
        ({"data": {"path": "json", "data_files": "nowhere.jsonl"}}, ["could not be loaded", "nowhere.jsonl"]),
    ],
)
def test_a_wrong_value_in_a_task_is_named(tmp_path: Path, values: dict[str, Any], parts: list[str]) -> None:
    path = write_recipe(tmp_path)
    first, second = yaml.safe_load(path.read_text())["tasks"]
    message = refusal(changed(path, tasks=[{**first, **values}, second]))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("tasks: [", "no valid YAML"),
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("just a line", "expected keys and values"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "colors.yaml").write_text(text)
    assert part in refusal(tmp_path / "colors.yaml")


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "can not be read" in refusal(tmp_path / "nowhere.yaml")


def test_what_says_something_in_the_other_growth_alone_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    first, second = yaml.safe_load(path.read_text())["tasks"]
    assert read_recipe(path).growth == "fixed"
    assert read_recipe(changed(path, growth=None, pruning={"own": 0.1})).growth == "copy"
    for values, part in (
        ({"pruning": {"keep": 0.3}}, "`pruning: {keep: 0.3}`, which says nothing with `growth: copy`"),
        (
            {"pruning": {"see": 0.5}, "growth": "fixed"},
            "`pruning: {see: 0.5}`, which says nothing with `growth: fixed`",
        ),
        ({"pruning": {}, "forward_transfer": "none", "growth": "copy"}, "in the recipe is for `growth: fixed`"),
        (
            {"forward_transfer": None, "tasks": [first, {**second, "forward_transfer": ["first"]}]},
            "of task 'second' is for `growth: fixed`. Write `based_on:`",
        ),
    ):
        assert part in refusal(changed(path, **values))
