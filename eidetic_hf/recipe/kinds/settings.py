"""Settings: the keys of a task in a recipe that only its kind has, with their values by default and their checks.

A kind's settings are a frozen dataclass of its own, derived from `Settings`; `setting` makes a field of one:

    @dataclass(frozen=True)
    class QuestionSettings(Settings):
        stride: int | None = setting(None, int, lambda value: value >= 0, "a whole number of tokens >= 0")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class SettingError(ValueError):
    """A setting has a value that it can not have.

    Attributes:
        key: of the setting.
        value: that was given.
        expected: what is.
    """

    def __init__(self, key: str, value: Any, expected: str) -> None:
        super().__init__(f"`{key}: {value!r}`: expected {expected}.")
        self.key, self.value, self.expected = key, value, expected


def setting(
    default: Any, kind: type | tuple[type, ...], test: Callable[[Any], bool] | None = None, expected: str = ""
) -> Any:
    """A field of a class of settings.

    Args:
        default: its value where a recipe gives none; `None` is always allowed.
        kind: the type, or types, of a value; a truth value is no number.
        test: whether a value of this type is allowed.
        expected: what is, for errors: `"a whole number of tokens >= 0"`.
    """
    return dataclasses.field(default=default, metadata={"kind": kind, "test": test, "expected": expected})


@dataclass(frozen=True)
class Settings:
    """Settings of a kind of task; of one that has none, these. Invariant: every value is one that is allowed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            if value is None or "kind" not in rule:
                continue
            is_bool = isinstance(value, bool) and rule["kind"] is not bool
            if is_bool or not isinstance(value, rule["kind"]) or not (rule["test"] is None or rule["test"](value)):
                raise SettingError(field.name, value, rule["expected"])

    @classmethod
    def names(cls) -> list[str]:
        """The keys of a task in a recipe that are settings."""
        return [field.name for field in dataclasses.fields(cls)]
