"""The house keeps its shape: what may import what, what may derive from what, what the docs have to name.

Where a test here fails, the message says which line, and CONTRIBUTING.md where that line belongs.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from support.source import (
    PACKAGE,
    ROOT,
    bases,
    classes,
    defined,
    depth,
    descends,
    find_class,
    imports,
    is_folder,
    modules,
    private_names,
)

import eidetic_hf
from eidetic_hf.kinds import TASK_KINDS
from eidetic_hf.model.pruning import PruningConfig

# Every module, from the ground up: one may import only those before it. `network` is the `__init__` of a folder, which
# Python runs first; `kinds` is one, too, and stands last in its room since it imports what it registers.
HOUSE = """
version views compat configuration

network network.backbone network.architecture network.architectures network.storage network.importance network.growth
network.units network.capacity network.layers network.wiring network.trunk network.vocabulary network.network
network.plain

kinds.base kinds.checks kinds.heads kinds.pretrained_head kinds.plain_heads kinds.collators kinds.metrics
kinds

model model.pruning model.learner
model.router.features model.router.sums model.router.discriminant model.router.router model.router
model.parts model.request model.versions model.routing
model.checkpoint.folder model.checkpoint.limits model.checkpoint.layout
model.checkpoint.source model.checkpoint.receipts model.checkpoint.shard
model.checkpoint.metadata model.checkpoint.card model.checkpoint.write model.checkpoint.read
model.checkpoint
model.answering model.verification model.settings model.audit model.certificate model.integrity model.life
model.branching model.preserving model.brought model.persistence model.joining
model.loading model.hub model.planning model.generation model.extract model.model model.auto model.pipelines

callback trainer

recipe recipe.recipe recipe.plugins
recipe.kinds.settings recipe.kinds.preparation recipe.kinds.labels recipe.kinds.asking recipe.kinds.base
recipe.kinds
recipe.recipe_file recipe.starting_point recipe.task_data recipe.predicting recipe.scoring recipe.results recipe.jobs
recipe.run recipe.worker recipe.report recipe.tables

cli __main__
"""
NAMED = HOUSE.split()


def _order() -> list[str]:
    """The modules in order, those that hold a kind of task before the registry of their side."""
    order = []
    for module in NAMED:
        if module in ("kinds", "recipe.kinds"):
            order += sorted(name for name in modules() if name.startswith(f"{module}.") and name not in NAMED)
        order.append(module)
    return order


ORDER = _order()

KIND_FOLDERS = ("kinds", "recipe.kinds")

# The packages that `pip install eidetic-hf` asks for; all others are the extra `recipe`.
CORE = {"accelerate", "filelock", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}
# What `import eidetic_hf` must not load: seconds that nobody asked for.
HEAVY = (
    "datasets", "pandas", "pyarrow", "sklearn", "scipy.stats", "evaluate", "typer", "rich", "matplotlib",
)  # fmt: skip
HINT = "pip install 'eidetic-hf[recipe]'"

# Modules without a test file of their own, by pattern; the file that tests them; and why it is no other.
TESTED_ELSEWHERE = {
    "version": ("test_cli.py", "one line, which --version shows"),
    "__main__": ("test_main.py", "named for what it does"),
    "compat": ("test_house.py", "what it hides is used everywhere; that it hides it is tested here"),
    "network.backbone": ("network/test_architectures.py", "facts of a backbone, tested on all of them"),
    "network.architecture": ("network/test_architectures.py", "declarations are tested with those that there are"),
    "network.wiring": ("network/test_architectures.py", "tested on all architectures"),
    "network.trunk": ("model/test_routing.py", "what the router reads, and what a batch of several tasks shares"),
    "network.network": ("model/test_exactness.py", "what a task reads, and nothing else"),
    "network.plain": ("model/test_extract.py", "a task as a plain backbone, which its head is then put on"),
    "kinds.*": ("kinds/test_kinds.py", "every test of it runs on every kind"),
    "model.learner": ("model/test_pruning.py", "the state of pruning"),
    "model.parts": ("model/test_bad_input.py", "what the model hands to its functions"),
    "model.request": ("model/test_bad_input.py", "what may be asked of the model"),
    "model.answering": ("model/test_routing.py", "answers, with and without a task given"),
    "model.router.*": ("model/test_router.py", "features, sums and classifiers, one upon the other"),
    "model.audit": ("model/test_certificate.py", "what certificates find"),
    "model.brought": ("model/checkpoint/test_hostile.py", "what a folder may hold, before and after it is read"),
    "model.checkpoint.limits": ("model/checkpoint/test_hostile.py", "what a folder may ask for"),
    "model.loading": ("model/checkpoint/test_read.py", "a folder as a model"),
    "model.persistence": ("model/checkpoint/test_read.py", "a folder as a model and back"),
    "model.model": ("model/test_exactness.py", "what the model promises"),
    "model.auto": ("kinds/test_kinds.py", "a class for every kind"),
    "recipe.worker": ("recipe/test_jobs.py", "what a job runs"),
    "recipe.tables": ("test_cli.py", "what commands print"),
    "recipe.kinds.*": ("recipe/test_task_data.py", "shared by all kinds: rows, labels and tokens as each has them"),
}


def elsewhere(module: str) -> str | None:
    """The pattern that says where a module without a test file of its own is tested."""
    found = [pattern for pattern in TESTED_ELSEWHERE if fnmatch.fnmatchcase(module, pattern)]
    return found[0] if found else None


def assert_none(found: Iterable[str]) -> None:
    """Fail with a line for each."""
    lines = sorted(set(found))
    assert not lines, "\n" + "\n".join(lines)


def in_kinds(module: str) -> bool:
    """Whether a module is one of the registries' rooms, which alone know kinds by name."""
    return any(module == folder or module.startswith(f"{folder}.") for folder in KIND_FOLDERS)


