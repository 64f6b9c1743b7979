"""What a Hub keeps of a repository: commits, branches, tags, pull requests and large files. Knows nothing of HTTP."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

MAIN = "main"
GIT_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.pth", "*.safetensors", "*.zip")
).encode()
# The Hub stores larger files as large files whatever their name is.
LARGE = 10 * 2**20
HASH = re.compile(r"[0-9a-f]{7,40}")


class HubError(Exception):
    """An answer other than 2xx.

    Args:
        status: of HTTP.
        message: what the Hub says, in the body and in `X-Error-Message`.
        code: what `X-Error-Code` says, by which the client chooses its exception.
        headers: more of them.
    """

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


def repository_not_found(anonymous: bool) -> HubError:
    """The same for what is not there and for what one may not see, so that nobody learns which it is."""
    if anonymous:
        return HubError(401, "Invalid username or password.", "RepoNotFound")
    return HubError(404, "Repository not found", "RepoNotFound")


@dataclass(frozen=True)
class Blob:
    """The content of a file, in git or, if it is large, beside it.

    Attributes:
        content: all of it.
        large: whether git holds a pointer to it only.
        xet: its hash in Xet's storage, if it is there.
    """

    content: bytes
    large: bool
    xet: str | None = None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def in_git(self) -> bytes:
        """What git holds: the content, or a pointer to the large file."""
        if not self.large:
            return self.content
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def git_hash(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.in_git) + self.in_git).hexdigest()

    @property
    def etag(self) -> str:
        """By which the client names the blob in its cache."""
        return self.sha256 if self.large else self.git_hash


@dataclass(frozen=True)
class Commit:
    """All files of the repository at one moment."""

    files: dict[str, Blob]
    parent: str | None
    title: str
    author: str
    date: datetime
    message: str = ""

    @cached_property
    def oid(self) -> str:
        lines = [f"{path} {blob.git_hash}" for path, blob in sorted(self.files.items())]
        lines += [str(self.parent), self.title, self.author, self.date.isoformat(), self.message]
        return hashlib.sha1("\n".join(lines).encode()).hexdigest()


@dataclass
class PullRequest:
    """A branch `refs/pr/NUMBER` that waits to be merged into `main`."""

    number: int
    title: str
    author: str
    head: str
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    status: str = "open"
    merged_as: str | None = None


class Repository:
    """A repository, as its commits and what points to them. A commit is never changed or lost."""

    def __init__(self, name: str, kind: str, owner: str, private: bool = False, gated: bool = False) -> None:
        self.name, self.kind, self.owner, self.private, self.gated = name, kind, owner, private, gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: dict[int, PullRequest] = {}
        self.large_files: dict[str, bytes] = {}
        first = {".gitattributes": Blob(GIT_ATTRIBUTES, large=False)}
        self.branches[MAIN] = self._add(Commit(first, None, "initial commit", "system", datetime.now(timezone.utc)))

    def _add(self, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        return commit.oid

    def resolve(self, revision: str) -> str:
        """The hash of the commit that a branch, a tag, a pull request or a (short) hash names.

        Raises:
            HubError: 404, if it names none.
        """
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for names in (self.branches, self.tags, {f"refs/pr/{pull.number}": pull.head for pull in self.pulls.values()}):
            if revision in names:
                return names[revision]
        if HASH.fullmatch(revision):
            found = [oid for oid in self.commits if oid.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """The commit that a revision names."""
        return self.commits[self.resolve(revision)]

    def history(self, revision: str) -> Iterator[tuple[str, Commit]]:
        """The hashes and commits up to a revision, the last first."""
        oid: str | None = self.resolve(revision)
        while oid is not None:
            yield oid, self.commits[oid]
            oid = self.commits[oid].parent

    def is_large(self, path: str, content_size: int, sample: bytes, revision: str) -> bool:
        """Whether a file is to be uploaded as a large one: by `.gitattributes`, by size or since it is no text."""
        attributes = self.at(revision).files.get(".gitattributes")
        rules = attributes.content.decode().splitlines() if attributes else []
        patterns = [rule.split()[0] for rule in rules if "filter=lfs" in rule]
        name = path.rsplit("/", 1)[-1]
        by_name = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        return content_size > 0 and (by_name or content_size > LARGE or b"\0" in sample)

    def commit(
        self,
        changes: Mapping[str, Blob | None],
        revision: str = MAIN,
        *,
        title: str = "a commit",
        message: str = "",
        author: str = "someone",
        parent: str | None = None,
        as_pull_request: bool = False,
        conflict: int = 412,
    ) -> tuple[str, PullRequest | None]:
        """Put files over those of a branch, or of a new pull request; `None` and a path that ends in `/` delete.

        Args:
            changes: new contents by path.
            revision: the branch.
            title: of the commit.
            message: more of it.
            author: who commits.
            parent: if given, the commit that must still be the head of the branch.
            as_pull_request: whether to leave the branch alone.
            conflict: the status of the answer if it is not.

        Returns:
            the hash of the commit, and the pull request if there is one.

        Raises:
            HubError: if the branch moved on, or what is to be deleted is not there.
        """
        head = self.resolve(revision)
        if revision not in self.branches and self._pull_of(revision) is None:
            raise HubError(400, f"{revision} is no branch to commit to", "")
        if parent is not None and self.resolve(parent) != head:
            raise HubError(conflict, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[head].files)
        for path, blob in changes.items():
            if blob is not None:
                files[path] = blob
                continue
            gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        new = Commit(files, head, title, author, datetime.now(timezone.utc), message)
        return self._publish(new, revision, as_pull_request)

    def _publish(self, new: Commit, revision: str, as_pull_request: bool) -> tuple[str, PullRequest | None]:
        oid = self._add(new)
        if as_pull_request:
            pull = self.open_pull_request(new.title, new.author, oid)
            return oid, pull
        pull = self._pull_of(revision)
        if pull is None:
            self.branches[revision] = oid
        else:
            pull.head = oid
        return oid, None

    def _pull_of(self, revision: str) -> PullRequest | None:
        found = re.fullmatch(r"refs/pr/(\d+)", revision)
        return self.pulls.get(int(found[1])) if found else None

    def open_pull_request(self, title: str, author: str, head: str | None = None) -> PullRequest:
        """Open a pull request on a commit, or on `main` as it is."""
        number = len(self.pulls) + 1
        pull = PullRequest(number, title, author, head or self.branches[MAIN])
        self.pulls[number] = pull
        return pull

    def merge(self, pull: PullRequest, author: str) -> str:
        """Merge a pull request into `main`: of each file that it changed, its content.

        Raises:
            HubError: 409, if `main` changed one of them, too.
        """
        main = list(self.history(MAIN))
        known = {oid for oid, _ in main}
        base = next(commit for oid, commit in self.history(pull.head) if oid in known)
        ours, theirs = main[0][1].files, self.commits[pull.head].files
        paths = {path for path in (base.files | theirs) if base.files.get(path) != theirs.get(path)}
        if any(base.files.get(path) != ours.get(path) for path in paths):
            raise HubError(409, "This pull request has conflicts with the base branch")
        files = {path: blob for path, blob in ours.items() if path not in paths}
        files |= {path: theirs[path] for path in paths if path in theirs}
        new = Commit(files, main[0][0], f"{pull.title} (#{pull.number})", author, datetime.now(timezone.utc))
        pull.status, pull.merged_as = "merged", self._add(new)
        self.branches[MAIN] = pull.merged_as
        return pull.merged_as
