"""Settings of a kind of task: their values by default, and those that are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.recipe_files import private_dataset_cache, write_recipe, write_task  # noqa: F401

from eidetic_hf.recipe.kinds import RECIPE_KINDS
from eidetic_hf.recipe.kinds.language import CausalSettings, MaskedSettings
from eidetic_hf.recipe.kinds.questions import QuestionSettings
from eidetic_hf.recipe.kinds.settings import SettingError, Settings
from eidetic_hf.recipe.recipe import RecipeError, TaskRecipe
from eidetic_hf.recipe.recipe_file import read_recipe


def test_what_a_recipe_says_of_a_kind_is_in_the_settings_of_its_class(tmp_path: Path) -> None:
    tasks = [
        write_task(tmp_path, "a", type="question-answering", stride=3),
        write_task(tmp_path, "b", type="masked-lm", mlm_probability=0.3, own_output_embeddings=True),
        write_task(tmp_path, "c", type="token-classification"),
    ]
    recipe = read_recipe(write_recipe(tmp_path, tasks))
    assert [task.settings for task in recipe.tasks] == [
        QuestionSettings(stride=3, max_answer_length=30),
        MaskedSettings(mlm_probability=0.3, own_output_embeddings=True),
        Settings(),
    ]


def test_no_setting_has_the_name_of_a_key_that_every_task_has() -> None:
    common = {field.name for field in dataclasses.fields(TaskRecipe)}
    for kind in RECIPE_KINDS.values():
        assert not common & set(kind.settings.names()), kind.name


@pytest.mark.parametrize(
    ("make", "key", "expected"),
    [
        (lambda: QuestionSettings(stride=-1), "stride", "a whole number of tokens >= 0"),
        (lambda: QuestionSettings(stride=1.5), "stride", "a whole number of tokens >= 0"),
        (lambda: QuestionSettings(max_answer_length=True), "max_answer_length", "a whole number of tokens >= 1"),
        (lambda: CausalSettings(template="Q"), "template", "a text with {prompt} in it"),
        (lambda: CausalSettings(own_output_embeddings="yes"), "own_output_embeddings", "true or false"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_where_it_is_made(make: Any, key: str, expected: str) -> None:
    with pytest.raises(SettingError) as error:
        make()
    assert (error.value.key, error.value.expected) == (key, expected)


def test_a_setting_of_other_kinds_is_refused_with_their_names(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, [write_task(tmp_path, "a", score_written=3)])
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert str(error.value) == (
        "`score_written:` in task 'a' is for causal-lm and seq2seq-lm; this is a task of sequence-classification."
    )