# -- modules ----------------------------------------------------------------------------------------------------------


def test_every_module_has_its_place_in_the_order() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert_none(f"{module} stands nowhere in the order" for module in sorted(set(modules()) - {"", *ORDER}))
    assert_none(f"{module} is gone: take it out of the order" for module in sorted(set(ORDER) - set(modules())))


def test_imports_go_one_way_so_that_there_is_no_circle() -> None:
    rank = {module: place for place, module in enumerate([*ORDER, ""])}
    wrong = [
        f"{module or PACKAGE}, line {line}, imports {target or PACKAGE}, which does not stand below it"
        for module in modules()
        for target, line in imports(module)
        if target != module and rank.get(target, len(rank)) >= rank.get(module, -1)
    ]
    assert_none(wrong)


def test_a_class_derives_from_at_most_one_class_of_the_package_and_that_from_none() -> None:
    assert_none(f"{of[0]}.{of[1]}: {depth(of)} deep" for of in classes() if depth(of) > 2)
    assert_none(f"{of[0]}.{of[1]}: {len(bases(of))} bases" for of in classes() if len(bases(of)) > 1)


def test_each_module_is_tested_at_the_mirrored_place() -> None:
    missing, used = [], set()
    for module in modules():
        if is_folder(module):
            continue  # registries and folders; theirs are the tests of what they hold
        folder, _, name = module.replace(".", "/").rpartition("/")
        where, pattern = f"{folder}/test_{name}.py".lstrip("/"), elsewhere(module)
        if (ROOT / "tests" / where).exists():
            continue
        used.add(pattern)
        if pattern is None or not (ROOT / "tests" / TESTED_ELSEWHERE[pattern][0]).exists():
            missing.append(f"{module}: no tests/{where}{f', nor {TESTED_ELSEWHERE[pattern][0]}' if pattern else ''}")
    assert_none(missing)
    assert_none(
        f"{pattern} needs no exception: take it out of TESTED_ELSEWHERE" for pattern in {*TESTED_ELSEWHERE} - used
    )


# -- private names ----------------------------------------------------------------------------------------------------


def private(of: Any) -> set[str]:
    """Names with one leading underscore that an object has."""
    return {name for name in dir(of) if name.startswith("_") and not name.startswith("__")}


def transformers_names() -> set[str]:
    """Private names of the classes of transformers that this package has to do with."""
    import transformers

    found = {"_commit_hash", "_from_auto", "_from_pipeline", "_adapter_model_path"}
    for name in (
        "AutoConfig", "AutoModel", "GenerationConfig", "GenerationMixin", "PreTrainedConfig", "PreTrainedModel",
        "Trainer", "TrainerCallback",
    ):  # fmt: skip
        found |= private(getattr(transformers, name))
    return found - private(torch.nn.Module())


