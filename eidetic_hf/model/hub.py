"""A model as a repository on the Hub: pushed in one commit, which loses nothing that is there.

A push begins with what the repository holds at one commit, its parent. What is there already is not sent again, what
would be lost is refused or brought along, and if another push came in between, nothing is changed.
"""

from __future__ import annotations

import copy
import fnmatch
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash
from transformers import AutoModel
from transformers.utils import logging

from ..configuration import EideticConfig, TaskError, TaskRecord
from ..network.growth import growth_of
from ..version import __version__
from . import joining
from .checkpoint.card import model_card, read_card
from .checkpoint.layout import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    POOL_FILE,
    CheckpointError,
    check_format,
    config_from,
    json_object,
    sha256_of,
)
from .checkpoint.read import read_config, read_index
from .checkpoint.source import Folder
from .checkpoint.write import Losses, forget_removed, losses
from .parts import Parts

logger = logging.get_logger(__name__)

MAIN = "main"
# What lies in a checkpoint's folder beside it and stays here: hidden files, pickles, other weights, a run's state.
KEPT_HERE = (
    ".*", "*.bin", "*.ckpt", "*.joblib", "*.pickle", "*.pkl", "*.pt", "*.pth", "*.safetensors", "trainer_state.json",
)  # fmt: skip
# Files of a model of another kind, of which a client would take those first.
PLAIN_MODEL = (
    "model.safetensors", "model-*-of-*.safetensors", "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "tf_model.h5", "flax_model.msgpack", "adapter_config.json", "adapter_model.*",
)  # fmt: skip
SHARDS = "eidetic-*.safetensors"
# What git takes for no name, or the Hub for a commit.
NO_TAG = re.compile(r"-.*|.*\.|.*\.lock|.*\.\..*|HEAD|[0-9a-f]{7,40}")
# A connection that was kept may have died since, and the client closes all of them where one of its threads sees that.
ATTEMPTS = 3
CONFLICTS = (409, 412)  # how the Hub answers a commit whose parent is no longer the last one


class PushConflict(CheckpointError):
    """The repository was changed while a push was under way; nothing of the push is there."""


@dataclass(frozen=True)
class Push:
    """What is asked of a push.

    Attributes:
        repo_id: of the repository, made if there is none; without an owner it is the token's.
        branch: where to, `main` by default; made if there is none, from `main`.
        create_pr: open a pull request instead, against the branch.
        private: whether a repository that is made is private; by default as its owner has it.
        token: as in transformers; by default the environment's (`HF_TOKEN`), or that of `hf auth login`.
        commit_message: its first line; by default the tasks that come and go.
        commit_description: what follows.
        merge: bring the tasks along that the repository has and the model has not; for `growth="copy"`.
        replace: let the model take the place of what it lacks.
        tags: give each task that comes to `main` a tag of its name, for the model as it is then.

    Raises:
        ValueError: if both `merge` and `replace` are asked for, or `tags` are those of a model card.
    """

    repo_id: str
    branch: str | None = None
    create_pr: bool = False
    private: bool | None = None
    token: bool | str | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    merge: bool = False
    replace: bool = False
    tags: bool = True

    def __post_init__(self) -> None:
        if self.merge and self.replace:
            raise ValueError(
                "merge=True brings the repository's tasks along, and replace=True lets them go. Choose one."
            )
        if not isinstance(self.tags, bool):
            raise ValueError(
                f"tags={self.tags!r}: expected True or False, whether each task gets a tag of its own in the "
                "repository. Tags of the model card stand in the metadata of README.md."
            )

    @property
    def has_tags(self) -> bool:
        """Whether tasks get tags: a tag is the whole repository's, so they are for what is on `main`."""
        return self.tags and not self.create_pr and self.branch in (None, MAIN)


@dataclass(frozen=True)
class Pushed:
    """What a push has done.

    Attributes:
        commit: as `huggingface_hub` has it; the last one there was, if there was nothing to change.
        uploaded: size of each file that was sent, in bytes.
        unchanged: files that were there already.
        removed: files that are no longer there.
        tags: tasks that got a tag.
    """

    commit: CommitInfo
    uploaded: dict[str, int]
    unchanged: list[str]
    removed: list[str]
    tags: list[str]


