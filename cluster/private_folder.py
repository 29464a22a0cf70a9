"""Folders in places that all users of a machine share: whoever makes one first may not be the one it is for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cluster.errors import ClusterError


def private_folder(folder: Path) -> Path:
    """Creates a folder that no other user can read or change, unless it is there.

    Raises:
        ClusterError: it is there, and is a link, another user's, or open to others.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if not is_private(folder):
        raise ClusterError(f"{folder} is accessible to other users, so its content cannot be trusted. Remove it.")
    return folder


def is_private(folder: Path) -> bool:
    """Whether a folder is no link, belongs to this user, and is closed to others; True where there is none yet."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
