"""Every system call by which a process changes files: watched, made to fail, or the last that it makes.

    watched = watch(lambda: model.save_pretrained(folder), tmp_path)
    watch(lambda: model.save_pretrained(folder), tmp_path, fault_at(7, errno.ENOSPC))

What Python, Rust and C libraries do to files goes through the kernel, so this is where it is counted: the action runs
in a forked process that lets this one decide on each call before it is made (seccomp's user notification; no rights
are needed). It does not see stores into a memory map and io_uring. Whether there were any shows when the recorded
calls are replayed, see `power_cut.replayed`. Linux on x86-64 alone: elsewhere `SUPPORTED` is false.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from support.processes import end_with_parent

# Where the path of a call stands among its arguments: a descriptor, a path, or a path after the folder it starts from.
_OF_DESCRIPTOR = {
    1: "write", 18: "write", 20: "write", 296: "write", 328: "write", 40: "write", 73: "lock", 74: "fsync",
    75: "fsync", 77: "truncate", 91: "chmod", 285: "truncate",
}  # fmt: skip
_OF_PATH = {
    2: "open", 76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "open", 86: "link", 87: "unlink",
    90: "chmod",
}  # fmt: skip
_BELOW_FOLDER = {
    257: "open", 258: "mkdir", 263: "unlink", 264: "rename", 265: "link", 268: "chmod", 316: "rename", 437: "open",
}  # fmt: skip
_SYSCALLS = {**_OF_DESCRIPTOR, **_OF_PATH, **_BELOW_FOLDER}
_WRITE, _PWRITE, _FTRUNCATE, _COPY_RANGE = 1, 18, 77, 326
_SECCOMP, _NO_NEW_PRIVS, _RECEIVE, _SEND = 317, 38, 0xC0502100, 0xC0182101
_AT_FDCWD, _AT_REMOVEDIR = -100, 0x200

Fault = int | Literal["kill", "torn"] | None


@dataclass(frozen=True)
class Operation:
    """One system call that changes a file or folder, or opens one.

    Attributes:
        kind: open, create, write, truncate, fsync, rename, unlink, mkdir, rmdir, chmod, lock, unlock or link.
        path: of what it is about, absolute.
        target: where to, of a rename.
        data: what a write writes.
        offset: where in the file; for `truncate`, the size.
        effective: whether it changes anything; a folder that exists is not made.
    """

    kind: str
    path: Path
    target: Path | None = None
    data: bytes = field(default=b"", repr=False)
    offset: int = 0
    effective: bool = True


@dataclass
class Watched:
    """What became of an action: its calls below the root, and what it returned, if it was not killed."""

    operations: list[Operation]
    returned: Any
    killed: bool


class Hang(AssertionError):
    """A process that does nothing any more."""


Decide = Callable[[int, Operation], Fault]


def never(number: int, operation: Operation) -> Fault:
    """No fault."""
    return None


def fault_at(at: int, fault: Fault) -> Decide:
    """One fault, at the `at`-th operation: an error number, or the end of the process before it."""
    return lambda number, operation: fault if number == at else None


def watch(action: Callable[[], Any], root: Path, decide: Decide = never, timeout: float = 60.0) -> Watched:
    """Run an action in a process of its own, and decide on each of its operations below a folder.

    Args:
        action: returns what JSON can hold; an exception of it is an error here.
        root: operations elsewhere are not counted.
        decide: given number and operation, an error number, "kill" (before it), "torn" (a write is done by half and
            the process ends) or `None`.
        timeout: seconds without an operation after which the process counts as hanging.

    Raises:
        Hang: if it does.
    """
    root = root.resolve()
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        _child(action, theirs, writer)
    os.close(writer)
    listener = socket.recv_fds(ours, 1, 1)[1][0]
    ours.close()
    theirs.close()
    try:
        operations, killed = _supervise(listener, process, root, decide, timeout)
    finally:
        os.close(listener)
        os.kill(process, signal.SIGKILL)  # it has ended, or it hangs
        os.waitpid(process, 0)
    with open(reader, "rb") as file:
        content = file.read()
    answer = json.loads(content) if content else {}
    if "raised" in answer:
        raise AssertionError(answer["raised"])
    assert killed or content, "the process ended without an answer"
    return Watched(operations, answer.get("returned"), killed)


def _child(action: Callable[[], Any], theirs: socket.socket, writer: int) -> None:
    """The action's process: hand over the decisions, run, answer, end."""
    end_with_parent()
    try:
        socket.send_fds(theirs, [b"x"], [_listener()])
        answer = {"returned": action()}
    except BaseException:
        answer = {"raised": traceback.format_exc()}
    os.write(writer, json.dumps(answer).encode())
    os._exit(0)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("true", ctypes.c_uint8), ("false", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def _listener() -> int:
    """Let another process decide on the watched calls of this thread, through the descriptor that is returned."""
    numbers = [*_SYSCALLS, _COPY_RANGE]
    load, allow, notify = (0x20, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)
    jumps = [(0x15, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    instructions = [_Instruction(*values) for values in (load, *jumps, allow, notify)]
    program = _Program(len(instructions), (_Instruction * len(instructions))(*instructions))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    descriptor = library.syscall(_SECCOMP, 1, 8, ctypes.byref(program))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(descriptor)


def _supervise(
    listener: int, process: int, root: Path, decide: Decide, timeout: float
) -> tuple[list[Operation], bool]:
    """Decide on the calls of a process until it ends."""
    operations: list[Operation] = []
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll(timeout * 1000)
        if not events:
            raise Hang(f"no operation for {timeout} s after {operations[-1:]}")
        if events[0][1] & select.POLLHUP:
            return operations, False
        call = bytearray(80)
        fcntl.ioctl(listener, _RECEIVE, call, True)
        identity, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", call)
        operation = _operation(thread, number, arguments)
        fault: Fault = None
        if operation is not None and _is_below(root, operation):
            assert operation.kind != "unknown", f"what system call {number} does to {operation.path} is not recorded"
            fault = decide(len(operations), operation)
            operations.append(operation)
        if fault in ("kill", "torn"):
            if fault == "torn" and operation is not None and operation.kind == "write":
                _write_half(thread, arguments[0], operation)
            os.kill(process, signal.SIGKILL)
            return operations, True
        error, flags = (0, 1) if fault is None else (-int(fault), 0)
        fcntl.ioctl(listener, _SEND, bytearray(struct.pack("=QqiI", identity, 0, error, flags)), True)


def _is_below(root: Path, operation: Operation) -> bool:
    return operation.path.is_relative_to(root) or (
        operation.target is not None and operation.target.is_relative_to(root)
    )


def _operation(thread: int, number: int, arguments: list[int]) -> Operation | None:
    """What a call is about to do."""
    kind = _SYSCALLS.get(number, "write")
    if number in _BELOW_FOLDER:
        path = _path(thread, arguments[1], arguments[0])
        if kind == "unlink" and arguments[2] & _AT_REMOVEDIR:
            kind = "rmdir"
    elif number in _OF_PATH:
        path = _path(thread, arguments[0])
    else:
        path = Path(os.readlink(f"/proc/{thread}/fd/{arguments[2 if number == _COPY_RANGE else 0]}"))
    exists = os.path.lexists(path)
    if kind == "open":
        flags = {2: arguments[1], 257: arguments[2], 85: os.O_CREAT | os.O_TRUNC, 437: 0}[number]
        created = bool(flags & os.O_CREAT) and not exists
        truncated = bool(flags & os.O_TRUNC) and exists
        return Operation("create" if created else "truncate" if truncated else "open", path)
    if kind == "write":
        if number not in (_WRITE, _PWRITE):
            return Operation("unknown", path)
        offset = arguments[3] if number == _PWRITE else _position(thread, arguments[0])
        return Operation("write", path, data=_memory(thread, arguments[1], arguments[2]), offset=offset)
    if kind == "truncate":
        return Operation(kind if number == _FTRUNCATE else "unknown", path, offset=arguments[1])
    if kind == "rename":
        second, third = (arguments[1], _AT_FDCWD) if number == 82 else (arguments[3], arguments[2])
        return Operation(kind, path, target=_path(thread, second, third), effective=exists)
    if kind == "lock" and arguments[1] & fcntl.LOCK_UN:
        kind = "unlock"
    return Operation(kind, path, effective=exists != (kind == "mkdir"))


def _memory(thread: int, address: int, size: int) -> bytes:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _path(thread: int, address: int, start: int = _AT_FDCWD) -> Path:
    """The absolute path that a call names; the links in its folder are followed, it itself is not."""
    text = b""
    while b"\0" not in text:  # up to the end of a page at once: the next may not be there
        text += _memory(thread, address + len(text), 4096 - (address + len(text)) % 4096)
    name = os.fsdecode(text.partition(b"\0")[0])
    start = ctypes.c_int32(start & 0xFFFFFFFF).value
    base = os.readlink(f"/proc/{thread}/cwd" if start == _AT_FDCWD else f"/proc/{thread}/fd/{start}")
    path = os.path.normpath(os.path.join(base, name))
    return Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _position(thread: int, descriptor: int) -> int:
    """Where a file's descriptor stands."""
    return int(Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text().split()[1])


def _write_half(thread: int, descriptor: int, operation: Operation) -> None:
    """Do half of what a write would have done."""
    with open(f"/proc/{thread}/fd/{descriptor}", "r+b", buffering=0) as file:
        file.seek(operation.offset)
        file.write(operation.data[: len(operation.data) // 2])


def _is_supported() -> bool:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        return watch(lambda: True, Path("/")).returned is True
    except (OSError, AssertionError, IndexError):
        return False


SUPPORTED = _is_supported()
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)