@dataclass(frozen=True)
class Remote:
    """A repository as it is at one commit.

    Attributes:
        api: by which it is reached.
        repo_id: with its owner.
        commit: which a push continues.
        files: size and hash of each of its files, by path.
    """

    api: HfApi
    repo_id: str
    commit: str | None
    files: Mapping[str, Any]

    @cached_property
    def config(self) -> EideticConfig | None:
        """Of the model that it holds, which need not be whole; `None` if it holds none.

        Raises:
            CheckpointError: if it holds a model of another kind.
        """
        others = sorted(name for name in self.files if _is_like(name, PLAIN_MODEL))
        if others:
            raise CheckpointError(
                f"{self.repo_id} holds {others[0]} of a model of another kind, which would hide this one's shards. "
                "Nothing was pushed. Choose another repository, or delete that model there."
            )
        if CONFIG_FILE not in self.files:
            return None
        try:
            values = json_object(self.download(CONFIG_FILE))
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.repo_id} holds a {CONFIG_FILE} of something else: {error} Nothing was pushed. Choose another "
                "repository, or delete that file there."
            ) from error
        if values.get("model_type") != EideticConfig.model_type:
            raise CheckpointError(
                f"{self.repo_id} holds a model of another kind (model_type={values.get('model_type')!r}), and a "
                "repository has room for one. Nothing was pushed. Choose another repository."
            )
        check_format(self.repo_id, values)
        return config_from(self.repo_id, values)

    @property
    def place(self) -> dict[str, Any]:
        """The arguments by which its files are loaded."""
        token = {} if self.api.token is None else {"token": self.api.token}
        return {"revision": self.commit, **token}

    def download(self, name: str, revision: str | None = None) -> Path:
        """One of its files, at this commit or as it is at another revision."""
        return Path(self.api.hf_hub_download(self.repo_id, name, revision=revision or self.commit))


# -- a push -----------------------------------------------------------------------------------------------------------


def push_folder(folder: Path, repo_id: str, **options: Any) -> CommitInfo:
    """Push a checkpoint's folder; `options` are those of `Push`. Raises as `push`."""
    return push(Path(folder), Push(repo_id, **options)).commit


def push(
    folder: Path,
    wish: Push,
    removed: Mapping[str, str] | None = None,
    grow: Callable[[Remote, Losses], None] | None = None,
) -> Pushed:
    """Push a checkpoint's folder in one commit.

    Args:
        folder: a release.
        wish: where to, and how.
        removed: digests of the tasks that were removed from the model, by name: they go in the repository, too.
        grow: brings tasks along into the folder, for `merge`; by default, it stays as it is, and a copy gets them.

    Raises:
        CheckpointError: if the folder is no release; if the repository would lose something, or may not be written
            to. Nothing was pushed.
        PushConflict: if another push came in between. Nothing was pushed.
        ConnectionError: if the Hub could not be reached.
    """
    ours = _release(folder)
    with ExitStack() as stack:
        stack.enter_context(in_a_sentence(wish.repo_id))
        remote = look(wish)
        lost = _losses(remote, ours, wish, removed or {})
        if lost:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if lost.parts:
                folder = _grown_there(folder, ours, remote, place)
            elif grow is None:
                folder = _grown(folder, ours, remote, lost, place)
            else:
                grow(remote, lost)
            ours = _release(folder)
        return _commit(folder, ours, remote, wish)


def push_saved(model: Parts, folder: Path, wish: Push) -> Pushed:
    """Push the folder that a model has just been saved to; raises as `push`.

    With `merge`, the model and its folder have the repository's tasks afterwards, if they lack no part of it.
    """

    def grow(remote: Remote, lost: Losses) -> None:
        _bring_here(model, remote, lost)
        _save_again(model, folder, _release(folder))

    return push(folder, wish, model.removed, grow)


def check_place(wish: Push) -> None:
    """Raise a `CheckpointError` if a push would fail whatever is pushed."""
    with in_a_sentence(wish.repo_id):
        _ = look(wish).config


