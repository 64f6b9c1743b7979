"""Data of tasks that write: running text in blocks, answers to prompts, texts from texts, texts with gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from ...kinds.base import IGNORED
from ..recipe import RecipeError
from .base import TRAIN, Preparation, encode_texts
from .labels import encoded

PROMPT = "{prompt}"
DEFAULT_TEMPLATE = PROMPT + "\n"


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


class RunningText(Preparation):
    """Texts to be continued: all of them one after another, cut into blocks; or prompts with answers.

    Of prompts with answers the loss is on the answers only.
    """

    def check_rows(self, splits: Mapping[str, datasets.Dataset]) -> None:
        """There is something to learn in every split."""
        if self.task.has_prompts:
            self.settings["template"] = self.task.setting("template") or DEFAULT_TEMPLATE
            for split, data in splits.items():
                for row, answer in enumerate(self.column(data, "answer")):
                    if not answer.strip():
                        self.fail(split, row, "has an empty answer, from which there is nothing to learn. Remove it.")

    @property
    def texts(self) -> tuple[str, ...]:  # type: ignore[override]
        """The parts of a row that are texts."""
        return ("prompt", "answer") if self.task.has_prompts else ("text",)

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Blocks of `max_length` tokens; or prompts with their answers, and `labels` of -100 at the prompts."""
        if self.task.has_prompts:
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
        template, texts = self.settings["template"], self.column(data, "prompt")
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
        self.settings["max_target_length"] = self.task.setting("max_target_length") or self.max_length
        for split, data in splits.items():
            for row, target in enumerate(self.column(data, "target")):
                if not target.strip():
                    self.fail(split, row, "has an empty target, from which there is nothing to learn. Remove it.")

    def encode(self, data: datasets.Dataset, split: str, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
        """Token ids and masks of the sources, and `labels`, the tokens of the targets."""
        columns, longest = self.task.columns, self.settings["max_target_length"]

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
            rows = mask_once(tokenizer, rows, self.task.setting("mlm_probability"), self.seed)
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
