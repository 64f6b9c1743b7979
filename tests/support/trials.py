"""Loading folders that may do harm: each in a process of its own, with bounds, and with a look at what came of it.

    python tests/support/trials.py --count 10000 [--first 0] [--log trials.jsonl]

One server imports the library and forks a child for each trial. The child changes a copy of a checkpoint, loads it,
answers and verifies, and says what happened:

    clear     an error of the library that names the file
    unnamed   an error of the library that names no file
    equal     it loads, answers as before, and all certificates hold
    told      it loads, and `verify` says that it is not what was saved
    settings  it loads, answers or routes otherwise, and `verify` says nothing: only config.json was edited, or what
              the router reads, which certificates do not all cover
    silent    the same of anything else
    raw       any other error
    hang      nothing within `SECONDS`
    died      the process was killed, by its bounds or by itself
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS, BYTES = 5.0, 2**30
PATIENCE = 60.0  # seconds of the clock, where other processes compete; what counts are SECONDS of the processor
ADDRESS_SPACE = 4 * 2**30  # more than a child has: a bound for what it is given, not for what it uses

BACKBONE = "backbone"  # of the checkpoint that names it, and lies beside it
GOOD = ("clear", "equal")
# Of config.json, in words that say so without its name.
SENTENCES = (
    "Trainer checkpoint",
    "holds a model of type",
    "was written in format",
    "learned on another backbone",
    "task_type=",
)


# -- the child --------------------------------------------------------------------------------------------------------


def facts_of(model: Any) -> dict[str, Any]:
    """What a model says: the answer of each task to a batch, its labels, and where the batch is sent."""
    import torch

    from eidetic_hf.kinds import kind_of

    found: dict[str, Any] = {}
    ids = torch.randint(3, 40, (4, 12), generator=torch.Generator().manual_seed(5))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(12) < torch.tensor([[12], [9], [7], [3]])).long()}
    with torch.no_grad():
        for name in model.tasks:
            record = model.record(name)
            kind = kind_of(record)
            output = model(**kind.probe_inputs(dict(inputs)), task=record.exact_name, return_dict=True)
            found[f"answers of {name}"] = [getattr(output, part) for part in kind.outputs]
            found[f"labels of {name}"] = record.labels
        if len(model.tasks) > 1 and all(model.router.has(name) for name in model.tasks):
            found["routes"] = [model.route(**inputs).router_scores]
    return found


def differences(now: dict[str, Any], then: dict[str, Any], all_of_it: bool) -> list[str]:
    """Names of the facts that differ; those that are not there do only if all should be."""
    import torch

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, list) and one and isinstance(one[0], torch.Tensor):
            return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        return one == other

    names = now.keys() | then.keys() if all_of_it else now.keys()
    return sorted(name for name in names if name not in now or name not in then or not same(now[name], then[name]))


class Watch:
    """Notes what this process opens, changes or runs that is not in the folder of the trial. Hooks stay for ever."""

    def __init__(self) -> None:
        self.folder, self._named, self.outside, self.found = Path(), Path(), Path(), list[str]()
        sys.addaudithook(self._note)

    def begin(self, folder: Path, outside: Path) -> None:
        """Look from here on at another folder."""
        self.folder, self.outside, self.found = Path(os.path.realpath(folder)), outside, []
        self._named = folder  # it may be a link itself

    def _is_inside(self, path: Any, itself: bool = False) -> bool:
        """Whether a path leads into the folder, or is there `itself`, wherever it leads."""
        where = Path(os.fsdecode(path))
        real = Path(os.path.realpath(where.parent), where.name) if itself else Path(os.path.realpath(where))
        return real.is_relative_to(self.folder) or where == self._named

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder == Path():
            return
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            if (arguments[2] or 0) & os.O_NOFOLLOW and os.path.islink(arguments[0]):
                return  # it will not be opened
            where = os.path.realpath(os.fsdecode(arguments[0]))
            writes = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            strange = where.startswith((str(self.outside) + os.sep, "/dev/", "/etc/passwd"))
            if where not in (os.devnull, "/dev/shm") and (writes or strange) and not self._is_inside(arguments[0]):
                self.found.append(f"{'wrote' if writes else 'read'} {where}")
        elif event in _CHANGING:
            paths = arguments[: _CHANGING[event]]
            self.found.extend(f"{event} {path!r}" for path in paths if not self._is_inside(path, itself=True))
        elif event in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class", "socket.connect"):
            self.found.append(event)


_CHANGING = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2}  # event: paths


def _state() -> dict[str, Any]:
    """What a failed load must not leave behind."""
    import torch
    from torch.nn.modules import module

    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "hooks": sum(len(each) for name, each in vars(module).items() if "_hooks" in name and isinstance(each, dict)),
        "threads": threading.active_count(),
        "initial values": torch.nn.init.normal_.__module__,
        "grad": torch.is_grad_enabled(),
        "recursion": sys.getrecursionlimit(),
    }


def _try(place: Path, trial: dict[str, Any], expected: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Change a copy of a checkpoint, load it, and say what happened."""
    from support.hostile import make

    from eidetic_hf import EideticModel

    folder, outside = place / "model", place / "outside"
    make(folder, outside, trial["changes"])
    if is_unreadable(trial) and os.geteuid() == 0:
        for path in [folder.parent, folder, *folder.rglob("*")]:
            with contextlib.suppress(OSError):
                os.chown(path, 65534, 65534, follow_symlinks=False)
        os.setegid(65534)
        os.seteuid(65534)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    memory, before = _peak_bytes(), _state()
    found: dict[str, Any] = {"outcome": "raw", "where": "", "type": "", "message": "", "phase": "load"}
    watch.begin(folder, outside)
    start, used = time.perf_counter(), time.process_time()

    def measure() -> None:
        found["seconds"], found["cpu"] = time.perf_counter() - start, time.process_time() - used
        found["bytes"] = _peak_bytes() - memory
        found["left"] = {key: [before[key], value] for key, value in _state().items() if value != before[key]}

    try:
        model = EideticModel.from_pretrained(folder, **({"tasks": trial["tasks"]} if trial["tasks"] else {}))
        measure()
        found["phase"] = "verify"
        report = model.verify()
        found["phase"] = "answer"
        differs = differences(facts_of(model), expected, not trial["tasks"])
        in_config = all(change[1] == "config.json" for change in trial["changes"])
        silent = "settings" if in_config or differs == ["routes"] else "silent"
        found["outcome"] = "told" if not report.ok else silent if differs else "equal"
        found["message"] = ", ".join(differs[:4]) if report.ok else str(report)[:300]
    except BaseException as error:
        if "cpu" not in found:
            measure()
        found.update(_of_error(error, found["phase"]))
    found["outside"] = watch.found
    watch.begin(Path(), Path())
    return found


