"""Reading a recipe: from YAML to a `Recipe`, with every check that needs no data."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ..configuration import AUTO, TaskError, check_task_name, split_version
from ..kinds.heads import POOLINGS
from ..model.preserving import BASE_TASK
from ..model.pruning import PruningConfig, said_of_the_other
from ..model.versions import versions_among
from ..network.growth import growth_of, growths
from ..trainer import check_head_lr_ratio
from .kinds import RECIPE_KINDS, lower_is_better
from .kinds.base import LOSS, RecipeKind, check_columns
from .kinds.settings import SettingError, Settings
from .plugins import load_installed_plugins, load_plugin
from .recipe import SMALLEST_VOCABULARY, TOKENIZERS, Recipe, RecipeError, Splits, TaskRecipe

DEFAULT_KIND = "sequence-classification"
# What a task of a recipe holds, but no person writes.
NO_KEYS = ("settings", "lower_is_better")


class _RecipeLoader(yaml.SafeLoader):
    """YAML without two traps: `1e-4` is a number, as people mean it, and a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_recipe(path: str | os.PathLike, output: str | os.PathLike | None = None) -> Recipe:
    """Read a recipe and check everything that can be checked without its data.

    Args:
        path: the YAML file.
        output: folder of the results, instead of the recipe's.

    Raises:
        RecipeError: naming what is wrong, where, and what is allowed.
    """
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} can not be read ({error}). Give the path of a YAML file.") from error
    try:
        values = yaml.load(source, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is no valid YAML: {error}") from error
    if values is None:
        raise RecipeError(f"The recipe {path} is empty. It needs at least `backbone:` and `tasks:`.")
    allowed = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("name", "folder", "source")]
    values = dict(_mapping(values, allowed, f"the recipe {path}"))
    for key in ("backbone", "tasks"):
        if not values.get(key):
            raise RecipeError(f"The recipe {path} has no `{key}:`. It needs at least `backbone:` and `tasks:`.")
    if not isinstance(values["tasks"], list):
        raise RecipeError(
            f"`tasks:` is {values['tasks']!r}, expected a list of tasks, each with `- name:` and `data:`."
        )
    folder = path.resolve().parent
    _load_plugins(values.get("plugins"), folder)
    _check_common(values, "the recipe")
    _check_backbone(values["backbone"], values.get("tokenizer"))
    values["tasks"] = [_read_task(task, number) for number, task in enumerate(values["tasks"], 1)]
    values["output"] = Path(output or values.get("output") or Path("runs") / path.stem)
    values["growth"] = values.get("growth") or ("copy" if isinstance(values["backbone"], str) else "fixed")
    recipe = Recipe(name=path.stem, folder=folder, source=source, **_given(values))
    _check_tasks(recipe)
    _check_growth(recipe)
    return recipe


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says; a key without a value means the default."""
    return {key: value for key, value in values.items() if value is not None}


def _mapping(values: Any, allowed: list[str], where: str) -> dict[str, Any]:
    """A section of the recipe, all of whose keys are allowed."""
    if not isinstance(values, dict):
        raise RecipeError(
            f"{where[0].upper()}{where[1:]} is {values!r}, expected keys and values, one `key: value` a line."
        )
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise RecipeError(f"Unknown key {key!r} in {where}.{hint} Allowed are: {', '.join(sorted(allowed))}.")
    return values


def _load_plugins(plugins: Any, folder: Path) -> None:
    """Import what registers kinds of task, before any task is read."""
    load_installed_plugins()
    if plugins is None:
        return
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        raise RecipeError(f"`plugins: {plugins!r}` in the recipe: expected a list of names of modules, or .py files.")
    for plugin in plugins:
        load_plugin(plugin, folder)


def _check_type(values: Mapping[str, Any], key: str, kind: type, expected: str, where: str) -> None:
    value = values.get(key)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RecipeError(f"`{key}: {value!r}` in {where}: expected {expected}.")


def _check_common(values: dict[str, Any], where: str) -> None:
    """Check the keys that a recipe and its tasks share, and a recipe's own simple ones."""
    _check_type(values, "output", str, "a text", where)
    _check_type(values, "preserve", bool, "true or false", where)
    for key, least in (("trunk_layers", 0), ("max_length", 3), ("seed", 0)):
        _check_type(values, key, int, f"a whole number >= {least}", where)
        if values.get(key) is not None and values[key] < least:
            raise RecipeError(f"`{key}: {values[key]}` in {where}: expected a whole number >= {least}.")
    layers = values.get("router_layers")
    if layers is not None and not (
        isinstance(layers, list) and layers and all(type(layer) is int for layer in layers)
    ):
        raise RecipeError(f"`router_layers: {layers!r}` in {where}: expected a list of numbers of layers.")
    if values.get("head_lr_ratio") is not None:
        try:
            check_head_lr_ratio(values["head_lr_ratio"])
        except ValueError as error:
            raise RecipeError(f"{where[0].upper()}{where[1:]}: {error}") from error
    if values.get("pooling") not in (None, *POOLINGS):
        raise RecipeError(f"`pooling: {values['pooling']!r}` in {where}: expected one of {list(POOLINGS)}.")
    if values.get("growth") not in (None, *growths()):
        raise RecipeError(f"`growth: {values['growth']!r}` in {where}: expected one of {growths()}.")
    transfer = values.get("forward_transfer")
    is_list = isinstance(transfer, list) and all(isinstance(name, str) for name in transfer)
    if transfer not in (None, "all", "none") and not is_list:
        raise RecipeError(f"`forward_transfer: {transfer!r}` in {where}: expected all, none or a list of task names.")
    _check_training(values.get("training") or {}, f"`training:` of {where}")
    _mapping(
        values.get("pruning") or {}, [f.name for f in dataclasses.fields(PruningConfig)], f"`pruning:` of {where}"
    )


