"""Packages that may be missing."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, why: str, extra: str = "recipe") -> Any:
    """Import a module that only some uses of this package need.

    Args:
        module: its full name, such as `"sklearn.metrics"`.
        why: what needs it, as the beginning of a sentence, such as `"Measuring entities"`.
        extra: of this package, that installs it.

    Raises:
        ImportError: if it is not installed; it says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        raise ImportError(
            f"{why} needs the Python package '{top}', which is not installed. Install it with: pip install "
            f"'eidetic-hf[{extra}]'"
        ) from error
