"""How the golden checkpoints of each format were made, by the version that wrote it: `python make_golden.py OUTPUT`.

`bert` holds a task of every kind that an encoder can have: with masked ancestors, an expanded pool and a vocabulary
that has grown; `copies` holds tasks that copy units, and since format 3 a router that users told more. `t5` is an
encoder-decoder. `bert-learning` is a checkpoint of the Trainer in the middle of a task.
`answers.safetensors` holds what each task answered to a batch right after it was committed, and what the task in the
middle answered after it was resumed. What a release can have written is never made again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    PreTrainedModel,
    T5Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig

TOKENS, GROWN = 40, 44
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 32,
    "vocab_size": TOKENS,
    "max_position_embeddings": 50,
    "type_vocab_size": 1,
}
T5 = {
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": TOKENS,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
LABELS = ["x", "y", "z"]
# Task, kind, options, pruning: in the order in which they are learned.
BERT_TASKS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("topics", "sequence-classification", {"labels": LABELS}, {}),
    ("answers", "question-answering", {"forward_transfer": "none"}, {"importance": "taylor"}),
    ("names", "token-classification", {"labels": ["O", "B-x", "I-x"]}, {"keep_ancestors": 0.5}),
    ("score", "sequence-classification", {"problem_type": "regression", "forward_transfer": ["names"]}, {}),
    ("tags.v2", "sequence-classification", {"labels": LABELS, "problem_type": "multi_label_classification"}, {}),
    ("gaps", "masked-lm", {}, {"keep": 0.5}),
    ("endings", "multiple-choice", {"pooling": "first"}, {"importance": "l2"}),
    ("sentences", "feature-extraction", {"temperature": 0.1, "normalize": False}, {"importance": "random"}),
]
T5_TASKS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("topics", "sequence-classification", {"labels": LABELS}, {}),
    ("writes", "seq2seq-lm", {}, {"keep_ancestors": 0.7}),
]
# With `growth="copy"`: a branch, a version of a task, units that are masked out, and tokens that came later.
COPIES_TASKS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("topics", "sequence-classification", {"labels": LABELS}, {}),
    ("names", "token-classification", {"labels": ["O", "B-x", "I-x"], "based_on": "topics"}, {"see": 0.6}),
    ("topics@2", "sequence-classification", {"labels": LABELS, "based_on": "names"}, {"own": 0.1}),
    ("gaps", "masked-lm", {}, {"select": "last"}),
]


def ids(rows: int, length: int = 8, seed: int = 0, tokens: int = TOKENS) -> Tensor:
    """Random tokens, `(rows, length)`."""
    return torch.randint(3, tokens, (rows, length), generator=torch.Generator().manual_seed(seed))


def rows_of(kind: str, options: dict[str, Any], seed: int, rows: int = 16, tokens: int = TOKENS) -> Dataset:
    """Random rows for a kind of task."""
    read = ids(rows, seed=seed, tokens=tokens)
    columns: dict[str, Any] = {"input_ids": read, "attention_mask": torch.ones_like(read)}
    problem = options.get("problem_type")
    if kind == "token-classification":
        columns["labels"] = read % 3
    elif kind == "question-answering":
        columns |= {"start_positions": read[:, 0] % 4, "end_positions": read[:, 0] % 4 + 1}
    elif kind == "masked-lm":
        columns["labels"] = read
    elif kind == "seq2seq-lm":
        columns["labels"] = read[:, :5]
    elif kind == "multiple-choice":
        columns = {name: value.unflatten(0, (-1, 2)) for name, value in columns.items()}
        columns["labels"] = columns["input_ids"][:, 0, 0] % 2
    elif kind == "feature-extraction":
        columns |= {"pair_input_ids": read.flip(1), "pair_attention_mask": torch.ones_like(read)}
    elif problem == "regression":
        columns["labels"] = (read[:, 1] / TOKENS).float()
    elif problem == "multi_label_classification":
        columns["labels"] = torch.stack([read[:, i] % 2 for i in range(3)], 1).float()
    else:
        columns["labels"] = read[:, 1] % 3
    return Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def batch_of(kind: str, tokens: int = TOKENS) -> dict[str, Tensor]:
    """The batch that a task's answer is kept of."""
    read = ids(4, seed=99, tokens=tokens)
    mask = (torch.arange(8) < torch.tensor([[8], [6], [5], [3]])).long()
    if kind == "multiple-choice":
        return {"input_ids": read.unflatten(0, (2, 2)), "attention_mask": mask.unflatten(0, (2, 2))}
    batch = {"input_ids": read, "attention_mask": mask}
    return {**batch, "decoder_input_ids": read[:, :5]} if kind == "seq2seq-lm" else batch


