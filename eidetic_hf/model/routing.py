"""What a model asks its router: the task of each sequence of a batch, read as deep as it has to be.

A batch goes through the trunk once. What the trunk says decides where it leaves no doubt; the other rows go on from
there through base's layers, to the depth that the router reads, and each layer runs once for each row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..configuration import TaskError
from ..kinds import kind_of
from ..network.backbone import (
    MODEL_INPUTS,
    evaluation_mode,
    flat_sequences,
    hidden_size,
    is_nested,
    longest_sequence,
)
from ..network.trunk import TrunkPass
from ..network.vocabulary import highest_tokens
from ..views import View, task_key
from .parts import Parts, committed, record_of
from .request import Request
from .router import Layout, RouterSums, layers_to_read, reference_inputs, to_pool
from .versions import routed

ABSTAIN_SHARE = 0.05  # of a task's own sequences that abstain=True may turn away
NEAREST = 3  # tasks that are named where a sequence is turned away
# How deep the router reads: what the first layer tells of all rows; of those that it leaves in doubt, all layers; all.
SHALLOW, CASCADE, DEEP = "shallow", "cascade", "deep"
# So likely has a task to be by the first layer alone, that the row does not go on (docs/routing.md).
SURE = 0.99
# The router's own estimate of how often two tasks are told apart, below which it is said when one is committed.
HARDLY_APART = 0.95


@dataclass
class RoutedOutput(ModelOutput):
    """What a batch of several tasks of one kind answers; what the kind does not answer is `None`.

    Attributes:
        logits: for tasks with labels, over the labels of all of them, in the order of `kinds.flat_labels`, and
            minus infinity outside of a sequence's own task: `(batch, labels)`, or `(batch, sequence, labels)` for
            labels of tokens. Of language models `(batch, sequence, vocabulary)`, of multiple choice
            `(batch, choices)`.
        start_logits: of question answering, `(batch, sequence)`.
        end_logits: of question answering, `(batch, sequence)`.
        last_hidden_state: of feature extraction, `(batch, sequence, hidden)`.
        pooler_output: embeddings, of feature extraction, `(batch, hidden)`.
        tasks: name of each sequence's task; `None` where the router turned it away. Its answer is still the most
            likely task's.
        router_scores: posterior of each task that the router chose among, those of one kind in the order of
            `model.tasks`, or all of them from `route`, `(batch, tasks)`; `None` if the tasks were given.
        abstained: which sequences belong to no task, `(batch,)` bool; `None` if that was not asked.
        outlier_scores: how far each sequence lies from its task, in standard deviations of the task's own sequences,
            `(batch,)`; `None` if `abstain` was not asked.
        nearest: names of the likeliest tasks of each sequence that was turned away, and `None` for the others; `None`
            if `abstain` was not asked.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    tasks: list[str | None] | None = None
    router_scores: Tensor | None = None
    abstained: Tensor | None = None
    outlier_scores: Tensor | None = None
    nearest: list[list[str] | None] | None = None


# -- what is read -----------------------------------------------------------------------------------------------------


def check_way(way: str) -> str:
    """A way of routing, see `EideticModel.routing`.

    Raises:
        TaskError: if there is none of this name.
    """
    if way not in (SHALLOW, CASCADE, DEEP):
        raise TaskError(f"routing={way!r}: expected one of {[SHALLOW, CASCADE, DEEP]}.")
    return way


def check_layers(layers: Iterable[int], trunk_layers: int, n_layers: int, copies: bool) -> list[int]:
    """The layers that a router shall read, in ascending order.

    Raises:
        ValueError: if there is no such layer, or tasks change what it puts out.
    """
    found = sorted(set(layers))
    deepest = max(n_layers - 1, trunk_layers) if copies else trunk_layers
    if not found or not all(isinstance(layer, int) and 0 <= layer <= deepest for layer in found):
        why = "" if copies else ", since with growth='fixed' tasks take the units of the layers above the trunk"
        raise ValueError(
            f"router_layers={list(layers)!r}: expected numbers of layers, 0 (the embeddings) to {deepest}{why}."
        )
    return found


def layers_of_router(model: Parts) -> list[int]:
    """The layers that the router reads: as the first task settled it, or as it will."""
    config, growth = model.config, model.network.growth
    if model.router.is_ready:
        return model.router.layout(config.trunk_layers).layers
    depth = model.network.depth
    layers = config.router_layers
    if layers is None:
        layers = layers_to_read(config.trunk_layers, depth, growth.copies)
    return check_layers(layers, config.trunk_layers, depth, growth.copies)


