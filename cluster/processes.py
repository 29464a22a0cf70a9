"""Processes of this machine, by /proc (Linux)."""

from __future__ import annotations

from pathlib import Path

RAYLET = "raylet/raylet"
"""End of a raylet's program."""


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