def options_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some arguments of transformers' `save_pretrained` that say how to push, as `Push` calls them."""
    named = {"revision": "branch", "use_auth_token": "token"}
    known = {field.name for field in fields(Push)} - {"repo_id"}
    given = {named.get(name, name): value for name, value in arguments.items() if value is not None}
    return {name: value for name, value in given.items() if name in known}


def check_can_be_pushed(model: Parts) -> None:
    """Raise a `CheckpointError` while a task is being learned: only whole models are pushed."""
    if model.learner is not None:
        raise CheckpointError(
            f"'{model.learner.name}' is being learned, and only a whole model can be pushed. Commit the task "
            "(model.commit_task), or drop it with model.abandon_task(), before."
        )


def _release(folder: Path) -> EideticConfig:
    """The configuration of a folder that is a release."""
    return read_config(Folder(folder, str(folder)))


# -- what is there ----------------------------------------------------------------------------------------------------


def look(wish: Push) -> Remote:
    """What a repository holds; it is made if there is none, and so is the branch.

    Raises:
        CheckpointError: if it is public, and was to be private.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _look(wish)
        except (HTTPError, RuntimeError) as error:
            if isinstance(error, HfHubHTTPError) or not (isinstance(error, HTTPError) or _is_closed(error)):
                raise
    return _look(wish)


def _look(wish: Push) -> Remote:
    api, repo_id = HfApi(token=wish.token, library_name="eidetic_hf", library_version=__version__), wish.repo_id
    if "/" not in repo_id:  # as it stands, it would be the Hub's own
        repo_id = api.create_repo(repo_id, private=wish.private, exist_ok=True).repo_id
    try:
        info: Any = api.repo_info(repo_id, revision=wish.branch, files_metadata=True)
    except RevisionNotFoundError:
        info = _with_branch(api, repo_id, wish)
    except RepositoryNotFoundError:
        repo_id = api.create_repo(repo_id, private=wish.private, exist_ok=True).repo_id
        info = _with_branch(api, repo_id, wish)
    if wish.private and info.private is False:
        raise CheckpointError(
            f"{repo_id} is there, and public: private=True is for a repository that is made. Nothing was pushed. Make "
            "it private in its settings, or choose another repository."
        )
    return Remote(api, repo_id, info.sha, {file.rfilename: file for file in info.siblings or []})


def _with_branch(api: HfApi, repo_id: str, wish: Push) -> Any:
    """What a repository holds in a branch that is made."""
    if wish.branch not in (None, MAIN) and not cast(str, wish.branch).startswith("refs/"):
        api.create_branch(repo_id, branch=cast(str, wish.branch), exist_ok=True)
    return api.repo_info(repo_id, revision=wish.branch, files_metadata=True)


def _losses(remote: Remote, ours: EideticConfig, wish: Push, removed: Mapping[str, str]) -> Losses:
    """What the repository would lose by a push, and is to be brought along first.

    Raises:
        CheckpointError: if it would lose something, and that was not asked for.
    """
    theirs = copy.copy(remote.config)
    if theirs is None or wish.replace:
        return Losses([], [], [], {})
    forget_removed(theirs, ours, removed)
    lost, can_merge = losses(theirs, ours, ours.files), growth_of(ours.growth).copies
    if lost.others or (lost and not (wish.merge and can_merge)):
        raise CheckpointError(f"{remote.repo_id} {_what(lost, can_merge)}")
    return lost


def _what(lost: Losses, can_merge: bool) -> str:
    """What a repository would lose, and what to do about it, as the end of a sentence and more."""
    replace = "or push with replace=True (--replace) to put this model in its place."
    if lost.others:
        return (
            f"holds other tasks {lost.others} than this model: of the same names, with other weights. Nothing was "
            f"pushed. Choose another repository, {replace}"
        )
    there = []
    if lost.tasks:
        there.append(f"has the tasks {lost.tasks}, which this model does not have")
    if lost.answers:
        there.append(f"answers for the tasks {lost.answers}, which this model was loaded without")
    if lost.parts:
        parts = " and ".join(lost.parts.values())
        there.append(
            f"holds {parts}, which this model was saved or loaded without (include_pool, include_base, tasks)"
        )
    merge = "Push with merge=True (--merge) to have what both have"
    if not can_merge:
        merge = "With growth='fixed' load the repository, bring this model's tasks there with merge, and push that"
    return f"{', and '.join(there)}: that would be lost. Nothing was pushed. {merge}, {replace}"


# -- brought along ----------------------------------------------------------------------------------------------------


def _bring_along(model: Parts, shards: joining.Shards, remote: Remote, names: list[str] | None = None) -> None:
    """Bring tasks into one of the two models that are to become one.

    Raises:
        CheckpointError: if they do not fit.
    """
    try:
        joining.bring(model, shards, names)
    except TaskError as error:
        raise CheckpointError(f"{remote.repo_id} can not be merged. {error} Nothing was pushed.") from error


def _bring_here(model: Parts, remote: Remote, lost: Losses) -> None:
    """Bring a repository's tasks into the model that is pushed."""
    _bring_along(model, joining.shards_of(remote.repo_id, remote.place), remote, lost.tasks)
    config = model.config
    if config.served is not None:
        served = [task.name for task in config.tasks if task.name in (*config.served, *lost.answers)]
        config.served = None if len(served) == len(config.tasks) else served


