"""What a recipe says, prepares, scores and asks of each kind of task: all kinds, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..recipe import RecipeError
from .base import LOSS, RecipeKind
from .choices import MultipleChoiceRecipe
from .language import CausalRecipe, MaskedRecipe, Seq2SeqRecipe
from .questions import QuestionAnsweringRecipe
from .sentences import FeatureExtractionRecipe
from .sequence_labels import SequenceClassificationRecipe
from .token_tags import TokenClassificationRecipe

_REGISTERED: dict[str, RecipeKind] = {}
RECIPE_KINDS: Mapping[str, RecipeKind] = MappingProxyType(_REGISTERED)


def register_recipe_kind(kind: RecipeKind) -> None:
    """Let recipes and the command line have tasks of a kind.

    Raises:
        ValueError: if there is one of this name already.
    """
    if kind.name in _REGISTERED:
        raise ValueError(
            f"There is a recipe kind '{kind.name}' already, {type(_REGISTERED[kind.name]).__name__}. Give "
            f"{type(kind).__name__} another name."
        )
    _REGISTERED[kind.name] = kind


def recipe_kind_of(name: str) -> RecipeKind:
    """The kind of this name.

    Raises:
        RecipeError: if there is none.
    """
    if name not in _REGISTERED:
        raise RecipeError(
            f"{name!r} is no kind of task that recipes know; there are {list(_REGISTERED)}. If it is one of your own, "
            "name the file that registers it: `plugins:` in the recipe, or `eidetic-hf --plugin FILE`."
        )
    return _REGISTERED[name]


def lower_is_better() -> tuple[str, ...]:
    """All metrics of which less is better, of whatever kind."""
    return tuple(dict.fromkeys([*(metric for kind in _REGISTERED.values() for metric in kind.lower_is_better), LOSS]))


for _kind in (
    SequenceClassificationRecipe(),
    TokenClassificationRecipe(),
    QuestionAnsweringRecipe(),
    MultipleChoiceRecipe(),
    CausalRecipe(),
    Seq2SeqRecipe(),
    MaskedRecipe(),
    FeatureExtractionRecipe(),
):
    register_recipe_kind(_kind)
