"""Batches: what is written, what is padded, what is masked."""

from __future__ import annotations

import pytest
import torch
from support.kind_cases import word_tokenizer

from eidetic_hf.kinds import TASK_KINDS
from eidetic_hf.kinds.collators import PairCollator, TextCollator


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_real_token_is_written_even_the_one_that_pads(side: str) -> None:
    tokenizer = word_tokenizer()
    tokenizer.padding_side = side
    batch = TextCollator(tokenizer)([{"input_ids": [5, 6, 0]}, {"input_ids": [7]}])
    rows = [[5, 6, 0], [7, -100, -100] if side == "right" else [-100, -100, 7]]
    assert batch["labels"].tolist() == rows
    assert batch["attention_mask"].sum(1).tolist() == [3, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_that_are_there_are_padded_and_kept(side: str) -> None:
    tokenizer = word_tokenizer()
    tokenizer.padding_side = side
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    batch = TextCollator(tokenizer)(rows)
    padded = [-100, 9, -100] if side == "right" else [-100, -100, 9]
    assert batch["labels"].tolist() == [[-100, 6, 7], padded]


def test_labels_of_another_length_than_their_text_are_named() -> None:
    with pytest.raises(ValueError, match="row 1 of a batch has 3 labels for 2 tokens"):
        TextCollator(word_tokenizer())(
            [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9, 10]}]
        )


def test_each_side_of_a_pair_has_its_length() -> None:
    rows = [
        {"input_ids": [5, 6], "pair_input_ids": [7], "labels": 1},
        {"input_ids": [5], "pair_input_ids": [7, 8, 9], "labels": 0},
    ]
    batch = PairCollator(word_tokenizer())(rows)
    assert batch["input_ids"].tolist() == [[5, 6], [5, 0]]
    assert batch["pair_input_ids"].tolist() == [[7, 0, 0], [7, 8, 9]]
    assert batch["pair_attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].dtype == torch.float32
    without = PairCollator()([{"input_ids": [5, 6], "pair_input_ids": [7]}])
    assert set(without) == {"input_ids", "pair_input_ids"}


def test_a_batch_of_gaps_has_one_at_least() -> None:
    torch.manual_seed(0)
    collate = TASK_KINDS["masked-lm"].collator(word_tokenizer())
    for _ in range(50):
        batch = collate([{"input_ids": [5, 6]}])
        assert int((batch["labels"] != -100).sum()) >= 1
    given = collate([{"input_ids": [2, 6, 7], "labels": [5, -100, -100]}, {"input_ids": [2], "labels": [9]}])
    assert given["labels"].tolist() == [[5, -100, -100], [9, -100, -100]]


def test_kinds_without_a_need_take_the_trainers_own_collator() -> None:
    tokenizer = word_tokenizer()
    assert TASK_KINDS["sequence-classification"].collator(tokenizer) is None
    assert TASK_KINDS["question-answering"].collator(tokenizer) is None
    names = {name: type(kind.collator(tokenizer)).__name__ for name, kind in TASK_KINDS.items()}
    assert names["token-classification"] == "DataCollatorForTokenClassification"
    assert names["multiple-choice"] == "DataCollatorForMultipleChoice"
    assert names["seq2seq-lm"] == "DataCollatorForSeq2Seq"