def _check_training(values: Any, where: str) -> None:
    """Check the names of `TrainingArguments` fields, and that numbers are numbers: transformers checks only few."""
    hints = typing.get_type_hints(TrainingArguments)
    names = [f.name for f in dataclasses.fields(TrainingArguments) if f.init]
    for key, value in _mapping(values, names, where).items():
        if value is None:
            continue
        if key == "output_dir":
            raise RecipeError(
                f"`output_dir` in {where} is not yours to set: the recipe's `output:` says where all goes."
            )
        if key == "push_to_hub" and value:
            raise RecipeError(
                f"`push_to_hub: {value!r}` in {where}: a recipe's folder holds results, too, which are nobody else's. "
                "Leave it out, and push the model when it is learned: eidetic-hf push OUTPUT/model OWNER/NAME"
            )
        hint = hints[key]
        kinds = set(typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else [hint])
        is_number = bool(kinds & {int, float}) and kinds <= {int, float, bool, types.NoneType}
        if is_number and not isinstance(value, (int, float)):
            raise RecipeError(f"`{key}: {value!r}` in {where}: expected a number.")
        if kinds == {int} and not float(value).is_integer():
            raise RecipeError(f"`{key}: {value!r}` in {where}: expected a whole number.")


def _check_backbone(backbone: Any, tokenizer: Any) -> None:
    """Check where the backbone and its tokenizer come from."""
    if isinstance(backbone, dict):
        if not isinstance(backbone.get("model_type"), str):
            raise RecipeError(
                f"`backbone: {backbone!r}` has no `model_type:`. A configuration for a random backbone needs one, "
                "such as `backbone: {model_type: llama, hidden_size: 128, num_hidden_layers: 4}`."
            )
        if not tokenizer:
            raise RecipeError(
                "A random backbone needs a tokenizer: `tokenizer: {train: bpe, vocab_size: 2048}` or `tokenizer: "
                "{train: byte}` for one made from the recipe's own texts, or where one is."
            )
    elif not isinstance(backbone, str):
        raise RecipeError(
            f"`backbone: {backbone!r}` in the recipe: expected a folder, a Hub id or package:NAME/FOLDER, or a "
            "configuration, `{model_type: ...}`."
        )
    if tokenizer is None or isinstance(tokenizer, str):
        return
    where = "`tokenizer:` of the recipe"
    values = _mapping(tokenizer, ["train", "vocab_size"], where)
    if values.get("train") not in TOKENIZERS:
        raise RecipeError(f"`train: {values.get('train')!r}` in {where}: expected one of {list(TOKENIZERS)}.")
    _check_type(values, "vocab_size", int, "a whole number", where)
    if isinstance(backbone, str):
        raise RecipeError(
            f"{where[0]}{where[1:]} trains a new one, but the backbone {backbone} knows its own tokens only. Leave it "
            "out, or give a configuration as `backbone:`."
        )
    least = SMALLEST_VOCABULARY
    if values["train"] == "byte" and values.get("vocab_size") is not None:
        raise RecipeError(f"`vocab_size: {values['vocab_size']}` in {where}: one token per byte needs none.")
    if values["train"] == "bpe" and (values.get("vocab_size") or 0) < least:
        raise RecipeError(f"`vocab_size: {values.get('vocab_size')}` in {where}: expected at least {least}.")


