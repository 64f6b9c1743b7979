"""Figures: entities as conlleval counts them, answers as SQuAD compares them, perplexity over tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eidetic_hf.kinds.metrics import (
    answer_f1,
    correlations,
    entities,
    entity_scores,
    language_scores,
    normalize_answer,
    span_scores,
    squad_scores,
    token_scores,
)
from eidetic_hf.kinds.questions import best_spans


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("O I-PER I-PER O", {("PER", 1, 2)}),  # begins without its B
        ("I-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        ("B-PER O I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
        ("B-PER I-PER E-PER S-LOC", {("PER", 0, 2), ("LOC", 3, 3)}),
        ("B-PER E-PER I-PER", {("PER", 0, 1), ("PER", 2, 2)}),
        ("S-PER S-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-creative-work I-creative-work", {("creative-work", 0, 1)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags: str, expected: set) -> None:
    assert entities(tags.split()) == expected


def test_entity_scores_are_those_of_seqevals_example() -> None:
    right = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert entity_scores(predicted, right) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert entity_scores(right, right) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    nothing = [["O"] * len(row) for row in right]
    assert entity_scores(nothing, right) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_an_entity_of_the_wrong_type_counts_on_both_sides() -> None:
    scores = entity_scores([["B-LOC", "O", "B-PER"]], [["B-PER", "O", "B-PER"]])
    assert scores == {"precision": 0.5, "recall": 0.5, "f1": 0.5}


def test_only_labelled_tokens_make_entities() -> None:
    names = ["O", "B-x", "I-x"]
    labels = np.array([[-100, 1, -100, 2, 0, -100], [0, 0, -100, -100, -100, -100]])
    best = np.array([[1, 1, 0, 2, 0, 1], [0, 1, 1, 1, 1, 1]])
    scores = token_scores(best, labels, names)
    assert scores["recall"] == 1.0
    assert scores["precision"] == 0.5
    assert scores["accuracy"] == pytest.approx(4 / 5)


def test_labels_that_mark_no_entities_are_scored_one_by_one() -> None:
    scores = token_scores(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]), ["NOUN", "VERB"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert "precision" not in scores


def test_answers_are_compared_as_squad_compares_them() -> None:
    assert normalize_answer("The  Cat's, an Apple!") == "cats apple"
    assert answer_f1("the black cat", "a cat") == pytest.approx(2 * 1 / (2 + 1))
    assert answer_f1("", "") == 1.0
    assert answer_f1("something", "") == 0.0
    predictions = ["The Eiffel Tower", "in 1889", "", "Bonn"]
    answers = [["Eiffel Tower", "tower"], ["1889"], [], ["Berlin"]]
    scores = squad_scores(predictions, answers)
    assert scores["exact_match"] == pytest.approx(50.0)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert squad_scores([], []) == {"exact_match": 0.0, "f1": 0.0}


def test_spans_are_scored_by_their_tokens() -> None:
    scores = span_scores([[2, 4], [5, 5], [0, 3]], [[2, 4], [5, 6], [-100, -100]])
    assert scores["exact_match"] == 0.5
    assert scores["f1"] == pytest.approx((1 + 2 * 1 / 3) / 2)
    assert span_scores([[0, 1]], [[-100, -100]]) == {}


def test_the_best_span_ends_after_it_begins() -> None:
    start = np.array([[0.0, 1.0, 9.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    end = np.array([[0.0, 8.0, 1.0, 2.0], [0.0, 0.0, 0.0, 5.0]])
    assert best_spans(start, end).tolist() == [[2, 3], [0, 3]]
    assert best_spans(start, end, longest=2).tolist() == [[2, 3], [0, 0]]
    assert best_spans(start[:0], end[:0]).shape == (0, 2)
    many = np.random.default_rng(0).normal(size=(2, 150, 7))
    chosen = best_spans(*many)
    for row, (a, b) in enumerate(chosen):
        allowed = [(many[0, row, i] + many[1, row, j], (i, j)) for i in range(7) for j in range(i, 7)]
        assert (a, b) == max(allowed)[1]


def test_perplexity_is_over_tokens_and_not_over_rows() -> None:
    scores = language_scores([[2.0, 1, 1], [3.0, 2, 9]])
    assert scores["perplexity"] == pytest.approx(math.exp(0.5))
    assert scores["accuracy"] == pytest.approx(0.3)
    assert language_scores([[9e5, 0, 1]])["perplexity"] == math.inf
    assert language_scores(np.zeros((2, 3))) == {}


def test_correlations_need_two_rows() -> None:
    assert correlations([1.0], [1.0]) == {}
    scores = correlations([1.0, 2.0, 30.0], [1.0, 2.0, 3.0])
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] < 0.95