def _of_error(error: BaseException, phase: str) -> dict[str, Any]:
    from eidetic_hf import CheckpointError, TaskError

    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "eidetic_hf" in frame.filename] or frames
    said, outcome = str(error), "raw"
    if isinstance(error, (CheckpointError, TaskError)) and phase == "load":
        names = ("config.json", "index.json", ".safetensors", ".eidetic", *SENTENCES)
        outcome = "clear" if any(name in said for name in names) and len(said) < 5000 else "unnamed"
    return {
        "outcome": outcome,
        "where": f"{Path(own[-1].filename).name}:{own[-1].name}",
        "deepest": f"{Path(frames[-1].filename).name}:{frames[-1].name}",
        "type": type(error).__name__,
        "message": said[:600],
    }


def is_unreadable(trial: dict[str, Any]) -> bool:
    """Whether a file is to be read by somebody who must not."""
    return any(change[-1] == "unreadable" for change in trial["changes"])


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


# -- the server -------------------------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Answer trials, one JSON object a line; `folder` has the checkpoints by name."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    from transformers.utils import logging

    from eidetic_hf import EideticModel

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()  # its thread would not be there after a fork
    expected = {}
    for base in sorted(folder.iterdir()):
        if base.name not in (BACKBONE, "learning"):
            expected[base.name] = facts_of(EideticModel.from_pretrained(base))
    gc.collect()
    gc.freeze()  # or every child copies all of it
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    print("ready", file=out, flush=True)
    worker: Worker | None = None
    for line in sys.stdin:
        trial = json.loads(line)
        if worker is None:
            worker = Worker(expected)
        found, is_good = _placed(folder, trial, worker)
        print(json.dumps(found), file=out, flush=True)
        if not is_good:
            worker.end()
            worker = None
    if worker is not None:
        worker.end()