def _read_task(values: Any, number: int) -> TaskRecipe:
    """One entry of `tasks:`."""
    name = values.get("name") if isinstance(values, dict) else None
    where = f"task '{name}'" if isinstance(name, str) else f"task {number} of the recipe"
    common = [f.name for f in dataclasses.fields(TaskRecipe) if f.name not in NO_KEYS]
    settings = [key for kind in RECIPE_KINDS.values() for key in kind.settings.names()]
    values = dict(_mapping(values, [*common, *dict.fromkeys(settings)], where))
    try:
        check_task_name(name)
    except TaskError as error:
        raise RecipeError(f"{where[0].upper()}{where[1:]}: `name:` {error}") from error
    _check_common(values, where)
    _check_data(values.get("data"), where)
    if values.get("type") not in (None, *RECIPE_KINDS):
        raise RecipeError(f"`type: {values['type']!r}` in {where}: expected one of {list(RECIPE_KINDS)}.")
    kind = RECIPE_KINDS[values.get("type") or DEFAULT_KIND]
    values["settings"] = _read_settings(
        {key: value for key, value in values.items() if key not in common}, kind, where
    )
    values = {key: value for key, value in values.items() if key in common or key == "settings"}
    if values.get("labels") is not None and not kind.has_labels:
        raise RecipeError(f"`labels:` in {where}: tasks of {kind.name} have none. Leave it out.")
    splits = _mapping(
        values.get("splits") or {}, [f.name for f in dataclasses.fields(Splits)], f"`splits:` of {where}"
    )
    for name in splits:
        _check_type(splits, name, str, "a name", f"`splits:` of {where}")
    values["splits"] = Splits(**_given(splits))
    section = f"`columns:` of {where}"
    columns = _given(_mapping(values.get("columns") or {}, list(kind.columns), section))
    check_columns(kind, columns, section)
    values["columns"] = kind.columns_of(columns, section)
    _check_labels(values.get("labels"), where)
    values["metric"] = _metric_of(values, kind, where)
    values["lower_is_better"] = values["metric"] in lower_is_better()
    task = TaskRecipe(**_given(values))
    kind.check(task, where)
    return task


def _check_data(data: Any, where: str) -> None:
    if not data or not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(
            f"{where[0].upper()}{where[1:]} has `data: {data!r}`; expected the keyword arguments of "
            "datasets.load_dataset, such as `data: {path: json, data_files: {train: train.jsonl, test: test.jsonl}}`."
        )
    if data.get("streaming"):
        raise RecipeError(f"`streaming: true` in `data:` of {where}: expected a data set of known size; leave it out.")


def _read_settings(values: Mapping[str, Any], kind: RecipeKind, where: str) -> Settings:
    """The keys that only some kinds of task have, as the settings of this one."""
    given = _given(values)
    for key in given:
        if key not in kind.settings.names():
            owners = [other.name for other in RECIPE_KINDS.values() if key in other.settings.names()]
            raise RecipeError(f"`{key}:` in {where} is for {' and '.join(owners)}; this is a task of {kind.name}.")
    try:
        return kind.settings(**given)
    except SettingError as error:
        raise RecipeError(f"`{error.key}: {error.value!r}` in {where}: expected {error.expected}.") from error
    except ValueError as error:
        raise RecipeError(f"{where[0].upper()}{where[1:]}: {error}") from error


