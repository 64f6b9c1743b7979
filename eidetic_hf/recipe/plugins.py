"""Plugins: modules of a user's own that register kinds of task (or architectures, ...) when they are imported.

They come from a recipe's `plugins:`, from `eidetic-hf --plugin`, and from installed packages, as entry points of the
group `eidetic_hf.kinds`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .recipe import RecipeError

ENTRY_POINTS = "eidetic_hf.kinds"

_LOADED: dict[str, None] = {}


def load_plugin(plugin: str, folder: Path) -> ModuleType:
    """Import a plugin, if it is not imported yet.

    Args:
        plugin: name of a module, or a `.py` file. The file's folder is then one where modules are looked for, as it is
            for a script, after all others.
        folder: where relative files lie.

    Raises:
        RecipeError: if there is no such module or file, or it can not be imported.
    """
    try:
        if plugin.endswith(".py"):
            module = _import_file((folder / Path(plugin).expanduser()).resolve())
        else:
            module = importlib.import_module(plugin)
    except RecipeError:
        raise
    except Exception as error:  # a plugin is code, which may fail in any way
        raise RecipeError(
            f"The plugin {plugin} can not be imported ({type(error).__name__}: {error}). Give the name of a module "
            f"that can be imported, or a .py file; relative ones are looked for in {folder}."
        ) from error
    _LOADED[module.__name__] = None
    return module


def loaded_plugins() -> list[str]:
    """Names of the modules that `load_plugin` has imported, in order; not those of installed packages."""
    return [name for name in _LOADED if name in sys.modules]


def _import_file(path: Path) -> ModuleType:
    """A file as the module of its name, so that other modules can import it, too."""
    if not path.is_file():
        raise RecipeError(f"There is no plugin {path}. Give the path of a .py file, or the name of a module.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()  # the file may be newer than the last look into its folder
    spec = importlib.util.find_spec(path.stem)
    found = None if spec is None else spec.origin
    if found is None or Path(found).resolve() != path:
        raise RecipeError(f"The plugin {path} has the name of another module, {found}. Rename the file.")
    return importlib.import_module(path.stem)


def load_installed_plugins() -> None:
    """Import what installed packages offer.

    Raises:
        RecipeError: naming the package, if one can not be imported.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise RecipeError(
                f"The plugin '{entry.name}' of the installed package '{package}' can not be imported "
                f"({type(error).__name__}: {error}). Repair or uninstall the package."
            ) from error
