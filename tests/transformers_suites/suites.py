"""Where transformers' own tests are, and how they are imported: under the name that they import each other by."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

VARIABLE = "TRANSFORMERS_TESTS"
# Folders below the suites' own whose modules are used.
FOLDERS = ("exporters", "generation", "pipelines", "trainer")
MISSING = (
    f"{VARIABLE} names no folder with transformers' tests, which its wheel does not have. `make test-transformers` "
    "fetches them; or set the variable to the folder `tests` of a checkout of the installed version."
)


def folder() -> Path | None:
    """The folder `tests` of a checkout of transformers; `None` if there is none."""
    found = Path(os.environ.get(VARIABLE) or "/nowhere")
    return found.resolve() if (found / "test_modeling_common.py").is_file() else None


def suite(module: str) -> types.ModuleType:
    """A module of transformers' tests, such as `generation.test_utils`.

    They import each other both relatively and as `tests.NAME`, so their folder joins the package of that name.
    """
    found = folder()
    assert found is not None, MISSING
    package = sys.modules.setdefault("tests", types.ModuleType("tests"))
    path = list(getattr(package, "__path__", []))
    if str(found) not in path:
        package.__path__ = [*path, str(found)]
    return importlib.import_module(f"tests.{module}")