def _grown(folder: Path, ours: EideticConfig, remote: Remote, lost: Losses, place: Path) -> Path:
    """A copy of a checkpoint's folder that has the repository's tasks, too."""
    model = AutoModel.from_pretrained(folder)
    _bring_here(model, remote, lost)
    for name, path in _files(folder, ours).items():
        shutil.copy2(path, place / name)
    _save_again(model, place, ours)
    return place


def _grown_there(folder: Path, ours: EideticConfig, remote: Remote, place: Path) -> Path:
    """A folder of what the repository has and this one lacks parts of, with the tasks and other files of this one."""
    theirs = cast(EideticConfig, remote.config)
    model = AutoModel.from_pretrained(remote.repo_id, **remote.place)
    _bring_along(model, joining.shards_of(folder, {}), remote)
    for name, path in _files(folder, ours).items():
        if name not in (CONFIG_FILE, INDEX_FILE, *ours.files):
            shutil.copy2(path, place / name)
    _save_again(model, place, theirs)
    return place


def _save_again(model: Any, folder: Path, config: EideticConfig) -> None:
    """Save a model with the parts that a checkpoint of it has."""
    model.save_pretrained(folder, include_pool=POOL_FILE in config.files, include_base=config.base is None)


# -- the commit -------------------------------------------------------------------------------------------------------


def _files(folder: Path, config: EideticConfig) -> dict[str, Path]:
    """The files of a folder that are pushed: its checkpoint, and what else lies there for all to read.

    Raises:
        CheckpointError: if the checkpoint is not whole, as far as one sees without hashing, or a file is a link to
            elsewhere.
    """
    source = Folder(folder, str(folder))
    beside = [path.name for path in folder.iterdir() if path.is_file() and not _is_like(path.name, KEPT_HERE)]
    read_index(source, config)
    files = {name: source.need(name) for name in sorted({CONFIG_FILE, INDEX_FILE, *config.files, *beside})}
    for name, recorded in config.files.items():
        if files[name].stat().st_size != recorded["bytes"]:
            raise _damaged(folder, name)
    return files


def _damaged(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} does not have the {name} that was saved, but another. Nothing was pushed; save or copy the whole "
        "folder again."
    )


def _card(path: Path, config: EideticConfig, remote: Remote) -> bytes:
    """The card to push: the folder's; but if nobody has written into that, with what stands in the repository's.

    Its snippets load from the repository, where those of the folder's load from the folder.
    """
    text = read_card(path)
    if CARD_FILE in remote.files and text in (model_card(config), model_card(config, repository=remote.repo_id)):
        text = read_card(remote.download(CARD_FILE))
    return model_card(config, text, remote.repo_id).encode("utf-8", errors="surrogateescape")