def _pooled(
    model: Parts,
    trunk: TrunkPass,
    inputs: Mapping[str, Tensor],
    parts: Sequence[tuple[int, int]],
    rows: Tensor | None = None,
) -> tuple[list[Tensor], TrunkPass]:
    """What layers say of rows of a recorded batch, `(rows, hidden)` each; and the pass that went as deep as they lie.

    Args:
        model: the model.
        trunk: what the trunk, or a first part of base, put out for the whole batch.
        inputs: the whole batch.
        parts: layer, and what of its state.
        rows: numbers of the rows, `(rows,)`; `None` for all of them.
    """
    until = max(layer for layer, _ in parts)
    some = inputs if rows is None else {name: value[rows] for name, value in inputs.items()}
    if until > model.config.trunk_layers:
        sequences = rows
        if rows is not None and is_nested(inputs):
            each = len(trunk.state(0)) // len(next(iter(inputs.values())))
            sequences = (rows.unsqueeze(1) * each + torch.arange(each, device=rows.device)).flatten()
        trunk = model.network.record_base(trunk, flat_sequences(some), until, sequences)
    return model.network.summarize(trunk, some, parts), trunk


def _summary(model: Parts, text: Mapping[str, Any], parts: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The same of a batch to learn from, or of texts that somebody shows the router."""
    inputs = {name: text[name].to(model.device) for name in MODEL_INPUTS if text.get(name) is not None}
    trunk = model.network.record_trunk(flat_sequences(inputs), learning=True)
    return _pooled(model, trunk, inputs, parts)[0]


@torch.no_grad()
def router_sums(model: Parts, batches: Iterable[Mapping[str, Any]]) -> RouterSums:
    """What the task being learned leaves behind for the router, see `EideticModel.router_sums`."""
    if model.learner is None:
        raise TaskError("No task is being learned; its sums are taken before its commit.")
    record = record_of(model, model.learner.name)
    kind, router = kind_of(record), model.router
    with evaluation_mode(cast(nn.Module, model)), torch.autocast(model.device.type, enabled=False):
        if not router.is_ready:
            _look_at_random_tokens(model)
        parts = router.layout(model.config.trunk_layers).up_to(model.network.depth)
        sums = RouterSums.zeros(kind.n_prototypes(record), router.n_features)
        for batch in batches:
            for text in kind.texts(record, batch):
                features = router.features(torch.cat(_summary(model, text, parts), 1))
                labels = kind.prototype_labels(record, text, len(features))
                counted = labels >= 0
                if text.get("attention_mask") is not None:
                    counted &= text["attention_mask"].cpu().flatten(1).sum(1) > 0
                sums.add(features.cpu()[counted], labels[counted])
    return sums


def _look_at_random_tokens(model: Parts) -> None:
    """Settle what features are, by sequences that stand for no task."""
    network, backbone = model.network, model.network.backbone
    ids, mask = reference_inputs(backbone.config.vocab_size, longest_sequence(backbone), hidden_size(backbone.config))
    wanted = to_pool(layers_of_router(model))
    pooled = _summary(model, {"input_ids": ids, "attention_mask": mask}, wanted)
    layout = Layout.of(wanted, [part.shape[1] for part in pooled])
    model.router.set_reference(layout, torch.cat(pooled, 1), network.backbone_bytes())
    if layout.layers[-1] > model.config.trunk_layers:  # what of base lies beside its units
        model.router.reference.put("private", network.base_private())


# -- the choice -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def route(model: Parts, request: Request, abstain: bool | float, allowed: Sequence[str] | None = None) -> RoutedOutput:
    """The router's choice among all tasks, of whatever kind, see `EideticModel.route`."""
    check_share(abstain)
    names = committed(model)
    if not names:
        raise TaskError("No task is committed, so there is nothing to answer. Learn one with EideticTrainer.")
    trunk = TrunkPass()
    if request.batch:
        trunk = model.network.record_trunk(flat_sequences(request.inputs))
    return choose(model, trunk, request.inputs, abstain, names, allowed)


@torch.no_grad()
def choose(
    model: Parts,
    trunk: TrunkPass,
    inputs: Mapping[str, Tensor],
    abstain: bool | float,
    among: list[str],
    allowed: Sequence[str] | None = None,
) -> RoutedOutput:
    """The router's choice among some tasks for each sequence of a recorded batch.

    Args:
        model: the model.
        trunk: what the trunk put out.
        inputs: the batch.
        abstain: see `EideticModel.forward`.
        among: the tasks that there are scores of.
        allowed: those of them that may be chosen; all, if not given.
    """
    routes = routed(model.config, among)
    routes = _allowed(routes, among, allowed)
    known = [name for name in routes if model.router.has(name)] or routes  # those without sums are only named
    if torch.compiler.is_exporting():
        raise TaskError(
            "A graph of one task can be exported, but not one in which the router chooses: every task runs a network "
            "of its own. Pass task='<name>'."
        )
    if not trunk.states:
        model.router.discriminant(known)
        scores = torch.zeros(0, len(among), device=model.device)
        if not abstain:
            return RoutedOutput(tasks=[], router_scores=scores)
        none = scores.new_zeros(0)
        return RoutedOutput(tasks=[], router_scores=scores, abstained=none.bool(), outlier_scores=none, nearest=[])
    mask = inputs.get("attention_mask")
    empty = [] if mask is None else (mask.flatten(1).sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"The sequences {empty} have no token (attention_mask is 0): nothing to route.")
    log, features = _log_posteriors(model, trunk, inputs, known, bool(abstain))
    found = _of_known_tokens(model, log, inputs, known).exp()
    scores = found.new_zeros(len(found), len(among))
    scores[:, [among.index(name) for name in known]] = found
    best = most_likely(scores, among)
    if not abstain:
        return RoutedOutput(tasks=list(best), router_scores=scores)
    outliers = model.router.discriminant(known).outlier_scores(features, best)
    share = ABSTAIN_SHARE if abstain is True else abstain
    limits = [NormalDist().inv_cdf(1 - model.router.threshold(name, share)) for name in best]
    abstained = outliers > torch.tensor(limits, dtype=outliers.dtype, device=outliers.device)
    nearest = scores.topk(min(NEAREST, len(known)), 1).indices.tolist()
    return RoutedOutput(
        tasks=[None if away else name for away, name in zip(abstained.tolist(), best, strict=True)],
        router_scores=scores,
        abstained=abstained,
        outlier_scores=outliers,
        nearest=[
            [among[place] for place in places] if away else None
            for away, places in zip(abstained.tolist(), nearest, strict=True)
        ],
    )


def _log_posteriors(
    model: Parts, trunk: TrunkPass, inputs: Mapping[str, Tensor], known: list[str], deep: bool
) -> tuple[Tensor, Tensor]:
    """Log posteriors of tasks, `(batch, tasks)`, and the features that were read of every row."""
    router, trunk_layers = model.router, model.config.trunk_layers
    layout = router.layout(trunk_layers)
    first, last = layout.first_layer(trunk_layers), layout.layers[-1]
    priors = router.log_priors(known)
    way = DEEP if deep or first == last else model.routing

    def read(trunk: TrunkPass, until: int, rows: Tensor | None = None) -> tuple[Tensor, TrunkPass]:
        pooled, reached = _pooled(model, trunk, inputs, layout.up_to(until), rows)
        return router.features(torch.cat(pooled, 1)), reached

    def posteriors(features: Tensor) -> Tensor:
        return router.discriminant(known, features.shape[1]).log_posteriors(features, known, priors)

    features, reached = read(trunk, last if way == DEEP else first)
    log = posteriors(features)
    if way == CASCADE:
        rows = (log.amax(1) < math.log(SURE)).nonzero().squeeze(1)
        if len(rows):
            log[rows] = posteriors(read(reached, last, rows)[0])
    return log, features


def _allowed(routes: list[str], among: list[str], allowed: Sequence[str] | None) -> list[str]:
    """The tasks of a choice that a call allows.

    Raises:
        TaskError: if one that is allowed is no choice.
    """
    if allowed is None:
        return routes
    unknown = [name for name in allowed if name not in among] if not isinstance(allowed, str) else [allowed]
    if unknown or not allowed:
        raise TaskError(f"tasks={allowed!r}: expected a list of some of the tasks to choose from, {routes}.")
    return [name for name in routes if name in allowed] or [name for name in among if name in allowed]


def _of_known_tokens(model: Parts, scores: Tensor, inputs: Mapping[str, Tensor], among: list[str]) -> Tensor:
    """Log posteriors `(batch, tasks)` without the tasks that do not know a token of the sequence."""
    rows = model.network.input_rows
    highest = highest_tokens(inputs) if rows.has_grown else None
    if highest is None:
        return scores
    sizes = [rows.size(View(task_key(name))) for name in among]
    unknown = (highest.unsqueeze(1) >= torch.tensor(sizes, device=highest.device)).to(scores.device)
    nobodys = unknown.all(1).nonzero().flatten().tolist()
    if nobodys:
        row = nobodys[0]
        raise ValueError(
            f"The sequence {row} holds the token {int(highest[row])}, which no task knows: {among} know "
            f"{max(sizes)} tokens, 0 to {max(sizes) - 1}. Learn a task with it, or leave it out."
        )
    order = torch.tensor(sorted(range(len(among)), key=among.__getitem__), device=scores.device)
    left = scores.masked_fill(unknown, -torch.inf)[:, order].log_softmax(1)[:, order.argsort()]
    return torch.where(unknown.any(1, keepdim=True), left, scores)


def most_likely(scores: Tensor, among: list[str]) -> list[str]:
    """The likeliest task of each sequence, turned away or not."""
    return [among[index] for index in scores.argmax(-1).tolist()]


def check_share(abstain: bool | float) -> None:
    """Raise a `ValueError` if `abstain` is no share."""
    if not isinstance(abstain, bool) and not 0 < abstain < 1:
        raise ValueError(f"abstain={abstain!r}: expected True, False or a share between 0 and 1.")


def named_in(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The task that a text names at its beginning, as in "sentiment: what a film", and the text without it.

    Args:
        text: of a user.
        names: of the tasks that may be named; capitals, `_` and `-` make no difference.

    Returns:
        The name, or `None`; and the text to answer.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]+", " ", name).strip().casefold()

    called = {plain(name): name for name in names}
    found = re.match(r"\s*[\[(]?\s*([^\]):]{1,64}?)\s*[\])]?\s*:\s*(?=\S)", text)
    name = None if found is None else called.get(plain(found.group(1)))
    return (None, text) if name is None or found is None else (name, text[found.end() :])


# -- what users tell, and ask -----------------------------------------------------------------------------------------


def first_look(model: Parts) -> tuple[int, float]:
    """How many of the first features decide by themselves, and how likely a task has to be by them; 0 if none do."""
    trunk_layers = model.config.trunk_layers
    layout = model.router.layout(trunk_layers)
    if model.routing == DEEP or layout.first_layer(trunk_layers) == layout.layers[-1]:
        return 0, 0.0
    return layout.first_features(trunk_layers), SURE if model.routing == CASCADE else 0.0


def labels_of(model: Parts, task: str) -> list[str]:
    """Names of the labels that a task's sequences have one each of; none for other tasks."""
    return list(record_of(model, task).labels)


Texts = str | Sequence[str] | Mapping[str, Any]


def tokenizer_of(model: Parts, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer that texts are read by: the one given, or that of the folder that the model or backbone is from.

    Raises:
        ValueError: if there is none.
    """
    if tokenizer is not None:
        return tokenizer
    places = [place for place in (model.config.name_or_path, model.config.base_config.name_or_path) if place]
    for place in places:
        try:
            return AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError):
            continue
    raise ValueError(
        f"Texts have to be tokenized, and there is no tokenizer in {places or 'the folder of this model'}: pass "
        "tokenizer=..., or token ids, as model(...) takes them."
    )


@torch.no_grad()
def read(model: Parts, texts: Texts, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """Features of texts, `(texts, features)`.

    Args:
        model: the model.
        texts: one or several; or what a tokenizer makes of them.
        tokenizer: that makes it, see `tokenizer_of`.

    Raises:
        ValueError: if there is no text.
    """
    batch = texts
    if not isinstance(batch, Mapping):
        several = [texts] if isinstance(texts, str) else list(texts)
        if not several or not all(isinstance(text, str) and text.strip() for text in several):
            raise ValueError(f"texts={texts!r}: expected a text, or a list of at least one, none of them empty.")
        longest = longest_sequence(model.network.backbone)
        batch = tokenizer_of(model, tokenizer)(
            several, padding=True, truncation=longest is not None, max_length=longest, return_tensors="pt"
        )
    parts = model.router.layout(model.config.trunk_layers).up_to(model.network.depth)
    with evaluation_mode(cast(nn.Module, model)), torch.autocast(model.device.type, enabled=False):
        return model.router.features(torch.cat(_summary(model, batch, parts), 1))


def overlaps(model: Parts, name: str) -> dict[str, float]:
    """How often the texts of a task are told apart from those of the committed tasks that are nearest to it.

    An estimate from what the tasks left behind, 0.5 to 1, the lowest first; of eight tasks at most.
    """
    others = [other for other in routed(model.config, committed(model)) if other != name and model.router.has(other)]
    if not others or not model.router.has(name):
        return {}
    return model.router.overlaps(name, others)
