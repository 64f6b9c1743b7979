"""The Hub on localhost that other tests use is to the real client what the Hub is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    HfFileSystem,
    constants,
    create_commit,
    create_repo,
    eval_result_entries_to_yaml,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.hub_client import PIECE, connected
from support.hub_repository import GIT_ATTRIBUTES
from support.hub_server import HubServer
from transformers.utils import cached_file

REPO = "someone/model"
LARGE = bytes(range(256)) * 2000
FILES = {"config.json": b"{}", "deep/er/notes.txt": b"notes", "model.safetensors": LARGE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a large file and two small ones, one of them two folders down."""
    path = tmp_path / "folder"
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def pushed(hub: HubServer, folder: Path) -> HubServer:
    """The server with the folder in a repository, and nothing counted."""
    create_repo(REPO)
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    hub.reset()
    return hub


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_a_folder_is_uploaded_in_one_commit(hub: HubServer, folder: Path) -> None:
    assert create_repo(REPO).repo_id == REPO
    commit = HfApi().upload_folder(repo_id=REPO, folder_path=folder, commit_message="all of it")
    assert hub.files(REPO) == FILES
    assert hub.history(REPO) == ["initial commit", "all of it"]
    assert commit.oid == hub.repository(REPO).resolve("main")
    assert hub.uploaded == {name: len(content) for name, content in FILES.items()}
    assert [path for method, path in hub.requests if method == "PUT"] == [
        f"/storage/models/{REPO}/{hashlib.sha256(LARGE).hexdigest()}"
    ]


def test_unchanged_files_are_not_uploaded_again(pushed: HubServer, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    HfApi().upload_folder(repo_id=REPO, folder_path=folder)
    assert pushed.uploaded == {"other.safetensors": 0}
    head = pushed.repository(REPO).resolve("main")
    assert HfApi().upload_folder(repo_id=REPO, folder_path=folder).oid == head


def test_a_snapshot_has_what_was_uploaded_and_its_etags(pushed: HubServer) -> None:
    path = Path(snapshot_download(REPO))
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert path.name == pushed.repository(REPO).resolve("main")
    assert (path / "model.safetensors").resolve().name == hashlib.sha256(LARGE).hexdigest()
    assert pushed.downloaded == {**{n: len(c) for n, c in FILES.items()}, ".gitattributes": len(GIT_ATTRIBUTES)}
    pushed.reset()
    snapshot_download(REPO)
    assert not pushed.downloaded


def test_a_download_that_is_cut_resumes_where_it_was(pushed: HubServer) -> None:
    pushed.cut(moment="download", after_bytes=20 * PIECE, matching="GET /storage")
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
    assert pushed.downloaded == {"model.safetensors": len(LARGE)}
    assert [path.split("/")[1] for method, path in pushed.requests if method == "GET"] == ["storage", "storage"]


def test_what_the_client_says_of_a_repository_is_so(pushed: HubServer) -> None:
    info = HfApi().model_info(REPO, files_metadata=True)
    large = next(file for file in info.siblings if file.rfilename == "model.safetensors")
    assert (info.id, info.private, info.gated, info.sha) == (
        REPO,
        False,
        False,
        pushed.repository(REPO).resolve("main"),
    )
    assert (large.size, large.lfs.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())
    assert HfApi().whoami()["name"] == "someone"
    small, deep, *_ = HfApi().get_paths_info(REPO, ["config.json", "deep/er", "nowhere"])
    assert (small.path, small.size, deep.path) == ("config.json", 2, "deep/er")
    assert [commit.title for commit in HfApi().list_repo_commits(REPO)][-1] == "initial commit"


def test_a_cards_metadata_and_results_are_in_the_information(hub: HubServer) -> None:
    hub.create(REPO)
    entry = EvalResultEntry(dataset_id="some/data", task_id="default", value=0.5)
    card = "---\nlibrary_name: eidetic-hf\npipeline_tag: text-classification\ntags: [a]\n---\n# Card\n"
    results = yaml.safe_dump(eval_result_entries_to_yaml([entry]))
    hub.commit(REPO, {"README.md": card, ".eval_results/data.yaml": results})
    info = HfApi().model_info(REPO)
    assert (info.library_name, info.pipeline_tag, info.tags) == (
        "eidetic-hf",
        "text-classification",
        ["a", "eidetic-hf"],
    )
    assert info.card_data.tags == ["a"]
    assert HfApi().model_info(REPO, expand=["evalResults"]).eval_results == [entry]
    assert HfApi().model_info(REPO, expand=["evalResults"]).sha is None


@pytest.mark.parametrize("page", [2, 1000])
def test_a_tree_lists_files_and_folders_page_by_page(pushed: HubServer, page: int) -> None:
    pushed.page = page
    all_of_it = [entry.path for entry in HfApi().list_repo_tree(REPO, recursive=True)]
    assert all_of_it == [".gitattributes", "config.json", "deep", "deep/er", "deep/er/notes.txt", "model.safetensors"]
    assert [entry.path for entry in HfApi().list_repo_tree(REPO)][2] == "deep"
    assert HfApi().list_repo_files(REPO) == [".gitattributes", *FILES]
    assert HfFileSystem().read_bytes(f"{REPO}/config.json") == b"{}"


def test_tags_and_branches_name_what_they_named(pushed: HubServer) -> None:
    HfApi().create_tag(REPO, tag="first/task")
    HfApi().create_branch(REPO, branch="other")
    create_commit(REPO, [add("config.json", b"new")], commit_message="on other", revision="other")
    create_commit(REPO, [CommitOperationDelete("config.json")], commit_message="none on main")
    contents = {
        revision: Path(hf_hub_download(REPO, "config.json", revision=revision)).read_bytes()
        for revision in ("first/task", "other", pushed.repository(REPO).tags["first/task"])
    }
    assert list(contents.values()) == [b"{}", b"new", b"{}"]
    refs = HfApi().list_repo_refs(REPO)
    assert ([ref.name for ref in refs.branches], [ref.name for ref in refs.tags]) == (
        ["main", "other"],
        ["first/task"],
    )
    HfApi().create_tag(REPO, tag="first/task", exist_ok=True)
    HfApi().delete_tag(REPO, tag="first/task")
    HfApi().delete_branch(REPO, branch="other")
    assert (list(pushed.repository(REPO).branches), pushed.repository(REPO).tags) == (["main"], {})
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="other")


