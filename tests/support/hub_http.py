"""What a client of the Hub on localhost asks for, what it is answered, and the connections on which it does."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from support.hub_faults import Cut
from support.hub_repository import HubError

if TYPE_CHECKING:
    from support.hub_server import HubServer

CHUNK = 2**16


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


class Listener:
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
            if answer.file is not None and self.command == "GET":
                self.hub.downloaded[answer.file] += end
        if cut is not None:
            raise _Disconnected
