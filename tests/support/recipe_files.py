"""Files that a recipe needs, tiny: a random backbone with its tokenizer, data, and the recipe itself."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.backbones import VOCABULARY, tiny_backbone
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from eidetic_hf import EideticModel
from eidetic_hf.recipe.predicting import Predictor
from eidetic_hf.recipe.recipe import RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.task_data import TaskData, load_task_data

COLORS = ["blue", "green", "red"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MASK = "[MASK]"
SPLIT_SIZES = {"train": 48, "validation": 12, "test": 20}
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
    first = [*SPECIAL, *COLORS, "same"]
    words = [*first, *(f"w{i}" for i in range(VOCABULARY - len(first) - 1)), MASK]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in [*SPECIAL, MASK]}
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


def tag_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Words of which one or two in a row are colors, an entity."""
    source, found = random.Random(seed), []
    for _ in range(rows):
        words = [f"w{source.randrange(60)}" for _ in range(source.randrange(2, 6))]
        place, length = source.randrange(len(words)), source.randrange(1, 3)
        words[place:place] = source.choices(COLORS, k=length)
        tags = ["O"] * len(words)
        tags[place : place + length] = ["B-color", "I-color"][:length]
        found.append({"tokens": words, "tags": tags})
    return found


def question_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Contexts of words with one color in them, which is the answer; some are longer than a window."""
    source, found = random.Random(seed), []
    for _ in range(rows):
        words = [f"w{source.randrange(60)}" for _ in range(source.randrange(6, 16))]
        words[source.randrange(len(words))] = color = source.choice(COLORS)
        context = " ".join(words)
        answers = {"text": [color], "answer_start": [context.index(color)]}
        found.append({"question": f"w{source.randrange(86, 90)} same", "context": context, "answers": answers})
    return found


def choice_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """A text and three others, of which the one with the same color is right."""
    source, found = random.Random(seed), []
    for _ in range(rows):
        colors = source.sample(COLORS, 3)
        label = source.randrange(3)
        choices = [f"{color} w{source.randrange(60)}" for color in colors]
        found.append({"text": f"same {colors[label]}", "choices": choices, "label": label})
    return found


def pair_rows(seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Pairs of texts, similar (5) if they have the same color, else not (0)."""
    source, found = random.Random(seed), []
    for _ in range(rows):
        one, other = source.choices(COLORS, k=2)
        texts = [f"{color} w{source.randrange(60)}" for color in (one, other)]
        found.append({"text": texts[0], "text_pair": texts[1], "score": 5.0 * (one == other)})
    return found


def verse_rows(words: str, seed: int, rows: int = 48) -> list[dict[str, Any]]:
    """Texts to be continued, of some words in a random order."""
    source, known = random.Random(seed), words.split()
    return [{"text": " ".join(source.choices(known, k=source.randrange(4, 9)))} for _ in range(rows)]


def splits_of(make: Callable[..., list[dict[str, Any]]], *arguments: Any) -> dict[str, list[dict[str, Any]]]:
    """Three splits of rows; `make` takes `arguments`, a seed and a number of rows."""
    return {split: make(*arguments, seed, n) for seed, (split, n) in enumerate(SPLIT_SIZES.items())}


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
        "growth": "fixed",
        "pruning": {} if values.get("growth") == "copy" else {"keep": 0.4},
        "tasks": [write_task(folder, "first"), write_task(folder, "second")] if tasks is None else tasks,
        **values,
    }
    path = folder / "colors.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# -- what tests do with them ------------------------------------------------------------------------------------------


