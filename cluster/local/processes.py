"""Processes of this machine, by /proc (Linux)."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

RAYLET = "raylet/raylet"
"""End of a raylet's program."""

ROOT = Path(__file__).resolve().parents[1]
"""Where the project's packages are."""


def calling(module: str, function: str) -> tuple[str, ...]:
    """Command line that calls a function of one of our modules, with what follows as its `sys.argv[1:]`.

    Not `-m`: the project need not be installed, nor the folder it is run in be this one.
    """
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; {module}.{function}()"
    return sys.executable, "-c", script


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    return _status(pid)[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Processes that `pid` started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            state, parent = _status(int(entry.name))
            if parent == pid and state not in "ZX":
                found.append(int(entry.name))
    return found


def of_session(session: int) -> list[int]:
    """Processes of that session that have not ended: what its first process started, whoever their parent is by now."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _session(pid) == session and is_alive(pid)]


def end_session(session: int) -> None:
    """SIGKILL to all of them, until none is left. Takes no notice of those that do not exist any more."""
    while pids := of_session(session):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def start_time(pid: int) -> str | None:
    """Something that differs between two processes that had the same pid; None if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def command_line(pid: int) -> str:
    """Its arguments, or the title it has given itself; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _status(pid: int) -> tuple[str, int]:
    """State letter and parent; ("X", -1) where there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", -1
    return state, int(parent)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
