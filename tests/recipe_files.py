"""Files that a recipe needs, tiny: a random backbone with its tokenizer, data, and the recipe itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import VOCABULARY, tiny_backbone
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from eidetic_hf.recipe_file import read_recipe
from eidetic_hf.run import run_recipe

COLORS = ["blue", "green", "red"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TRAINING = {
    "max_steps": 24,
    "per_device_train_batch_size": 16,
    "learning_rate": 5e-3,
    "use_cpu": True,
    "disable_tqdm": True,
    "eval_strategy": "no",
}


def write_backbone(folder: Path, seed: int = 0) -> Path:
    """A random BERT and a word tokenizer that knows the colors."""
    words = [*SPECIAL, *COLORS, "same", *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL) - len(COLORS) - 1))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    tiny_backbone(seed=seed).save_pretrained(folder)
    return folder


def color_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Texts of which one word is a color, which is the label."""
    source = random.Random(seed)
    found = []
    for _ in range(rows):
        words = [f"w{source.randrange(60)}" for _ in range(source.randrange(2, 6))]
        color = source.choice(COLORS)
        found.append({"text": " ".join([color, *words]), "label": color})
    return found


def size_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Texts of words that `color_rows` does not use; the first one is the size, which is the label."""
    source = random.Random(seed)
    sizes = {"large": "w90", "small": "w91"}
    found = []
    for _ in range(rows):
        size = source.choice(list(sizes))
        words = [f"w{source.randrange(86, 90)}" for _ in range(source.randrange(2, 6))]
        found.append({"text": " ".join([sizes[size], *words]), "label": size})
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(
    folder: Path, name: str, rows: dict[str, list[dict[str, Any]]] | None = None, **values: Any
) -> dict[str, Any]:
    """Data of a task, by default three splits of colors, and its entry in a recipe."""
    seed = sum(map(ord, name))
    rows = rows or {
        "train": color_rows(seed),
        "validation": color_rows(seed + 1, 12),
        "test": color_rows(seed + 2, 20),
    }
    for split, content in rows.items():
        write_rows(folder / "data" / name / f"{split}.jsonl", content)
    files = {split: f"data/{name}/{split}.jsonl" for split in rows}
    return {"name": name, "data": {"path": "json", "data_files": files}, **values}


def write_recipe(folder: Path, tasks: list[dict[str, Any]] | None = None, **values: Any) -> Path:
    """A recipe for a tiny backbone, both in `folder`; by default with the tasks `first` and `second`."""
    if not (folder / "backbone").exists():
        write_backbone(folder / "backbone")
    content = {
        "backbone": "backbone",
        "output": str(folder / "output"),
        "max_length": 16,
        "training": TRAINING,
        "pruning": {"keep": 0.4},
        "tasks": [write_task(folder, "first"), write_task(folder, "second")] if tasks is None else tasks,
        **values,
    }
    path = folder / "colors.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(autouse=True, scope="session")
def private_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` caches out of the home folder."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """As `finished`, but with two tasks whose texts differ, `color` and `size`, so that the router can tell them."""
    folder = tmp_path_factory.mktemp("unlike")
    rows = {split: size_rows(seed, n) for seed, (split, n) in enumerate({"train": 48, "test": 20}.items())}
    tasks = [write_task(folder, "color"), write_task(folder, "size", rows)]
    run_recipe(read_recipe(write_recipe(folder, tasks)), lambda line: None)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """Folder of a recipe (`colors.yaml`) that has been run; the results are in `output`. Shared: copy, not change."""
    folder = tmp_path_factory.mktemp("finished")
    run_recipe(read_recipe(write_recipe(folder)), lambda line: None)
    return folder
