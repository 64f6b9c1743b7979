"""Small models of several kinds whose every setting and tensor is looked at, and what edits them on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.backbones import tiny_model
from support.folders import edit_json
from support.kind_cases import word_tokenizer
from support.topics import commit_topic
from torch import Tensor

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.model.checkpoint.layout import INDEX_FILE, json_sha256, sha256_of

Path_ = tuple[str | int, ...]
BERT_TASKS: list[tuple[str, dict[str, Any]]] = [
    ("answers", {"task_type": "question-answering"}),
    ("names", {"task_type": "token-classification", "labels": ["O", "B-x", "I-x"]}),
    ("score", {"labels": ["low", "high"], "problem_type": "regression"}),
    ("endings", {"task_type": "multiple-choice", "pooling": "first"}),
    ("sentences", {"task_type": "feature-extraction", "temperature": 0.1, "normalize": False}),
    ("gaps", {"task_type": "masked-lm"}),
]


def commit(model: EideticModel, name: str, **options: Any) -> None:
    """One more task, without training, that the router does not know."""
    copies = model.config.growth == "copy"
    model.add_task(name, **options)
    model.begin_task(name, PruningConfig(own=0.2, select="random") if copies else PruningConfig(keep=0.1))
    model.commit_task()


def pool() -> EideticModel:
    """A task of every kind that an encoder can have, out of a pool; the last one brings tokens along."""
    model = tiny_model()
    for topic in range(2):
        commit_topic(model, topic)
    for name, options in BERT_TASKS:
        if name == "gaps":
            model.resize_token_embeddings(model.config.vocab_size + 3)
        commit(model, name, **options)
    return model.eval()


def copies() -> EideticModel:
    """Tasks that copy units, a version among them, and a router that was told more."""
    model = tiny_model(growth="copy", router_layers=[1, 2])
    for topic in range(3):
        commit_topic(model, topic)
    commit(model, "alpha@2", labels=["x", "y", "z"], based_on="alpha")
    model.set_default_version("alpha", 2)
    model.router.add_examples("beta", ["w003 w004 w040"], labels=["x"], tokenizer=word_tokenizer())
    model.router.forget_examples("gamma", ["w003 w005"], labels=["y"], tokenizer=word_tokenizer())
    model.router.set_prior("gamma", 3.0)
    return model.eval()


def writers() -> EideticModel:
    """Tasks of an encoder-decoder, one of which writes."""
    model = tiny_model("t5", growth="copy")
    commit_topic(model, 0)
    commit(model, "writes", task_type="seq2seq-lm")
    return model.eval()


MODELS = {"pool": pool, "copies": copies, "writers": writers}


def leaves(values: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value inside of JSON values that holds no other, with the keys on the way to it."""
    if isinstance(values, dict | list) and values:
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def another(value: Any) -> Any:
    """A value of the same type, as far as there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5 + 1e-6
    if isinstance(value, str):
        return {"gelu": "relu", "relu": "gelu"}.get(value, value[::-1] if value[::-1] != value else value + "x")
    return {"x": 1} if value == {} else [1] if value == [] else 1


def with_leaf(values: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    """A copy of JSON values with another value in one place."""
    values = copy.deepcopy(values)
    place: Any = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def vouch(folder: Path) -> None:
    """Let the index say that config.json is as it was saved."""
    digest = json_sha256(json.loads((folder / "config.json").read_text()))
    edit_json(folder / INDEX_FILE, lambda index: index["metadata"]["json_sha256"].update({"config.json": digest}))


def edit_tensor(folder: Path, file: str, name: str) -> None:
    """Flip a bit of a tensor, and let all hashes of files say that this is what was saved."""
    tensors = load_file(folder / file)
    tensor = tensors[name].contiguous()
    content = tensor.reshape(-1).view(torch.uint8)
    content[len(content) // 2] ^= 1
    tensors[name] = tensor
    put(folder, file, tensors)


def put(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    """Write a shard anew, and let all hashes of files say that this is what was saved."""
    save_file(tensors, folder / file, metadata={"format": "pt"})
    entry = {"sha256": sha256_of(folder / file), "bytes": (folder / file).stat().st_size}
    edit_json(folder / "config.json", lambda values: values["files"].update({file: entry}))
    vouch(folder)