@torch.no_grad()
def answer_of(model: EideticModel, task: str) -> Tensor:
    """What a task answers to its batch: logits, those of both ends side by side, or embeddings."""
    kind = model.record(task).task_type
    tokens = GROWN if task == "gaps" else TOKENS
    output = model.eval()(**batch_of(kind, tokens), task=model.record(task).exact_name)
    if kind == "question-answering":
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.pooler_output if kind == "feature-extraction" else output.logits


def backbone(config: Any) -> PreTrainedModel:
    """The same random weights each time, with embeddings that tokens can be told by."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.3)
    return model


def trainer_of(
    model: EideticModel, task: str, data: Dataset, pruning: dict[str, Any], folder: Path, **arguments: Any
) -> Trainer:
    """Twelve steps, of which the task is cut out in the second third."""
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1000,
    }
    share = {"own": 0.2} if model.config.growth == "copy" else {"keep": 0.3}
    config = PruningConfig(**{**share, "start": 0.34, "end": 0.67, "events": 4, **pruning})
    return EideticTrainer(model, task, TrainingArguments(**{**given, **arguments}), config, train_dataset=data)


def learn(model: EideticModel, tasks: list[Any], folder: Path) -> dict[str, Tensor]:
    """Learn the tasks in order; returns what each answered right after its commit."""
    answers = {}
    for seed, (task, kind, options, pruning) in enumerate(tasks):
        tokens = TOKENS
        if task == "gaps":
            model.resize_token_embeddings(GROWN)
            tokens = GROWN
        if task == "endings":
            model.expand(2, ["layers.1.neurons", "layers.2.heads"])
        model.add_task(task, task_type=kind, **options)
        trainer_of(model, task, rows_of(kind, options, seed, tokens=tokens), pruning, folder).train()
        answers[task] = answer_of(model, task)
    return answers


class StopAt(TrainerCallback):
    """Ends the process' interest in a run after a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise behind the checkpoint of that step."""
        if state.global_step == self.step:
            raise KeyboardInterrupt


LEARNING = ("later", "sequence-classification", {"labels": LABELS})
STEP = 6  # while it is being pruned


def resumable(folder: Path, model_folder: Path, runs: Path) -> tuple[EideticModel, Trainer]:
    """The model that the checkpoint in the middle belongs to, and a trainer that can resume it."""
    model = EideticModel.from_pretrained(model_folder)
    task, kind, options = LEARNING
    model.add_task(task, task_type=kind, **options)
    arguments = {"save_strategy": "steps", "save_steps": STEP, "save_total_limit": 1}
    return model, trainer_of(model, task, rows_of(kind, options, 50), {"distillation": 0.5}, runs, **arguments)


def write_copies(folder: Path, runs: Path) -> dict[str, Tensor]:
    """Write a model whose tasks copy units, with the backbone itself among its tasks; returns what they answered."""
    model = EideticModel.from_backbone(backbone(BertConfig(**BERT)), trunk_layers=1, growth="copy")
    answers = {f"{folder.name}|{task}": answer for task, answer in learn(model, COPIES_TASKS, runs).items()}
    model.set_default_version("topics", 2)
    model.preserve()
    answers[f"{folder.name}|base"] = answer_of(model, "base")
    model.router.add_examples("names", {"input_ids": ids(2, seed=7), "attention_mask": torch.ones(2, 8).long()})
    model.router.set_prior("gaps", 2.0)
    model.router.set_threshold("topics", 0.25)
    model.save_pretrained(folder)
    return answers


def main(output: Path) -> None:
    """Write everything."""
    torch.set_num_threads(1)
    runs = output / "runs"
    answers: dict[str, Tensor] = {}
    for name, config, tasks in (("bert", BertConfig(**BERT), BERT_TASKS), ("t5", T5Config(**T5), T5_TASKS)):
        model = EideticModel.from_backbone(backbone(config), trunk_layers=1, growth="fixed")
        answers |= {f"{name}|{task}": answer for task, answer in learn(model, tasks, runs).items()}
        model.save_pretrained(output / name)
    model, trainer = resumable(output, output / "bert", runs)
    trainer.add_callback(StopAt(STEP))
    try:
        trainer.train()
    except KeyboardInterrupt:
        (runs / f"checkpoint-{STEP}").rename(output / "bert-learning")
    model, trainer = resumable(output, output / "bert", runs)
    trainer.train(resume_from_checkpoint=str(output / "bert-learning"))
    answers["bert-learning|later"] = answer_of(model, "later")
    answers |= write_copies(output / "copies", runs)
    shutil.rmtree(runs)
    save_file(answers, output / "answers.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
