"""A local or shared folder as a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence

from data.errors import ConflictError, DiskFullError, ObjectNotFoundError, StoreAccessError
from data.stores.config import StoreConfig
from data.stores.shard_file import ShardFile
from data.stores.store import ATTEMPTS, ObjectInfo, Store, checked_key, opened_file, raise_local_error, source_size

CONTENT_ETAG_BYTES = 65536
"""Largest object whose etag is a hash of its content; above, it is one of size, time and inode.

Hashing a checkpoint to list it would read gigabytes, and objects that are written conditionally (fences) are small.
"""

_TEMP, _LOCK = ".tmp~", ".lock~"  # auxiliary files next to the objects, never listed

_NO_SUCH_CALL = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)
"""What file systems without hard links, locks, or a folder's own fsync answer: FUSE, CIFS, exFAT, FAT."""

# Raised by opening a path where an object store would answer that the key does not exist.
_NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalStore(Store):
    """A folder as a store. The folder is created by the first write.

    Writes are atomic and durable: a temporary file in the target's folder, fsync, then rename or link. Conditional puts
    are atomic among themselves, on every machine that shares the folder and its locks. A file system without hard links
    will do, one without locks (flock) will not.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalStore({self.root!r})"

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _errors("read", path):
            try:
                with open(path, "rb", opener=opened_file) as file:
                    return file.read()
            except _NO_OBJECT:
                raise ObjectNotFoundError(f"There is no {path}.") from None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _temporary(path, data) as temp:
            _publish(temp, path)

    def put_if_absent(self, key: str, data: bytes) -> str:
        path = self._path(key)
        # The lock is for machines that have the folder without hard links, if others have it with them.
        with _temporary(path, data) as temp, _folder_lock(path):
            try:
                os.link(temp, path)  # unlike rename, fails where the name exists
            except FileExistsError:
                raise ConflictError(f"{path} exists already.") from None
            except OSError as error:
                if error.errno not in _NO_SUCH_CALL:
                    raise
                if os.path.lexists(path):
                    raise ConflictError(f"{path} exists already.") from None
                os.replace(temp, path)
            _sync_folder(path)
            return _etag_of(path)

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        path = self._path(key)
        with _temporary(path, data) as temp, _folder_lock(path):
            found = self.head(key)
            if found is None or found.etag != etag:
                raise ConflictError(f"{path} is {found.etag if found else 'gone'}, not the expected version {etag}.")
            _publish(temp, path)
            return _etag_of(path)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        target = self._path(key)
        source_size(path)
        with _temporary(target, None) as temp:
            shutil.copyfile(path, temp)
            _sync(temp)
            _publish(temp, target)

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        source = self._path(key)
        with _errors("read", source):
            try:
                content = open(source, "rb")  # noqa: SIM115 (closed below)
            except _NO_OBJECT:
                raise ObjectNotFoundError(f"There is no {source}.") from None
        with content, _errors("write", os.fspath(path)), open(path, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)

    def open(self, key: str) -> ShardFile:
        return ShardFile(self._path(key), StoreConfig())

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with _errors("read", path):
            return _local_info(key, path)

    def age_s(self, key: str) -> float | None:
        path = self._path(key)
        with _errors("read", path):
            try:
                with open(
                    path, "rb", opener=opened_file
                ) as file:  # opened, because the attributes of files on a share are cached
                    written_at = os.fstat(file.fileno()).st_mtime
            except _NO_OBJECT:
                return None
        try:
            with _temporary(path, None) as temp:  # a file system has no other clock
                now = os.stat(temp).st_mtime
        except (DiskFullError, StoreAccessError):
            now = time.time()
        return max(0.0, now - written_at)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _errors("list", self.root):
            keys = sorted(self._keys(prefix))
        for key in keys:
            info = self.head(key)
            if info is not None:  # else removed since the walk
                yield info

    def unfinished(self, prefix: str = "") -> Sequence[str]:
        with _errors("list", self.root):
            return sorted(self._keys(prefix, temporary=True))

    def _keys(self, prefix: str, *, temporary: bool = False) -> Iterator[str]:
        start = os.path.join(self.root, os.path.dirname(prefix))
        for folder, _, names in os.walk(start, onerror=_raise_unless_gone):
            for name in names:
                key = os.path.relpath(os.path.join(folder, name), self.root).replace(os.sep, "/")
                if key.startswith(prefix) and name.startswith(_TEMP) == temporary and not name.startswith(_LOCK):
                    yield key

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _errors("delete", path), contextlib.suppress(*_NO_OBJECT):
            os.unlink(path)

    def delete_unfinished(self, prefix: str) -> None:
        for key in self.unfinished(prefix):
            self.delete(key)

    def delete_prefix(self, prefix: str) -> int:
        with _errors("delete", self.root):
            keys = list(self._keys(prefix))
        unfinished = self.unfinished(prefix)
        for key in [*keys, *unfinished]:
            self.delete(key)
        # Object stores have no empty folders; here one would remain for every deleted checkpoint.
        folders = {os.path.dirname(self._path(key)) for key in [*keys, *unfinished]}
        for folder in sorted(folders, key=len, reverse=True):
            self._prune(folder)
        return len(keys)

    def _prune(self, folder: str) -> None:
        while folder != self.root and folder.startswith(self.root):
            try:
                if all(name == _LOCK for name in os.listdir(folder)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, _LOCK))
                os.rmdir(folder)
            except OSError:  # in use again, or by another process
                return
            folder = os.path.dirname(folder)

    def url_of(self, key: str = "") -> str:
        return os.path.join(self.root, key) if key else self.root

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(os.path.join(self.root, checked_key(prefix.strip("/"))))

    def check(self) -> None:
        with _errors("write", self.root):
            os.makedirs(self.root, exist_ok=True)
            with _temporary(os.path.join(self.root, "probe"), b"x") as probe, open(probe) as file:
                _lock(file.fileno(), self.root)

    def _path(self, key: str) -> str:
        return os.path.join(self.root, checked_key(key))


@contextlib.contextmanager
def _errors(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_local_error(error, doing, path)


@contextlib.contextmanager
def _temporary(path: str, data: bytes | None) -> Iterator[str]:
    """A temporary file in the folder of `path`, with `data` or empty; removed at the end unless it was renamed."""
    with _errors("write", path):
        handle, temp = _make_temporary(os.path.dirname(path))
        try:
            with open(handle, "wb") as file:
                _share(handle)
                if data is not None:
                    file.write(data)
                    file.flush()
                    os.fsync(handle)
            yield temp
        finally:
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(temp)


def _make_temporary(folder: str) -> tuple[int, str]:
    """A new temporary file in a folder, which is created where it does not exist."""
    for attempt in range(ATTEMPTS):
        os.makedirs(folder, exist_ok=True)
        try:
            return tempfile.mkstemp(prefix=_TEMP, dir=folder)
        except FileNotFoundError:  # another thread or machine has just removed the empty folder
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _share(handle: int) -> None:
    """Gives a file the mode of new files: mkstemp makes private ones, and a shared folder has other readers."""
    try:
        os.fchmod(handle, 0o666 & ~_umask())
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # else modes are those of the mount
            raise


@functools.cache
def _umask() -> int:
    # It can only be read by setting it, which would affect other threads if it happened at every write.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(temp: str, path: str) -> None:
    os.replace(temp, path)
    _sync_folder(path)


def _sync_folder(path: str) -> None:
    try:
        _sync(os.path.dirname(path))  # without it, a crash may lose the name, though not the content
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise


@contextlib.contextmanager
def _folder_lock(path: str) -> Iterator[None]:
    with open(os.path.join(os.path.dirname(path), _LOCK), "ab") as file:
        _lock(file.fileno(), os.path.dirname(path))  # released by the close, also when the process is killed
        yield


def _lock(file: int, folder: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
        raise StoreAccessError(
            f"The file system of {folder} has no locks ({error.strerror}), without which two commands could write one "
            "run at the same time. Use a local disk, a share with locks (NFS 4), or a bucket."
        ) from error


def _raise_unless_gone(error: OSError) -> None:
    """What cannot be listed must not count as empty; what was removed meanwhile, or never was, is."""
    if not isinstance(error, _NO_OBJECT):
        raise error


def _etag_of(path: str) -> str:
    info = _local_info("", path)
    if info is None:
        raise ConflictError(f"{path} was removed while it was being written.")
    return info.etag


def _local_info(key: str, path: str) -> ObjectInfo | None:
    try:
        with open(path, "rb", opener=opened_file) as file:
            stat = os.fstat(file.fileno())
            if stat.st_size <= CONTENT_ETAG_BYTES:
                version = file.read()
            else:
                version = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}".encode()
    except _NO_OBJECT:
        return None
    return ObjectInfo(key, stat.st_size, hashlib.sha256(version).hexdigest()[:32])
