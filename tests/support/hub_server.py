"""A Hugging Face Hub on localhost, for tests that push and pull with the real client.

It serves what `huggingface_hub` 2.4 calls for repositories (models, data sets, spaces): creating, deleting and
settings of repositories, their information, branches, tags, pull requests, upload modes, large files (LFS: in one part
or several), commits, trees, paths, downloads (HEAD, GET, ranges), tokens, and errors with the status, the body and the
`X-Error-Code` by which the client chooses its exception. Large files come from a storage on another port, to which the
client must not send its token; small ones from an address that has the commit in it. Everything is kept in memory.

It counts bytes and requests, and is able to cut connections, to be slow and to let others in between.

What differs from the Hub: nothing is checked of the content of files but a model card's metadata, `.gitignore` has no
effect, and patterns of `.gitattributes` see a file's name only. A missing or private repository is `RepoNotFound` to a
client without a token, too: the client would conclude it from the status 401 alone, but only where the address is
https.

Xet: a client with `hf_xet` uploads all large files to Xet's storage, unless `HF_HUB_DISABLE_XET` is set or it is given
opened files, and downloads from there what has a hash of Xet. Here that storage is a folder, see `hub_xet`, to which
the client writes by itself. Its bytes are counted as what the folder grows by; its connections are none, and cannot be
cut, nor does it know who may read. Without it the server refuses the token for Xet (403), and uploads need
`HF_HUB_DISABLE_XET`.
"""

from __future__ import annotations

import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

from support.hub_faults import Faults
from support.hub_http import Answer, Listener, Request
from support.hub_repository import MAIN, Blob, HubError, Repository, repository_not_found
from support.hub_routes import KINDS, ROUTES
from support.hub_xet import XetStorage


