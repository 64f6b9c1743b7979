"""Two processes that learn tasks together, started with torchrun."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import tiny_backbone
from support.data import arguments, logits_of, make_data
from transformers import Trainer

from eidetic_hf import EideticCallback, EideticModel, EideticTrainer, PruningConfig, TaskError
from eidetic_hf.model.learner import Learner

READ: list[torch.Tensor] = []
PRUNING = PruningConfig(keep=0.4, recycle="random", on_exhausted="expand")
COPIES = {
    "first": PruningConfig(own=0.2, see=0.6),
    "second": PruningConfig(own=0.2, select="last"),
    "third": PruningConfig(own=0.2, select="last", see=0.6, distillation=0.5),
    "fourth": PruningConfig(own=0.2),
}
STEP = 5  # in the middle of pruning


class Watched(Learner):
    """Notes what this process alone has read of importance."""

    def gather_importance(self) -> None:
        torch.rand(1 + int(os.environ["RANK"]))  # as dropout does on batches of another length
        if self.active_probe is not None:
            READ.append(torch.cat([group.reading() for group in self._groups]))
        super().gather_importance()


def learn(
    model: EideticModel, name: str, seed: int, folder: Path, resume: str | None = None, **kwargs: Any
) -> Trainer:
    """Learn a task, each process on its own batches, and evaluate it."""
    copies = model.config.growth == "copy"
    pruning = COPIES[name] if copies else PRUNING
    if name not in model.added:
        model.add_task(name, labels=["x", "y", "z"], based_on="first" if copies and name == "third" else None)
    given: dict[str, Any] = {
        "args": arguments(folder, per_device_train_batch_size=4, ddp_backend="gloo", **kwargs),
        "train_dataset": make_data(seed),
        "eval_dataset": make_data(1, rows=16),
    }
    if name == "second":
        trainer = Trainer(model=model, callbacks=[EideticCallback(name, pruning)], **given)
    else:
        trainer = EideticTrainer(model=model, task=name, pruning=pruning, **given)
        model.begin_task(name, trainer.pruning).__class__ = Watched
    assert trainer.args.world_size == 2
    trainer.train(resume_from_checkpoint=resume)
    trainer.evaluate()
    return trainer


def learn_on_this_rank(folder: Path, growth: str) -> None:
    """Learn three tasks under DDP, the third again from a checkpoint, and save what this process ended with."""
    model, rank = EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, growth=growth), int(os.environ["RANK"])
    learn(model, "first", 0, folder)
    learn(model, "second", 2, folder)
    resumed = copy.deepcopy(model)
    learn(model, "third", 3, folder, save_strategy="steps", save_steps=STEP)
    assert model.verify().ok
    model_folder = folder / "model"
    if rank == 0:
        model.save_pretrained(model_folder)
    learn(resumed, "third", 3, folder, resume=str(folder / f"checkpoint-{STEP}"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    logits = {f"logits/{name}": logits_of(model, name) for name in model.tasks}
    closed = {
        f"{name}/{key}": value.clone().contiguous()
        for name in model.tasks
        for key, value in model.task_tensors(name).items()
    }
    save_file({**closed, **logits, "read": READ[0]}, folder / f"rank-{rank}.safetensors")
    if rank == 1:
        with torch.no_grad():
            model.backbone.embeddings.word_embeddings.weight[3, 0] += 1
    with pytest.raises(TaskError, match=r"1 tensors are not the same on all processes, backbone\.embeddings"):
        learn(model, "fourth", 4, folder)


@pytest.mark.slow
@pytest.mark.parametrize("growth", ["fixed", "copy"])
def test_processes_learn_one_model_task_after_task_and_a_resumed_run_is_the_same(growth: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    run = subprocess.run(
        list(map(str, [*command, tmp_path, growth])), capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first.pop("read"), second.pop("read"))  # each process saw other sequences
    assert first.keys() == second.keys() and len(first) > 30
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    for name in ("first", "second", "third"):
        assert torch.allclose(logits_of(loaded, name), first[f"logits/{name}"], atol=1e-6)  # other numbers of threads


if __name__ == "__main__":
    learn_on_this_rank(Path(sys.argv[1]), sys.argv[2])
