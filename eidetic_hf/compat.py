"""Packages that may not be installed."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, why: str, extra: str = "recipe") -> Any:
    """A module of a package that only some uses need.

    Args:
        module: its name.
        why: what needs it, for the error.
        extra: the extra of this package that brings it.

    Raises:
        ImportError: if it is not installed, saying how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        raise ImportError(
            f"{why} needs the Python package '{top}', which is not installed. Install it with: pip install "
            f"'eidetic-hf[{extra}]'"
        ) from error