class HubServer:
    """A Hub on localhost while it is entered.

    Args:
        home: the folder of the client that `environment` tells of: its cache and its token.
        part_size: large files of more bytes are uploaded in several parts.
        xet: whether large files may be in Xet's storage.

    Attributes:
        endpoint: where it is.
        user: who owns `token`.
        token: with which one may write to repositories of `user`.
        requests: method and path of every request, in order.
        uploaded: bytes of content by path in the repository. A large file that no commit has named yet is under its
            SHA-256.
        downloaded: bytes of content by path, of those that were sent.
        received: bytes of all requests' bodies.
        sent: bytes of all answers' bodies.
        faults: what goes wrong.
        conflict: the status of the answer if a branch moved on since `parent_commit`. The Hub's is 412, and 409 if
            two commits arrive at the same moment.
        page: how many entries of a tree one answer has.
    """

    def __init__(self, home: Path, part_size: int | None = None, xet: bool = False) -> None:
        self.home, self.part_size = home, part_size
        self.xet = XetStorage(home / "xet-storage") if xet else None
        self.user, self.token = "someone", "hf_token_of_someone"
        self.tokens: dict[str, tuple[str, str]] = {self.token: (self.user, "write")}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults = Faults()
        self.cut, self.delay, self.before = self.faults.cut, self.faults.delay, self.faults.before
        self.conflict, self.page = 412, 1000
        self.parts: dict[str, dict[int, bytes]] = {}
        # Requests come in threads of their own. Whatever reads or changes the state holds the lock.
        self.lock = threading.RLock()
        self._being_there = threading.Lock()
        self.reset()
        # Of the Hub itself and of its storage.
        self._listeners = [Listener(self), Listener(self)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{listener.port}" for listener in self._listeners)

    def reset(self) -> None:
        """Count anew."""
        with self.lock:
            self.requests: list[tuple[str, str]] = []
            self.uploaded: Counter[str] = Counter()
            self.downloaded: Counter[str] = Counter()
            self.received = self.sent = 0

    def connect(self) -> None:
        """Be there."""
        with self._being_there:
            for listener in self._listeners:
                listener.start()

    def disconnect(self) -> None:
        """Be away until `connect`: connections end, and new ones are refused."""
        with self._being_there:
            for listener in self._listeners:
                listener.stop()

    def restore(self) -> None:
        """Be there, and let all pass from now on."""
        self.faults.restore()
        self.connect()

    def __enter__(self) -> HubServer:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.disconnect()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the Hub: its environment variables, to put over those that there are.

        The client's pauses before it tries again cannot be set there: 1, 2, 4, 8 and 8 seconds.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.home),
            "HF_HUB_CACHE": str(self.home / "hub"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def add_user(self, name: str, role: str = "write") -> str:
        """Somebody else's token, or one that may only read."""
        token = f"hf_{role}_token_of_{name}"
        self.tokens[token] = (name, role)
        return token

    def create(self, name: str, *, kind: str = "model", private: bool = False, gated: bool = False) -> Repository:
        """A new repository, as the test's own doing."""
        with self.lock:
            repository = Repository(name, kind, name.split("/")[0], private, gated)
            self.repositories[kind, name] = repository
            return repository

    def repository(self, name: str, kind: str = "model") -> Repository:
        """A repository, to look at."""
        return self.repositories[kind, name]

    def files(self, name: str, revision: str = MAIN) -> dict[str, bytes]:
        """The content of all files of a repository but `.gitattributes`, which every one has."""
        with self.lock:
            files = self.repository(name).at(revision).files
            return {path: blob.content for path, blob in sorted(files.items()) if path != ".gitattributes"}

    def commit(
        self, name: str, changes: Mapping[str, bytes | str | None], revision: str = MAIN, title: str = "a commit"
    ) -> str:
        """Commit, as the test's own doing: content by path, None to delete. Returns the commit's hash."""
        with self.lock:
            repository = self.repository(name)
            blobs: dict[str, Blob | None] = {}
            for path, content in changes.items():
                data = content.encode() if isinstance(content, str) else content
                large = data is not None and repository.is_large(path, len(data), data[:512], revision)
                blobs[path] = None if data is None else Blob(data, large)
                if data is not None and large:
                    repository.large_files[blobs[path].sha256] = data
            return repository.commit(blobs, revision, title=title)[0]

    def history(self, name: str, revision: str = MAIN) -> list[str]:
        """The titles of the commits up to a revision, the first one first."""
        with self.lock:
            return [commit.title for _, commit in self.repository(name).history(revision)][::-1]

    def respond(self, request: Request) -> Answer:
        """Answer a request whose body was read."""
        for method, pattern, function in ROUTES:
            found = pattern.fullmatch(request.path)
            if found and method == (request.method if request.method != "HEAD" else "GET"):
                request.names = {name: unquote(value) for name, value in found.groupdict().items() if value}
                try:
                    self._identify(request)
                    with self.lock:
                        return function(self, request)
                except HubError as error:
                    return Answer.refusal(error)
                except Exception as error:
                    traceback.print_exc()
                    return Answer.refusal(HubError(500, f"The server of the tests failed: {error!r}"))
        return Answer.refusal(HubError(404, f"This server does not serve {request.method} {request.path}"))

    def _identify(self, request: Request) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        if token:
            request.user, request.role = self.tokens[token]

    def readable(self, request: Request) -> Repository:
        """The repository that a request names, if its user may see it.

        Raises:
            HubError: 401 without a token, 404 with one.
        """
        kind = KINDS[request.names.get("kind", "models")]
        repository = self.repositories.get((kind, request.names["repo"]))
        if repository is None or (repository.private and request.user != repository.owner):
            raise repository_not_found(anonymous=request.user is None)
        return repository

    def writable(self, request: Request) -> Repository:
        """The repository that a request names, if its user may change it.

        Raises:
            HubError: 401 without a token, 403 if it is somebody else's or the token may only read.
        """
        repository = self.readable(request)
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        if request.user != repository.owner or request.role != "write":
            raise HubError(403, "You don't have the required permissions to perform this action")
        return repository
