"""For every kind of task: small data with something in it to learn, and what to ask of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from support.backbones import VOCABULARY, tiny_backbone
from support.data import arguments, make_data
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig

TAGS = ["O", "B-x", "I-x"]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each token of the tiny vocabulary: `w010` is token 10. Token 0 pads, token 2 masks."""
    inner = Tokenizer(models.WordLevel({f"w{i:03}": i for i in range(VOCABULARY)}, unk_token="w001"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="w000", unk_token="w001", mask_token="w002", model_max_length=64
    )


def as_text(ids: list[int]) -> str:
    """The words of some tokens."""
    return " ".join(f"w{i:03}" for i in ids)


def counting(seed: int, rows: int, low: int = 10, high: int = 60) -> list[list[int]]:
    """Sequences that begin with token 4, as texts with a special first token do, and then count upwards.

    In steps of three, from `high` on from `low`: a token follows from the last.
    """
    generator = torch.Generator().manual_seed(seed)
    span = high - low
    starts = torch.randint(0, span, (rows,), generator=generator).tolist()
    lengths = torch.randint(7, 12, (rows,), generator=generator).tolist()
    rows_of = zip(starts, lengths, strict=True)
    return [[4, *(low + (start + 3 * i) % span for i in range(1, n))] for start, n in rows_of]


def token_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The tag of a token follows from the token; some have none."""
    ids = counting(seed, rows, low, high)
    labels = [[-100 if i % 7 == 0 else i % 3 for i in row] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def question_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The answer is from token 5 to token 6."""
    ids = counting(seed, rows, low, high)
    generator = torch.Generator().manual_seed(seed + 1)
    starts = [int(torch.randint(0, len(row) - 2, (1,), generator=generator)) for row in ids]
    for row, start in zip(ids, starts, strict=True):
        row[start : start + 2] = [5, 6]
    return Dataset.from_dict(
        {"input_ids": ids, "start_positions": starts, "end_positions": [start + 1 for start in starts]}
    )


def choice_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The right one of three sequences begins with token 5."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=generator).tolist()
    flat = counting(seed + 1, 3 * rows, low, high)
    ids = [flat[3 * row : 3 * row + 3] for row in range(rows)]
    for row, label in zip(ids, labels, strict=True):
        row[label][0] = 5
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def text_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """Sequences that count."""
    return Dataset.from_dict({"input_ids": counting(seed, rows, low, high)})


def gap_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """Sequences of one of ten tokens, again and again, behind the first."""
    ids = [[4, *[low + (row[1] - low) // 5 * 5] * (len(row) - 1)] for row in counting(seed, rows, low, high)]
    return Dataset.from_dict({"input_ids": ids})


def copy_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The text to write counts on from where the text to read begins."""
    ids = counting(seed, rows, low, high)
    labels = [[low + (row[1] - low + i) % (high - low) for i in range(5)] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def pair_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """Both texts of a pair are about the same of ten topics, each with words of its own."""
    generator = torch.Generator().manual_seed(seed)
    topics = [int(torch.randint(0, (high - low) // 5, (1,), generator=generator)) for _ in range(rows)]
    sides = [
        [[4, *(low + 5 * topic + torch.randint(0, 5, (n,), generator=generator)).tolist()] for topic in topics]
        for n in (6, 9)
    ]
    return Dataset.from_dict({"input_ids": sides[0], "pair_input_ids": sides[1]})


def similarity_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """Pairs, half of them broken, with their similarity."""
    data = pair_data(seed, rows, low, high)
    partners = data["pair_input_ids"][:]
    whole = rows // 2
    partners[whole:] = partners[whole + 1 :] + partners[whole : whole + 1]
    same = [float((a[1] - low) // 5 == (b[1] - low) // 5) for a, b in zip(data["input_ids"], partners, strict=True)]
    return Dataset.from_dict({"input_ids": data["input_ids"][:], "pair_input_ids": partners, "labels": same})


def label_data(seed: int = 0, rows: int = 64, low: int = 10, high: int = 60) -> Dataset:
    """The label is what the second token says; all others are from `low` to `high`."""
    ids = counting(seed, rows, low, high)
    labels = make_data(seed, rows)["labels"][:]
    for row, label in zip(ids, labels, strict=True):
        row[1] = 3 + label
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@dataclass(frozen=True)
class KindCase:
    """How a kind of task is learned in the tests.

    Attributes:
        kind: its name.
        data: makes rows.
        metric: the figure that has to pass `bar` (perplexities from above).
        bar: far from what chance gives.
        auto_class: of transformers.
        steps: of training.
        options: for `add_task`.
    """

    kind: str
    data: Any
    metric: str
    bar: float
    auto_class: str
    steps: int = 40
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    case.kind: case
    for case in (
        # First, while every unit of its backbone is free: it needs the most.
        KindCase("masked-lm", gap_data, "perplexity", 30, "AutoModelForMaskedLM", steps=60),
        KindCase(
            "sequence-classification", label_data, "accuracy", 0.7, "AutoModelForSequenceClassification",
            options={"labels": ["x", "y", "z"]},
        ),
        KindCase(
            "token-classification", token_data, "f1", 0.6, "AutoModelForTokenClassification", options={"labels": TAGS}
        ),
        KindCase("question-answering", question_data, "exact_match", 0.8, "AutoModelForQuestionAnswering"),
        KindCase("multiple-choice", choice_data, "accuracy", 0.8, "AutoModelForMultipleChoice"),
        KindCase("feature-extraction", pair_data, "spearman", 0.5, "AutoModel", steps=60),
        KindCase("causal-lm", text_data, "perplexity", 30, "AutoModelForCausalLM", steps=60),
        KindCase("seq2seq-lm", copy_data, "perplexity", 30, "AutoModelForSeq2SeqLM", steps=60),
    )
}  # fmt: skip


def loud_backbone(architecture: str) -> Any:
    """A tiny backbone whose token embeddings are as large as pretrained ones are, so that tokens can be told."""
    backbone = tiny_backbone(architecture)
    with torch.no_grad():
        embeddings = backbone.get_input_embeddings().weight
        if float(embeddings.std()) < 0.2:
            embeddings.mul_(0.2 / embeddings.std())
    return backbone


def kind_model(architecture: str) -> EideticModel:
    """A model on such a backbone."""
    return EideticModel.from_backbone(loud_backbone(architecture), trunk_layers=1, growth="fixed")


def learn_kind(
    model: EideticModel,
    case: KindCase,
    name: str,
    folder: Path,
    words: tuple[int, int] = (10, 60),
    pruning: PruningConfig | None = None,
    **kwargs: Any,
) -> EideticTrainer:
    """Add a task of a kind and learn it from data with these words."""
    model.add_task(name, task_type=case.kind, **case.options)
    evaluation = similarity_data if case.kind == "feature-extraction" else case.data
    trainer = EideticTrainer(
        model=model,
        task=name,
        args=arguments(folder, **{"max_steps": case.steps, "learning_rate": 1e-2, "logging_steps": 5, **kwargs}),
        pruning=pruning or PruningConfig(keep=0.3),
        train_dataset=case.data(0, 64, *words),
        eval_dataset=evaluation(1000, 32, *words),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    return trainer


def batch_of(
    case: KindCase, rows: int = 5, words: tuple[int, int] = (10, 60), seed: int = 7
) -> dict[str, torch.Tensor]:
    """A padded batch, without targets."""
    ids = case.data(seed, rows, *words)["input_ids"][:]
    length = 12

    def pad(row: list) -> list[int]:
        return row + [0] * (length - len(row))

    nested = isinstance(ids[0][0], list)
    padded = torch.tensor([[pad(choice) for choice in row] if nested else pad(row) for row in ids])
    batch = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    if case.kind == "seq2seq-lm":
        batch["decoder_input_ids"] = padded[:, :6]
    return batch


def main_answer(output: Any) -> torch.Tensor:
    """The tensor that an answer is about: its logits (both, side by side) or embeddings."""
    if output.get("start_logits") is not None:
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.pooler_output if output.get("pooler_output") is not None else output.logits


@torch.no_grad()
def answer_of(model: EideticModel, case: KindCase, name: str, **kwargs: Any) -> torch.Tensor:
    """A task's answer to the batch of its kind, in evaluation mode."""
    model.eval()
    return main_answer(model(**batch_of(case, **kwargs), task=name))
