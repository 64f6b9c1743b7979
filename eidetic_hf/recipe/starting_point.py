"""What a recipe's first task starts from: a pretrained backbone and its tokenizer, or a random one and a new one."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.trainer_utils import set_seed

from ..model.model import EideticModel
from ..network.backbone import ENCODER, ENCODER_DECODER, family_of
from ..views import BASE, TRUNK, owner_of
from .recipe import SMALLEST_VOCABULARY, Recipe, RecipeError

PACKAGE_PREFIX = "package:"
END, PAD, CLS, SEP, MASK = "<|end|>", "<|pad|>", "<|cls|>", "<|sep|>", "<|mask|>"


# -- pretrained -------------------------------------------------------------------------------------------------------


def resolve_backbone(backbone: str, folder: Path, key: str = "backbone") -> str:
    """A recipe's backbone as `from_backbone` takes it: a folder or a Hub id.

    Raises:
        RecipeError: if a package is not installed, or a folder does not exist.
    """
    if backbone.startswith(PACKAGE_PREFIX):
        package, _, inner = backbone.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            path = Path(str(importlib.resources.files(package).joinpath(inner)))
        except (ModuleNotFoundError, ValueError) as error:
            raise RecipeError(
                f"`{key}: {backbone}`: the Python package '{package}' is not installed. Install it with: pip "
                f"install {package.replace('_', '-')}"
            ) from error
        if not path.is_dir():
            raise RecipeError(f"`{key}: {backbone}`: the package '{package}' has no folder '{inner}'.")
        return str(path)
    local = folder / Path(backbone).expanduser()
    if not local.exists() and backbone.startswith((".", "/", "~")):
        raise RecipeError(
            f"`{key}: {backbone}`: there is no folder {local}. Give a folder, a Hub id or package:NAME/FOLDER."
        )
    return str(local) if local.exists() else backbone


def load_tokenizer(recipe: Recipe, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe, from where it is or trained on `texts`; it pads on the right.

    Raises:
        RecipeError: if it can not be made.
    """
    if isinstance(recipe.tokenizer, dict):
        assert isinstance(recipe.backbone, dict)
        family = family_of(_default_config(recipe.backbone["model_type"]))
        return train_tokenizer(recipe.tokenizer["train"], texts, family, recipe.tokenizer.get("vocab_size"))
    source = recipe.tokenizer or recipe.backbone
    assert isinstance(source, str)
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(source, recipe.folder, "tokenizer"))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RecipeError(f"The tokenizer of {source} has no token to pad with, and none that ends a text.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # labels of tokens are counted from the left
    return tokenizer


# -- random -----------------------------------------------------------------------------------------------------------


def train_tokenizer(
    algorithm: str, texts: Iterable[str], family: str, vocab_size: int | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, or of frequent sequences of bytes, that knows every text.

    Args:
        algorithm: `"byte"`, or `"bpe"` (byte pairs, Sennrich et al., arXiv 1508.07909).
        texts: to count in.
        family: of the backbone: an encoder's texts begin and end with tokens of their own, an encoder-decoder's end
            with one, a decoder's have none.
        vocab_size: of `"bpe"`, special tokens included.

    Raises:
        RecipeError: if the texts do not have so many sequences.
    """
    special = [END, PAD, CLS, SEP, MASK]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    size = (vocab_size or SMALLEST_VOCABULARY) if algorithm == "bpe" else len(special) + len(alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts if algorithm == "bpe" else [], trainer)
    if tokenizer.get_vocab_size() != size:
        raise RecipeError(
            f"`vocab_size: {size}` of `tokenizer:`: the training texts give {tokenizer.get_vocab_size()} tokens only. "
            "Choose a smaller one, or `train: byte`."
        )
    frames = {ENCODER: (f"{CLS} $A {SEP}", f"{CLS} $A {SEP} $B:1 {SEP}:1"), ENCODER_DECODER: (f"$A {END}", None)}
    if family in frames:
        single, pair = frames[family]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=pair,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP, END)],
        )
    inputs = ["input_ids", *(["token_type_ids"] if family == ENCODER else []), "attention_mask"]
    names = {"bos": END, "eos": END, "pad": PAD, "cls": CLS, "sep": SEP, "mask": MASK}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=inputs,
        **{f"{name}_token": token for name, token in names.items()},
    )


def _default_config(model_type: str) -> PreTrainedConfig:
    try:
        return AutoConfig.for_model(model_type)
    except ValueError as error:
        raise RecipeError(f"`model_type: {model_type}` in `backbone:`: transformers knows no such model.") from error


def make_config(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration of a random backbone whose vocabulary is the tokenizer's.

    Raises:
        RecipeError: if a value is unknown or not allowed.
    """
    values = dict(values)
    model_type = values.pop("model_type")
    default = _default_config(model_type)
    known = set(default.to_dict()) | set(default.attribute_map)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise RecipeError(f"Unknown key '{key}' in `backbone:`, a configuration of '{model_type}'.{hint}")
    if values.setdefault("vocab_size", len(tokenizer)) < len(tokenizer):
        raise RecipeError(
            f"`vocab_size: {values['vocab_size']}` in `backbone:`: the tokenizer has {len(tokenizer)} tokens. Leave "
            "it out, and it will be as many."
        )
    for token in ("pad_token_id", "eos_token_id", "bos_token_id"):
        values.setdefault(token, getattr(tokenizer, token))
    try:
        config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # configurations check themselves in several ways
        raise RecipeError(f"`backbone:` is no configuration of '{model_type}': {error}") from error
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    return config


# -- the model --------------------------------------------------------------------------------------------------------


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> EideticModel:
    """A recipe's model before its first task: the same weights each time.

    Raises:
        RecipeError: if the backbone can not be made.
    """
    options: dict[str, Any] = {
        "trunk_layers": recipe.trunk_layers,
        "forward_transfer": recipe.forward_transfer,
        "growth": recipe.growth,
        "router_layers": recipe.router_layers,
    }
    if isinstance(recipe.backbone, dict):
        set_seed(recipe.seed)
        return EideticModel.from_backbone(make_config(recipe.backbone, tokenizer), **options)
    model = EideticModel.from_backbone(resolve_backbone(recipe.backbone, recipe.folder), **options)
    # A path on this machine has no place in the model card.
    model.config.base_config._name_or_path = recipe.backbone
    return model


def have_one_backbone(fresh: EideticModel, model: EideticModel) -> bool:
    """Whether a model began as a fresh one; the trunk of a random backbone has been trained since."""
    if not model.config.trunk_pretrained:
        ours, theirs = (m.config.base_config.to_dict() for m in (fresh, model))
        return {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}
    everybodys = (TRUNK, BASE)
    ours, theirs = (
        {n: t for n, t in m.backbone.state_dict().items() if owner_of(n) in everybodys} for m in (fresh, model)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
