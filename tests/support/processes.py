"""Actions in processes of their own, which start at once: they are forked, with all models that are there."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any


class Process:
    """A process that does something and answers with a value of JSON.

    Args:
        action: what it does.
    """

    def __init__(self, action: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            end_with_parent()
            try:
                answer = {"returned": action()}
            except BaseException:
                answer = {"raised": traceback.format_exc()}
            with open(writer, "w") as file:
                json.dump(answer, file)
            os._exit(0)
        os.close(writer)

    def kill(self) -> None:
        """End it now, whatever it does."""
        os.kill(self.number, signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> Any:
        """What it returned; `None` if it was killed.

        Raises:
            AssertionError: if it raised, or does not end.
        """
        content = b""
        while True:
            if not select.select([self._reader], [], [], timeout)[0]:
                self.kill()
                raise AssertionError(f"a hang: no answer for {timeout} s")
            part = os.read(self._reader, 1 << 16)
            if not part:
                break
            content += part
        os.close(self._reader)
        os.waitpid(self.number, 0)
        answer = json.loads(content) if content else {}
        if "raised" in answer:
            raise AssertionError(answer["raised"])
        return answer.get("returned")


def end_with_parent() -> None:
    """Let this process be killed when the one that forked it ends, which Linux can do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def without_rights(action: Callable[[], Any]) -> Any:
    """What an action returns in a process that has to obey the modes of files, though root may have started it."""

    def act() -> Any:
        if os.geteuid() == 0:
            header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0
        return action()

    return Process(act).wait()
