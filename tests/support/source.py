"""The package's source as syntax trees: its modules, what they import, their classes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "eidetic_hf"


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name without the package's, such as `network.units`; the package is ``."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text(), str(path))
    return found


def is_folder(module: str) -> bool:
    """Whether a module is a folder's `__init__`."""
    return (ROOT / PACKAGE / module.replace(".", "/") / "__init__.py").exists()


def imported(module: str, node: ast.ImportFrom | ast.Import) -> Iterator[tuple[str, str, str]]:
    """What an import statement brings of the package itself: module, name in it (empty: all of it), name here."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top, _, rest = alias.name.partition(".")
            if top == PACKAGE:
                yield rest, "", alias.asname or alias.name
        return
    base = node.module or ""
    if node.level:
        parts = module.split(".") if module else []
        parts = parts[: len(parts) - node.level + is_folder(module)]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    elif base.partition(".")[0] == PACKAGE:
        base = base.partition(".")[2]
    else:
        return
    for alias in node.names:
        inner = f"{base}.{alias.name}".strip(".")
        yield (
            (inner, "", alias.asname or alias.name)
            if inner in modules()
            else (
                base,
                alias.name,
                alias.asname or alias.name,
            )
        )


def imports(module: str) -> Iterator[tuple[str, int]]:
    """The modules of the package that a module imports, also inside functions and for type checks; and the line."""
    for node in ast.walk(modules()[module]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for target, _, _ in imported(module, node):
                yield target, node.lineno


Class = tuple[str, str]  # module, name


@cache
def classes() -> dict[Class, ast.ClassDef]:
    """All classes of the package."""
    return {
        (module, node.name): node
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


@cache
def find_class(module: str, name: str) -> Class | None:
    """The package's class that a name in a module means, also where it was imported; `None` if it means none."""
    if (module, name) in classes():
        return module, name
    for node in ast.walk(modules()[module]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for target, original, here in imported(module, node):
                if here == name and original:
                    return find_class(target, original)
    return None


def bases(of: Class) -> list[Class]:
    """A class's bases that are the package's own."""
    found = []
    for base in classes()[of].bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        known = None
        if isinstance(base, ast.Name):
            known = find_class(of[0], base.id)
        elif isinstance(base, ast.Attribute):  # `module.Class`: by its name alone
            known = next((each for each in classes() if each[1] == base.attr), None)
        found += [known] if known else []
    return found


def depth(of: Class) -> int:
    """Classes of the package from this one up, itself included."""
    return 1 + max((depth(base) for base in bases(of)), default=0)


def descends(of: Class, name: str) -> bool:
    """Whether a class is the one of this name or descends from it."""
    return of[1] == name or any(descends(base, name) for base in bases(of))


def private_names(module: str, texts: bool = True) -> Iterator[tuple[str, int]]:
    """Names with one leading underscore that a module uses, and where: attributes, and what it imports.

    With `texts`, also keywords and strings that are such a name: `getattr(config, "_name_or_path")`.
    """
    for node in ast.walk(modules()[module]):
        names: list[str | None] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
        elif texts and isinstance(node, ast.keyword):
            names = [node.arg]
        elif texts and isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        for name in names:
            if name and re.fullmatch(r"_[A-Za-z]\w*", name):
                yield name, getattr(node, "lineno", 0)


@cache
def defined(module: str) -> set[str]:
    """Names that a module defines itself: functions, classes, variables, fields, attributes of `self`, arguments."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found