def uses_of(names: set[str], allowed: str) -> list[str]:
    """Where modules use private names that they do not define themselves, as an own name or as an overridden hook."""
    return [
        f"{module}, line {line}: {name} belongs into {allowed}"
        for module in modules()
        if module != allowed
        for name, line in private_names(module)
        if name in names and name not in defined(module)
    ]


def test_the_storage_of_torchs_modules_is_touched_in_one_file() -> None:
    names = private(torch.nn.Module())
    assert {"_buffers", "_parameters", "_modules", "_non_persistent_buffers_set"} <= names
    assert_none(uses_of(names, "network.storage"))


def test_private_names_of_transformers_are_in_one_file() -> None:
    names = transformers_names()
    assert {"_attn_implementation", "_model_mapping", "_init_weights", "_commit_hash"} <= names
    assert_none(uses_of(names, "compat"))


def test_no_part_reaches_for_another_parts_private_names() -> None:
    others = private(torch.nn.Module()) | transformers_names()
    wrong = []
    for module in modules():
        for name, line in private_names(module, texts=False):
            owners = [other for other in modules() if name in defined(other)]
            if owners and module not in owners and name not in others:
                wrong.append(f"{module}, line {line}: {name} is private to {' or '.join(owners)}")
    assert_none(wrong)


# -- kinds of task ----------------------------------------------------------------------------------------------------


def kind_constants() -> set[str]:
    """Names of constants that hold the name of a kind, or a table of such names."""
    return {
        target.id
        for tree in modules().values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for targets in node.targets
        for target, value in pairs(targets, node.value)
        if names_a_kind(value, set())
    }


def pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    """Names and values of an assignment, also of several at once."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for inner, part in zip(target.elts, value.elts, strict=True):
            yield from pairs(inner, part)
    elif isinstance(target, ast.Name):
        yield target, value


def names_a_kind(node: ast.AST, constants: set[str]) -> bool:
    """Whether an expression has the name of a kind in it, in so many words or as a constant."""
    return any(
        (isinstance(part, ast.Constant) and part.value in TASK_KINDS)
        or (isinstance(part, ast.Name) and part.id in constants)
        or (isinstance(part, ast.Attribute) and part.attr in constants)
        for part in ast.walk(node)
    )


def test_only_the_registries_know_one_kind_of_task_from_another() -> None:
    constants, wrong = kind_constants(), []
    for module, tree in modules().items():
        for node in ast.walk(tree) if not in_kinds(module) else ():
            where = f"{module}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Compare, ast.MatchValue)) and names_a_kind(node, constants):
                wrong.append(f"{where}: compares with the name of a kind; let the kind say it")
            elif isinstance(node, ast.Dict) and any(key and names_a_kind(key, constants) for key in node.keys):
                wrong.append(f"{where}: a table of kinds; let each kind say it")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                for name in (part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)):
                    found = find_class(module, name)
                    if found and in_kinds(found[0]) and any(descends(found, top) for top in KIND_CLASSES):
                        wrong.append(f"{where}: asks whether something is a {name}; let the kind do it")
    assert_none(wrong)


KIND_CLASSES = ("Kind", "RecipeKind", "Preparation")


def test_kinds_have_two_files_of_one_name() -> None:
    def files(folder: str) -> set[str]:
        return {
            module.rpartition(".")[2]
            for module in modules()
            if module.startswith(f"{folder}.")
            for node in ast.walk(modules()[module])
            if isinstance(node, ast.ClassDef)
            and node.name not in KIND_CLASSES
            and any(descends((module, node.name), top) for top in KIND_CLASSES)
        }

    assert files("kinds") == files("recipe.kinds")


# -- what an import loads ---------------------------------------------------------------------------------------------


def in_a_new_process(code: str) -> Any:
    """What a piece of code prints as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_import_loads_nothing_that_only_recipes_need_and_the_trainer_only_when_it_is_asked_for() -> None:
    loaded, trainer, names, after = in_a_new_process(
        f"import json, sys, {PACKAGE}\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        f"trainer = '{PACKAGE}.trainer' in sys.modules\n"
        f"from {PACKAGE} import EideticTrainer\n"
        f"print(json.dumps([loaded, trainer, sorted(dir({PACKAGE})), EideticTrainer.__module__]))"
    )
    assert loaded == []
    assert not trainer
    assert "EideticTrainer" in names
    assert after == f"{PACKAGE}.trainer"
    assert "EideticTrainer" in eidetic_hf.__all__
    with pytest.raises(AttributeError, match="EideticTrainr"):
        eidetic_hf.EideticTrainr  # noqa: B018