def _placed(folder: Path, trial: dict[str, Any], worker: Worker) -> tuple[dict[str, Any], bool]:
    """What comes of a trial, and whether its process is as it was before."""
    place = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        shutil.copytree(folder / trial["base"], place / "model")
        if trial["base"] == "thin":
            shutil.copytree(folder / BACKBONE, place / BACKBONE)
        (place / "outside").mkdir()
        (canary := place / "outside" / "canary").write_text("alive")
        found = worker.ask({**trial, "place": str(place)})
        if not canary.exists() or canary.read_text() != "alive":
            found["outside"] = [*found.get("outside", []), "changed a file outside"]
        is_good = found["outcome"] not in ("hang", "died") and not found.get("left") and not is_unreadable(trial)
        return found, is_good and found.get("bytes", 0) < BYTES / 4
    finally:
        for path, _, _ in os.walk(place):
            with contextlib.suppress(OSError):
                os.chmod(path, 0o755)
        shutil.rmtree(place, ignore_errors=True)


class Worker:
    """A child of the server, which makes one trial after another, within bounds.

    Args:
        expected: what each checkpoint says as it was.
    """

    def __init__(self, expected: dict[str, dict[str, Any]]) -> None:
        to_read, self._to_write = os.pipe()
        self._from_read, to_write = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._to_write)
            os.close(self._from_read)
            status = 1
            try:
                self._work(os.fdopen(to_read), os.fdopen(to_write, "w"), expected)
                status = 0
            finally:
                os._exit(status)
        os.close(to_read)
        os.close(to_write)

    @staticmethod
    def _work(trials: Any, answers: Any, expected: dict[str, dict[str, Any]]) -> None:
        watch = Watch()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
        for line in trials:
            trial = json.loads(line)
            found = _try(Path(trial["place"]), trial, expected.get(trial["base"], {}), watch)
            print(json.dumps(found), file=answers, flush=True)

    def ask(self, trial: dict[str, Any]) -> dict[str, Any]:
        """What comes of a trial."""
        said, until = json.dumps(trial).encode() + b"\n", time.monotonic() + PATIENCE
        with contextlib.suppress(BrokenPipeError):
            while said:
                said = said[os.write(self._to_write, said) :]
        found = b""
        while not found.endswith(b"\n"):
            if not select.select([self._from_read], [], [], max(until - time.monotonic(), 0))[0]:
                return {"outcome": "hang", "type": "", "message": "", "where": "", "phase": ""}
            block = os.read(self._from_read, 1 << 16)
            if not block:
                return {"outcome": "died", "type": "", "message": "", "where": "", "phase": ""}
            found += block
        return json.loads(found)

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._to_write)
        os.close(self._from_read)


