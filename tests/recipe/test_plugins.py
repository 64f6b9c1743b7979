"""Kinds of task of a user's own: from a recipe to the command line, and how plugins are found."""

from __future__ import annotations

import importlib.metadata
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.recipe_files import private_dataset_cache, write_recipe, write_task  # noqa: F401
from typer.testing import CliRunner, Result

from eidetic_hf import kinds
from eidetic_hf.cli import app
from eidetic_hf.recipe import kinds as recipe_kinds
from eidetic_hf.recipe.kinds import RECIPE_KINDS, recipe_kind_of, register_recipe_kind
from eidetic_hf.recipe.plugins import load_installed_plugins, load_plugin
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe

# Both sides of a kind: the first is imported by the second.
PLUGINS = (
    Path(__file__).parents[2] / "docs" / "examples" / "ordinal.py",
    Path(__file__).parents[2] / "docs" / "examples" / "ordinal_recipe.py",
)
STARS = ["one", "two", "three", "four"]


def call(*arguments: object, **kwargs: Any) -> Result:
    plugins = [part for path in PLUGINS for part in ("--plugin", str(path))]
    return CliRunner().invoke(app, [*plugins, *map(str, arguments)], env={"COLUMNS": "200"}, **kwargs)


def star_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Texts with as many of the words `w90` as they have stars, and others."""
    source, found = random.Random(seed), []
    for _ in range(rows):
        stars = source.randrange(4)
        words = ["w90"] * (2 * stars) + ["w80"] * (6 - 2 * stars) + [f"w{source.randrange(60)}"]
        source.shuffle(words)
        found.append({"text": " ".join(words), "label": STARS[stars]})
    return found


@pytest.fixture(scope="module", autouse=True)
def forgotten_afterwards() -> Iterator[None]:
    """Leave the other tests of this process without the example's kind."""
    yield
    for module in ("ordinal", "ordinal_recipe"):
        sys.modules.pop(module, None)
    kinds._KINDS.pop("ordinal", None)
    recipe_kinds._REGISTERED.pop("ordinal", None)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:  # noqa: F811
    """Folder of a recipe with a task of a user's kind and one of the package's, that was learned by the command."""
    folder = tmp_path_factory.mktemp("rated")
    rows = {"train": star_rows(0, 96), "validation": star_rows(1, 12), "test": star_rows(2, 24)}
    stars = write_task(folder, "stars", rows, type="ordinal", labels=STARS, training={"max_steps": 72})
    recipe = write_recipe(folder, [stars, write_task(folder, "color")], plugins=[str(path) for path in PLUGINS])
    result = call("train", recipe)
    assert result.exit_code == 0, result.output
    return folder


def results_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "output" / "results.json").read_text())


def test_a_users_kind_is_learned_by_its_own_metric_and_not_lost(rated: Path) -> None:
    results = results_in(rated)
    assert results["metrics"] == {"stars": "mean_absolute_error", "color": "accuracy"}
    first, second = (row["scores"]["stars"] for row in results["matrix"])
    assert first == second <= 0.5, "a guess at the middle is 1 off"
    assert results["verify"]["ok"] is True
    assert results["averaged_tasks"] == ["color"], "an error is no share"
    assert results["by_metric"]["mean_absolute_error"]["average"] == second
    assert (results["tasks"][0]["type"], results["tasks"][0]["labels"]) == ("ordinal", STARS)