def test_the_core_imports_nothing_that_it_does_not_ask_for() -> None:
    wrong = []
    for module, tree in modules().items():
        if module.partition(".")[0] in ("recipe", "cli", "__main__"):
            continue
        for node in tree.body:  # what runs with the import: not in functions, not for type checks
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            for name in {name.partition(".")[0] for name in names} - CORE - sys.stdlib_module_names - {PACKAGE}:
                wrong.append(f"{module}, line {node.lineno}, imports {name}: use compat.need in the function")
    assert_none(wrong)


def test_there_are_at_most_fifteen_names_at_the_top() -> None:
    assert len(eidetic_hf.__all__) <= 15
    assert len(set(eidetic_hf.__all__)) == len(eidetic_hf.__all__)
    assert all(hasattr(eidetic_hf, name) for name in eidetic_hf.__all__)


def normalized(name: str) -> str:
    """A distribution's name as pip compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(names: set[str]) -> set[str]:
    """These distributions and all that they require here, extras apart."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    todo = {normalized(name) for name in names}
    while todo:
        name = todo.pop()
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo |= {normalized(requirement.name)} - found
    return found


def test_the_core_asks_for_seven_packages_and_the_rest_is_an_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text()

    def section(key: str) -> set[str]:
        (body,) = re.findall(rf"^{key} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        return {normalized(name) for name in re.findall(r'"([\w.-]+)', body)}

    assert section("dependencies") == {normalized(name) for name in CORE}
    assert section("recipe") >= {"datasets", "evaluate", "scikit-learn", "pyyaml", "typer", "rich", "jinja2"}


@pytest.mark.slow
def test_the_core_alone_learns_answers_and_verifies_and_says_which_extra_is_missing(tmp_path: Path) -> None:
    packages, wanted = tmp_path / "packages", required(CORE)
    packages.mkdir()
    for distribution in metadata.distributions():
        if normalized(distribution.metadata["Name"]) not in wanted:
            continue
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "bin", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if target.exists() and not (packages / top).exists():
                (packages / top).symlink_to(target)
    (packages / PACKAGE).symlink_to(ROOT / PACKAGE)
    (tmp_path / "out").mkdir()
    script, out = ROOT / "tests" / "support" / "core_only.py", tmp_path / "out"
    # -I and -S: neither the script's folder nor the packages of this environment are looked in.
    (entry,) = re.findall(r'^eidetic-hf = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    start = f"import runpy, sys; sys.path.insert(0, {str(packages)!r}); "
    start += f"sys.argv = ['core_only', {str(out)!r}, {entry!r}]; "
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{start}runpy.run_path({str(script)!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tasks"] == ["first", "second"]
    assert found["routed"] == found["answered"] == ["second"] * 4
    assert found["same_logits"] is True and found["verified"] is True
    assert {name: HINT in found[name] for name in ("metrics", "recipe", "command_line")} == {
        "metrics": True,
        "recipe": True,
        "command_line": True,
    }, found


# -- the docs ---------------------------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_of(page: Path) -> Iterator[str]:
    """What stands in backticks on a page."""
    for block, span in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", page.read_text(encoding="utf-8"), re.DOTALL):
        yield block or span


def undocumented(names: Iterable[str]) -> list[str]:
    """Those of some names that no code of the docs has in it."""
    code = [part for page in PAGES if page.name != "CONTRIBUTING.md" for part in code_of(page)]
    words = {word for part in code for word in re.findall(r"--[a-z][\w-]*|[A-Za-z_][\w-]*", part)}
    return [f"{name} is nowhere in the docs, in backticks" for name in sorted(set(names) - words)]


REGISTRIES = f"""
import dataclasses, json
from {PACKAGE}.kinds import TASK_KINDS
from {PACKAGE}.network import architectures
from {PACKAGE}.network.capacity import capacities
from {PACKAGE}.network.importance import importances
from {PACKAGE}.recipe.kinds import RECIPE_KINDS

def fields(made):
    return [field.name for field in dataclasses.fields(made)]

tables = [value for value in vars(architectures).values() if hasattr(value, "keys") and "bert" in value]
print(json.dumps({{
    "architectures": list(tables[0]),
    "kinds": {{name: fields(kind.Options) for name, kind in TASK_KINDS.items()}},
    "recipe kinds": {{
        name: [*kind.columns, *kind.metrics, *fields(kind.settings)] for name, kind in RECIPE_KINDS.items()
    }},
    "importances": list(importances()),
    "capacities": list(capacities()),
}}))
"""


@functools.cache
def registries() -> dict[str, Any]:
    """What the registries hold in a new process, where no test has registered anything."""
    return in_a_new_process(REGISTRIES)


def test_the_docs_name_every_architecture() -> None:
    declared = registries()["architectures"]
    assert {"bert", "llama", "t5"} <= set(declared)
    assert_none(undocumented(declared))


def test_the_docs_name_every_kind_and_its_options() -> None:
    kinds = registries()["kinds"]
    options = {option for found in kinds.values() for option in found}
    assert {"pooling", "temperature", "problem_type"} <= options
    assert_none(undocumented({*kinds, *options}))


def test_the_docs_name_every_command_and_its_options() -> None:
    from typer.main import get_command

    from eidetic_hf.cli import app

    command: Any = get_command(app)
    commands = {name: each.params for name, each in command.commands.items()} | {"": command.params}
    assert {"train", "evaluate", "predict", "verify", "report"} <= set(commands)
    options = {option for params in commands.values() for each in params for option in each.opts if option[0] == "-"}
    assert {"--task", "--split", "--version"} <= options
    assert_none(undocumented({*commands, *options} - {"", "--help"}))


def test_the_docs_name_every_field_of_the_pruning_and_what_it_may_be() -> None:
    scores, ways = registries()["importances"], registries()["capacities"]
    assert "fisher" in scores and "private" in ways
    assert_none(undocumented({*scores, *ways, *(field.name for field in dataclasses.fields(PruningConfig))}))


def test_the_docs_name_every_key_of_a_recipe() -> None:
    from eidetic_hf.recipe.recipe import Recipe, Splits, TaskRecipe

    keys = {field.name for made in (Recipe, TaskRecipe, Splits) for field in dataclasses.fields(made)}
    assert {"backbone", "tasks", "columns", "validation"} <= keys
    # What reading a recipe adds to what it says, and the kinds' own settings, which are keys each for itself.
    assert_none(undocumented(keys - {"folder", "source", "lower_is_better", "settings"}))
    kinds = registries()["recipe kinds"]
    assert set(kinds) == set(registries()["kinds"])
    found = {key for keys in kinds.values() for key in keys}
    assert {"question", "stride", "perplexity"} <= found
    words = set(re.findall(r"[\w-]+", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")))
    assert_none(f"{key} is not in docs/recipes.md" for key in found - words)


def test_what_the_docs_import_is_there() -> None:
    for page in PAGES:
        for line in re.findall(rf"^(from {PACKAGE}[\w.]* import (?!\().*)$", page.read_text("utf-8"), re.MULTILINE):
            exec(line, {})
        for part in code_of(page):
            for name in re.findall(rf"(?<![\w.]){PACKAGE}((?:\.\w+)+)(?=$|\()", part):
                pkgutil.resolve_name(PACKAGE + name)


def test_the_map_in_contributing_has_every_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = {f"{module.rpartition('.')[2]}.py" for module in modules() if not is_folder(module)}
    files -= {f"{module.rpartition('.')[2]}.py" for module in set(ORDER) - set(NAMED)}  # a kind each: NAME.py
    assert_none(f"{file} is not on the map" for file in files if not re.search(rf"\b{re.escape(file)}", text))
    named = set(re.findall(r"\b\w+\.py\b", text[text.index("## The map") : text.index("## Five walks")]))
    known = files | {"__init__.py", "test_house.py", "NAME.py"}
    assert_none(f"{file} is on the map, and nowhere else" for file in named - known)
