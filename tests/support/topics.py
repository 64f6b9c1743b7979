"""Tasks that can be told apart: sequences that begin alike, each topic with tokens of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from support.data import arguments, make_data

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig

TOPICS = ("alpha", "beta", "gamma", "delta")
LABELS = ["x", "y", "z"]


def topic_data(topic: int, seed: int = 0, rows: int = 64) -> Dataset:
    """Sequences that begin alike, and whose other tokens come from a range of their own: they can be routed."""
    data = make_data(seed, rows)
    low = 6 + 27 * topic

    def moved(ids: list[int], mask: list[int]) -> list[int]:
        return [
            0 if not m else 3 if place == 0 else low + (i % 27) if place != 1 else i
            for place, (i, m) in enumerate(zip(ids, mask, strict=True))
        ]

    rows_of = data.to_dict()
    ids = [moved(*row) for row in zip(rows_of["input_ids"], rows_of["attention_mask"], strict=True)]
    return Dataset.from_dict({**rows_of, "input_ids": ids})


def topic_batch(topics: list[int], seed: int = 5) -> dict[str, torch.Tensor]:
    """One sequence of each topic listed, padded."""
    rows = [topic_data(topic, seed + place, rows=1)[0] for place, topic in enumerate(topics)]
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}


def learn_topics(
    model: EideticModel, topics: tuple[int, ...], folder: Path, problem_types: dict[int, str] | None = None
) -> EideticModel:
    """Learn one task for each topic."""
    for topic in topics:
        kind = (problem_types or {}).get(topic, "single_label_classification")
        model.add_task(TOPICS[topic], labels=LABELS, problem_type=kind)
        data = topic_data(topic, topic)
        if kind != "single_label_classification":
            data = data.map(lambda row: {"targets": [float(row["labels"] == i) for i in range(3)]})
            data = data.remove_columns("labels").rename_column("targets", "labels")
        EideticTrainer(
            model=model,
            task=TOPICS[topic],
            args=arguments(folder, max_steps=6),
            pruning=PruningConfig(keep=0.3),
            train_dataset=data,
        ).train()
    return model.eval()


def commit_topic(
    model: EideticModel, topic: int, name: str | None = None, route: bool = True, seed: int = 0, rows: int = 48
) -> None:
    """Commit a task for a topic without training: each Parameter takes a random step."""
    name = name or TOPICS[topic]
    model.add_task(name, labels=LABELS)
    model.begin_task(name, PruningConfig(own=0.3) if model.config.growth == "copy" else PruningConfig(keep=0.2))
    generator = torch.Generator().manual_seed(1000 * seed + topic)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    if model.config.growth == "fixed":
        model.learner.prune(0.2)
    data = topic_data(topic, 10 * seed + topic, rows)
    batch = {column: torch.tensor(data[column][:]) for column in data.column_names}
    model.eval()
    model.commit_task(router_sums=model.router_sums([batch]) if route else None)
