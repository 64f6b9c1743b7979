"""Pushed to the Hub: one commit with exactly what is new, and nothing that is there is lost."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, close_session, snapshot_download
from support.backbones import tiny_backbone
from support.data import logits_of
from support.folders import hashes
from support.hub_repository import HubError
from support.hub_server import HubServer
from support.quick import learn_quickly

from eidetic_hf import CheckpointError, EideticConfig, EideticModel
from eidetic_hf.model import hub as hub_module
from eidetic_hf.model.checkpoint.card import model_card
from eidetic_hf.model.hub import Push, PushConflict, push, push_folder

REPO = "someone/model"
SMALL = {"config.json", "model.safetensors.index.json", "README.md"}
WHOLE = {*SMALL, "eidetic-trunk.safetensors", "eidetic-base.safetensors", "eidetic-pool.safetensors"}
JUNK = (
    "training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "weights.ckpt", "notes.pkl",
    "other.safetensors", "trainer_state.json", ".eidetic.lock", ".gitignore", ".cache/huggingface/x.metadata",
    ".eidetic-save/config.json", "checkpoint-3/config.json", "runs/now/events.out", "folder/notes.txt",
)  # fmt: skip


def shard(name: str) -> str:
    return f"eidetic-task-{name}.safetensors"


def start(growth: str = "copy") -> EideticModel:
    return EideticModel.from_backbone(tiny_backbone(), trunk_layers=1, growth=growth)


def learn(model: EideticModel, *names: str, seed: int = 0) -> EideticModel:
    """Learn tasks, each from base or a pool that others have taken from."""
    for name in names:
        learn_quickly(model, name, seed + sum(map(ord, name)))
    return model


@pytest.fixture(scope="module")
def made() -> EideticModel:
    """A model that has learned `a`; tests get copies of it."""
    return learn(start(), "a")


@pytest.fixture
def model(made: EideticModel) -> EideticModel:
    return copy.deepcopy(made)


@pytest.fixture
def folder(model: EideticModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def head(hub: HubServer, revision: str = "main") -> str:
    return hub.repository(REPO).resolve(revision)


def tags(hub: HubServer) -> set[str]:
    return set(hub.repository(REPO).tags)


def names(hub: HubServer, revision: str = "main") -> set[str]:
    return set(hub.files(REPO, revision))


def config(hub: HubServer) -> dict[str, Any]:
    return json.loads(hub.files(REPO)["config.json"])


def tasks(hub: HubServer) -> list[str]:
    return [task["name"] for task in config(hub)["tasks"]]


def refused(hub: HubServer, pattern: str, call: Callable[[], object], kind: type = CheckpointError) -> str:
    """What a push says that changes nothing."""
    there = REPO in {name for _, name in hub.repositories}
    before = (head(hub), tags(hub)) if there else None
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert before is None or (head(hub), tags(hub)) == before
    return str(caught.value)


# -- one commit -------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_with_exactly_the_folders_files(hub: HubServer, folder: Path) -> None:
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("nobody's business")
    for name in ("tokenizer.json", "LICENSE"):
        (folder / name).write_text("{}")
    commit = push_folder(folder, REPO)
    assert hub.history(REPO) == ["initial commit", "Add a"]
    assert commit.oid == head(hub) and commit.commit_url == f"{hub.endpoint}/{REPO}/commit/{commit.oid}"
    assert names(hub) == {*WHOLE, shard("a"), "tokenizer.json", "LICENSE"}
    for name, content in hub.files(REPO).items():
        here = (folder / name).read_bytes()
        if name == "README.md":
            here = model_card(EideticConfig.from_pretrained(folder), here.decode(), REPO).encode()
            assert f'from_pretrained("{REPO}")'.encode() in here
        assert content == here, name


def test_what_is_on_the_hub_is_the_model(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    loaded = EideticModel.from_pretrained(REPO)
    assert torch.equal(logits_of(loaded, "a"), logits_of(model, "a")) and loaded.verify().ok


def test_the_card_is_the_models_own_and_never_stale(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    assert shard("a") in hub.files(REPO)["README.md"].decode()
    learn(model, "b").push_to_hub(REPO)
    assert shard("b") in hub.files(REPO)["README.md"].decode()


def test_what_a_person_wrote_into_the_card_on_the_hub_stays(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    card = hub.files(REPO)["README.md"].decode().replace("## Use", "## Who made this\n\nWe did.\n\n## Use")
    hub.commit(REPO, {"README.md": card})
    learn(model, "b").push_to_hub(REPO)
    text = hub.files(REPO)["README.md"].decode()
    assert "## Who made this\n\nWe did." in text and shard("b") in text


def test_what_a_person_wrote_into_the_card_of_the_folder_is_pushed(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO)
    with open(folder / "README.md", "a", encoding="utf-8") as card:
        card.write("\nWritten here: \u00fc.\n")
    there = hub.files(REPO)["README.md"] + "\nWritten here: \u00fc.\n".encode()
    assert push(folder, Push(REPO)).uploaded == {"README.md": len(there)}
    assert hub.files(REPO)["README.md"] == there


def test_a_push_of_what_is_there_makes_no_commit_and_sends_nothing(hub: HubServer, model: EideticModel) -> None:
    first = model.push_to_hub(REPO)
    hub.reset()
    assert model.push_to_hub(REPO).oid == first.oid
    assert not hub.uploaded and {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert len(hub.history(REPO)) == 2


def test_a_new_task_sends_its_shard_and_hashes_no_other(
    hub: HubServer, model: EideticModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub(REPO)
    folder, hashed, add = tmp_path / "folder", [], hub_module.CommitOperationAdd
    learn(model, "b").save_pretrained(folder)
    monkeypatch.setattr(hub_module, "sha256_of", lambda path: hashed.append(path.name))
    monkeypatch.setattr(hub_module, "CommitOperationAdd", lambda name, what: hashed.append(name) or add(name, what))
    hub.reset()
    done = push(folder, Push(REPO))
    assert set(hub.uploaded) == set(done.uploaded) == set(hashed) == {*SMALL, shard("b")}
    assert hub.uploaded[shard("b")] == done.uploaded[shard("b")] == (folder / shard("b")).stat().st_size
    assert set(done.unchanged) == {*WHOLE, shard("a")} - SMALL and done.removed == []
    assert hub.history(REPO)[1:] == ["Add a", "Add b"]


def test_a_shard_that_was_exchanged_on_the_hub_is_put_right(hub: HubServer, folder: Path) -> None:
    push_folder(folder, REPO)
    hub.commit(REPO, {shard("a"): b"something else"})
    assert set(push(folder, Push(REPO)).uploaded) == {shard("a")}
    assert hub.files(REPO)[shard("a")] == (folder / shard("a")).read_bytes()


def test_a_damaged_folder_is_not_pushed(hub: HubServer, folder: Path) -> None:
    path = folder / shard("a")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    refused(
        hub, rf"does not have the {shard('a')} that was saved.*Nothing was pushed", lambda: push_folder(folder, REPO)
    )
    path.write_bytes(content[:-1])
    refused(hub, rf"{shard('a')}.*Nothing was pushed", lambda: push_folder(folder, REPO))
    path.unlink()
    refused(hub, rf"has no {shard('a')}", lambda: push_folder(folder, REPO))
    assert names(hub) == set()


def test_a_link_out_of_the_folder_is_not_followed(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "notes.txt").symlink_to("../secret.txt")
    refused(hub, r"notes.txt is a link to ../secret.txt, outside", lambda: push_folder(folder, REPO))
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to("README.md")
    push_folder(folder, REPO)
    assert hub.files(REPO)["notes.txt"] == (folder / "README.md").read_bytes()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").symlink_to("../secret.txt")
    refused(hub, "index.json is a link to ../secret.txt, outside", lambda: push_folder(folder, REPO))


def test_what_was_downloaded_is_pushed_as_it_is(hub: HubServer, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    push_folder(folder, REPO)
    snapshot = Path(snapshot_download(REPO))
    assert (snapshot / "tokenizer.json").is_symlink()
    push_folder(snapshot, "someone/again")
    again = hub.files("someone/again")
    assert b"someone/again" in again["README.md"] and REPO.encode() not in again["README.md"]
    again["README.md"] = again["README.md"].replace(b"someone/again", REPO.encode())
    assert again == hub.files(REPO)


def test_the_name_alone_is_a_repository_of_ones_own(hub: HubServer, model: EideticModel) -> None:
    assert model.push_to_hub("model").repo_url.repo_id == REPO


def test_the_message_is_of_the_tasks_or_as_asked(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    model.remove_task("a")
    learn(model, "b", "c").push_to_hub(REPO)
    learn(model, "d").push_to_hub(REPO, commit_message="As asked", commit_description="Why")
    learn(model, "e", "f", "g", "h").push_to_hub(REPO)
    assert hub.history(REPO)[1:] == ["Add a", "Add b, c; Remove a", "As asked", "Add 4 tasks"]


# -- nothing is lost --------------------------------------------------------------------------------------------------


@pytest.fixture
def two(hub: HubServer, model: EideticModel) -> EideticModel:
    """A model with `a` and `b`, pushed."""
    learn(model, "b").push_to_hub(REPO)
    return model


def test_an_older_copy_does_not_remove_the_tasks_that_came_since(
    hub: HubServer, made: EideticModel, two: EideticModel
) -> None:
    older = learn(copy.deepcopy(made), "c")
    message = refused(hub, r"\['b'\], which this model does not have", lambda: older.push_to_hub(REPO))
    assert REPO in message and "merge=True (--merge)" in message and "replace=True (--replace)" in message
    assert tasks(hub) == ["a", "b"]


def test_a_model_loaded_with_some_tasks_does_not_remove_the_others(hub: HubServer, two: EideticModel) -> None:
    some, before = EideticModel.from_pretrained(REPO, tasks=["b"]), hub.files(REPO)
    message = refused(hub, r"has the tasks \['a'\], which this model does not have", partial(some.push_to_hub, REPO))
    assert "holds the pool of free units, which this model was saved or loaded without" in message
    some.push_to_hub(REPO, merge=True)  # as the error says
    assert hub.files(REPO) == before and len(hub.history(REPO)) == 2
    learn_other = learn(start(), "c")
    some.load_task(learn_other, "c")
    some.push_to_hub(REPO, merge=True)
    assert tasks(hub) == ["a", "b", "c"] and names(hub) == {*WHOLE, shard("a"), shard("b"), shard("c")}
    assert EideticModel.from_pretrained(REPO).verify().ok and some.tasks == ["b", "c"]


def test_tasks_that_are_there_only_to_be_read_still_answer_on_the_hub(hub: HubServer) -> None:
    model = learn(start(), "a")
    learn_quickly(model, "b", 3, based_on="a")
    model.push_to_hub(REPO, include_pool=False)
    some = EideticModel.from_pretrained(REPO, tasks=["b"])
    assert [task.name for task in some.config.tasks] == ["a", "b"]
    refused(hub, r"answers for the tasks \['a'\], which this model was loaded without", lambda: some.push_to_hub(REPO))
    learned = head(hub)
    some.push_to_hub(REPO, merge=True)
    assert some.tasks == ["a", "b"] and head(hub) == learned


def test_a_removed_task_goes_in_the_same_commit(hub: HubServer, two: EideticModel) -> None:
    two.remove_task("a")
    two.push_to_hub(REPO)
    assert tasks(hub) == ["b"] and shard("a") not in names(hub) and len(hub.history(REPO)) == 3
    assert EideticModel.from_pretrained(REPO).verify().ok
    assert EideticModel.from_pretrained(REPO, revision="a").tasks == ["a", "b"]


def test_another_task_of_a_removed_ones_name_is_not_taken_for_it(
    hub: HubServer, made: EideticModel, two: EideticModel
) -> None:
    other = learn(start(), "b", seed=7)
    other.remove_task("b")
    learn(other, "a", seed=7)
    refused(hub, r"other tasks \['a'\]", lambda: other.push_to_hub(REPO))


def test_merge_brings_the_tasks_along_and_every_shard_keeps_its_bytes(
    hub: HubServer, made: EideticModel, two: EideticModel, tmp_path: Path
) -> None:
    mine, there = learn(copy.deepcopy(made), "c"), hub.files(REPO)
    mine.save_pretrained(tmp_path / "mine")
    hub.reset()
    mine.push_to_hub(REPO, merge=True)
    assert tasks(hub) == mine.tasks == ["a", "c", "b"] and len(hub.history(REPO)) == 3
    assert set(hub.uploaded) == {*SMALL, shard("c")}
    for name in {*WHOLE, shard("a"), shard("b")} - SMALL:
        assert hub.files(REPO)[name] == there[name], name
    assert hub.files(REPO)[shard("c")] == (tmp_path / "mine" / shard("c")).read_bytes()
    loaded = EideticModel.from_pretrained(REPO)
    assert loaded.verify().ok
    for name, of in (("a", two), ("b", two), ("c", mine)):
        assert torch.equal(logits_of(loaded, name), logits_of(of, name)), name


def test_a_folder_is_merged_elsewhere_and_stays_as_it_is(
    hub: HubServer, made: EideticModel, two: EideticModel, tmp_path: Path
) -> None:
    learn(copy.deepcopy(made), "c").save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "tokenizer.json").write_text("{}")
    before = hashes(tmp_path / "mine")
    done = push(tmp_path / "mine", Push(REPO, merge=True))
    assert tasks(hub) == ["a", "c", "b"] and set(done.uploaded) == {*SMALL, shard("c"), "tokenizer.json"}
    assert hashes(tmp_path / "mine") == before
    assert EideticModel.from_pretrained(REPO).verify().ok


def test_merge_where_nothing_lacks_pushes(hub: HubServer, two: EideticModel) -> None:
    learn(two, "c").push_to_hub(REPO, merge=True)
    assert tasks(hub) == ["a", "b", "c"]


def test_tasks_of_another_backbone_are_not_merged(hub: HubServer, two: EideticModel) -> None:
    other = EideticModel.from_backbone(tiny_backbone(seed=1), trunk_layers=1, growth="copy")
    learn(other, "c")
    message = refused(hub, "can not be merged.*another backbone", lambda: other.push_to_hub(REPO, merge=True))
    assert message.startswith(REPO) and other.tasks == ["c"]


def test_in_a_fixed_pool_the_error_says_how_to_merge_and_doing_it_works(hub: HubServer) -> None:
    base = start("fixed")
    mine, theirs = learn(copy.deepcopy(base), "a"), learn(copy.deepcopy(base), "b")
    theirs.push_to_hub(REPO)
    for push_it in (partial(mine.push_to_hub, REPO), partial(mine.push_to_hub, REPO, merge=True)):
        message = refused(hub, r"\['b'\]", push_it)
        assert "growth='fixed'" in message and "load the repository, bring this model's tasks there" in message
    both = EideticModel.from_pretrained(REPO)
    both.merge(mine)
    both.push_to_hub(REPO)
    assert tasks(hub) == ["b", "a"] and EideticModel.from_pretrained(REPO).verify().ok


def test_replace_lets_go_what_the_model_lacks(hub: HubServer, made: EideticModel, two: EideticModel) -> None:
    learn(copy.deepcopy(made), "c").push_to_hub(REPO, replace=True)
    assert tasks(hub) == ["a", "c"] and names(hub) == {*WHOLE, shard("a"), shard("c")}
    assert hub.history(REPO)[-1] == "Add c; Remove b" and EideticModel.from_pretrained(REPO).verify().ok


def test_a_task_of_the_same_name_with_other_weights_is_refused(hub: HubServer, two: EideticModel) -> None:
    other = learn(start(), "a", "b", seed=5)
    for push_it in (partial(other.push_to_hub, REPO), partial(other.push_to_hub, REPO, merge=True)):
        refused(hub, r"other tasks \['a', 'b'\] than this model.*other weights", push_it)
    other.push_to_hub(REPO, replace=True)
    loaded = EideticModel.from_pretrained(REPO)
    assert torch.equal(logits_of(loaded, "a"), logits_of(other, "a"))


def test_pool_and_backbone_are_not_lost_either(hub: HubServer, two: EideticModel) -> None:
    two.config.base_config.name_or_path = "some/backbone"
    refused(hub, "holds the pool.*include_pool", lambda: two.push_to_hub(REPO, include_pool=False))
    refused(hub, "holds the backbone", lambda: two.push_to_hub(REPO, include_base=False))
    before = hub.files(REPO)
    learn(two, "c").push_to_hub(REPO, include_base=False, merge=True)
    assert {name: hub.files(REPO)[name] for name in before if name not in SMALL} == {
        name: content for name, content in before.items() if name not in SMALL
    }
    assert EideticModel.from_pretrained(REPO).tasks == ["a", "b", "c"]
    two.push_to_hub(REPO, include_pool=False, replace=True)
    assert "eidetic-pool.safetensors" not in names(hub)
    assert EideticModel.from_pretrained(REPO).verify().ok


def test_without_its_backbone_a_repository_is_small_and_grows(hub: HubServer, model: EideticModel) -> None:
    model.config.base_config.name_or_path = "some/backbone"
    model.push_to_hub(REPO, include_base=False)
    trunk = "eidetic-trunk.safetensors"  # what the router has measured
    assert names(hub) == {*SMALL, shard("a"), trunk}
    learn(model, "b").push_to_hub(REPO, include_base=False)
    assert names(hub) == {*SMALL, shard("a"), shard("b"), trunk}
    assert config(hub)["base"]["name"] == "some/backbone"


def test_merge_and_replace_at_once_are_refused(hub: HubServer, model: EideticModel) -> None:
    with pytest.raises(ValueError, match="Choose one"):
        model.push_to_hub(REPO, merge=True, replace=True)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("model.safetensors", b"x", "holds model.safetensors of a model of another kind"),
        ("pytorch_model.bin", b"x", "holds pytorch_model.bin of a model of another kind"),
        ("model-00001-of-00002.safetensors", b"x", "holds model-00001"),
        ("adapter_config.json", b"{}", "holds adapter_config.json"),
        ("config.json", b'{"model_type": "bert"}', "model_type='bert'"),
        ("config.json", b"{}", "model_type=None"),
        ("config.json", b"[", "holds a config.json of something else"),
    ],
)
def test_a_plain_model_is_neither_hidden_nor_hides_anything(
    hub: HubServer, model: EideticModel, name: str, content: bytes, pattern: str
) -> None:
    hub.create(REPO)
    hub.commit(REPO, {name: content})
    for push_it in (partial(model.push_to_hub, REPO), partial(model.push_to_hub, REPO, replace=True)):
        message = refused(hub, pattern, push_it)
        assert message.startswith(REPO) and "hoose another repository" in message


def test_a_repository_of_a_later_format_is_left_alone(hub: HubServer, two: EideticModel) -> None:
    hub.commit(REPO, {"config.json": json.dumps({**config(hub), "format_version": 99})})
    refused(hub, "Upgrade", lambda: two.push_to_hub(REPO))


# -- what can not be pushed -------------------------------------------------------------------------------------------


def test_a_push_in_the_middle_of_a_task_says_what_to_do_first(
    hub: HubServer, model: EideticModel, tmp_path: Path
) -> None:
    model.add_task("b", labels=["x", "y"])
    model.begin_task("b")
    pattern = r"'b' is being learned.*commit_task.*abandon_task"
    refused(hub, pattern, lambda: model.push_to_hub(REPO))
    refused(hub, pattern, lambda: model.save_pretrained(tmp_path / "new", push_to_hub=True, repo_id=REPO))
    assert hub.requests == [] and not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path / "checkpoint")
    refused(hub, "in the middle of learning 'b', not a release", lambda: push_folder(tmp_path / "checkpoint", REPO))
    assert hub.requests == []


@pytest.mark.parametrize("status", [412, 409])
def test_a_push_in_between_is_told_and_pushing_again_works(
    hub: HubServer, made: EideticModel, two: EideticModel, status: int
) -> None:
    mine, theirs = learn(copy.deepcopy(two), "c"), learn(copy.deepcopy(two), "d")
    hub.conflict = status
    hub.before("POST", "/commit/", lambda: theirs.push_to_hub(REPO))
    with pytest.raises(PushConflict, match=rf"{REPO} was changed by somebody else.*nothing was pushed.*merge=True"):
        mine.push_to_hub(REPO)
    assert tasks(hub) == ["a", "b", "d"] and tags(hub) == {"a", "b", "d"}
    refused(hub, r"\['d'\], which this model does not have", lambda: mine.push_to_hub(REPO))
    mine.push_to_hub(REPO, merge=True)
    assert sorted(tasks(hub)) == ["a", "b", "c", "d"] and EideticModel.from_pretrained(REPO).verify().ok


def test_a_cut_at_the_commits_answer_is_healed_by_pushing_again(hub: HubServer, model: EideticModel) -> None:
    hub.cut(moment="answer", matching="POST .*/commit/")
    with pytest.raises(ConnectionError, match=f"{REPO}.*Push again"):
        model.push_to_hub(REPO)
    assert tasks(hub) == ["a"] and tags(hub) == set()
    made, done = head(hub), model.push_to_hub(REPO)
    assert done.oid == head(hub) == made and tags(hub) == {"a"}


def test_a_file_that_can_not_be_sent_makes_no_commit(hub: HubServer, model: EideticModel) -> None:
    hub.cut(matching="PUT", times=None)
    with pytest.raises(ConnectionError, match=f"{REPO}.*before the commit.*Push again"):
        model.push_to_hub(REPO)
    hub.restore()
    assert hub.history(REPO) == ["initial commit"]
    model.push_to_hub(REPO)
    assert tasks(hub) == ["a"]


def test_a_connection_that_died_meanwhile_and_a_session_that_was_closed_are_no_errors(
    hub: HubServer, model: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [RuntimeError("Cannot send a request, as the client has been closed.")]
    upload = HfApi.preupload_lfs_files

    def preupload(*args: Any, **kwargs: Any) -> None:
        if failures:
            raise RuntimeError("Error while uploading 'x' to the Hub.") from failures.pop()
        upload(*args, **kwargs)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", preupload)
    hub.cut(matching=f"GET /api/models/{REPO}", times=2)
    model.push_to_hub(REPO)
    assert tasks(hub) == ["a"] and len(hub.history(REPO)) == 2 and not failures


def test_a_hub_that_is_away_is_one_sentence(hub: HubServer, model: EideticModel) -> None:
    hub.disconnect()
    with pytest.raises(ConnectionError, match=f"^{REPO} could not be reached.*Nothing was pushed"):
        model.push_to_hub(REPO)


def test_offline_mode_is_one_sentence(hub: HubServer, model: EideticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(ConnectionError, match=rf"^{REPO} could not be reached .*offline mode.*Nothing was pushed"):
        model.push_to_hub(REPO)


def test_a_problem_of_the_hubs_is_not_taken_for_a_refusal(hub: HubServer, model: EideticModel) -> None:
    def fail() -> None:
        raise HubError(500, "a problem")

    hub.before("POST", "/commit/", fail)
    with pytest.raises(ConnectionError, match=rf"^{REPO}: the push broke off, perhaps after the commit.*Push again"):
        model.push_to_hub(REPO)


def test_metadata_that_the_hub_does_not_take_is_one_sentence(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    message = refused(hub, "README.md", lambda: push_folder(folder, REPO))
    assert message.startswith(REPO) and "Nothing was pushed" in message and "\n" not in message
    assert hub.history(REPO) == ["initial commit"]


def test_a_token_that_does_not_do_is_one_sentence(
    hub: HubServer, model: EideticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub(REPO)
    learn(model, "b")
    hub.create("somebody/private", private=True)
    reader = hub.add_user("reader", role="read")
    for repo, token, what in (
        (REPO, "hf_wrong", "valid token.*hf auth login.*HF_TOKEN.*token="),
        (REPO, False, "valid token"),
        (REPO, reader, "may not be written to with this token.*create_pr=True"),
        (REPO, hub.add_user("another"), "may not be written to with this token"),
        ("another/one", None, "may not be written to with this token"),
        ("somebody/private", None, "may not be written to with this token"),
    ):
        with pytest.raises(CheckpointError, match=f"^{repo} .*{what}.*Nothing was pushed") as caught:
            model.push_to_hub(repo, token=token)
        assert "\n" not in str(caught.value)
    assert tasks(hub) == ["a"]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="valid token"):
        model.push_to_hub(REPO)
    model.push_to_hub(REPO, token=hub.token)
    assert tasks(hub) == ["a", "b"]


# -- branches, pull requests, private ones ----------------------------------------------------------------------------


def test_a_branch_is_made_and_main_stays(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    main = head(hub)
    learn(model, "b").push_to_hub(REPO, revision="next")
    assert head(hub) == main and EideticModel.from_pretrained(REPO, revision="next").tasks == ["a", "b"]
    assert tags(hub) == {"a"}  # a tag is the whole repository's, and b is not on main
    model.push_to_hub("someone/new", revision="next")
    assert set(hub.files("someone/new")) == set() and shard("b") in hub.files("someone/new", "next")


def test_a_pull_request_leaves_main_as_it_is_and_sets_no_tag(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    main = head(hub)
    commit = learn(model, "b").push_to_hub(REPO, create_pr=True, commit_description="Please")
    assert commit.pr_url and head(hub) == main and tags(hub) == {"a"}
    assert EideticModel.from_pretrained(REPO, revision=commit.pr_revision).tasks == ["a", "b"]
    learn(model, "c").push_to_hub(REPO, revision=commit.pr_revision)  # into the same one
    assert EideticModel.from_pretrained(REPO, revision=commit.pr_revision).tasks == ["a", "b", "c"]
    refused(hub, "no such branch", lambda: model.push_to_hub(REPO, revision="refs/pr/99"))


def test_a_private_repository_is_made_private_and_a_public_one_is_not_taken_for_it(
    hub: HubServer, model: EideticModel
) -> None:
    model.push_to_hub(REPO, private=True)
    assert hub.repository(REPO).private
    model.push_to_hub(REPO, private=True)
    hub.create("someone/public")
    with pytest.raises(CheckpointError, match=r"someone/public is there, and public.*Nothing was pushed"):
        model.push_to_hub("someone/public", private=True)
    assert hub.files("someone/public") == {}


# -- tags -------------------------------------------------------------------------------------------------------------


def test_a_tag_is_the_model_as_of_its_task(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO)
    model.add_version("a")
    learn_version(model, "a@2")
    model.push_to_hub(REPO)
    learn(model, "b", "c").push_to_hub(REPO)
    found = {tag: EideticModel.from_pretrained(REPO, revision=tag).tasks for tag in sorted(tags(hub))}
    assert found == {"a": ["a"], "a@2": ["a", "a@2"], "b": ["a", "a@2", "b", "c"], "c": ["a", "a@2", "b", "c"]}


def learn_version(model: EideticModel, name: str) -> None:
    """Commit a version that was added."""
    model.begin_task(name)
    model.learner.set_steps(3)
    model.commit_task()


def test_tasks_whose_names_can_be_no_tag_get_none(
    hub: HubServer, model: EideticModel, caplog: pytest.LogCaptureFixture
) -> None:
    learn(model, "main", "x.lock", "a..b", "deadbeef", "-x", "end.", "HEAD", "v1.0", "next", "plain")
    hub.create(REPO)
    hub.repository(REPO).branches["next"] = head(hub)
    done = model.push_to_hub(REPO)
    assert tags(hub) == {"a", "v1.0", "plain"} and done.oid == head(hub)
    assert hub.repository(REPO).branches["main"] == done.oid
    untold = [name for name in model.tasks if f"The task '{name}' gets no tag in {REPO}" in caplog.text]
    assert untold == ["main", "x.lock", "a..b", "deadbeef", "-x", "end.", "HEAD", "next"]


def test_a_tag_of_somebody_elses_stays_and_that_of_a_removed_task_moves(hub: HubServer, two: EideticModel) -> None:
    old = hub.repository(REPO).tags["b"]
    own = list(hub.repository(REPO).history("main"))[-1][0]
    hub.repository(REPO).tags.update(c=own, d=old)  # somebody's: of the first commit, and of a model without d
    two.remove_task("b")
    two.push_to_hub(REPO)
    assert hub.repository(REPO).tags["b"] == old
    learn(two, "b", seed=9)
    learn(two, "c", "d").push_to_hub(REPO)
    found = hub.repository(REPO).tags
    assert found["b"] == head(hub) != old and (found["c"], found["d"]) == (own, old)


def test_tags_that_a_push_could_not_set_are_set_by_the_next(hub: HubServer, model: EideticModel) -> None:
    hub.cut(matching="POST .*/tag/", times=None)
    first = model.push_to_hub(REPO)
    assert first.oid == head(hub) and tags(hub) == set()
    hub.restore()
    learn(model, "b").push_to_hub(REPO)
    assert hub.repository(REPO).tags == {"a": first.oid, "b": head(hub)}


def test_no_tags_if_none_are_wanted_and_a_cards_tags_are_told_from_them(hub: HubServer, model: EideticModel) -> None:
    model.push_to_hub(REPO, tags=False)
    assert tags(hub) == set()
    with pytest.raises(ValueError, match=r"tags=\['nlp'\].*README.md"):
        model.push_to_hub(REPO, tags=["nlp"])


# -- save_pretrained --------------------------------------------------------------------------------------------------


def test_save_pretrained_pushes_the_folder_that_it_wrote(hub: HubServer, model: EideticModel, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path / "model", push_to_hub=True, include_pool=False, commit_message="As asked")
    assert names(hub) == {*WHOLE, shard("a"), "tokenizer.json"} - {"eidetic-pool.safetensors"}
    here = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name[0] != "."}
    here["README.md"] = model_card(EideticConfig.from_pretrained(tmp_path / "model"), repository=REPO).encode()
    assert hub.files(REPO) == here
    assert hub.history(REPO)[-1] == "As asked"


def test_a_push_that_fails_leaves_the_folder_saved_and_says_so(
    hub: HubServer, made: EideticModel, two: EideticModel, tmp_path: Path
) -> None:
    mine = learn(copy.deepcopy(made), "c")
    arguments = {"push_to_hub": True, "repo_id": REPO}
    message = refused(hub, r"\['b'\]", lambda: mine.save_pretrained(tmp_path / "mine", **arguments))
    assert message.startswith(f"{tmp_path / 'mine'} is saved, but not pushed. {REPO} has the tasks")
    assert EideticModel.from_pretrained(tmp_path / "mine").tasks == ["a", "c"]
    hub.disconnect()
    with pytest.raises(ConnectionError, match=f"is saved, but not pushed. {REPO} could not be reached"):
        mine.save_pretrained(tmp_path / "mine", **arguments)
    hub.connect()
    mine.save_pretrained(tmp_path / "mine", **arguments, merge=True)
    assert tasks(hub) == ["a", "c", "b"] and EideticModel.from_pretrained(tmp_path / "mine").tasks == ["a", "c", "b"]


def test_save_pretrained_keeps_what_it_knows_about_pushing(
    hub: HubServer, model: EideticModel, tmp_path: Path
) -> None:
    model.save_pretrained(
        tmp_path / "x", push_to_hub=True, repo_id=REPO, revision="next", private=True, tags=False, token=hub.token
    )
    assert names(hub, "next") == {*WHOLE, shard("a")} and names(hub) == set() and hub.repository(REPO).private
