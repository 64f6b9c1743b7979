"""Hold a recipe's language models against fine-tuning the same network on one text after another, in the same run.

    python recipes/compare_language.py recipes/language.yaml [--output runs/language] [--json comparison.json]

Runs the recipe (or takes the tasks that are committed in its output folder already). Then takes a plain model of
transformers with the same configuration and the same initial weights (or the same pretrained ones), and fine-tunes it
on the same tasks in the same order, with the same `TrainingArguments`, seed, data and number of steps. Prints the
perplexity on every task's test split after every task, of both; how many test texts the router sends to their own
task, going by their first words; and how such beginnings are continued by the task that it chooses. Supports causal
language models. Takes about twice the recipe's own time.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    set_seed,
)
from transformers.utils import logging

from eidetic_hf import EideticModel
from eidetic_hf.kinds import kind_of
from eidetic_hf.kinds.metrics import language_scores
from eidetic_hf.recipe.kinds.asking import Query
from eidetic_hf.recipe.predicting import Predictor
from eidetic_hf.recipe.recipe import Recipe, RecipeError
from eidetic_hf.recipe.recipe_file import read_recipe
from eidetic_hf.recipe.run import run_recipe
from eidetic_hf.recipe.starting_point import make_config, resolve_backbone
from eidetic_hf.recipe.task_data import TaskData, load_task_data

PROMPT_WORDS, NEW_TOKENS = (8, 16, 32), 40

Matrix = list[dict[str, Any]]  # a row per task learned, {"task": name, "scores": {task: perplexity}}


def plain_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A plain language model with the weights that the recipe's model started from."""
    if isinstance(recipe.backbone, str):
        return AutoModelForCausalLM.from_pretrained(resolve_backbone(recipe.backbone, recipe.folder))
    config = make_config(recipe.backbone, tokenizer)
    set_seed(recipe.seed)
    base = AutoModel.from_config(config)
    model = AutoModelForCausalLM.from_config(config)
    model.base_model.load_state_dict(base.state_dict())
    return model


def learn_in_turn(recipe: Recipe, data: dict[str, TaskData], tokenizer: PreTrainedTokenizerBase) -> Matrix:
    """Fine-tune one plain model on every task in turn, and take its perplexities after each."""
    model, matrix = plain_model(recipe, tokenizer), []
    with tempfile.TemporaryDirectory() as folder:
        for number, task in enumerate(recipe.tasks):
            settings = {"output_dir": folder, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}
            arguments = recipe.training_arguments(task, **settings, load_best_model_at_end=False)
            set_seed(arguments.seed)
            kind = kind_of(task.type)
            trainer = Trainer(
                model=model,
                args=arguments,
                data_collator=kind.collator(tokenizer),
                train_dataset=data[task.name].splits["train"],
                processing_class=tokenizer,
                preprocess_logits_for_metrics=functools.partial(kind.reduce, None),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            scores = {}
            for known in recipe.tasks[: number + 1]:
                found = trainer.predict(data[known.name].splits["test"]).predictions
                scores[known.name] = language_scores(found)["perplexity"]
            matrix.append({"task": task.name, "scores": scores})
    return matrix


def show(title: str, matrix: Matrix, names: list[str]) -> None:
    """Print a matrix."""
    print(f"\n{title}\n{'after learning':16}" + "".join(f"{name:>16}" for name in names))
    for row in matrix:
        cells = "".join(f"{row['scores'][name]:16.3f}" if name in row["scores"] else " " * 16 for name in names)
        print(f"{row['task']:16}{cells}", flush=True)


def prompts_of(data: TaskData, words: int) -> list[str]:
    """The first words of a task's test texts, or of its prompts."""
    texts = data.preparation.column(data.rows["test"], data.preparation.texts[0])
    return [" ".join(text.split(" ")[:words]) for text in texts if text.strip()]


def routed_share(model: EideticModel, tokenizer: PreTrainedTokenizerBase, name: str, prompts: list[str]) -> float:
    """How many prompts of a task the router sends to it."""
    right = 0
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True, truncation=True)
        inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
        right += sum(task == name for task in model.route(**inputs).tasks or [])
    return right / len(prompts)


def continuations(
    model: EideticModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, str]
) -> list[dict[str, Any]]:
    """How a prompt of each task is continued, the task chosen by the router."""
    answers = Predictor(model, tokenizer, max_new_tokens=NEW_TOKENS).answers(
        [Query(text) for text in prompts.values()]
    )
    return [{"of": name, **answer} for name, answer in zip(prompts, answers, strict=True)]


def main() -> None:
    """Run the recipe, fine-tune the plain model, print both matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    recipe = read_recipe(options.recipe, options.output)
    others = [task.name for task in recipe.tasks if task.type != "causal-lm"]
    if others:
        raise RecipeError(f"The tasks {others} are no causal language models; see compare_with_dense.py for others.")
    results = run_recipe(recipe, lambda line: print(line, flush=True))
    model = EideticModel.from_pretrained(recipe.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(recipe.output / "model")
    data = {task.name: load_task_data(recipe, task, tokenizer) for task in recipe.tasks}
    names = list(data)
    ours = [
        {"task": step["task"], "scores": {name: found["perplexity"] for name, found in step["scores"].items()}}
        for step in results["steps"]
    ]
    show("perplexity of one eidetic model", ours, names)
    plain = learn_in_turn(recipe, data, tokenizer)
    show("perplexity of the same network, fine-tuned in turn", plain, names)
    unchanged = all(
        row["scores"][name] == ours[names.index(name)]["scores"][name] for row in ours for name in row["scores"]
    )
    print(f"\nperplexities of the eidetic model equal to those right after each commit: {unchanged}")
    model.eval()
    print(f"\n{'sent to their own':24}" + "".join(f"{name:>16}" for name in names))
    routed = {}
    for words in PROMPT_WORDS:
        shares = {name: routed_share(model, tokenizer, name, prompts_of(data[name], words)) for name in names}
        print(f"{f'of prompts of {words} words':24}" + "".join(f"{share:16.3f}" for share in shares.values()))
        routed[words] = shares
    written = continuations(model, tokenizer, {name: prompts_of(data[name], PROMPT_WORDS[-1])[0] for name in names})
    for line in written:
        print(
            f"\n[{line['of']}, routed to {line['task']}] {line['text']} | {line.get('generated', line.get('error'))}"
        )
    if options.json:
        summary = {"eidetic": ours, "in_turn": plain, "unchanged": unchanged, "routed": routed, "continued": written}
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
