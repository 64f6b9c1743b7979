"""What the Hub on localhost serves: one function for each address that the client calls.

See `hub_server` for what is the Hub's and what is not.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

import yaml
from support.hub_http import Answer, Request
from support.hub_repository import MAIN, Blob, Commit, HubError, PullRequest, Repository
from support.hub_xet import TOKEN

if TYPE_CHECKING:
    from support.hub_server import HubServer

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(\n|\Z)", re.DOTALL)

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
