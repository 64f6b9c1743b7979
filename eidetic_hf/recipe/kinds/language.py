"""Tasks that write, in a recipe: running text in blocks, answers to prompts, texts from texts, texts with gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import DataCollatorForLanguageModeling, EvalPrediction, PreTrainedTokenizerBase

from ...configuration import TaskRecord
from ...kinds.base import IGNORED
from ...kinds.collators import MaskingCollator
from ...kinds.metrics import squad_scores
from ..recipe import RecipeError, TaskRecipe
from .asking import ASKED_AT_ONCE, MASK, Asker, Query, Unanswerable
from .base import RecipeKind, Score
from .labels import encoded
from .preparation import TRAIN, Preparation, encode_texts
from .settings import Settings, setting

PROMPT = "{prompt}"
DEFAULT_TEMPLATE = PROMPT + "\n"

# Of texts that were written and are held against the right ones.
WRITTEN_METRICS = ("exact_match", "f1")
WRITTEN_TEXTS = 200  # as many of a split are written for them

# -- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CausalSettings(Settings):
    """Settings of causal language models.

    Attributes:
        template: the text that a prompt is put into, at `{prompt}`.
        score_written: how many texts of a split are written out and held against the right ones, for `exact_match` and
            `f1` over words, by those that answer prompts; 200 if one of these is the metric, else none by default.
        own_output_embeddings: as `EideticModel.add_task` takes it.
    """

    template: str | None = setting(None, str, lambda value: PROMPT in value, "a text with {prompt} in it")
    score_written: int | None = setting(None, int, lambda value: value >= 0, "a whole number of texts >= 0")
    own_output_embeddings: bool | None = setting(None, bool, expected="true or false")


@dataclass(frozen=True)
class Seq2SeqSettings(Settings):
    """Settings of sequence-to-sequence language models.

    Attributes:
        max_target_length: longest target, in tokens; `max_length` by default.
        score_written: as of causal language models.
        own_output_embeddings: as `EideticModel.add_task` takes it.
    """

    max_target_length: int | None = setting(None, int, lambda value: value >= 2, "a whole number of tokens >= 2")
    score_written: int | None = setting(None, int, lambda value: value >= 0, "a whole number of texts >= 0")
    own_output_embeddings: bool | None = setting(None, bool, expected="true or false")


@dataclass(frozen=True)
class MaskedSettings(Settings):
    """Settings of masked language models.

    Attributes:
        mlm_probability: share of the tokens that are masked.
        own_output_embeddings: as `EideticModel.add_task` takes it.
    """

    mlm_probability: float = setting(0.15, (int, float), lambda value: 0 < value < 1, "a share between 0 and 1")
    own_output_embeddings: bool | None = setting(None, bool, expected="true or false")


def vocabulary_options(task: TaskRecipe) -> dict[str, Any]:
    """Which embeddings score tokens, if the recipe says it."""
    own = task.settings.own_output_embeddings
    return {} if own is None else {"own_output_embeddings": own}


# -- prompts ----------------------------------------------------------------------------------------------------------


def has_prompts(task: TaskRecipe) -> bool:
    """Whether a causal language model learns answers to prompts, and no running text."""
    return "prompt" in task.columns


def fill_template(template: str, prompt: str) -> str:
    """A prompt in its template."""
    return template.replace(PROMPT, prompt)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts: with the tokens that the tokenizer puts before a text, without the one that ends it."""
    found = []
    for ids in tokenizer(list(prompts))["input_ids"]:
        ends = bool(ids) and ids[-1] == tokenizer.eos_token_id
        found.append(ids[:-1] if ends else ids)
    return found


# -- data -------------------------------------------------------------------------------------------------------------


