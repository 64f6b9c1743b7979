"""The command line as tests call it."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from eidetic_hf.cli import app


def call(*arguments: object, **kwargs: Any) -> Result:
    """What a command prints, and how it ends."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"}, **kwargs)


def lines_of(result: Result) -> list[dict[str, Any]]:
    """The lines of JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]
