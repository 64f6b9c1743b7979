"""The start of the command line: `eidetic-hf`, or `python -m eidetic_hf`."""

from __future__ import annotations

import importlib.util
import sys

# What the command line imports and `pip install eidetic-hf` alone does not bring, by the name that Python knows.
NEEDED = ("datasets", "evaluate", "jinja2", "matplotlib", "rich", "sklearn", "typer", "yaml")


def main() -> None:
    """Run the command line; without packages that it needs, say in one sentence what to install, and exit with 2."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: the command line needs packages that are not installed ({', '.join(missing)}). Install them "
            "with: pip install 'eidetic-hf[recipe]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from .cli import app

    app(prog_name="eidetic-hf")


if __name__ == "__main__":
    main()
