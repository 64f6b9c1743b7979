"""A recipe: which tasks to learn on which backbone, and how. What one may say, for each kind of task.

`recipe_file.py` reads one, `task_data.py` the data that it names, and `run.py` does what it says. docs/recipes.md
lists every key.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..model.pruning import PruningConfig

CHECKPOINTS_FOLDER = "checkpoints"
TOKENIZERS = ("bpe", "byte")  # that can be trained
SMALLEST_VOCABULARY = 300  # all bytes, special tokens and some room


class RecipeError(ValueError):
    """A recipe, or the data it names, can not be run. The message says what was given and expected, and what to do."""


# -- what a recipe may say of each kind of task -----------------------------------------------------------------------


@dataclass(frozen=True)
class KindRules:
    """What a recipe may say of a task of one kind.

    Attributes:
        columns: the parts of a row, with the column that each is read from where the recipe names none; parts at
            `None` are read only if the recipe names their column.
        metrics: built-in metrics; the first one is the default.
        settings: further keys of such a task, with their values by default.
        has_labels: whether `labels:` may be given.
    """

    columns: dict[str, str | None]
    metrics: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    has_labels: bool = False


# Of texts that were written and are held against the right ones.
WRITTEN_METRICS = ("exact_match", "f1")
WRITTEN_TEXTS = 200  # as many of a split are written for them

KIND_RULES = {
    "sequence-classification": KindRules(
        {"text": "text", "text_pair": None, "label": "label"}, ("accuracy", "f1"), has_labels=True
    ),
    "token-classification": KindRules(
        {"tokens": "tokens", "tags": "tags"}, ("f1", "precision", "recall", "accuracy"), has_labels=True
    ),
    "question-answering": KindRules(
        {"question": "question", "context": "context", "answers": "answers"},
        ("f1", "exact_match"),
        {"stride": None, "max_answer_length": 30},
    ),
    "multiple-choice": KindRules(
        {"text": "text", "question": None, "choices": "choices", "label": "label"},
        ("accuracy",),
        {"choice_marks": None},
        has_labels=True,
    ),
    "causal-lm": KindRules(
        {"text": "text", "prompt": None, "answer": None},
        ("perplexity", "accuracy", *WRITTEN_METRICS),
        {"template": None, "score_written": None, "own_output_embeddings": None},
    ),
    "seq2seq-lm": KindRules(
        {"source": "source", "target": "target"},
        ("perplexity", "accuracy", *WRITTEN_METRICS),
        {"max_target_length": None, "score_written": None, "own_output_embeddings": None},
    ),
    "masked-lm": KindRules(
        {"text": "text"}, ("perplexity", "accuracy"), {"mlm_probability": 0.15, "own_output_embeddings": None}
    ),
    "feature-extraction": KindRules(
        {"text": "text", "text_pair": "text_pair", "score": None},
        ("spearman", "pearson"),
        {"max_score": 1.0, "temperature": 0.05, "normalize": True},
    ),
}
# Of sequence classification, the metrics go by what the labels are.
PROBLEM_METRICS = {
    "single_label_classification": ("accuracy", "f1"),
    "multi_label_classification": ("f1", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
}
LOSS = "loss"  # a metric of every kind
LOWER_IS_BETTER = ("mse", "perplexity", LOSS)

# Type, test and description of each setting.
SETTINGS: dict[str, tuple[Any, Any, str]] = {
    "stride": (int, lambda value: value >= 0, "a whole number of tokens >= 0"),
    "max_answer_length": (int, lambda value: value >= 1, "a whole number of tokens >= 1"),
    "choice_marks": (
        list,
        lambda value: len(value) > 1 and all(isinstance(mark, str) and mark for mark in value),
        "a list of two or more texts that stand before the choices, such as ['A:', 'B:']",
    ),
    "template": (str, lambda value: "{prompt}" in value, "a text with {prompt} in it"),
    "max_target_length": (int, lambda value: value >= 2, "a whole number of tokens >= 2"),
    "score_written": (int, lambda value: value >= 0, "a whole number of texts >= 0"),
    "mlm_probability": ((int, float), lambda value: 0 < value < 1, "a share between 0 and 1"),
    "max_score": ((int, float), lambda value: value > 0, "a number > 0, the score of texts that mean the same"),
    "temperature": ((int, float), lambda value: value > 0, "a number > 0"),
    "normalize": (bool, lambda value: True, "true or false"),
    "own_output_embeddings": (bool, lambda value: True, "true or false"),
}


def metrics_of(task_type: str, problem_type: str) -> tuple[str, ...]:
    """The built-in metrics of a kind of task; the first one is the default."""
    if task_type == "sequence-classification":
        return (*PROBLEM_METRICS[problem_type], LOSS)
    return (*KIND_RULES[task_type].metrics, LOSS)


# -- what a recipe says -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Splits:
    """Names of a data set's splits; `None` takes the usual name, and makes do without if there is no such split."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class TaskRecipe:
    """One task of a recipe.

    Attributes:
        name: the task's name.
        data: keyword arguments of `datasets.load_dataset`; relative files are looked for in the recipe's folder.
        type: the kind of task, see `KIND_RULES`.
        problem_type: of sequence classification: `"single_label_classification"`, `"multi_label_classification"` or
            `"regression"`.
        columns: the column of each part of a row, such as `{"text": "sentence"}`; `choices` may be a list of columns.
        labels: names of the labels in the order of the logits; by default those of the `ClassLabel` feature, or else
            the sorted labels of the training split. For regression, names of the targets. Of multiple choice, names
            of the choices, if the label column has names.
        metric: the score of the accuracy matrix; see `metrics_of`. For sequence classification, any other name is
            given to `evaluate.load`.
        splits: names of the data set's splits.
        training: fields of `TrainingArguments`, over the recipe's.
        pruning: fields of `PruningConfig`, over the recipe's.
        forward_transfer: which earlier tasks this one reads; the recipe's by default.
        pooling: how the head reads the sequence; the recipe's by default.
        max_length: longest sequence, in tokens; the recipe's by default.
        stride: of question answering: tokens of a long context that two windows share; a quarter of `max_length` by
            default.
        max_answer_length: of question answering: longest answer, in tokens.
        choice_marks: of multiple choice: what stands before each choice, if one column holds all of them as one text.
        template: of causal language models: the text that a prompt is put into, at `{prompt}`.
        max_target_length: of `"seq2seq-lm"`: longest target, in tokens; `max_length` by default.
        score_written: of `"seq2seq-lm"` and of causal language models that answer prompts: how many texts of a split
            are written out and held against the right ones, for `exact_match` and `f1` over words; 200 if one of these
            is the metric, else none by default.
        mlm_probability: of masked language models: share of the tokens that are masked.
        own_output_embeddings: of language models: as `EideticModel.add_task` takes it.
        max_score: of feature extraction: the score of texts that mean the same; scores are divided by it.
        temperature: of feature extraction: of the contrastive loss.
        normalize: of feature extraction: whether embeddings are scaled to length 1.
    """

    name: str
    data: dict[str, Any]
    type: str = "sequence-classification"
    problem_type: str = "single_label_classification"
    columns: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None
    metric: str = ""
    splits: Splits = Splits()
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)
    forward_transfer: str | list[str] | None = None
    pooling: str | None = None
    max_length: int | None = None
    stride: int | None = None
    max_answer_length: int | None = None
    choice_marks: list[str] | None = None
    template: str | None = None
    max_target_length: int | None = None
    score_written: int | None = None
    mlm_probability: float | None = None
    own_output_embeddings: bool | None = None
    max_score: float | None = None
    temperature: float | None = None
    normalize: bool | None = None

    @property
    def rules(self) -> KindRules:
        """What may be said of a task of this kind."""
        return KIND_RULES[self.type]

    @property
    def has_prompts(self) -> bool:
        """Whether a causal language model learns answers to prompts, and no running text."""
        return "prompt" in self.columns

    @property
    def n_written(self) -> int:
        """How many texts of a split are written out to be scored."""
        if self.score_written is None:
            return WRITTEN_TEXTS if "score_written" in self.rules.settings and self.metric in WRITTEN_METRICS else 0
        return self.score_written

    def setting(self, name: str) -> Any:
        """One of the settings of this kind of task, or its value by default."""
        given = getattr(self, name)
        return self.rules.settings[name] if given is None else given


