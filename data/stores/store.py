"""Object storage behind one small interface: what every kind of store promises, and what they share.

Two roads lead to the same storage. Control and run state (fences, manifests, checkpoints) go through `Store`: boto3 for
S3 (`data.s3_store`), which has conditional puts and tells a wrong key from a missing bucket, and plain files for a
folder (`data.local_store`). The bytes of shards go through `pyarrow.fs` (`data.shard_file`), which reads ranges without
holding the interpreter lock and knows gs:// too.

Every call is bounded in time. An endpoint that never answered this store is the user's to fix (StoreAccessError); one
that did answer and then went away may come back (TransientStoreError).
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import unquote

from data.errors import DiskFullError, InputError, StoreAccessError, TransientStoreError

# Three tries with a back-off of at most 1 + 2 s. The connection time-out is divided among them, so that giving up on a
# dead endpoint takes about StoreConfig.timeout_s, not three times that.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object without reading it; `etag` changes whenever the content is replaced."""

    key: str
    size: int
    etag: str


def split_url(url: str) -> tuple[str, str]:
    """The scheme ("s3", "gs" or "file") and what follows it; for "file" an absolute path without a trailing slash.

    Raises:
        InputError: another scheme, no bucket, a file:// URL with a host, or nothing at all.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url:
            raise InputError("A storage path is empty. Give s3://bucket/prefix, file:///path or a plain path.")
        return "file", os.path.abspath(os.path.expanduser(url))
    if scheme == "file":
        if not rest.startswith("/"):
            raise InputError(f"{url} names a host or a relative path. Write file:///absolute/path (three slashes).")
        return "file", os.path.abspath(unquote(rest))
    if scheme not in ("s3", "gs"):
        raise InputError(f"{url}: no such storage. There are s3://bucket/prefix, gs://, file:// and plain paths.")
    if not rest.partition("/")[0]:
        raise InputError(f"{url} names no bucket. Write {scheme}://bucket/prefix.")
    return scheme, rest


class Store(ABC):
    """Objects under keys, below one prefix. Safe to share between threads and to pickle.

    Any method may raise StoreAccessError (the user's to fix), TransientStoreError (worth a later retry) and, when it
    writes, DiskFullError. Keys are relative, use "/" and are never empty.
    """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectNotFoundError where there is none."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object; readers see the old or the new one, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> str:
        """Write an object that must not exist yet; returns its etag.

        Raises:
            ConflictError: it exists. After a lost answer it may be this very call's own write: who must know reads it.
        """

    @abstractmethod
    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """Replace the version `etag` of an object; returns the new etag.

        Raises:
            ConflictError: the object is gone or another version; the same doubt after a lost answer as above.
        """

    @abstractmethod
    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Write a local file as an object, in parts where it is large."""

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """Size and etag of an object, or None where there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` (a plain string prefix), sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with `prefix`; returns how many."""

    @abstractmethod
    def url_of(self, key: str = "") -> str:
        """Where an object is, for messages and for `filesystem_for`: an s3:// URL or an absolute path."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """The store one level further down."""

    @abstractmethod
    def check(self) -> None:
        """Make sure the storage answers and may be used, well within 15 s at the default time-out.

        Raises:
            StoreAccessError: what failed (endpoint, bucket, credentials, folder) and what to do about it.
        """


def checked_key(key: str) -> str:
    """The key itself, if it is one. Raises InputError where it is not."""
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.rstrip("/").split("/")):
        raise InputError(f"{key!r} is no key: keys are relative, not empty, and have no empty, '.' or '..' part.")
    return key


def source_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file that is to be stored; told apart from trouble with the target."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise_local_error(error, "read", os.fspath(path))


def raise_local_error(error: OSError, doing: str, path: str) -> NoReturn:
    """Raise what an OSError of the local file system means to a user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"No space left to {doing} {path}. Free some, or point the run at another disk.") from error
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        raise TransientStoreError(f"Could not {doing} {path}: {error.strerror}. The share may recover.") from error
    raise StoreAccessError(f"Could not {doing} {path}: {error.strerror}. Check the path and its rights.") from error


def first_line(error: Exception) -> str:
    """What another library says, short enough to stand inside a message of ours."""
    return str(error).strip().partition("\n")[0].rstrip(".")