def test_evaluate_finds_the_scores_of_a_users_kind(rated: Path) -> None:
    result = call("evaluate", rated / "output" / "model", rated / "colors.yaml", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["oracle"] == results_in(rated)["steps"][-1]["scores"]
    assert found["routing"]["scores"]["stars"]["oracle_accuracy"] == found["oracle"]["stars"]["accuracy"]


def test_predict_answers_as_a_users_kind_does(rated: Path) -> None:
    rows = star_rows(5, 8)
    texts = [row["text"] for row in rows]
    result = call("predict", rated / "output" / "model", "--task", "stars", *texts)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for line in lines:
        assert list(line) == ["text", "task", "label", "place", "scores"]
        assert STARS[line["place"]] == line["label"] and list(line["scores"]) == STARS
    off = [abs(line["place"] - STARS.index(row["label"])) for line, row in zip(lines, rows, strict=True)]
    assert sum(off) / len(off) <= 0.5
    pair = json.loads(call("predict", rated / "output" / "model", "--task", "stars", "a", "--text-pair", "b").stdout)
    assert "'stars' (ordinal) reads one text, and there are two" in pair["error"]


def test_verify_and_report_know_a_users_kind(rated: Path) -> None:
    result = call("verify", "--logits", rated / "output" / "model")
    assert result.exit_code == 0 and "stars: weights and logits equal bit for bit" in result.stdout
    (rated / "output" / "report.html").unlink()
    result = call("report", rated / "output")
    assert result.exit_code == 0, result.output
    assert "mean_absolute_error" in json.loads((rated / "output" / "report.json").read_text())["lower_is_better"]


def test_a_model_with_a_users_kind_says_what_is_missing_without_the_plugin(rated: Path) -> None:
    command = [sys.executable, "-m", "eidetic_hf", "predict", str(rated / "output" / "model"), "w90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "'ordinal'" in done.stderr and done.stdout == ""


def test_labels_without_an_order_are_refused_by_the_users_kind(tmp_path: Path, rated: Path) -> None:
    with pytest.raises(RecipeError, match=r"task 'stars' has ordered labels\. List them with `labels:`"):
        read_recipe(write_recipe(tmp_path, [write_task(tmp_path, "stars", type="ordinal")]))
    with pytest.raises(
        RecipeError, match=r"does not fit `type: ordinal`; .*\['mean_absolute_error', 'accuracy', 'loss'"
    ):
        read_recipe(
            write_recipe(tmp_path, [write_task(tmp_path, "stars", type="ordinal", labels=STARS, metric="mse")])
        )


# -- registering ------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_is_an_error_and_an_unknown_one_too() -> None:
    with pytest.raises(ValueError, match="There is a recipe kind 'masked-lm' already, MaskedRecipe"):
        register_recipe_kind(RECIPE_KINDS["masked-lm"])
    with pytest.raises(RecipeError, match="'masked' is no kind of task that recipes know; there are"):
        recipe_kind_of("masked")
    with pytest.raises(TypeError):
        RECIPE_KINDS["masked"] = RECIPE_KINDS["masked-lm"]  # type: ignore[index]


# -- how plugins are found --------------------------------------------------------------------------------------------


def test_a_plugin_file_is_imported_once_and_can_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "plugin_neighbour.py").write_text("count = []\n")
    (tmp_path / "plugin_with_neighbour.py").write_text("import plugin_neighbour\nplugin_neighbour.count.append(1)\n")
    first = load_plugin("plugin_with_neighbour.py", tmp_path)
    assert load_plugin(str(tmp_path / "plugin_with_neighbour.py"), Path("/")) is first
    assert load_plugin("plugin_with_neighbour", tmp_path) is first, "its folder is one where modules are looked for"
    assert first.plugin_neighbour.count == [1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.py", None, "There is no plugin "),
        ("no.such.module", None, "The plugin no.such.module can not be imported (ModuleNotFoundError"),
        ("json.py", "", "has the name of another module"),
        ("plugin_that_fails.py", "1 / 0", "can not be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_plugin_that_can_not_be_imported_is_named(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RecipeError) as error:
        read_recipe(write_recipe(tmp_path, plugins=[name]))
    assert message in str(error.value)
    plugin = str(tmp_path / name) if name.endswith(".py") else name
    result = CliRunner().invoke(app, ["--plugin", plugin, "verify", "x"])
    assert result.exit_code == 2 and message in result.stderr


def test_plugins_are_a_list_of_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`plugins: 'a\.py'` in the recipe: expected a list of names of modules"):
        read_recipe(write_recipe(tmp_path, plugins="a.py"))


def test_installed_packages_offer_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_installed.py").write_text("loaded = True\n")
    info = tmp_path / "some_kinds-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: some-kinds\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[eidetic_hf.kinds]\nordered = plugin_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [entry.name for entry in importlib.metadata.entry_points(group="eidetic_hf.kinds")] == ["ordered"]
    load_installed_plugins()
    assert sys.modules["plugin_installed"].loaded is True
    (info / "entry_points.txt").write_text("[eidetic_hf.kinds]\nordered = plugin_not_there\n")
    with pytest.raises(RecipeError, match="'ordered' of the installed package 'some-kinds' can not be imported"):
        read_recipe(write_recipe(tmp_path / "recipe"))
