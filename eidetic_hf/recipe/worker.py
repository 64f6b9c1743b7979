"""A process that learns one task of a recipe; `jobs.py` starts it, and says through its stdin what to do.

Its stdout belongs to what it tells the process that started it, a line of JSON at a time; all that it and the
libraries print goes to stderr, which is the job's log.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import sys
import threading
import traceback

import torch

from .jobs import FAILED, SAID, Order
from .plugins import load_installed_plugins
from .run import learn_alone


def main() -> None:
    """Do what the order on stdin says; exit code 1 if it failed."""
    sender = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def send(what: str, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        sender.write(json.dumps([what, text]) + "\n")

    try:
        load_installed_plugins()
        for plugin in pickle.load(sys.stdin.buffer):
            importlib.import_module(plugin)
        order: Order = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _compute_as(order)
        gc.freeze()  # a training collects garbage several times, and would walk all that was imported
        name = f"{order.task}: "  # stands before every line already
        learn_alone(order.recipe, order.task, order.start, lambda line: send(SAID, line.strip().removeprefix(name)))
    except BaseException as error:
        traceback.print_exc()
        message = str(error).strip().partition("\n")[0]
        send(FAILED, f"{type(error).__name__}: {message}")
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    """End at once when the other end of stdin closes: whoever waits for this process is gone."""
    os.read(0, 1)
    os._exit(1)


def _compute_as(order: Order) -> None:
    """Compute as the process that wrote the order."""
    if torch.get_num_threads() != order.threads:
        torch.set_num_threads(order.threads)
    torch.set_float32_matmul_precision(order.precision)
    torch.use_deterministic_algorithms(order.deterministic)
