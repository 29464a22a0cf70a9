"""The interface of a store of objects, and what the kinds of stores share.

There are two ways to the same storage. Run state (fences, manifests, checkpoints) goes through `Store`: boto3 for S3
(`data.stores.s3`), which has conditional puts and distinguishes a wrong key from a missing bucket, and plain files for
a folder (`data.stores.local`). The bytes of shards go through `pyarrow.fs` (`data.stores.shard_file`), which reads
ranges without holding the interpreter lock, and supports gs:// too.

Every call is bounded in time. An endpoint that has never answered this store is for the user to fix (StoreAccessError);
one that answered before may recover (TransientStoreError).
"""

from __future__ import annotations

import errno
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from stat import S_ISDIR, S_ISREG
from typing import NoReturn
from urllib.parse import unquote

from data.errors import DiskFullError, InputError, MantaError, StoreAccessError, TransientStoreError

ATTEMPTS = 3
"""Attempts of every request, with a back-off of at most 1 + 2 s.

The connection time-out is divided among them, so that a dead endpoint is given up after about StoreConfig.timeout_s.
"""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object's metadata. `etag` changes whenever the content is replaced."""

    key: str
    size: int
    etag: str


def split_url(url: str) -> tuple[str, str]:
    """The scheme ("s3", "gs" or "file") and the rest; for "file" an absolute path without a trailing slash.

    Raises:
        InputError: the scheme is another, the bucket is missing, a file:// URL has a host, or `url` is empty.
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

    Any method may raise StoreAccessError (for the user to fix), TransientStoreError (worth a later retry) and, when it
    writes, DiskFullError. Keys are relative, use "/" and are never empty.
    """

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            ObjectNotFoundError: there is none.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Writes or replaces an object. Readers see the old or the new one, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> str:
        """Writes an object that must not exist yet; returns its etag.

        Raises:
            ConflictError: it exists. After a lost answer this may be the same call's own write; read it to find out.
        """

    @abstractmethod
    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """Replaces version `etag` of an object; returns the new etag.

        Raises:
            ConflictError: the object is gone or is another version. After a lost answer, as above.
        """

    @abstractmethod
    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Writes a local file as an object, in parts where it is large."""

    @abstractmethod
    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """Writes an object into a local file, without holding it in memory; in parts at once where it is large.

        Raises:
            ObjectNotFoundError: there is none.
            DiskFullError: there is no room for the file.
        """

    @abstractmethod
    def open(self, key: str) -> RawIOBase:
        """Opens an object for reads at any position; what is not read is not transferred.

        Raises:
            ObjectNotFoundError: there is none.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """Size and etag of an object; None where there is none."""

    @abstractmethod
    def age_s(self, key: str) -> float | None:
        """Seconds since an object was written, both times by the store's clock; None where there is none.

        The clocks of machines that share a store may differ by minutes.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix` (a plain string prefix), sorted by key."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes an object. A missing object is no error."""

    @abstractmethod
    def unfinished(self, prefix: str = "") -> Sequence[str]:
        """Keys below `prefix` of writes that have begun and not ended, sorted: running ones, and those interrupted.

        Where a store does not tell, there are none.
        """

    @abstractmethod
    def delete_unfinished(self, prefix: str) -> None:
        """Removes what `unfinished` lists. A write that is running fails then; objects stay as they are."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> int:
        """Removes all objects whose key starts with `prefix`, and what `unfinished` lists; returns how many objects."""

    @abstractmethod
    def url_of(self, key: str = "") -> str:
        """The s3:// URL or absolute path of an object, for messages and for `filesystem_for`."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """The store below this prefix of keys."""

    @abstractmethod
    def check(self) -> None:
        """Checks that the storage answers and may be used, well within 15 s at the default time-out.

        Raises:
            StoreAccessError: names what failed (endpoint, bucket, credentials, folder) and the remedy.
            StoreSilentError: it has not answered this process yet, and does not now.
        """


def prove(store: Store) -> None:
    """Proves that a store keeps what is written, and has nothing that was not, before anything rests on it.

    Raises:
        StoreAccessError: it does not, or refuses the writing.
    """
    key, content = f"probe-{uuid.uuid4().hex}", os.urandom(64)
    store.put(key, content)
    try:
        if (found := store.get(key)) != content:
            raise StoreAccessError(
                f"{store.url_of()} does not keep what is written: of 64 bytes, {len(found)} others came back. Check "
                "store.endpoint_url."
            )
        if store.head(f"{key}-never-written") is not None:
            raise StoreAccessError(
                f"{store.url_of()} has every object that it is asked for, so it is no object store. Check "
                "store.endpoint_url."
            )
    finally:
        with suppress(MantaError):  # such as no right to delete; what was found out matters more
            store.delete(key)


def checked_key(key: str) -> str:
    """The key, unchanged.

    Raises:
        InputError: it is not valid.
    """
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.rstrip("/").split("/")):
        raise InputError(
            f"{key!r} is not a valid key: keys are relative, not empty, and have no empty, '.' or '..' part."
        )
    return key


def source_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a local file to be stored. Errors name this file, not the target.

    Raises:
        StoreAccessError, TransientStoreError: the file cannot be read.
    """
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise_local_error(error, "read", os.fspath(path))


def opened_file(path: str, flags: int) -> int:
    """Opens a file for reading; refuses what is none: a pipe might never have a writer.

    Raises:
        StoreAccessError: it is a pipe, a socket or a device.
    """
    handle = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if S_ISREG(mode):
        return handle
    os.close(handle)
    if S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise StoreAccessError(f"{path} is not a file but a pipe or a device, which nobody may ever write to. Remove it.")


def raise_local_error(error: OSError, doing: str, path: str) -> NoReturn:
    """Raises the MantaError for an OSError of the local file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"No space left to {doing} {path}. Free some, or point the run at another disk.") from error
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        raise TransientStoreError(f"Could not {doing} {path}: {error.strerror}. The share may recover.") from error
    raise StoreAccessError(f"Could not {doing} {path}: {error.strerror}. Check the path and its rights.") from error


def first_line(error: Exception) -> str:
    """The first line of another library's error, for use inside a message."""
    return str(error).strip().partition("\n")[0].rstrip(".")
