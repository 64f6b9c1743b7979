"""A kind of task whose answer is a vector: sentence embeddings, near each other where texts mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ..configuration import EideticConfig, TaskRecord
from ..network.backbone import hidden_size
from ..network.plain import PlainModel
from ..network.vocabulary import TokenTable
from .base import Answer, Kind
from .checks import expect_bool, expect_finite, expect_one_of, expect_positive, expect_shape, find_label_column
from .collators import PAIR, PairCollator
from .heads import POOLINGS, EmbeddingHead, choose_pooling
from .metrics import correlations

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class EmbeddingOutput(ModelOutput):
    """What feature extraction answers: a `BaseModelOutputWithPooling` with a loss.

    Attributes:
        loss: contrastive, or of the similarity, if pairs were given.
        last_hidden_state: `(batch, sequence, hidden)`.
        pooler_output: the embeddings, `(batch, hidden)`.
        similarity: cosine of each pair's embeddings, `(batch,)`, if pairs were given.
        hidden_states: of each layer, if asked for.
        attentions: of each layer, if asked for.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    similarity: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class FeatureExtraction(Kind):
    """Sentence embeddings, learned from pairs of texts.

    Without labels, a text's own partner has to be nearer than those of all other texts in the batch (InfoNCE, van den
    Oord et al., arXiv 1807.03748, also called multiple-negatives ranking); with labels, the cosine of a pair has to be
    its label.
    """

    @dataclass(frozen=True)
    class Options:
        """Settings of a task.

        Attributes:
            pooling: how the head reads a sequence, one of `POOLINGS`; `None` for what suits the backbone.
            temperature: of the contrastive loss.
            normalize: whether embeddings are scaled to length 1.
        """

        pooling: str | None = None
        temperature: float = 0.05
        normalize: bool = True

        def __post_init__(self) -> None:
            expect_one_of("pooling", self.pooling, (None, *POOLINGS))
            expect_positive("temperature", self.temperature)
            expect_bool("normalize", self.normalize)

    name = "feature-extraction"
    outputs = ("pooler_output",)
    measured = ("pooler_output", "similarity")
    plain_outputs = ("last_hidden_state",)
    output_class = EmbeddingOutput
    embeds = True
    optional_targets = True
    auto_class = "AutoModel"
    pipeline = "feature-extraction"
    hub_task = "sentence-similarity"

    def complete(self, task: TaskRecord, config: EideticConfig, vocabulary: TokenTable) -> None:
        """How the head reads a sequence."""
        choose_pooling(task, config)

    def make_head(self, config: PreTrainedConfig, task: TaskRecord) -> nn.Module:
        """Pooling and scaling; nothing to learn."""
        return EmbeddingHead(task.pooling, task.normalize)

    def answer(self, head: nn.Module, hidden: Tensor, inputs: Mapping[str, Any], vocabulary: TokenTable) -> Answer:
        """`last_hidden_state`, `(batch, sequence, hidden)`, and `pooler_output`, the embeddings `(batch, hidden)`."""
        return {"last_hidden_state": hidden, "pooler_output": head(hidden, inputs.get("attention_mask"))}

    def write_plain_head(self, task: TaskRecord, head: nn.Module, plain: PlainModel, vocabulary: TokenTable) -> None:
        """Nothing: the hidden states are to be pooled outside."""

    def plain_files(self, task: TaskRecord, config: PreTrainedConfig) -> dict[str, str]:
        """How sentence-transformers pools and scales; of an encoder-decoder it reads the encoder, so nothing there."""
        if config.is_encoder_decoder:
            return {}
        modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        listed = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (name, path) in enumerate(modules[: 3 if task.normalize else 2])
        ]
        pooling = {"word_embedding_dimension": hidden_size(config)}
        for name, mode in (("first", "cls_token"), ("mean", "mean_tokens"), ("last", "lasttoken")):
            pooling[f"pooling_mode_{mode}"] = task.pooling == name
        return {
            "modules.json": json.dumps(listed, indent=2),
            "1_Pooling/config.json": json.dumps(pooling, indent=2),
        }

    def pair_targets(self, task: TaskRecord, pair: Callable[[], Answer]) -> dict[str, Tensor]:
        """The embeddings of the other texts."""
        return {"pair": pair()["pooler_output"]}

    def loss(self, task: TaskRecord, answer: Answer, targets: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy over the batch's partners, or squared error of the cosine."""
        if "pair" not in targets:
            raise ValueError(
                f"Task '{task.name}' ({self.name}) got labels, which say how similar the texts of a pair are, and "
                "no pair_input_ids."
            )
        ours, theirs, labels = answer["pooler_output"].float(), targets["pair"].float(), targets.get("labels")
        if len(ours) != len(theirs):
            raise ValueError(
                f"Task '{task.name}' ({self.name}) got {len(ours)} texts and {len(theirs)} partners; expected as "
                "many of both."
            )
        if labels is not None:
            expect_shape(task, "labels", labels, (len(ours),), "the similarity of each pair")
            if not labels.is_floating_point():
                raise ValueError(
                    f"Task '{task.name}' ({self.name}) needs floating-point labels between -1 and 1, the similarity "
                    f"of each pair, got {labels.dtype}."
                )
            return F.mse_loss(F.cosine_similarity(ours, theirs), labels.float())
        scores = F.normalize(ours, dim=-1) @ F.normalize(theirs, dim=-1).T / task.temperature
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def output(
        self, loss: Tensor | None, answer: Answer, targets: Mapping[str, Tensor], backbone: ModelOutput
    ) -> ModelOutput:
        """With the similarity of pairs."""
        output = super().output(loss, answer, targets, backbone)
        if "pair" in targets:
            output["similarity"] = F.cosine_similarity(answer["pooler_output"], targets["pair"])
        return output

    def distance(
        self, task: TaskRecord, answer: Answer, wanted: Answer, targets: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """1 less the cosine."""
        return 1 - F.cosine_similarity(answer["pooler_output"], wanted["pooler_output"]).mean()

    def texts(self, task: TaskRecord, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Both texts of each pair."""
        pair = {name.removeprefix(PAIR): value for name, value in batch.items() if name.startswith(PAIR)}
        single = {name: value for name, value in batch.items() if not name.startswith(PAIR)}
        return [single, pair] if pair else [single]

    def probe_answer(self, answer: Answer) -> Tensor:
        """The embeddings."""
        return answer["pooler_output"]

    def collator(self, tokenizer: PreTrainedTokenizerBase | None) -> Callable | None:
        """Pads both texts of each pair."""
        return PairCollator(tokenizer)

    def check_dataset(self, task: TaskRecord, name: str, data: Dataset) -> None:
        """Pairs of texts, and numbers as labels, if any."""
        if "pair_input_ids" not in data.column_names:
            raise ValueError(
                f"Task '{task.name}' ({self.name}): the {name} has no column 'pair_input_ids', the tokens of the "
                f"text that belongs to each text; it has {data.column_names}."
            )
        column = find_label_column(data)
        if column is not None:
            values = np.asarray(data[column][:])
            if values.dtype.kind in "fi" and values.ndim == 1:
                expect_finite(task, name, data, column)
            if values.dtype.kind not in "fi" or values.ndim != 1 or np.abs(values).max() > 1:
                raise ValueError(
                    f"Task '{task.name}' ({self.name}): the column '{column}' of the {name} holds "
                    f"{data[0][column]!r}; expected numbers between -1 and 1, how similar the texts of a pair are "
                    "(divide STS-B's scores by 5)."
                )

    def reduce(self, task: TaskRecord, outputs: Any, labels: Any) -> Any:
        """The similarity of each pair; the embeddings of single texts."""
        return outputs[1] if isinstance(outputs, tuple) else outputs

    def metrics(self, task: TaskRecord, predictions: Any, labels: Any) -> dict[str, float]:
        """Correlations of cosine and label; nothing without labels."""
        return correlations(np.asarray(predictions), np.asarray(labels)) if np.ndim(labels) == 1 else {}
