"""What a process holds in memory as it learns one task after another: its resident size, and the tensors that live.

    python recipes/benchmark_memory.py [--tasks 7] [--steps 8] [--keep-freed] [--json memory.json]

A random BERT of the size of all-MiniLM-L6-v2 (22.7 M parameters, 87 MB) learns so many tasks with `EideticTrainer`, on
random texts of up to 128 tokens: memory does not depend on values. After each, garbage is collected, and two figures
are taken: the resident size as the kernel has it (`VmRSS`), and the bytes of all tensors that Python still holds. What
the first grows by and the second does not is memory that was freed and not given back to the system. A commit gives it
back; `--keep-freed` shows what happens without that. Takes some minutes on one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from torch._subclasses import FakeTensor
from transformers import AutoModel, BertConfig, TrainingArguments, default_data_collator
from transformers.utils import logging

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.model import life

TASKS, STEPS, BATCH, LENGTH = 7, 8, 16, 128
VOCABULARY, HIDDEN, LAYERS = 30522, 384, 6
LABELS = ["a", "b"]


def backbone_config() -> BertConfig:
    """The shape of all-MiniLM-L6-v2."""
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=4 * HIDDEN,
    )


def random_rows(seed: int, rows: int) -> Dataset:
    """Random texts of many lengths, as real ones are, with random labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 8, LENGTH + 1, (rows,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    labels = torch.randint(0, len(LABELS), (rows,), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": labels.tolist()})


def cut(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch that is as long as the longest of its texts."""
    batch = default_data_collator(rows)
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: value[:, :longest] if value.dim() == 2 else value for name, value in batch.items()}


def learn(model: EideticModel, number: int, steps: int, folder: str) -> None:
    """One more task."""
    name = f"task-{number}"
    model.add_task(name, labels=LABELS)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=10**6,
    )
    data = random_rows(number, BATCH * 30)
    EideticTrainer(model, name, arguments, PruningConfig(keep=0.2), train_dataset=data, data_collator=cut).train()


def resident() -> float:
    """Resident size of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def live_tensors() -> float:
    """Bytes of all tensors that Python holds, each piece of memory once, in MB."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and not isinstance(thing, FakeTensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) / 2**20


def main() -> None:
    """Learn the tasks; print a line for each, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--keep-freed", action="store_true", help="do not give freed memory back after a task")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = EideticModel.from_backbone(AutoModel.from_config(backbone_config()), trunk_layers=2, growth="fixed")
    if options.keep_freed:
        life.give_back_memory = lambda: None
    print(f"{'task':>6}{'resident':>12}{'live tensors':>14}   in MB")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.tasks + 1):
            if number:
                learn(model, number, options.steps, folder)
            live = live_tensors()  # collects garbage first
            found.append({"task": number, "resident": resident(), "live tensors": live})
            print(f"{number:>6}{found[-1]['resident']:>12.0f}{live:>14.0f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
