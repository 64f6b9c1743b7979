"""Two processes that learn one task together, started with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.backbones import tiny_model
from support.data import arguments, logits_of, make_data

from eidetic_hf import EideticModel, EideticTrainer, PruningConfig
from eidetic_hf.model.learner import Learner
from eidetic_hf.views import owner_of

SCORES: list[torch.Tensor] = []


class Watched(Learner):
    """Notes this rank's own importance sums before they are reduced."""

    def prune(self, keep: float, keep_ancestors: float = 1.0) -> None:
        SCORES.append(torch.cat([group.progress.get("importance") for group in self._groups]))
        super().prune(keep, keep_ancestors)


def learn_on_this_rank(folder: Path) -> None:
    """Learn a task under DDP, each rank on its own batches, and save what this rank ended with."""
    model, rank = tiny_model(), os.environ["RANK"]
    model.add_task("first", labels=["x", "y", "z"])
    trainer = EideticTrainer(
        model=model,
        task="first",
        args=arguments(folder, per_device_train_batch_size=4, save_strategy="steps", save_steps=6, ddp_backend="gloo"),
        pruning=PruningConfig(keep=0.4),
        train_dataset=make_data(0),
        eval_dataset=make_data(1, rows=16),
    )
    assert trainer.args.world_size == 2
    torch.manual_seed(1 + int(rank))  # the head starts from random numbers; DDP hands out rank 0's
    model.begin_task("first", trainer.pruning).__class__ = Watched
    trainer.train()
    assert model.verify().ok
    trainer.save_model(str(folder / "model"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if owner_of(name) != "trunk"}
    save_file({**state, "logits": logits_of(model, "first"), "scores": SCORES[0]}, folder / f"rank-{rank}.safetensors")


@pytest.mark.slow
def test_ranks_prune_the_same_units_by_reduced_scores_and_end_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, tmp_path]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert not torch.equal(first.pop("scores"), second.pop("scores"))  # each rank saw other sequences
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    loaded = EideticModel.from_pretrained(tmp_path / "model")
    assert torch.allclose(logits_of(loaded, "first"), first["logits"], atol=1e-6)  # other numbers of threads
    assert (tmp_path / "checkpoint-6" / "eidetic-learning.safetensors").exists()


if __name__ == "__main__":
    learn_on_this_rank(Path(sys.argv[1]))