@dataclass(frozen=True)
class Recipe:
    """A whole recipe, checked: every key is known, every value that can be checked without the data is allowed.

    Attributes:
        name: the file's name without its suffix.
        folder: where the file lies; relative data files and backbones are looked for here.
        source: the file's text.
        backbone: a folder, a Hub id, or `package:NAME/FOLDER`, a folder inside of an installed Python package; or a
            configuration, `{model_type: llama, hidden_size: ...}`, for a random backbone that the first task trains.
        tasks: the tasks, in the order in which they are learned.
        output: folder of the results, relative to the current directory; `runs/<name>` by default.
        tokenizer: where it is, as for `backbone`, by default there; or `{train: bpe, vocab_size: 2048}` or
            `{train: byte}`, to make one from the training texts of the tasks.
        trunk_layers: layers that stay at their pretrained values; a third of the depth by default.
        forward_transfer: which earlier tasks a task reads: `"all"`, `"none"` or a list of names.
        max_length: longest sequence, in tokens; longer ones are cut.
        pooling: `"mean"` over real tokens, `"first"` or `"last"`; by default the last token in a decoder, else the
            mean.
        seed: of every task's training, and of the split of missing validation data.
        training: fields of `TrainingArguments` for every task.
        pruning: fields of `PruningConfig` for every task.
    """

    name: str
    folder: Path
    source: str
    backbone: str | dict[str, Any]
    tasks: list[TaskRecipe]
    output: Path
    tokenizer: str | dict[str, Any] | None = None
    trunk_layers: int | None = None
    forward_transfer: str | list[str] = "all"
    max_length: int = 128
    pooling: str | None = None
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    pruning: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone_name(self) -> str:
        """What the model card calls the backbone."""
        return self.backbone if isinstance(self.backbone, str) else f"{self.backbone['model_type']} (random)"

    def length_of(self, task: TaskRecipe) -> int:
        """Longest sequence of a task, in tokens."""
        return task.max_length or self.max_length

    def task(self, name: str) -> TaskRecipe:
        """The task of this name.

        Raises:
            RecipeError: if the recipe has none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise RecipeError(f"The recipe has no task '{name}'; it has {[task.name for task in self.tasks]}.")

    def pruning_config(self, task: TaskRecipe) -> PruningConfig:
        """How to cut out a task's subnetwork.

        Raises:
            RecipeError: if a value is not allowed.
        """
        try:
            return PruningConfig(**{"seed": self.seed, **self.pruning, **task.pruning})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"Task '{task.name}', pruning: {error}") from error

    def training_arguments(self, task: TaskRecipe, **overrides: Any) -> TrainingArguments:
        """How to train a task: the defaults of a recipe, the recipe's values, the task's, then `overrides`.

        Raises:
            RecipeError: if a value is not allowed.
        """
        defaults = {
            "save_strategy": "no",
            "eval_strategy": "epoch",
            "report_to": [],
            "disable_tqdm": not sys.stderr.isatty(),
            "seed": self.seed,
            "dataloader_pin_memory": torch.accelerator.is_available(),  # PyTorch warns where there is none
        }
        values = {**defaults, **self.training, **task.training}
        if (values.get("bf16") or values.get("fp16")) and not torch.accelerator.is_available():
            values.setdefault("use_cpu", True)  # else transformers refuses reduced precision where there is no GPU
        if values.get("metric_for_best_model") is None:  # what a search for a budget and the best checkpoint go by
            values["metric_for_best_model"] = task.metric
            values["greater_is_better"] = task.metric not in LOWER_IS_BETTER
        # Up to transformers 5.0 it was a switch.
        by_length = values.get("train_sampling_strategy") == "group_by_length" or values.get("group_by_length")
        if task.type == "question-answering" and by_length:
            raise RecipeError(
                f"Task '{task.name}', training: grouping by length would shuffle the windows that an answer is looked "
                "for in. Leave it out for question-answering."
            )
        keeps_checkpoints = values["save_strategy"] not in ("no", False)
        folder = self.output / CHECKPOINTS_FOLDER / task.name if keeps_checkpoints else self.output
        try:
            return TrainingArguments(**{"output_dir": str(folder), **values, **overrides})
        except (TypeError, ValueError, ImportError) as error:
            raise RecipeError(f"Task '{task.name}', training: {error}") from error