def test_a_commit_on_what_is_no_longer_the_head_is_refused_and_changes_nothing(pushed: HubServer) -> None:
    head = HfApi().repo_info(REPO).sha
    create_commit(REPO, [add("theirs", b"1")], commit_message="in between", parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        create_commit(REPO, [add("ours", b"1")], commit_message="too late", parent_commit=head)
    assert caught.value.response.status_code == 412
    assert set(pushed.files(REPO)) == {*FILES, "theirs"}


def test_a_pull_request_leaves_main_alone_until_it_is_merged(pushed: HubServer) -> None:
    token = pushed.add_user("visitor")
    commit = create_commit(
        REPO, [add("new.safetensors", LARGE + b"1")], commit_message="please", create_pr=True, token=token
    )
    assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
    assert pushed.files(REPO) == FILES
    assert HfApi().list_repo_refs(REPO, include_pull_requests=True).pull_requests[0].target_commit == commit.oid
    create_commit(REPO, [add("config.json", b"2")], commit_message="more", revision="refs/pr/1")
    assert Path(hf_hub_download(REPO, "config.json", revision="refs/pr/1")).read_bytes() == b"2"
    create_commit(REPO, [add("main.txt", b"3")], commit_message="meanwhile")
    HfApi().merge_pull_request(REPO, 1)
    assert HfApi().get_discussion_details(REPO, 1).status == "merged"
    assert pushed.files(REPO) == {**FILES, "new.safetensors": LARGE + b"1", "config.json": b"2", "main.txt": b"3"}


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("visitor", 404)])
def test_a_private_repository_is_not_there_for_others(
    hub: HubServer, tmp_path: Path, token: str | bool, status: int
) -> None:
    create_repo(REPO, private=True)
    create_commit(REPO, [add("config.json", b"{}")], commit_message="mine")
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"
    others = hub.add_user("visitor") if token else False
    with pytest.raises(RepositoryNotFoundError) as caught:
        HfApi(token=others).repo_info(REPO)
    assert caught.value.response.status_code == status
    # What is in the cache already, the client gives to whoever asks.
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(REPO, "config.json", token=others, cache_dir=tmp_path)
    HfApi().update_repo_settings(REPO, private=False)
    assert HfApi(token=others).repo_info(REPO).private is False


def test_only_the_owner_with_a_token_to_write_may_write(pushed: HubServer) -> None:
    for token, status in ((False, 401), (pushed.add_user("visitor"), 403), (pushed.add_user("someone", "read"), 403)):
        with pytest.raises(HfHubHTTPError) as caught:
            create_commit(REPO, [add("a.txt", b"")], commit_message="no", token=token)
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami(token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="under the namespace"):
        create_repo("elsewhere/model")
    assert pushed.files(REPO) == FILES


def test_errors_are_the_exceptions_that_the_hub_leads_to(pushed: HubServer) -> None:
    pushed.create("someone/gated", gated=True)
    pushed.commit("someone/gated", {"config.json": "{}"})
    with pytest.raises(GatedRepoError):
        hf_hub_download("someone/gated", "config.json", token=False)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "nowhere.json")
    with pytest.raises(RevisionNotFoundError):
        HfApi().repo_info(REPO, revision="nowhere")
    with pytest.raises(HfHubHTTPError) as caught:
        create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(ValueError, match="Invalid metadata"):
        create_commit(REPO, [add("README.md", b"---\na: b: c\n---\n")], commit_message="no metadata")
    HfApi().delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        HfApi().repo_info(REPO)


def test_a_large_file_may_be_uploaded_in_parts(tmp_path: Path) -> None:
    with connected(tmp_path / "home", part_size=200_000) as hub:
        create_repo(REPO)
        create_commit(REPO, [add("model.safetensors", LARGE)], commit_message="three parts")
        assert hub.files(REPO) == {"model.safetensors": LARGE}
        assert hub.uploaded == {"model.safetensors": len(LARGE)}
        assert len([path for method, path in hub.requests if method == "PUT"]) == 3


