"""A small file system in memory for the snapshots of a chaos run, which can be filled without harm to this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from orchestrator.snapshots.store import SHARED_MEMORY

SIZE_MB = 512

LEFT_BYTES = 64 << 10
"""Bytes that a full memory still has: room for a folder, none for a snapshot."""


@contextmanager
def small_memory(folder: Path) -> Iterator[Path]:
    """Mounts it, has this process and all that it starts keep snapshots there, and yields its folder.

    Raises:
        InputError: it cannot be mounted.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"full-shm needs the command `mount`: {error}.") from error
    if done.returncode:
        raise InputError(f"full-shm needs root, and the right to mount a small file system: {done.stderr.strip()}")
    before = os.environ.get(SHARED_MEMORY)
    os.environ[SHARED_MEMORY] = str(folder)
    try:
        yield folder
    finally:
        del os.environ[SHARED_MEMORY]
        if before is not None:
            os.environ[SHARED_MEMORY] = before
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def fill(folder: Path) -> Path:
    """Writes a file that leaves LEFT_BYTES of the file system; returns its path, to be removed by the caller."""
    path = folder / "ballast"
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize - LEFT_BYTES
    with path.open("wb") as file, suppress(OSError):  # others may write meanwhile
        os.posix_fallocate(file.fileno(), 0, max(free, 1))
    return path