class RunningText(Preparation):
    """Texts to be continued: all of them one after another, cut into blocks; or prompts with answers.

    Of prompts with answers the loss is on the answers only.
    """

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """There is something to learn in every split."""
        if has_prompts(self.task):
            self.recorded["template"] = self.task.settings.template or DEFAULT_TEMPLATE
            for split, data in splits.items():
                for row, answer in enumerate(self.column(data, "answer")):
                    if not answer.strip():
                        self.fail(split, row, "has an empty answer, from which there is nothing to learn. Remove it.")

    @property
    def texts(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a row that are texts."""
        return ("prompt", "answer") if has_prompts(self.task) else ("text",)

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Blocks of `max_length` tokens; or prompts with their answers, and `labels` of -100 at the prompts."""
        if has_prompts(self.task):
            return self._encode_answers(data, split, tokenizer)
        texts, ids = self.column(data, "text"), []
        for text in encode_prompts(tokenizer, texts):
            ids += [*text, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
        blocks = [ids[start : start + self.max_length] for start in range(0, len(ids), self.max_length)]
        if blocks and len(blocks[-1]) < 2:  # of a single token nothing can be learned
            blocks.pop()
        if not blocks or not any(text.strip() for text in texts):
            raise RecipeError(
                f"Task '{self.task.name}': the texts of the {split} split are empty, or too short to learn from."
            )
        masks = [[1] * len(block) for block in blocks]
        return datasets.Dataset.from_dict({"input_ids": blocks, "attention_mask": masks})

    def _encode_answers(
        self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase
    ) -> datasets.Dataset:
        template, texts = self.recorded["template"], self.column(data, "prompt")
        bare = [ids[: self.max_length] for ids in encode_prompts(tokenizer, texts)]
        columns = {"attention_mask": 1, "labels": IGNORED}  # no token of a prompt is to be written
        marks = {name: [[value] * len(ids) for ids in bare] for name, value in columns.items()}
        self.bare[split] = datasets.Dataset.from_dict({"input_ids": bare, **marks})
        prompts = encode_prompts(tokenizer, [fill_template(template, text) for text in texts])
        answers = tokenizer(self.column(data, "answer"), add_special_tokens=False)["input_ids"]
        rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if len(prompt) >= self.max_length:
                self.fail(
                    split,
                    row,
                    f"has a prompt of {len(prompt)} tokens, which leaves no room for its answer in {self.max_length}. "
                    "Choose a larger `max_length:`, or shorten the prompt.",
                )
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            ids = [*prompt, *answer, *end][: self.max_length]
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            # The first token of all is never written: nothing stands before it.
            rows["labels"].append([*([IGNORED] * len(prompt)), *ids[len(prompt) :]])
        return datasets.Dataset.from_dict(rows)


class SourcesAndTargets(Preparation):
    """Texts and what is to be made of them."""

    texts = ("source", "target")

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """No target is empty."""
        self.recorded["max_target_length"] = self.task.settings.max_target_length or self.max_length
        for split, data in splits.items():
            for row, target in enumerate(self.column(data, "target")):
                if not target.strip():
                    self.fail(split, row, "has an empty target, from which there is nothing to learn. Remove it.")

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks of the sources, and `labels`, the tokens of the targets."""
        columns, longest = self.task.columns, self.recorded["max_target_length"]

        def prepare(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            tokens = encode_texts(tokenizer, batch[columns["source"]], None, self.max_length)
            targets = tokenizer(text_target=batch[columns["target"]], truncation=True, max_length=longest)
            return {**tokens, "labels": targets["input_ids"]}

        return encoded(data, prepare)


class TextWithGaps(Preparation):
    """Texts for a masked language model. Long ones are cut into several.

    In training tokens are masked anew each time; in other splits once and for all, so that scores can be compared.
    """

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """It has a token for gaps."""
        if tokenizer.mask_token is None:
            raise RecipeError(
                f"Task '{self.task.name}' (masked-lm): the tokenizer {type(tokenizer).__name__} has no mask token. "
                "Use the tokenizer of a masked language model."
            )

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks; and `labels`, the tokens behind the masks, in all splits but the one to train on."""
        tokens = encode_texts(
            tokenizer, self.column(data, "text"), None, self.max_length, return_overflowing_tokens=True
        )
        tokens.pop("overflow_to_sample_mapping", None)
        special = set(tokenizer.all_special_ids)
        kept = [row for row, ids in enumerate(tokens["input_ids"]) if not special.issuperset(ids)]
        if not kept:
            raise RecipeError(f"Task '{self.task.name}': the texts of the {split} split have no tokens.")
        rows = {name: [values[row] for row in kept] for name, values in tokens.items()}
        if split != TRAIN:
            rows = mask_once(tokenizer, rows, self.task.settings.mlm_probability, self.seed)
        return datasets.Dataset.from_dict(rows)


def mask_once(
    tokenizer: PreTrainedTokenizerBase, rows: dict[str, list[list[int]]], probability: float, seed: int
) -> dict[str, list[list[int]]]:
    """Rows with masks that depend on the seed alone, at least one in each; and `labels`, what stood there."""
    masks = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=probability)
    ids, labels = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for row in rows["input_ids"]:
            batch = {"labels": torch.full((1, 1), IGNORED)}
            while not bool((batch["labels"] != IGNORED).any()):
                batch = masks([{"input_ids": row}])
            ids.append(batch["input_ids"][0].tolist())
            labels.append(batch["labels"][0].tolist())
    return {**rows, "input_ids": ids, "labels": labels}


# -- texts that were written ------------------------------------------------------------------------------------------


def n_written(task: TaskRecipe) -> int:
    """How many texts of a split a task writes out to be scored."""
    if task.settings.score_written is None:
        return WRITTEN_TEXTS if task.metric in WRITTEN_METRICS else 0
    return task.settings.score_written


def check_written(task: TaskRecipe, where: str) -> None:
    """Raise a `RecipeError` if a task's metric needs texts to be written, and none are."""
    if task.metric in WRITTEN_METRICS and task.settings.score_written == 0:
        raise RecipeError(f"`score_written: 0` in {where}: `metric: {task.metric}` needs texts to be written.")


@dataclass(frozen=True)
class WrittenScore:
    """`compute_metrics` of a task that writes texts of which it is known what they should be.

    Adds `exact_match` and `f1` over words, as SQuAD counts them, as shares: of the first texts of a split, which are
    written without sampling.

    Attributes:
        sums: computes what needs no writing.
        kind: of the task.
        asker: the model, which writes at most as many tokens as the longest right text has.
        task: name of the task, committed or being learned.
        texts: what is given.
        right: what should be written.
    """

    sums: Score
    kind: RecipeKind
    asker: Asker
    task: str
    texts: list[str]
    right: list[str]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of what an evaluation collected, and of what is written now."""
        self.asker.model.eval()
        queries, written = [Query(text) for text in self.texts], []
        for start in range(0, len(queries), ASKED_AT_ONCE):
            some = queries[start : start + ASKED_AT_ONCE]
            # What can not be read has no answer, which is wrong.
            for answer in self.kind.answers(self.asker, self.asker.model.record(self.task), some):
                written.append(answer.get("generated", "").strip())
        found = squad_scores(written, [[text] for text in self.right])
        return {**self.sums(prediction), **{name: value / 100 for name, value in found.items()}}


def written_score(
    sums: Score, kind: RecipeKind, task: TaskRecipe, prepared: Preparation, rows: datasets.Dataset, asker: Asker
) -> Score:
    """`sums`, and what a task writes held against the right texts, if its recipe asks for that."""
    if not n_written(task):
        return sums
    given, wanted = prepared.texts  # of prompts and answers, or sources and targets
    some = rows.select(range(min(n_written(task), len(rows))))
    texts, right = (prepared.column(some, role) for role in (given, wanted))
    longest = max(len(ids) for ids in asker.tokenizer(text_target=right)["input_ids"])
    asker = dataclasses.replace(asker, max_new_tokens=longest + 1)
    return WrittenScore(sums, kind, asker, task.name, texts, right)


# -- the kinds --------------------------------------------------------------------------------------------------------


class CausalRecipe(RecipeKind):
    """Texts to be continued, or answers to prompts."""

    name = "causal-lm"
    columns = {"text": "text", "prompt": None, "answer": None}
    metrics = ("perplexity", "accuracy", *WRITTEN_METRICS)
    lower_is_better = ("perplexity",)
    preparation = RunningText
    settings = CausalSettings
    reads_pairs = False

    def columns_of(self, given: Mapping[str, Any], section: str) -> dict[str, Any]:
        """A prompt and an answer if one of them is named, else a text."""
        if given.keys().isdisjoint(("prompt", "answer")):
            return super().columns_of(given, section)
        if "text" in given:
            raise RecipeError(f"{section[0]}{section[1:]} has prompts and a running text; expected one or the other.")
        return {"prompt": "prompt", "answer": "answer", **given}

    def check(self, task: TaskRecipe, where: str) -> None:
        """Only prompts have a template, and answers that a written text can be held against."""
        settings = task.settings
        if settings.template is not None and not has_prompts(task):
            raise RecipeError(
                f"`template:` in {where} is for prompts. Name their columns: `columns: {{prompt: NAME, answer: "
                "NAME}`."
            )
        is_written = task.metric in WRITTEN_METRICS
        if not has_prompts(task) and (is_written or settings.score_written):
            key = f"metric: {task.metric}" if is_written else f"score_written: {settings.score_written}"
            raise RecipeError(
                f"`{key}` in {where}: running text has no right continuation to hold a written one against. Name "
                "prompts and answers, `columns: {prompt: NAME, answer: NAME}`, or use perplexity or accuracy."
            )
        check_written(task, where)

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """Which embeddings score tokens."""
        return vocabulary_options(task)

    def score(
        self, task: TaskRecipe, prepared: Preparation, rows: datasets.Dataset, split: str, asker: Asker, module: Any
    ) -> Score:
        """Over tokens; and over words of the answers that are written."""
        sums = super().score(task, prepared, rows, split, asker, module)
        return written_score(sums, self, task, prepared, rows, asker)

    def check_query(self, asker: Asker, record: TaskRecord, query: Query) -> None:
        """The prompt has tokens, and leaves room for one more."""
        super().check_query(asker, record, query)
        length, context = len(prompts_of(asker, record, [query])[0]), asker.context()
        if not 0 < length < context:
            raise Unanswerable(f"The prompt has {length} tokens, expected 1 to {context - 1}.")

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`generated`, what the task writes behind the prompt."""
        prompts = [{"input_ids": ids} for ids in prompts_of(asker, record, queries)]
        batch = asker.tokenizer.pad(prompts, padding_side="left", return_tensors="pt").to(asker.model.device)
        written = asker.generate(record, batch)
        return [{"generated": text} for text in asker.decode(written[:, batch["input_ids"].shape[1] :])]


def prompts_of(asker: Asker, record: TaskRecord, queries: Sequence[Query]) -> list[list[int]]:
    """Token ids of queries in the template of a task's recipe."""
    template = record.preparation.get("template", PROMPT)
    return encode_prompts(asker.tokenizer, [fill_template(template, query.text) for query in queries])


class Seq2SeqRecipe(RecipeKind):
    """Texts made from texts."""

    name = "seq2seq-lm"
    columns = {"source": "source", "target": "target"}
    metrics = ("perplexity", "accuracy", *WRITTEN_METRICS)
    lower_is_better = ("perplexity",)
    preparation = SourcesAndTargets
    settings = Seq2SeqSettings
    reads_pairs = False

    def check(self, task: TaskRecipe, where: str) -> None:
        """Texts are written where the metric needs them."""
        check_written(task, where)

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """Which embeddings score tokens."""
        return vocabulary_options(task)

    def score(
        self, task: TaskRecipe, prepared: Preparation, rows: datasets.Dataset, split: str, asker: Asker, module: Any
    ) -> Score:
        """Over tokens; and over words of the targets that are written."""
        sums = super().score(task, prepared, rows, split, asker, module)
        return written_score(sums, self, task, prepared, rows, asker)

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`generated`, the text that the task makes of a text."""
        batch = asker.batch_of(record, [Query(query.text) for query in queries])
        return [{"generated": text} for text in asker.decode(asker.generate(record, batch))]


class MaskedRecipe(RecipeKind):
    """Texts with gaps."""

    name = "masked-lm"
    columns = {"text": "text"}
    metrics = ("perplexity", "accuracy")
    lower_is_better = ("perplexity",)
    preparation = TextWithGaps
    settings = MaskedSettings
    reads_pairs = False

    def options(self, task: TaskRecipe, pooling: str | None) -> dict[str, Any]:
        """Which embeddings score tokens."""
        return vocabulary_options(task)

    def collator(self, task: TaskRecipe, tokenizer: PreTrainedTokenizerBase) -> Callable | None:
        """Masks as many tokens as the recipe says."""
        return MaskingCollator(tokenizer, task.settings.mlm_probability)

    def check_query(self, asker: Asker, record: TaskRecord, query: Query) -> None:
        """There is a gap."""
        super().check_query(asker, record, query)
        longest = asker.length_of(record)
        ids = asker.tokenizer(asker.with_mask(query.text), truncation=True, max_length=longest)
        if asker.tokenizer.mask_token_id not in ids["input_ids"]:
            raise Unanswerable(
                f"'{record.name}' fills gaps, and there is none within {longest} tokens. Put {MASK} where a word is "
                "missing."
            )

    def answer(self, asker: Asker, record: TaskRecord, queries: list[Query]) -> list[dict[str, Any]]:
        """`masks`, the likeliest tokens of each gap, and `filled`, the text with the first of them."""
        texts = [asker.with_mask(query.text) for query in queries]
        batch = asker.batch(texts, None, asker.length_of(record))
        logits = asker.model(**batch, task=record.exact_name).logits.float().cpu()
        found = []
        for filled, ids, row in zip(texts, batch["input_ids"].cpu(), logits, strict=True):
            masks = []
            for scores in row[(ids == asker.tokenizer.mask_token_id).nonzero().flatten()].softmax(-1):
                best = scores.topk(min(asker.top_k, len(scores)))
                tokens = [text.strip() for text in asker.decode(best.indices.unsqueeze(1))]
                masks.append([{"token": t, "score": s} for t, s in zip(tokens, best.values.tolist(), strict=True)])
            for some in masks:
                filled = filled.replace(str(asker.tokenizer.mask_token), some[0]["token"], 1)
            found.append({"filled": filled, "masks": masks})
        return found
