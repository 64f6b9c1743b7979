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

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from support.hub_faults import Cut, Faults
from support.hub_repository import MAIN, Blob, Commit, HubError, PullRequest, Repository, repository_not_found
from support.hub_xet import TOKEN, XetStorage

CHUNK = 2**16
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(\n|\Z)", re.DOTALL)


@dataclass
class Request:
    """What the client asks for.

    Attributes:
        method: of HTTP.
        path: without the query, as it was sent.
        query: of each name, its values.
        headers: by lower-case name.
        body: all of it.
        user: whose token was sent; None without one.
        role: `read` or `write`, of the token.
        names: what the route's pattern found in the path, unquoted.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: str | None = None
    role: str = "read"
    names: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        """Whether the query sets a name to something true."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Answer:
    """What the server answers: a body, and the file of a repository that it is, if it is one."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: str | None = None

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Answer:
        """JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def refusal(cls, error: HubError) -> Answer:
        """An error in the Hub's form."""
        headers = {"X-Error-Message": error.message, "X-Request-Id": "localhost", **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        return cls.of({"error": error.message}, error.status, **headers)


Route = tuple[str, "re.Pattern[str]", Callable[["HubServer", Request], Answer]]
ROUTES: list[Route] = []


def route(method: str, pattern: str) -> Callable[[Callable[[HubServer, Request], Answer]], Any]:
    """Serve a path by the function below; `{name}` is a part of the path, `{name...}` its rest."""
    regex = re.sub(r"\{(\w+)\.\.\.\}", r"(?P<\1>.+)", pattern)
    regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", regex)
    regex = regex.replace("/api/KIND/REPO", "/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+?)")
    regex = regex.replace("/REPO", "/((?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)")

    def add(function: Callable[[HubServer, Request], Answer]) -> Callable[[HubServer, Request], Answer]:
        ROUTES.append((method, re.compile(regex), function))
        return function

    return add


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
        self._listeners = [_Listener(self), _Listener(self)]
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


# Repositories


@route("GET", "/api/whoami-v2")
def who_am_i(server: HubServer, request: Request) -> Answer:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    access = {"displayName": "test", "role": request.role}
    user = {"type": "user", "id": request.user, "name": request.user, "fullname": request.user, "orgs": []}
    return Answer.of({**user, "auth": {"type": "access_token", "accessToken": access}})


@route("POST", "/api/repos/create")
def create_repository(server: HubServer, request: Request) -> Answer:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    wanted = request.json
    owner, kind = wanted.get("organization") or request.user, wanted.get("type") or "model"
    name = f"{owner}/{wanted['name']}"
    url = f"{server.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
    if owner != request.user or request.role != "write":
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    if (kind, name) in server.repositories:
        message = f"You already created this {kind} repo"
        return Answer.of({"error": message, "url": url}, 409, **{"X-Error-Message": message})
    server.create(name, kind=kind, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return Answer.of({"url": url, "name": name, "id": name})


@route("DELETE", "/api/repos/delete")
def delete_repository(server: HubServer, request: Request) -> Answer:
    wanted = request.json
    kind = wanted.get("type") or "model"
    request.names = {"kind": f"{kind}s", "repo": f"{wanted.get('organization') or request.user}/{wanted['name']}"}
    server.writable(request)
    del server.repositories[kind, request.names["repo"]]
    return Answer.of({})


@route("PUT", "/api/KIND/REPO/settings")
def change_settings(server: HubServer, request: Request) -> Answer:
    repository = server.writable(request)
    if "visibility" in request.json:
        repository.private = request.json["visibility"] == "private"
    repository.gated = request.json.get("gated", repository.gated)
    return Answer.of({"private": repository.private})


def metadata(repository: Repository, revision: str) -> dict[str, Any]:
    """The metadata of a repository's card."""
    card = repository.at(revision).files.get("README.md")
    found = FRONT_MATTER.match(card.content.decode()) if card else None
    values = yaml.safe_load(found[1]) if found else None
    return values if isinstance(values, dict) else {}


@route("GET", "/api/KIND/REPO")
@route("GET", "/api/KIND/REPO/revision/{revision}")
def information(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    revision = request.names.get("revision", MAIN)
    commit, card = repository.at(revision), metadata(repository, revision)
    first = list(repository.history(revision))[-1][1]
    result = {
        "id": repository.name,
        "modelId": repository.name,
        "author": repository.owner,
        "sha": commit.oid,
        "createdAt": date(first.date),
        "lastModified": date(commit.date),
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*card.get("tags", []), *([card["library_name"]] if "library_name" in card else [])],
        "siblings": [sibling(path, blob, request.flag("blobs")) for path, blob in sorted(commit.files.items())],
    }
    if card:
        result["cardData"] = card
    result |= {name: card[name] for name in ("pipeline_tag", "library_name", "model-index") if name in card}
    results = evaluation_results(commit)
    if results:
        result["evalResults"] = results
    if "expand" in request.query:
        result = {name: value for name, value in result.items() if name in ("id", *request.query["expand"])}
    return Answer.of(result)


def evaluation_results(commit: Commit) -> list[dict[str, Any]]:
    """The entries of all files in `.eval_results`."""
    found = fnmatch.filter(commit.files, ".eval_results/*.yaml")
    entries = [(path, entry) for path in found for entry in yaml.safe_load(commit.files[path].content)]
    return [{"filename": path, "data": entry} for path, entry in entries]


def date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def sibling(path: str, blob: Blob, details: bool) -> dict[str, Any]:
    """A file in the information on a repository."""
    if not details:
        return {"rfilename": path}
    result: dict[str, Any] = {"rfilename": path, "size": len(blob.content), "blobId": blob.git_hash}
    if blob.large:
        result["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.in_git)}
    return result


@route("POST", "/api/validate-yaml")
def validate_metadata(server: HubServer, request: Request) -> Answer:
    found = FRONT_MATTER.match(request.json["content"])
    if found is None:
        return Answer.of({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        values = yaml.safe_load(found[1])
        errors = [] if isinstance(values, dict) else ["metadata is no mapping of names to values"]
    except yaml.YAMLError as error:
        errors = [str(error)]
    return Answer.of({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)


# Branches, tags, commits


@route("GET", "/api/KIND/REPO/refs")
def references(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    result = {
        "branches": [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repository.branches.items()
        ],
        "converts": [],
        "tags": [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()],
    }
    if request.flag("include_prs"):
        result["pullRequests"] = [
            {"name": f"pr/{pull.number}", "ref": f"refs/pr/{pull.number}", "targetCommit": pull.head}
            for pull in repository.pulls.values()
        ]
    return Answer.of(result)


@route("POST", "/api/KIND/REPO/branch/{branch}")
def create_branch(server: HubServer, request: Request) -> Answer:
    repository, branch = server.writable(request), request.names["branch"]
    if branch.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch: {branch}")
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: {branch}")
    repository.branches[branch] = repository.resolve(request.json.get("startingPoint", MAIN))
    return Answer.of({})


@route("DELETE", "/api/KIND/REPO/branch/{branch}")
def delete_branch(server: HubServer, request: Request) -> Answer:
    repository, branch = server.writable(request), request.names["branch"]
    if branch == MAIN:
        raise HubError(403, "Cannot delete refs/heads/main")
    if branch not in repository.branches:
        raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    del repository.branches[branch]
    return Answer.of({})


@route("POST", "/api/KIND/REPO/tag/{revision}")
def create_tag(server: HubServer, request: Request) -> Answer:
    repository, tag = server.writable(request), request.json["tag"]
    commit = repository.resolve(request.names["revision"])
    if tag in repository.tags:
        raise HubError(409, f"Tag reference exists already: {tag}")
    repository.tags[tag] = commit
    return Answer.of({})


@route("DELETE", "/api/KIND/REPO/tag/{tag}")
def delete_tag(server: HubServer, request: Request) -> Answer:
    repository, tag = server.writable(request), request.names["tag"]
    if tag not in repository.tags:
        raise HubError(404, f"Invalid rev id: {tag}", "RevisionNotFound")
    del repository.tags[tag]
    return Answer.of({})


@route("GET", "/api/KIND/REPO/commits/{revision}")
def commits(server: HubServer, request: Request) -> Answer:
    history = server.readable(request).history(request.names["revision"])
    return Answer.of(
        [
            {"id": oid, "title": c.title, "message": c.message, "date": date(c.date), "authors": [{"user": c.author}]}
            for oid, c in history
        ]
    )


# Uploads


@route("POST", "/api/KIND/REPO/preupload/{revision}")
def upload_modes(server: HubServer, request: Request) -> Answer:
    repository, revision = upload_target(server, request), request.names["revision"]
    there, result = repository.at(revision).files, []
    for file in request.json["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        mode = "lfs" if repository.is_large(path, file["size"], sample, revision) else "regular"
        result.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
        if path in there:
            result[-1]["oid"] = there[path].etag
    return Answer.of({"files": result})


def upload_target(server: HubServer, request: Request) -> Repository:
    """The repository to upload to: anyone with a token may open a pull request on what he may read."""
    if not request.flag("create_pr"):
        return server.writable(request)
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    return server.readable(request)


@route("POST", r"/REPO\.git/info/lfs/objects/batch")
def large_file_batch(server: HubServer, request: Request) -> Answer:
    # For a pull request the client names no branch, since one may write to none.
    repository = server.writable(request) if "ref" in request.json else server.readable(request)
    objects = []
    for wanted in request.json["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        objects.append({"oid": oid, "size": size})
        if oid not in repository.large_files:
            objects[-1]["actions"] = upload_actions(server, request, oid, size)
    transfers = request.json.get("transfers", ["basic"])
    several = any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects)
    transfer = "multipart" if several and "multipart" in transfers else "basic"
    return Answer.of({"transfer": transfer, "objects": objects})


def upload_actions(server: HubServer, request: Request, oid: str, size: int) -> dict[str, Any]:
    """Where to send a large file to: as one, or in parts that are completed by one more request."""
    kind, repo = request.names.get("kind", "models"), request.names["repo"]
    place = f"{server.storage}/storage/{kind}/{repo}/{oid}"
    verify = {"href": f"{server.endpoint}{request.path.removesuffix('batch')}verify"}
    if server.part_size is None or size <= server.part_size:
        return {"upload": {"href": place}, "verify": verify}
    parts = -(-size // server.part_size)
    header = {str(n): f"{place}/{n}" for n in range(1, parts + 1)}
    complete = f"{server.endpoint}/api/complete_multipart/{kind}/{repo}/{oid}"
    return {"upload": {"href": complete, "header": {"chunk_size": str(server.part_size), **header}}, "verify": verify}


@route("PUT", "/storage/{kind}/{owner}/{name}/{oid}")
def store(server: HubServer, request: Request) -> Answer:
    names = request.names
    repository = server.repositories[KINDS[names["kind"]], f"{names['owner']}/{names['name']}"]
    server.uploaded[names["oid"]] += len(request.body)
    if hashlib.sha256(request.body).hexdigest() != names["oid"]:
        raise HubError(400, "The content does not match its SHA-256")
    repository.large_files[names["oid"]] = request.body
    return Answer()


@route("PUT", "/storage/{kind}/{owner}/{name}/{oid}/{part}")
def store_part(server: HubServer, request: Request) -> Answer:
    oid, part = request.names["oid"], int(request.names["part"])
    server.uploaded[oid] += len(request.body)
    server.parts.setdefault(oid, {})[part] = request.body
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "/api/complete_multipart/{kind}/{owner}/{name}/{oid}")
def complete_parts(server: HubServer, request: Request) -> Answer:
    names = request.names
    repository = server.repositories[KINDS[names["kind"]], f"{names['owner']}/{names['name']}"]
    parts = server.parts.pop(names["oid"], {})
    content = b"".join(parts.get(part["partNumber"], b"") for part in request.json["parts"])
    if hashlib.sha256(content).hexdigest() != names["oid"]:
        raise HubError(400, "The parts do not make the content with this SHA-256")
    repository.large_files[names["oid"]] = content
    return Answer.of({})


@route("POST", r"/REPO\.git/info/lfs/objects/verify")
def verify_large_file(server: HubServer, request: Request) -> Answer:
    repository, wanted = server.readable(request), request.json
    if len(repository.large_files.get(wanted["oid"], b"")) != wanted["size"]:
        raise HubError(404, f"No such large file: {wanted['oid']}")
    return Answer.of({})


@route("POST", "/api/KIND/REPO/commit/{revision}")
def create_commit(server: HubServer, request: Request) -> Answer:
    repository = upload_target(server, request)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    changes = {line["value"]["path"]: change(server, repository, line) for line in lines if line["key"] != "header"}
    oid, pull = repository.commit(
        changes,
        request.names["revision"],
        title=header["summary"],
        message=header.get("description", ""),
        author=request.user or "",
        parent=header.get("parentCommit"),
        as_pull_request=request.flag("create_pr"),
        conflict=server.conflict,
    )
    for path, blob in changes.items():
        if blob is not None:
            server.uploaded[path] += server.uploaded.pop(blob.sha256, 0) if blob.large else len(blob.content)
    url = f"{server.endpoint}/{request.names['repo']}"
    result = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
    if pull is not None:
        result["pullRequestUrl"] = f"{url}/discussions/{pull.number}"
    return Answer.of(result)


def change(server: HubServer, repository: Repository, line: dict[str, Any]) -> Blob | None:
    """What a line of a commit does to its path."""
    key, value = line["key"], line["value"]
    if key == "file":
        content = (
            base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        )
        return Blob(content, large=False)
    if key == "lfsFile":
        return large_file(server, repository, value)
    if key not in ("deletedFile", "deletedFolder"):
        raise HubError(400, f"Unknown operation: {key}")
    if key == "deletedFolder" and not value["path"].endswith("/"):
        value["path"] += "/"
    return None


def large_file(server: HubServer, repository: Repository, value: dict[str, Any]) -> Blob:
    """The large file that a line of a commit names, wherever it was uploaded to."""
    sha256 = value["oid"]
    in_xet = server.xet.hash_of(sha256) if server.xet else None
    if server.xet and in_xet and sha256 not in repository.large_files:
        repository.large_files[sha256] = server.xet.read(sha256, value.get("size"))
    if sha256 not in repository.large_files:
        raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
    return Blob(repository.large_files[sha256], large=True, xet=in_xet)


# Pull requests


@route("GET", "/api/KIND/REPO/discussions/{number}")
def discussion(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    return Answer.of(details(repository, pull_request(repository, request)))


def pull_request(repository: Repository, request: Request) -> PullRequest:
    try:
        return repository.pulls[int(request.names["number"])]
    except (KeyError, ValueError):
        raise HubError(404, "Discussion not found") from None


def details(repository: Repository, pull: PullRequest) -> dict[str, Any]:
    return {
        "title": pull.title,
        "num": pull.number,
        "author": {"name": pull.author},
        "createdAt": date(pull.created),
        "status": pull.status,
        "repo": {"name": repository.name, "type": repository.kind},
        "isPullRequest": True,
        "events": [],
        "changes": {"base": MAIN, "mergeCommitId": pull.merged_as},
        "filesWithConflicts": False,
        "diff": "",
    }


@route("GET", "/api/KIND/REPO/discussions")
def discussions(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    found = [details(repository, pull) for pull in repository.pulls.values()]
    return Answer.of({"discussions": found, "count": len(found), "start": 0})


@route("POST", "/api/KIND/REPO/discussions")
def open_discussion(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    return Answer.of({"num": repository.open_pull_request(request.json["title"], request.user).number})


@route("POST", "/api/KIND/REPO/discussions/{number}/merge")
def merge(server: HubServer, request: Request) -> Answer:
    repository = server.writable(request)
    repository.merge(pull_request(repository, request), request.user or "")
    return Answer.of({})


# Downloads


@route("GET", "/api/KIND/REPO/tree/{revision}")
@route("GET", "/api/KIND/REPO/tree/{revision}/{folder...}")
def tree(server: HubServer, request: Request) -> Answer:
    repository, revision = server.readable(request), request.names["revision"]
    commit, folder = repository.at(revision), request.names.get("folder", "").strip("/")
    entries = list(entries_below(commit, folder, request.flag("recursive")))
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {"X-Repo-Commit": commit.oid}
    if start + server.page < len(entries):
        recursive = "true" if request.flag("recursive") else "false"
        following = f"{server.endpoint}{request.path}?recursive={recursive}&cursor={start + server.page}"
        headers["Link"] = f'<{following}>; rel="next"'
    return Answer.of(entries[start : start + server.page], **headers)


def entries_below(commit: Commit, folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """The files and folders in a folder, and in those below it."""
    prefix, folders = f"{folder}/" if folder else "", set()
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            inner = prefix + "/".join(parts[:depth])
            if inner not in folders:
                folders.add(inner)
                yield folder_entry(commit, inner)
        if recursive or len(parts) == 1:
            yield file_entry(path, blob)


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.git_hash, "size": len(blob.content), "path": path}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.in_git)}
    if blob.xet:
        entry["xetHash"] = blob.xet
    return entry


def folder_entry(commit: Commit, path: str) -> dict[str, Any]:
    inside = "".join(blob.git_hash for name, blob in sorted(commit.files.items()) if name.startswith(f"{path}/"))
    return {"type": "directory", "oid": hashlib.sha1(inside.encode()).hexdigest(), "size": 0, "path": path}


@route("POST", "/api/KIND/REPO/paths-info/{revision}")
def paths_information(server: HubServer, request: Request) -> Answer:
    commit = server.readable(request).at(request.names["revision"])
    result = []
    for path in parse_qs(request.body.decode()).get("paths", []):
        if path in commit.files:
            result.append(file_entry(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            result.append(folder_entry(commit, path))
    return Answer.of(result)


@route("GET", "/REPO/resolve/{revision}/{path...}")
def resolve(server: HubServer, request: Request) -> Answer:
    repository, path = server.readable(request), request.names["path"]
    if repository.gated and request.user != repository.owner:
        status = 401 if request.user is None else 403
        raise HubError(status, f"Access to model {repository.name} is restricted.", "GatedRepo")
    commit = repository.at(request.names["revision"])
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    headers["ETag"] = f'"{blob.etag}"'
    kind = request.names.get("kind", "models")
    if not blob.large:
        # From here on the client asks for what was there at this commit.
        place = f"/api/resolve-cache/{kind}/{repository.name}/{commit.oid}/{quote(path)}"
        return Answer(307, b"", {**headers, "Location": place})
    location = f"{server.storage}/storage/{kind}/{repository.name}/{blob.sha256}?path={quote(path, safe='')}"
    headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content)), "Location": location}
    if blob.xet:
        token = f"{server.endpoint}/api/{kind}/{repository.name}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{token}>; rel="xet-auth"'}
    return Answer(302, b"", headers)


@route("GET", "/api/resolve-cache/{kind}/{owner}/{name}/{commit}/{path...}")
def resolve_small(server: HubServer, request: Request) -> Answer:
    names = request.names
    names["repo"] = f"{names['owner']}/{names['name']}"
    blob = server.readable(request).commits[names["commit"]].files[names["path"]]
    headers = {"X-Repo-Commit": names["commit"], "Accept-Ranges": "bytes", "ETag": f'"{blob.etag}"'}
    return ranged(request, Answer(200, blob.content, headers, names["path"]))


@route("GET", "/storage/{kind}/{owner}/{name}/{oid}")
def fetch(server: HubServer, request: Request) -> Answer:
    names = request.names
    repository = server.repositories[KINDS[names["kind"]], f"{names['owner']}/{names['name']}"]
    if "authorization" in request.headers:
        raise HubError(400, "A token was sent to the storage, which must not see it")
    content = repository.large_files[names["oid"]]
    headers = {"ETag": f'"{names["oid"]}"', "Accept-Ranges": "bytes"}
    return ranged(request, Answer(200, content, headers, request.query["path"][0]))


def ranged(request: Request, answer: Answer) -> Answer:
    """What a request wants of a file, if it wants not all of it."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if found is None or found.groups() == ("", ""):
        return answer
    size = len(answer.body)
    first, last = found.groups()
    start, end = (int(first), int(last) + 1 if last else size) if first else (max(size - int(last), 0), size)
    if start >= size:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    answer.headers["Content-Range"] = f"bytes {start}-{min(end, size) - 1}/{size}"
    return Answer(206, answer.body[start:end], answer.headers, answer.file)


@route("GET", "/api/KIND/REPO/xet-(?P<access>read|write)-token/{revision}")
def xet_token(server: HubServer, request: Request) -> Answer:
    repository = server.readable(request)
    if request.names["access"] == "write" and not request.flag("create_pr"):
        server.writable(request)
    if server.xet is None:
        raise HubError(403, f"{repository.name} is not in Xet's storage: set HF_HUB_DISABLE_XET=1")
    access = {"casUrl": server.xet.address, "exp": int(time.time()) + 3600, "accessToken": TOKEN}
    names = {"casUrl": "X-Xet-Cas-Url", "exp": "X-Xet-Token-Expiration", "accessToken": "X-Xet-Access-Token"}
    return Answer.of(access, **{names[name]: str(value) for name, value in access.items()})


# HTTP


class _Disconnected(Exception):
    """The client is gone, or is cut off."""


class _HTTPServer(ThreadingHTTPServer):
    """A server that is able to end its connections, which clients keep open."""

    daemon_threads = True
    block_on_close = False
    # More than one thread of a client connects at a time.
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": hub}))

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Stop, with all connections."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Listener:
    """A port that is served, or not for a while."""

    def __init__(self, hub: HubServer) -> None:
        self._hub, self._server = hub, _HTTPServer(hub, 0)
        self.port = self._server.server_port
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            # A port that was given up is free to be taken again at once.
            self._server = self._server if self._server.fileno() >= 0 else _HTTPServer(self._hub, self.port)
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._server.end()
            self._thread.join()
            self._thread = None


class _Handler(BaseHTTPRequestHandler):
    """Requests of one connection: reads them, counts, meets the faults and answers."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, parts.path))
        cut = self.hub.faults.meet(self.command, parts.path)
        try:
            if cut is not None and cut.moment == "gone":
                self.hub.disconnect()
            if cut is not None and cut.moment in ("request", "gone"):
                raise _Disconnected
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self._read(cut if cut is not None and cut.moment == "upload" else None)
            self.hub.faults.run_before(self.command, parts.path)
            request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
            moment = None if cut is None else cut.moment
            answer = Answer() if moment == "refused" else self.hub.respond(request)
            if moment == "answer":
                raise _Disconnected
            if cut is not None and moment in ("refused", "failed"):
                answer = Answer.refusal(HubError(cut.status, "The Hub has a problem"))
            self._write(answer, cut if cut is not None and cut.moment == "download" else None)
        except (_Disconnected, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self, cut: Cut | None) -> bytes:
        """The body, in whichever form it is sent."""
        body, limit = bytearray(), None if cut is None else cut.after_bytes
        pieces = self._chunks() if self.headers.get("Transfer-Encoding", "").lower() == "chunked" else self._pieces()
        for piece in pieces:
            body += piece
            if limit is not None and len(body) >= limit:
                break
        with self.hub.lock:
            self.hub.received += len(body) if limit is None else min(limit, len(body))
        if cut is not None:
            raise _Disconnected
        return bytes(body)

    def _pieces(self) -> Iterator[bytes]:
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read1(min(CHUNK, left))
            if not piece:
                raise _Disconnected
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _write(self, answer: Answer, cut: Cut | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        end = len(body) if cut is None else min(cut.after_bytes, len(body))
        for start in range(0, end, CHUNK):
            self.wfile.write(memoryview(body)[start : min(start + CHUNK, end)])
        with self.hub.lock:
            self.hub.sent += end
            if answer.file is not None and answer.status < 300:
                self.hub.downloaded[answer.file] += end
        if cut is not None:
            raise _Disconnected