class Trials:
    """A server, for as long as the context lasts.

    Args:
        folder: what `write_bases` has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Trials:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        source = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join([source, environment.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, "--serve", str(self.folder)]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._server.stdout is not None and self._server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(PATIENCE)

    def __call__(self, base: str, changes: list[Any], tasks: list[str] | None = None) -> dict[str, Any]:
        """Load a changed copy of a checkpoint, and say what happened."""
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps({"base": base, "changes": changes, "tasks": tasks}), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


# -- the checkpoints, and all trials ----------------------------------------------------------------------------------


def write_bases(folder: Path) -> None:
    """Write small checkpoints of every sort: both growths, all families, all kinds of task, whole and in part."""
    import torch
    from support.backbones import ALL_CONFIGS
    from transformers import AutoModelForCausalLM

    from eidetic_hf import EideticModel, PruningConfig

    golden = Path(__file__).parents[1] / "golden"
    for name, source in (
        ("bert", "format_2/bert"), ("t5", "format_2/t5"), ("copies", "copies/bert"), ("old", "format_1/bert"),
        ("learning", "format_2/bert-learning"),
    ):  # fmt: skip
        shutil.copytree(golden / source, folder / name, copy_function=shutil.copyfile)
    model = EideticModel.from_pretrained(golden / "format_2/bert")
    ids = torch.arange(3, 11).reshape(1, 8)
    model.router.add_examples("topics", {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels=["x"])
    model.router.set_prior("names", 2.0)
    model.save_pretrained(folder / "told")
    model.save_pretrained(folder / "released", include_pool=False)
    EideticModel.from_pretrained(golden / "copies/bert").save_pretrained(folder / "part", include_pool=False)
    # A decoder that tells texts apart and writes some; and the same without its backbone, which lies beside it.
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ALL_CONFIGS["llama"]()).save_pretrained(folder / BACKBONE)
    model = EideticModel.from_backbone(folder / BACKBONE, trunk_layers=1, growth="copy")
    for name, settings in (("tells", {"labels": ["x", "y"]}), ("writes", {"task_type": "causal-lm"})):
        model.add_task(name, **settings)
        model.begin_task(name, PruningConfig(importance="random"))
        seen = {"input_ids": torch.randint(3, 40, (8, 8)), "attention_mask": torch.ones(8, 8, dtype=torch.long)}
        labels = torch.arange(8) % 2 if name == "tells" else seen["input_ids"]
        model.commit_task(router_sums=model.router_sums([{**seen, "labels": labels}]))
    model.save_pretrained(folder / "decoder")
    model.config.base_config.name_or_path = str(folder / BACKBONE)
    model.save_pretrained(folder / "thin", include_base=False)


def trials_of(folder: Path, number: int, first: int = 0) -> Iterator[tuple[str, list[Any], list[str] | None]]:
    """So many trials, others from each `first`: the checkpoint, the changes, and which tasks are asked for."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from support.hostile import changes

    drawn: list[tuple[str, list[Any], list[str] | None]] = []
    models = sorted(model for model in folder.iterdir() if model.name != BACKBONE)
    tasks = {
        model: [task["name"] for task in json.loads((model / "config.json").read_text())["tasks"]] for model in models
    }
    each = {
        model: st.tuples(st.just(model), changes(model), st.sampled_from([None, None, *tasks[model]]))
        for model in models
    }
    size = 500
    for part in range(first, first + number, size):
        drawn.clear()

        @seed(part)
        @settings(
            max_examples=min(size, first + number - part), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.sampled_from(models).flatmap(each.__getitem__))
        def draw(trial: tuple[Path, list[Any], str | None]) -> None:
            model, made, task = trial
            drawn.append((model.name, made, None if task is None else [task]))

        draw()
        yield from drawn[: first + number - part]


def main() -> None:
    """Make trials, and print a table of what came of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bases-"))
    if not (folder / BACKBONE).is_dir():
        write_bases(folder)
    counts: collections.Counter[str] = collections.Counter()
    places: collections.Counter[tuple[str, ...]] = collections.Counter()
    most: dict[str, float] = {"seconds": 0.0, "cpu": 0.0, "bytes": 0.0}
    with Trials(folder) as load, open(arguments.log or os.devnull, "w") as log:
        for base, changes, tasks in trials_of(folder, arguments.count, arguments.first):
            found = load(base, changes, tasks)
            print(json.dumps({"base": base, "tasks": tasks, "changes": changes, **found}), file=log, flush=True)
            counts[found["outcome"]] += 1
            for name in ("left", "outside"):
                counts[name] += bool(found.get(name))
            counts["slow"] += found.get("cpu", 0) > SECONDS
            counts["large"] += found.get("bytes", 0) > BYTES
            most = {name: max(value, found.get(name, 0)) for name, value in most.items()}
            if found["outcome"] not in GOOD:
                places[tuple(str(found.get(key, "")) for key in ("outcome", "phase", "type", "where", "deepest"))] += 1
    for place, number in places.most_common():
        print(number, *place)
    print(dict(counts), {name: round(value, 2) for name, value in most.items()})


if __name__ == "__main__":
    main()