def run(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The results of a recipe, and the lines that the run said."""
    lines: list[str] = []
    return run_recipe(read_recipe(path), lines.append), lines


def changed(path: Path, **values: Any) -> Path:
    """A recipe with other values at its top level."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}, sort_keys=False))
    return path


def refusal(path: Path) -> str:
    """The message with which a recipe is refused, before or while its data is loaded."""
    with pytest.raises(RecipeError) as error:
        run(path)
    assert not (path.parent / "output" / "model").exists(), "training had begun"
    return str(error.value)


def prepared(folder: Path, rows: list[dict[str, Any]], **values: Any) -> tuple[TaskData, PreTrainedTokenizerBase]:
    """The data of a task with these rows in every split, encoded by the word tokenizer."""
    top = {key: values.pop(key) for key in ("max_length",) if key in values}
    task = write_task(folder, "task", {"train": rows, "validation": rows, "test": rows}, **values)
    recipe = read_recipe(write_recipe(folder, [task], **top))
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    return load_task_data(recipe, recipe.tasks[0], tokenizer), tokenizer


def refused(folder: Path, rows: list[dict[str, Any]], **values: Any) -> str:
    """The message with which these rows are refused."""
    with pytest.raises(RecipeError) as error:
        prepared(folder, rows, **values)
    return str(error.value)


def predictor(folder: Path, **options: Any) -> Predictor:
    """What answers with the model of a finished run."""
    model = EideticModel.from_pretrained(folder / "output" / "model")
    return Predictor(model, AutoTokenizer.from_pretrained(folder / "output" / "model"), **options)


def results_of(folder: Path) -> dict[str, Any]:
    """What a finished run has written."""
    return json.loads((folder / "output" / "results.json").read_text())


# -- finished runs ----------------------------------------------------------------------------------------------------

_FINISHED: dict[str, Path] = {}


def _once(name: str, source: pytest.TempPathFactory, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, the same one in every module of tests that this process runs."""
    if name not in _FINISHED:
        folder = source.mktemp(name)
        make(folder)
        _FINISHED[name] = folder
    return _FINISHED[name]


@pytest.fixture(autouse=True, scope="session")
def private_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` caches out of the home folder."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


def _unlike(folder: Path) -> None:
    rows = {split: size_rows(seed, n) for seed, (split, n) in enumerate({"train": 48, "test": 20}.items())}
    tasks = [write_task(folder, "color"), write_task(folder, "size", rows)]
    run_recipe(read_recipe(write_recipe(folder, tasks)), lambda line: None)


@pytest.fixture(scope="session")
def unlike(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """As `finished`, but with two tasks whose texts differ, `color` and `size`, so that the router can tell them."""
    return _once("unlike", tmp_path_factory, _unlike)


def _reading(folder: Path) -> None:
    color = {split: color_rows(seed, n) for seed, (split, n) in enumerate(SPLIT_SIZES.items())}
    tasks = [
        write_task(folder, "color", color),
        write_task(folder, "names", splits_of(tag_rows), type="token-classification"),
        write_task(
            folder,
            "where",
            splits_of(question_rows),
            type="question-answering",
            max_length=16,
            stride=3,
        ),
        write_task(folder, "which", splits_of(choice_rows), type="multiple-choice"),
        write_task(folder, "gaps", splits_of(verse_rows, "red w1 w2 w3"), type="masked-lm", mlm_probability=0.3),
        write_task(
            folder,
            "alike",
            splits_of(pair_rows),
            type="feature-extraction",
            columns={"score": "score"},
            max_score=5,
        ),
    ]
    path = write_recipe(folder, tasks, max_length=24, training={**TRAINING, "max_steps": 72})
    run_recipe(read_recipe(path), lambda line: None)


@pytest.fixture(scope="session")
def reading(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """As `finished`, with one task of each kind that an encoder has, in one model."""
    return _once("reading", tmp_path_factory, _reading)


def _writing(folder: Path) -> None:
    rows = {
        s: [{"prompt": r["text"], "answer": r["label"]} for r in color_rows(i, n)]
        for i, (s, n) in enumerate(SPLIT_SIZES.items())
    }
    tasks = [
        write_task(folder, "low", splits_of(verse_rows, "ab ba abba"), type="causal-lm"),
        write_task(folder, "high", splits_of(verse_rows, "XY YX XYYX"), type="causal-lm"),
        write_task(
            folder,
            "answer",
            rows,
            type="causal-lm",
            columns={"prompt": "prompt", "answer": "answer"},
            template="{prompt} > ",
            score_written=8,
        ),
    ]
    backbone = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    path = write_recipe(folder, tasks, backbone=backbone, tokenizer={"train": "byte"}, max_length=48, trunk_layers=1)
    run_recipe(read_recipe(path), lambda line: None)


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """As `finished`, with two language models and answers to prompts, in a random Llama that reads bytes."""
    return _once("writing", tmp_path_factory, _writing)


def _finished(folder: Path) -> None:
    run_recipe(read_recipe(write_recipe(folder)), lambda line: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, private_dataset_cache: None) -> Path:
    """Folder of a recipe (`colors.yaml`) that has been run; the results are in `output`. Shared: copy, not change."""
    return _once("finished", tmp_path_factory, _finished)