def _commit(folder: Path, ours: EideticConfig, remote: Remote, wish: Push) -> Pushed:
    """Push what the repository lacks or has otherwise, let go what is no longer listed, and set the tags."""
    content: dict[str, Path | bytes] = {**_files(folder, ours)}
    if CARD_FILE in content:
        content[CARD_FILE] = _card(cast(Path, content[CARD_FILE]), ours, remote)
    files = ours.files
    unchanged = [name for name in content if _is_there(content[name], files.get(name), remote.files.get(name))]
    added = [CommitOperationAdd(name, what) for name, what in content.items() if name not in unchanged]
    for operation in added:
        name = operation.path_in_repo
        if name in files and operation.upload_info.sha256.hex() != files[name]["sha256"]:
            raise _damaged(folder, name)
    theirs = remote.config
    listed = [] if theirs is None else [name for name in theirs.files if fnmatch.fnmatchcase(name, SHARDS)]
    removed = [name for name in listed if name in remote.files and name not in files]
    new = _new_tasks(theirs, ours)
    if added or removed:
        deleted = [CommitOperationDelete(name) for name in removed]
        commit = _send([*added, *deleted], remote, wish, wish.commit_message or _message(theirs, ours, new))
    else:
        url = f"{remote.api.endpoint}/{remote.repo_id}/commit/{remote.commit}"
        commit = CommitInfo(url, "", "", cast(str, remote.commit))
    tags = _set_tags(remote, ours, new, commit.oid) if wish.has_tags else []
    sizes = {operation.path_in_repo: operation.upload_info.size for operation in added}
    return Pushed(commit, sizes, unchanged, removed, tags)


def _is_there(what: Path | bytes, recorded: Mapping[str, Any] | None, there: Any) -> bool:
    """Whether a repository has a file with these bytes; a shard's hash is taken from the configuration."""
    if there is None:
        return False
    if there.lfs is not None and isinstance(what, Path):
        return there.lfs.sha256 == (sha256_of(what) if recorded is None else recorded["sha256"])
    if there.size != (len(what) if isinstance(what, bytes) else what.stat().st_size):
        return False
    return there.blob_id == git_hash(what if isinstance(what, bytes) else what.read_bytes())


def _new_tasks(theirs: EideticConfig | None, ours: EideticConfig) -> list[TaskRecord]:
    """The tasks that a repository does not have, or has with other weights."""
    known = {} if theirs is None else {task.name: task.certificate.get("weights_sha256") for task in theirs.tasks}
    return [task for task in ours.tasks if known.get(task.name, "") != task.certificate.get("weights_sha256")]


def _message(theirs: EideticConfig | None, ours: EideticConfig, new: list[TaskRecord]) -> str:
    """What a commit is called: by the tasks that come, and those that go."""
    gone = [] if theirs is None else [task.name for task in theirs.tasks if ours.task(task.name) is None]
    parts = [("Add ", [task.name for task in new]), ("Remove ", gone)]
    said = [what + (", ".join(names) if len(names) <= 3 else f"{len(names)} tasks") for what, names in parts if names]
    return "; ".join(said) or ("Add the model" if theirs is None else "Update the model")


def _send(operations: list[Any], remote: Remote, wish: Push, message: str) -> CommitInfo:
    """Make the commit.

    Raises:
        PushConflict: if the repository is no longer as it was.
        ConnectionError: if files could not be sent, or the answer did not come.
    """
    make = partial(
        remote.api.create_commit,
        remote.repo_id,
        operations,
        commit_message=message,
        commit_description=wish.commit_description,
        revision=wish.branch,
        create_pr=wish.create_pr,
        parent_commit=remote.commit,
    )
    try:
        for _ in range(ATTEMPTS - 1):
            try:
                return make()
            except RuntimeError as error:  # of a file, so there is no commit
                if not _is_closed(error):
                    raise
        return make()
    except HfHubHTTPError as error:
        if error.response.status_code in CONFLICTS:
            raise PushConflict(
                f"{remote.repo_id} was changed by somebody else while this push was under way, and nothing was "
                "pushed. Push again; with merge=True (--merge), if tasks came that this model does not have."
            ) from error
        if error.response.status_code < 500:
            raise
        raise _broken(remote, error, "perhaps after the commit") from error
    except HTTPError as error:
        raise _broken(remote, error, "perhaps after the commit") from error
    except RuntimeError as error:  # of the client, for a file
        raise _broken(remote, error, "before the commit") from error
    except ValueError as error:  # of the client, for the card's metadata
        raise CheckpointError(f"{remote.repo_id}: {' '.join(str(error).split())} Nothing was pushed.") from error


