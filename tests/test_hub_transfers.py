"""Pushing and pulling models: what goes over the line, what a broken line does, and two who push at once."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.backbones import tiny_backbone, tiny_model
from support.folders import answers, child_environment, hashes, same
from support.hub_client import PIECE, connected
from support.hub_server import HubServer
from support.quick import learn_quickly
from support.transfers import MODEL, TASKS, pulled, put_backbone, transfers
from support.writers import learn_to_write

from eidetic_hf import CheckpointError, EideticModel
from eidetic_hf.model.hub import PushConflict, push_folder

GROWTHS = ["copy", "fixed"]
# Trials of two who push at once, for each growth and each of three ways.
PUSHES = int(os.environ.get("EIDETIC_CONCURRENT_PUSHES", "1"))
# Whether to break the line at every moment of every request, both once and for good, and to push from processes, too.
THOROUGH = bool(os.environ.get("EIDETIC_THOROUGH"))

CONFIG, INDEX, CARD = "config.json", "model.safetensors.index.json", "README.md"
TRUNK, BASE, POOL = (f"eidetic-{part}.safetensors" for part in ("trunk", "base", "pool"))
SHARD = {name: f"eidetic-task-{name}.safetensors" for name in TASKS}


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", GROWTHS)
def test_what_is_transferred_is_what_is_new_or_asked_for(hub: HubServer, tmp_path: Path, growth: str) -> None:
    put_backbone(hub, tiny_backbone())
    seen, models = {}, {}
    for transfer, model in transfers(hub, tmp_path, growth, learn_quickly):
        seen[transfer.what], models[transfer.what] = transfer, model
    first, again, third, whole, one, *small = seen.values()
    size = {name: len(content) for name, content in hub.files(MODEL).items()}
    base, pool = ({TRUNK, BASE}, set[str]()) if growth == "copy" else ({TRUNK}, {POOL})
    assert set(first.uploaded) == {CONFIG, INDEX, CARD, POOL, *base, SHARD["one"], SHARD["two"]}
    assert (again.uploaded, again.up) == ({}, 0)
    assert set(third.uploaded) == {CONFIG, INDEX, CARD, SHARD["three"], *pool}
    assert third.uploaded[SHARD["three"]] == size[SHARD["three"]]
    assert whole.downloaded == {name: size[name] for name in {CONFIG, INDEX, POOL, *base, *SHARD.values()}}
    read = ["four"] if growth == "copy" else TASKS[:4]
    assert one.downloaded == {name: size[name] for name in {CONFIG, INDEX, *base, *(SHARD[task] for task in read)}}
    assert same(answers(models[one.what]), {"four": answers(models[whole.what])["four"]})
    if growth == "copy":
        push, pull = small
        assert set(push.uploaded) == {CONFIG, INDEX, CARD, TRUNK, *SHARD.values()}
        assert push.uploaded[TRUNK] < 0.1 * size[TRUNK]
        assert set(pull.downloaded) == {CONFIG, INDEX, TRUNK, SHARD["four"]}
        assert same(answers(models[pull.what]), answers(models[one.what]))


def test_with_xet_a_push_and_a_pull_send_chunks_only(tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    with connected(tmp_path / "home", xet=True) as hub:
        model = tiny_model(growth="copy")
        learn_quickly(model, "one", 0)
        model.push_to_hub(MODEL)
        stored = hub.xet.size
        assert len(hub.history(MODEL)) == 2 and stored > len(hub.files(MODEL)[BASE])
        learn_quickly(model, "two", 1)
        hub.reset()
        model.push_to_hub(MODEL)
        assert hub.history(MODEL) == ["initial commit", "Add one", "Add two"]
        assert not [path for method, path in hub.requests if method == "PUT"]
        assert 0 < hub.xet.size - stored < 2 * len(hub.files(MODEL)[SHARD["two"]])
        hub.reset()
        assert same(answers(pulled(MODEL, tmp_path / "cache")), answers(model))
        assert set(hub.downloaded) == {CONFIG, INDEX}


# -- a line that breaks -----------------------------------------------------------------------------------------------


class Line:
    """A repository with two tasks, folders that hold these and a third one, and a line that breaks.

    Attributes:
        hub: the server.
        growth: of the model.
        old: the folder that is in the repository.
        new: the folder that is pushed.
    """

    def __init__(self, hub: HubServer, place: Path, growth: str) -> None:
        self.hub, self.growth = hub, growth
        self.old, self.new = place / "old", place / "new"
        model = tiny_model(growth=growth)
        for seed, name in enumerate(TASKS[:2]):
            learn_quickly(model, name, seed)
        model.save_pretrained(self.old)
        learn_quickly(model, TASKS[2], 2)
        model.save_pretrained(self.new)
        self.answers = answers(model)
        self.empty = copy.deepcopy(hub.repositories)
        push_folder(self.old, MODEL)
        self.start = copy.deepcopy(hub.repositories)
        self.contents = {
            name: {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
            for name, folder in (("old", self.old), ("new", self.new))
        }

    def as_at(self, repositories: dict[Any, Any]) -> None:
        """Put the repositories back to how they were, and let all pass."""
        self.hub.restore()
        self.hub.repositories = copy.deepcopy(repositories)
        self.hub.reset()

    def state(self) -> str:
        """What the repository holds: `nothing`, `old` or `new`; anything else is an error."""
        if ("model", MODEL) not in self.hub.repositories or not self.hub.files(MODEL):
            return "nothing"
        files = {**self.hub.files(MODEL), CARD: b""}  # which says where it is
        return next(name for name, content in self.contents.items() if {**content, CARD: b""} == files)


@pytest.fixture(params=GROWTHS)
def line(request: pytest.FixtureRequest, hub: HubServer, tmp_path: Path) -> Line:
    return Line(hub, tmp_path, request.param)


def moments(upward: bool) -> Iterator[dict[str, Any]]:
    """How to break the line at one request: for good; and once only, in the middle or when all is done."""
    middle = {"moment": "upload" if upward else "download", "after_bytes": PIECE, "times": 1}
    yield {"moment": "gone"}
    yield {"moment": "answer"} if upward else middle
    if THOROUGH:
        yield {"moment": "refused", "times": None}
        yield {"moment": "failed", "times": 1, "status": 500}
        yield {"times": 1}
        yield {"times": None}
        yield {"moment": "answer", "times": None}
        yield middle if upward else {"moment": "answer", "times": 1}
        yield {**middle, "times": None}


@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_push_that_is_cut_at_any_request_leaves_the_old_state_or_the_new_and_goes_through_again(
    line: Line, before: str
) -> None:
    start = line.empty if before == "nothing" else line.start
    line.as_at(start)
    push_folder(line.new, MODEL)
    requests, folder = list(line.hub.requests), hashes(line.new)
    outcomes = Counter[str]()
    for place in range(len(requests)):
        for how in moments(upward=True):
            line.as_at(start)
            line.hub.cut(place, **how)
            said = what_is_said(lambda: push_folder(line.new, MODEL), (CheckpointError, ConnectionError))
            line.hub.restore()
            state = line.state()
            assert state in (before, "new"), (requests[place], how)
            assert said or state == "new", (requests[place], how)
            assert not said or MODEL in said, said
            assert state == before or "othing was pushed" not in said, said
            push_folder(line.new, MODEL)
            assert line.state() == "new", (requests[place], how)
            assert set(line.hub.repository(MODEL).tags) == set(TASKS[:3]), (requests[place], how)
            assert len(line.hub.history(MODEL)) == (2 if before == "nothing" else 3), (requests[place], how)
            outcomes["told" if said else "went through", state] += 1
    assert hashes(line.new) == folder
    print(f"push over {before}: {len(requests)} requests, {dict(outcomes)}")


def test_what_was_sent_before_the_line_broke_is_not_sent_again(line: Line) -> None:
    line.as_at(line.start)
    line.hub.cut(times=None, matching="/commit/")
    assert what_is_said(lambda: push_folder(line.new, MODEL), (ConnectionError,))
    line.hub.restore()
    push_folder(line.new, MODEL)
    assert line.state() == "new"
    sent = [path for method, path in line.hub.requests if method == "PUT"]
    assert len(sent) == len(set(sent)) == (1 if line.growth == "copy" else 2)  # the task; the pool


def what_is_said(do: Callable[[], object], expected: tuple[type[Exception], ...]) -> str:
    """The message of the error that something raises; empty if it raises none."""
    try:
        do()
    except expected as error:
        return str(error)
    return ""


def test_a_pull_that_is_cut_at_any_request_is_an_error_or_the_model_and_goes_through_again(
    line: Line, tmp_path: Path
) -> None:
    push_folder(line.new, MODEL)
    line.hub.reset()
    wanted = {"two": line.answers["two"]}
    pulled(MODEL, tmp_path / "whole", tasks=["two"])
    requests, outcomes = list(line.hub.requests), Counter[str]()
    for place in range(len(requests)):
        for number, how in enumerate(moments(upward=False)):
            cache = tmp_path / f"cache-{place}-{number}"
            line.hub.restore()
            line.hub.cut(place, **how)
            said = what_is_said(lambda cache=cache: pulled(MODEL, cache, tasks=["two"]), (CheckpointError, OSError))
            line.hub.restore()
            line.hub.reset()
            assert not said or MODEL in said or line.hub.endpoint in said, said
            there = {path.name for path in cache.glob("models--*/snapshots/*/*")}
            assert same(answers(pulled(MODEL, cache, tasks=["two"])), wanted), (requests[place], how)
            assert there.isdisjoint(line.hub.downloaded), (requests[place], how)
            outcomes["told" if said else "went through"] += 1
    print(f"pull: {len(requests)} requests, {dict(outcomes)}")


@pytest.mark.parametrize("line", ["copy"], indirect=True)
def test_all_files_of_a_pull_are_of_one_commit_whenever_somebody_pushes(line: Line, tmp_path: Path) -> None:
    hub = line.hub
    line.as_at(line.start)
    pulled(MODEL, tmp_path / "alone")
    for place, (method, path) in enumerate(list(hub.requests)):
        line.as_at(line.start)
        hub.before(method, re.escape(path), lambda: hub.commit(MODEL, line.contents["new"]))
        model = pulled(MODEL, tmp_path / str(place))
        assert line.state() == "new"
        assert model.tasks == TASKS[: 3 if place == 0 else 2], (method, path)
        assert same(answers(model), {task: line.answers[task] for task in model.tasks}), (method, path)


def test_a_download_that_breaks_off_goes_on_where_it_was(line: Line, tmp_path: Path) -> None:
    size = len(line.hub.files(MODEL)[TRUNK])
    line.hub.reset()
    for pieces in (1, 2, 3):  # the second and the third of what then is left
        line.hub.cut(moment="download", after_bytes=pieces * PIECE, matching=f"GET .*{sha256_in(line.hub, TRUNK)}")
    pulled(MODEL, tmp_path / "cache")
    assert line.hub.downloaded[TRUNK] == size
    assert len([path for method, path in line.hub.requests if sha256_in(line.hub, TRUNK) in path]) == 4


def test_a_file_that_the_hub_did_not_tell_of_is_not_taken_for_missing(hub: HubServer, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    learn_to_write(model, "one")
    model.generation_config.max_new_tokens = 7
    model.push_to_hub(MODEL)
    hub.cut(moment="refused", times=None, matching="HEAD .*generation_config")
    with pytest.raises(ConnectionError, match=r"generation_config.json could not be downloaded \(the Hub did not say"):
        pulled(MODEL, tmp_path / "one")
    hub.restore()
    assert pulled(MODEL, tmp_path / "one").generation_config.max_new_tokens == 7
    hub.commit(MODEL, {"generation_config.json": None})
    for _ in ("the Hub says that it is not there", "the cache remembers"):
        assert pulled(MODEL, tmp_path / "two").generation_config.max_new_tokens != 7
        hub.disconnect()


def sha256_in(hub: HubServer, name: str) -> str:
    return hub.repository(MODEL).at("main").files[name].sha256


# -- two at once ------------------------------------------------------------------------------------------------------


def tasks_in(hub: HubServer) -> set[str]:
    """The tasks whose shards a repository holds."""
    shards = [name for name in hub.files(MODEL) if name.startswith("eidetic-task-")]
    return {name.removeprefix("eidetic-task-").removesuffix(".safetensors") for name in shards}


class Rivals:
    """Two models of one origin, with a task of its own each, as folders that are pushed at once.

    Attributes:
        hub: the server.
        folders: by the task that only this one has.
        answers: of all tasks.
    """

    def __init__(self, hub: HubServer, place: Path, growth: str) -> None:
        self.hub, self.answers = hub, {}
        self.empty = copy.deepcopy(hub.repositories)
        origin = tiny_model(growth=growth)
        learn_quickly(origin, "origin", 0)
        origin.push_to_hub(MODEL)
        self.start = copy.deepcopy(hub.repositories)
        self.folders = {name: place / name for name in ("left", "right")}
        for seed, (name, folder) in enumerate(self.folders.items(), 1):
            model = copy.deepcopy(origin)
            learn_quickly(model, name, seed)
            model.save_pretrained(folder)
            self.answers |= answers(model)

    def push(self, name: str, **options: Any) -> Exception | None:
        """Push one; what the library says if it refuses."""
        try:
            push_folder(self.folders[name], MODEL, **options)
        except CheckpointError as error:
            return error
        return None

    def push_both(self) -> dict[str, Exception | None]:
        with ThreadPoolExecutor(2) as pool:
            results = {name: pool.submit(self.push, name) for name in self.folders}
            return {name: result.result() for name, result in results.items()}

    def follow(self, loser: str, growth: str) -> None:
        """Do what the loser is told to do."""
        again = self.push(loser)
        (winner,) = set(self.folders) - {loser}
        assert f"has the tasks ['{winner}'], which this model does not have" in str(again)
        if growth == "copy":
            assert "Push with merge=True" in str(again)
            assert self.push(loser, merge=True) is None
            return
        assert "load the repository, bring this model's tasks there with merge, and push that" in str(again)
        model = EideticModel.from_pretrained(MODEL, force_download=True)
        model.merge(self.folders[loser])
        model.push_to_hub(MODEL)


def test_a_push_that_brings_tasks_along_may_be_cut_and_loses_none(hub: HubServer, tmp_path: Path) -> None:
    rivals = Rivals(hub, tmp_path, "copy")
    rivals.push("left")
    start = copy.deepcopy(hub.repositories)
    loaded = EideticModel.from_pretrained(rivals.folders["right"])
    hub.reset()
    copy.deepcopy(loaded).push_to_hub(MODEL, merge=True)
    requests = list(hub.requests)
    places = range(len(requests)) if THOROUGH else range(1, len(requests), 5)
    for place in places:
        hub.repositories, model = copy.deepcopy(start), copy.deepcopy(loaded)
        hub.cut(place, times=None)
        said = what_is_said(lambda model=model: model.push_to_hub(MODEL, merge=True), (CheckpointError, OSError))
        hub.restore()
        there = tasks_in(hub)
        assert there == {"origin", "left", "right"} if not said else {"origin", "left"} <= there, requests[place]
        assert all(logits.equal(rivals.answers[name]) for name, logits in answers(model).items())
        model.push_to_hub(MODEL, merge=True)
        assert tasks_in(hub) == set(model.tasks) == {"origin", "left", "right"}


@pytest.mark.parametrize("growth", GROWTHS)
def test_two_who_push_at_once_lose_no_task_and_the_second_is_told_what_to_do(
    hub: HubServer, tmp_path: Path, growth: str
) -> None:
    rivals = Rivals(hub, tmp_path, growth)
    outcomes = Counter[str]()
    for trial in range(3 * PUSHES):
        way = ("they commit at once", "into a new repository at once", "as it comes")[trial % 3]
        hub.restore()
        hub.conflict = (412, 409)[trial % 2]
        hub.repositories = copy.deepcopy(rivals.empty if "new" in way else rivals.start)
        if "at once" in way:
            hub.before("POST", "/commit/", threading.Barrier(2, timeout=60).wait, times=2)
        losers = {name: error for name, error in rivals.push_both().items() if error is not None}
        assert len(losers) == 1, losers
        ((loser, error),) = losers.items()
        if "at once" in way:
            assert isinstance(error, PushConflict) and "nothing was pushed. Push again" in str(error)
        outcomes[f"{way}: {type(error).__name__}"] += 1
        rivals.follow(loser, growth)
        loaded = pulled(MODEL, tmp_path / f"cache-{trial}")
        assert set(loaded.tasks) == {"origin", "left", "right"}
        assert all(logits.equal(rivals.answers[name]) for name, logits in answers(loaded).items())
    print(f"two pushes at once, growth={growth}: {dict(outcomes)}, tasks lost: 0")


@pytest.mark.skipif(not THOROUGH, reason="starts three processes")
@pytest.mark.parametrize("trial", range(PUSHES))
def test_two_processes_that_push_at_once_lose_no_task(hub: HubServer, tmp_path: Path, trial: int) -> None:
    rivals = Rivals(hub, tmp_path, "copy")
    hub.before("POST", "/commit/", threading.Barrier(2, timeout=120).wait, times=2)
    command = [sys.executable, "-m", "eidetic_hf", "push"]
    options = {"env": {**child_environment(), **hub.environment}, "text": True, "capture_output": True}
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(lambda folder: subprocess.run([*command, folder, MODEL], **options), rivals.folders.values())
        done = dict(zip(rivals.folders, runs, strict=True))
    (loser,) = (name for name, run in done.items() if run.returncode)
    assert "nothing was pushed. Push again; with merge=True (--merge)" in " ".join(done[loser].stderr.split())
    assert tasks_in(hub) == {"origin", "left", "right"} - {loser}
    merged = subprocess.run([*command, rivals.folders[loser], MODEL, "--merge"], **options)
    assert merged.returncode == 0, merged.stderr
    assert tasks_in(hub) == {"origin", "left", "right"}
    loaded = pulled(MODEL, tmp_path / "cache")
    assert all(logits.equal(rivals.answers[name]) for name, logits in answers(loaded).items())
