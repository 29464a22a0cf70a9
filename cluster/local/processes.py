"""Inspects and ends processes of this machine, by /proc (Linux)."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

RAYLET = "raylet/raylet"
"""End of the path of a raylet's executable."""

ROOT = Path(__file__).resolve().parents[2]
"""Folder with the project's packages."""


def calling(module: str, function: str) -> tuple[str, ...]:
    """Command line that calls a function of one of our modules; further arguments become its `sys.argv[1:]`.

    Not `-m`, which would require that the project is installed or that the current folder is the project's.
    """
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; {module}.{function}()"
    return sys.executable, "-c", script


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended."""
    return _status(pid)[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Child processes of `pid` that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            state, parent = _status(int(entry.name))
            if parent == pid and state not in "ZX":
                found.append(int(entry.name))
    return found


def of_session(session: int) -> list[int]:
    """Processes of a session that have not ended, whatever their parents."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _session(pid) == session and is_alive(pid)]


def end_session(session: int) -> None:
    """Sends SIGKILL to all processes of a session until none is left."""
    while pids := of_session(session):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def start_time(pid: int) -> str | None:
    """Start time of a process, which distinguishes processes with the same pid; None if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def command_line(pid: int) -> str:
    """Arguments of a process, or the title that it has set; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _status(pid: int) -> tuple[str, int]:
    """State letter and parent; ("X", -1) if there is no such process."""
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