def test_transformers_finds_files_and_their_absence(pushed: HubServer) -> None:
    assert Path(cached_file(REPO, "config.json")).read_bytes() == b"{}"
    assert cached_file(REPO, "none.json", _raise_exceptions_for_missing_entries=False) is None
    pushed.reset()
    pushed.disconnect()
    assert Path(cached_file(REPO, "config.json")).read_bytes() == b"{}"


def test_another_process_takes_it_for_the_hub_too(pushed: HubServer) -> None:
    code = f"from huggingface_hub import hf_hub_download; print(open(hf_hub_download({REPO!r}, 'config.json')).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    small = f"/api/resolve-cache/models/{REPO}/{pushed.repository(REPO).resolve('main')}/config.json"
    assert pushed.requests == [("HEAD", f"/{REPO}/resolve/main/config.json"), ("HEAD", small), ("GET", small)]


def test_a_cut_before_the_commit_leaves_the_repository_as_it_was(pushed: HubServer) -> None:
    for moment, after_bytes, changed in (("request", 0, False), ("upload", 40, False), ("answer", 0, True)):
        pushed.cut(moment=moment, after_bytes=after_bytes, matching="/commit/")
        with pytest.raises(httpx2.TransportError):
            create_commit(REPO, [add("new.txt", moment.encode())], commit_message=moment)
        assert ("new.txt" in pushed.files(REPO)) == changed


def test_an_answer_that_the_hub_has_a_problem_is_tried_again_but_for_a_commit(pushed: HubServer) -> None:
    pushed.cut(moment="refused", times=3, matching="preupload")
    create_commit(REPO, [add("new.txt", b"1")], commit_message="the fourth time")
    for moment, there in (("refused", False), ("failed", True)):
        pushed.cut(moment=moment, status=500, matching="/commit/")
        with pytest.raises(HfHubHTTPError, match="The Hub has a problem"):
            create_commit(REPO, [add(f"{moment}.txt", b"1")], commit_message="once")
        assert (f"{moment}.txt" in pushed.files(REPO)) == there


def test_somebody_may_commit_in_between(pushed: HubServer) -> None:
    head = HfApi().repo_info(REPO).sha
    pushed.before("POST", "/commit/", lambda: pushed.commit(REPO, {"theirs.txt": "1"}))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        create_commit(REPO, [add("ours.txt", b"1")], commit_message="ours", parent_commit=head)
    head = HfApi().repo_info(REPO).sha
    create_commit(REPO, [add("ours.txt", b"1")], commit_message="again", parent_commit=head)
    assert {"ours.txt", "theirs.txt"} <= set(pushed.files(REPO))


def test_a_slow_answer_is_waited_for(pushed: HubServer) -> None:
    pushed.delay(0.3, "HEAD .*config")
    start = time.monotonic()
    hf_hub_download(REPO, "config.json")
    between = time.monotonic()
    hf_hub_download(REPO, "deep/er/notes.txt")
    assert between - start >= 0.3 > time.monotonic() - between


def test_a_hub_that_is_down_is_an_error_that_the_client_knows(hub: HubServer) -> None:
    hub.create(REPO)
    hub.disconnect()
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "config.json")
    hub.connect()
    hub.commit(REPO, {"config.json": "{}"})
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"


def test_xet_is_used_up_and_down_where_the_repository_has_it(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("hf_xet")
    with connected(tmp_path / "home", xet=True) as hub:
        create_repo(REPO)
        HfApi().upload_folder(repo_id=REPO, folder_path=folder)
        assert hub.files(REPO) == FILES
        assert len(LARGE) > hub.xet.size > 0
        assert not [path for method, path in hub.requests if method == "PUT"]
        hub.reset()
        before = hub.xet.size
        (folder / "again.safetensors").write_bytes(LARGE)
        HfApi().upload_folder(repo_id=REPO, folder_path=folder)
        assert (hub.xet.size, set(hub.files(REPO))) == (before, {*FILES, "again.safetensors"})
        assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
        assert not hub.downloaded
        commit = create_commit(REPO, [add("more.safetensors", LARGE[1:])], commit_message="please", create_pr=True)
        path = hf_hub_download(REPO, "more.safetensors", revision=commit.pr_revision)
        assert Path(path).read_bytes() == LARGE[1:]


def test_a_client_with_xet_goes_without_where_the_repository_has_none(
    pushed: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert Path(hf_hub_download(REPO, "model.safetensors")).read_bytes() == LARGE
    with open(folder / "model.safetensors", "rb") as opened:
        create_commit(REPO, [CommitOperationAdd("opened.safetensors", opened)], commit_message="over LFS")
    assert pushed.files(REPO)["opened.safetensors"] == LARGE
    with pytest.raises(Exception, match="403"):
        create_commit(REPO, [add("new.safetensors", LARGE[1:])], commit_message="to Xet")
    assert "new.safetensors" not in pushed.files(REPO)