def _metric_of(values: dict[str, Any], kind: RecipeKind, where: str) -> str:
    """The metric of a task: the one given, if it fits, or the usual one."""
    settings, metric = values["settings"], values.get("metric")
    built_in = (*kind.metrics_of(settings), LOSS)
    _check_type(values, "metric", str, "the name of a metric", where)
    if metric is None:
        return kind.default_metric(settings, values["columns"])
    known = {LOSS, *(name for other in RECIPE_KINDS.values() for name in other.metrics)}
    if metric in built_in or (kind.has_modules and metric not in known):
        return metric
    raise RecipeError(
        f"`metric: {metric}` in {where} does not fit {kind.measured_by(settings)}; its built-in metrics are "
        f"{list(built_in)}."
    )


def _check_labels(labels: Any, where: str) -> None:
    if labels is None:
        return
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise RecipeError(
            f"`labels: {labels!r}` in {where}: expected a list of texts. Put quotes around labels that YAML reads as "
            "something else, such as 'yes', 'no' and '1'."
        )
    if len(set(labels)) != len(labels):
        raise RecipeError(f"`labels: {labels!r}` in {where}: every label may be given once.")


def _check_tasks(recipe: Recipe) -> None:
    """Check what takes more than one task, and the values that only `PruningConfig` and `TrainingArguments` know."""
    names = [task.name for task in recipe.tasks]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"The recipe has {names.count(name)} tasks named '{name}'. Give each a name of its own.")
    if recipe.preserve and (recipe.growth != "copy" or BASE_TASK in names):
        raise RecipeError(
            f"`preserve: true` in the recipe: expected `growth: copy`, got {recipe.growth!r}, and no task that is "
            f"named '{BASE_TASK}', which the backbone itself will be."
        )
    for number, name in enumerate(names):
        of, version = split_version(name)
        if version > 1 and not versions_among(names[:number], of):
            raise RecipeError(
                f"The task '{name}' would be a version of '{of}', which is no task before it; those are "
                f"{names[:number]}."
            )
    unknown = (
        [name for name in recipe.forward_transfer if name not in names]
        if recipe.forward_transfer not in ("all", "none")
        else []
    )
    if unknown:
        raise RecipeError(f"`forward_transfer:` names {unknown[0]!r}; the recipe's tasks are {names}.")
    for number, task in enumerate(recipe.tasks):
        for ancestor in task.forward_transfer if isinstance(task.forward_transfer, list) else []:
            if ancestor not in names[:number]:
                raise RecipeError(
                    f"`forward_transfer:` of task '{task.name}' names {ancestor!r}, which is no task before it; those "
                    f"are {names[:number]}."
                )
        if task.based_on is not None and (recipe.growth != "copy" or task.based_on not in (AUTO, *names[:number])):
            raise RecipeError(
                f"`based_on: {task.based_on}` of task '{task.name}': expected a task before it, of {names[:number]}, "
                "or auto, in a recipe with `growth: copy`."
            )
        recipe.pruning_config(task)
        RECIPE_KINDS[task.type].check_training(task, recipe.training_arguments(task))


def _check_growth(recipe: Recipe) -> None:
    """Refuse what says something in the other growth alone."""
    copies = growth_of(recipe.growth).copies
    if copies and recipe.forward_transfer != "all":
        raise RecipeError(
            f"`forward_transfer: {recipe.forward_transfer!r}` in the recipe is for `growth: fixed`. Write that into "
            "the recipe, or `based_on:` into the tasks that start from another."
        )
    for task in recipe.tasks:
        if copies and task.forward_transfer not in (None, "none"):
            raise RecipeError(
                f"`forward_transfer: {task.forward_transfer!r}` of task '{task.name}' is for `growth: fixed`. Write "
                "`based_on:`, and the one task that it starts from; or `growth: fixed` into the recipe."
            )
        pruning = recipe.pruning_config(task)
        setting = said_of_the_other(pruning, copies)
        if setting is not None:
            raise RecipeError(
                f"Task '{task.name}' has `pruning: {{{setting}: {getattr(pruning, setting)!r}}}`, which says nothing "
                f"with `growth: {recipe.growth}`. Leave it out, or write `growth: {'fixed' if copies else 'copy'}` "
                "into the recipe."
            )
