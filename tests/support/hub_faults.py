"""What goes wrong on the way to a Hub: connections that are cut, slow answers, somebody else in between."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Moment = Literal["request", "upload", "answer", "download", "gone", "refused", "failed"]


@dataclass
class Cut:
    """A cut of the connection at one moment of some requests.

    Attributes:
        moment: `request`: before anything is done; `upload`: within the request's body; `answer`: when all is done, so
            that the client does not learn it; `download`: within the answer's body; `gone`: before anything is
            done, and new connections are refused until `restore`. `refused` and `failed` are no cuts but answers with
            `status`, before anything is done or when all is.
        after_requests: so many more requests that match pass first.
        after_bytes: so many bytes of the body pass first.
        times: how many requests are cut. None for all, until `restore`.
        matching: a pattern that is looked for in `METHOD /path`.
        status: of an answer.
    """

    moment: Moment
    after_requests: int
    after_bytes: int
    times: int | None
    matching: str
    status: int

    def meets(self, line: str) -> bool:
        """Whether this request is cut; counts it."""
        if not re.search(self.matching, line) or self.times == 0:
            return False
        if self.after_requests:
            self.after_requests -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Hook:
    """A function that runs before some requests are handled, the first `times` that match."""

    method: str
    pattern: str
    function: Callable[[], object]
    times: int | None

    def meets(self, method: str, path: str) -> bool:
        """Whether it runs before this request; counts it."""
        if method != self.method or not re.search(self.pattern, path) or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Faults:
    """The faults that a test asked for. Requests come from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cuts: list[Cut] = []
        self._delays: list[tuple[float, str]] = []
        self._hooks: list[Hook] = []

    def cut(
        self,
        after_requests: int = 0,
        *,
        moment: Moment = "request",
        after_bytes: int = 0,
        times: int | None = 1,
        matching: str = "",
        status: int = 503,
    ) -> None:
        """Cut the connection at the request after the next `after_requests`, see `Cut`."""
        with self._lock:
            self._cuts.append(Cut(moment, after_requests, after_bytes, times, matching, status))

    def delay(self, seconds: float, matching: str = "") -> None:
        """Wait before each request whose `METHOD /path` matches."""
        with self._lock:
            self._delays.append((seconds, matching))

    def before(self, method: str, pattern: str, function: Callable[[], object], times: int | None = 1) -> None:
        """Call `function` before the next request of this method whose path matches is handled.

        The body was read by then, and other requests are served meanwhile: the function may commit, or wait.
        """
        with self._lock:
            self._hooks.append(Hook(method, pattern, function, times))

    def restore(self) -> None:
        """Let all pass from now on."""
        with self._lock:
            self._cuts, self._delays, self._hooks = [], [], []

    def meet(self, method: str, path: str) -> Cut | None:
        """Wait as long as this request has to, and say how it is cut, if it is."""
        line = f"{method} {path}"
        with self._lock:
            cut = next((cut for cut in self._cuts if cut.meets(line)), None)
            seconds = sum(seconds for seconds, matching in self._delays if re.search(matching, line))
        time.sleep(seconds)
        return cut

    def run_before(self, method: str, path: str) -> None:
        """Run what is to run before this request is handled."""
        with self._lock:
            functions = [hook.function for hook in self._hooks if hook.meets(method, path)]
        for function in functions:
            function()
