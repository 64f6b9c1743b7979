"""What answers are worth: entity scores, answers to questions, perplexity, correlations.

Figures are shares between 0 and 1, but those of `squad_scores`, which are given in percent as its authors do.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..compat import need
from .base import IGNORED


def _scores() -> Any:
    return need("sklearn.metrics", why="Measuring labels")


# -- labels -----------------------------------------------------------------------------------------------------------


def label_scores(logits: Any, labels: Any) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of one label per row.

    Args:
        logits: `(rows, labels)`.
        labels: `(rows,)`; rows with the label -100 do not count.
    """
    best, labels, scores = np.asarray(logits).argmax(-1), np.asarray(labels), _scores()
    best, labels = best[labels != IGNORED], labels[labels != IGNORED]
    if not len(labels):
        return {}
    return {
        "accuracy": float(scores.accuracy_score(labels, best)),
        "f1": float(scores.f1_score(labels, best, average="macro", zero_division=0)),
    }


def multi_label_scores(logits: Any, labels: Any) -> dict[str, float]:
    """Share of rows with all labels right, and micro-averaged F1; both `(rows, labels)`."""
    chosen, right, scores = np.asarray(logits) > 0, np.asarray(labels) > 0.5, _scores()
    return {
        "accuracy": float(scores.accuracy_score(right, chosen)),
        "f1": float(scores.f1_score(right, chosen, average="micro", zero_division=0)),
    }


def regression_scores(numbers: Any, targets: Any) -> dict[str, float]:
    """Mean squared error and correlations, over all numbers."""
    flat, target = np.asarray(numbers).reshape(-1), np.asarray(targets).reshape(-1)
    return {"mse": float(_scores().mean_squared_error(target, flat)), **correlations(flat, target)}


def correlations(numbers: Any, targets: Any) -> dict[str, float]:
    """Pearson's and Spearman's correlation, both `(rows,)`; nothing for a single row."""
    if len(targets) < 2:
        return {}
    stats = need("scipy.stats", why="Measuring correlations")
    return {
        "pearson": float(stats.pearsonr(numbers, targets)[0]),
        "spearman": float(stats.spearmanr(numbers, targets)[0]),
    }


# -- entities ---------------------------------------------------------------------------------------------------------


def _split_tag(tag: str) -> tuple[str, str]:
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash else (prefix, "")


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities that the tags of one sequence mark, as `(type, first tag, last tag)`.

    As the CoNLL-2000 evaluation script `conlleval` reads them, and `seqeval` by default: an entity begins with `B-`,
    but also with an `I-` that continues none of its type; `E-`, `S-` (and `L-`, `U-`) of other schemes are known.
    """
    found, start = set(), None
    before, kind = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, now = _split_tag(tag)
        continues = before in ("B", "I") and prefix in ("I", "E", "L") and now == kind
        if start is not None and not continues:
            found.add((kind, start, place - 1))
            start = None
        if start is None and prefix != "O":
            start = place
        before, kind = prefix, now
    return found


def entity_scores(predicted: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, right in type and extent, over all sequences.

    Args:
        predicted: tags such as `B-person`, per sequence and token.
        right: likewise.
    """
    n_predicted = n_right = n_both = 0
    for ours, theirs in zip(predicted, right, strict=True):
        guessed, true = entities(ours), entities(theirs)
        n_predicted, n_right, n_both = n_predicted + len(guessed), n_right + len(true), n_both + len(guessed & true)
    precision = n_both / n_predicted if n_predicted else 0.0
    recall = n_both / n_right if n_right else 0.0
    f1 = 2 * precision * recall / (precision + recall) if n_both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def token_scores(best: Any, labels: Any, names: Sequence[str]) -> dict[str, float]:
    """Scores of entities, and accuracy over tokens; without tags that mark entities, macro-averaged F1 of the labels.

    Args:
        best: number of each token's label, `(rows, tokens)`.
        labels: likewise; tokens with the label -100 do not count.
        names: of the labels.
    """
    counted = np.asarray(labels) != IGNORED
    flat_best, flat_labels = np.asarray(best)[counted], np.asarray(labels)[counted]
    accuracy = float(_scores().accuracy_score(flat_labels, flat_best))
    if not all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for name in names):
        f1 = float(_scores().f1_score(flat_labels, flat_best, average="macro", zero_division=0))
        return {"accuracy": accuracy, "f1": f1}
    rows = [
        [[names[number] for number in row[mask]] for row, mask in zip(np.asarray(numbers), counted, strict=True)]
        for numbers in (best, labels)
    ]
    return {**entity_scores(rows[0], rows[1]), "accuracy": accuracy}


# -- answers to questions ---------------------------------------------------------------------------------------------


def span_scores(spans: Any, right: Any) -> dict[str, float]:
    """Share of answers at exactly the right place, and mean F1 over the tokens of answer and right answer.

    Args:
        spans: first and last token of each answer, `(rows, 2)`.
        right: likewise; rows with a negative position do not count.
    """
    spans, right = np.asarray(spans), np.asarray(right)
    counted = (right >= 0).all(1)
    spans, right = spans[counted], right[counted]
    if not len(right):
        return {}
    shared = np.minimum(spans[:, 1], right[:, 1]) - np.maximum(spans[:, 0], right[:, 0]) + 1
    lengths = (spans[:, 1] - spans[:, 0] + 1) + (right[:, 1] - right[:, 0] + 1)
    return {
        "exact_match": float((spans == right).all(1).mean()),
        "f1": float((2 * shared.clip(0) / lengths.clip(1)).mean()),
    }


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous spaces, as SQuAD compares answers."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split())


def answer_f1(prediction: str, answer: str) -> float:
    """F1 over the words of two answers. An empty answer (there is none) only equals an empty one."""
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`exact_match` and `f1` in percent, as SQuAD counts them (Rajpurkar et al., arXiv 1606.05250).

    Args:
        predictions: one answer per question.
        answers: the right answers to each question, of which the nearest one counts; none, or an empty one, where the
            text has no answer.
    """
    exact = f1 = 0.0
    for prediction, right in zip(predictions, answers, strict=True):
        candidates = list(right) or [""]
        exact += max(float(normalize_answer(prediction) == normalize_answer(answer)) for answer in candidates)
        f1 += max(answer_f1(prediction, answer) for answer in candidates)
    n = max(len(predictions), 1)
    return {"exact_match": 100 * exact / n, "f1": 100 * f1 / n}


# -- language models --------------------------------------------------------------------------------------------------


def language_scores(sums: Any) -> dict[str, float]:
    """Perplexity and accuracy over the tokens that count, whatever batches they came in.

    Args:
        sums: per row the sum of its tokens' negative log likelihoods, the number of right ones, and of all,
            `(rows, 3)`.
    """
    loss, right, tokens = np.asarray(sums, dtype=np.float64).reshape(-1, 3).sum(0)
    if not tokens:
        return {}
    mean = float(loss / tokens)
    return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "accuracy": float(right / tokens)}