def _broken(remote: Remote, error: BaseException, when: str) -> ConnectionError:
    return ConnectionError(
        f"{remote.repo_id}: the push broke off, {when} ({first_line(error)}). Push again; what is there already is "
        "not sent twice."
    )


# -- tags -------------------------------------------------------------------------------------------------------------


def _set_tags(remote: Remote, ours: EideticConfig, new: list[TaskRecord], commit: str) -> list[str]:
    """Give each task that comes a tag; and one that was there without, since a push was cut off, the commit before.

    A tag that there is already moves if it is that of a task of the name that there was before. Nothing fails: the
    model is there.

    Returns:
        The names of the tasks that got one.
    """
    come = {task.name for task in new}
    done: list[str] = []
    try:
        references = remote.api.list_repo_refs(remote.repo_id)
        branches = {branch.name for branch in references.branches}
        there = {tag.name: tag.target_commit for tag in references.tags}
        for name in (task.name for task in ours.tasks):
            target = commit if name in come else remote.commit
            if (name in there and name not in come) or there.get(name) == target:
                continue
            if NO_TAG.fullmatch(name) or name in branches or (name in there and not _is_of_task(remote, name)):
                if name in come:
                    logger.warning(
                        f"The task '{name}' gets no tag in {remote.repo_id}: there is something else of this name, or "
                        "git would take it for no name. Load the model by the commit instead."
                    )
                continue
            if name in there:
                remote.api.delete_tag(remote.repo_id, tag=name)
            remote.api.create_tag(remote.repo_id, tag=name, revision=target)
            done.append(name)
    except (HTTPError, OSError, RuntimeError) as error:
        logger.warning(
            f"The model is in {remote.repo_id}, but not all tags of its tasks are ({first_line(error)}). Push again "
            "to set them."
        )
    return done


def _is_of_task(remote: Remote, tag: str) -> bool:
    """Whether a tag is that of a task: of a model that has one of the name."""
    try:
        values = json_object(remote.download(CONFIG_FILE, tag))
    except (CheckpointError, HfHubHTTPError):
        return False
    tasks = values.get("tasks")
    return isinstance(tasks, list) and any(isinstance(task, dict) and task.get("name") == tag for task in tasks)


# -- words ------------------------------------------------------------------------------------------------------------


def _is_like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def first_line(error: BaseException) -> str:
    """What an error says in its first line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _is_closed(error: BaseException | None) -> bool:
    """Whether the client's session was closed under an error, by another thread of it."""
    while error is not None:
        if isinstance(error, RuntimeError) and "client has been closed" in str(error):
            return True
        error = error.__cause__
    return False


@contextmanager
def in_a_sentence(repo_id: str) -> Iterator[None]:
    """Say what an error of the client means for a push, and what to do."""
    try:
        yield
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_closed(error):
            raise
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise CheckpointError(f"{_refusal(repo_id, error)} Nothing was pushed.") from error
        raise ConnectionError(
            f"{repo_id} could not be reached ({first_line(error)}). Nothing was pushed; push again when it can be."
        ) from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such branch. Give the name of a branch, not of a tag or a commit."
    if status == 401:
        return (
            f"{repo_id} can not be pushed to without a valid token. Log in with `hf auth login`, set HF_TOKEN, or "
            "pass token=... (--token)."
        )
    if status == 403:
        return (
            f"{repo_id} may not be written to with this token. Use one with the right to write there, or open a pull "
            "request with create_pr=True (--create-pr)."
        )
    if status == 404:
        return (
            f"{repo_id} is not there, or not for this token. Check the name, and the token (HF_TOKEN, `hf auth "
            "login`, token=..., --token)."
        )
    return f"{repo_id} was refused by the Hub ({status}: {error.server_message or first_line(error)})."
