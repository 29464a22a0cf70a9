"""Object storage: S3-compatible buckets and local folders behind one small interface.

Two roads lead to the same storage. Control and run state (fences, manifests, checkpoints) go through `Store`: boto3 for
S3, which has conditional puts and tells a wrong key from a missing bucket. The bytes of shards go through `pyarrow.fs`
(`filesystem_for`, `ShardFile`), which reads ranges without holding the interpreter lock and knows gs:// too.

Every call is bounded in time. An endpoint that never answered this store is the user's to fix (StoreAccessError); one
that did answer and then went away may come back (TransientStoreError).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import shutil
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

from data.config import StoreConfig
from data.errors import (
    ConflictError,
    DiskFullError,
    InputError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    TransientStoreError,
)

# Three tries with a back-off of at most 1 + 2 s. The connection time-out is divided among them, so that giving up on a
# dead endpoint takes about StoreConfig.timeout_s, not three times that.
ATTEMPTS = 3
# Silence on an open connection, not the length of a transfer: a large object may take as long as its bytes keep coming.
READ_TIMEOUT_S = 60.0
# Up to here a local etag is the hash of the content; above, of size, time and inode. Hashing a checkpoint to list it
# would read gigabytes, and what is written conditionally (fences) is small.
CONTENT_ETAG_BYTES = 65536
_DELETE_BATCH = 1000  # the most keys one DeleteObjects request takes
_TEMP, _LOCK = ".tmp~", ".lock~"  # files of our own beside local objects, never listed
# What opening a local path raises where an object store would say that there is no such key.
_NO_OBJECT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

_FULL = ("insufficientstorage", "xminiostoragefull", "quotaexceeded", "nospaceleft", "entitytoolargeforquota")
_FULL_WORDS = ("no space left", "insufficient storage", "storage full", "disk full", "no writable volumes")
_DENIED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)
_CONFLICT = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})
_TRANSIENT = frozenset({"RequestTimeout", "SlowDown", "Throttling"})  # besides every answer of 500 and above

_T = TypeVar("_T")


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


def open_store(url: str, config: StoreConfig) -> Store:
    """The store at `s3://bucket/prefix`, `file:///path` or a plain path. Contacts nothing yet; `check()` does.

    Raises:
        InputError: `url` is of another kind. gs:// holds shards only, as it is read without conditional writes here.
    """
    scheme, rest = split_url(url)
    if scheme == "file":
        return LocalStore(rest)
    if scheme == "gs":
        raise InputError(f"{url}: gs:// may hold shards, not run state. Give s3://bucket/prefix or a path.")
    bucket, _, prefix = rest.partition("/")
    return S3Store(bucket, prefix.strip("/"), config)


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


def _checked_key(key: str) -> str:
    if not key or key.startswith("/") or any(part in ("", ".", "..") for part in key.rstrip("/").split("/")):
        raise InputError(f"{key!r} is no key: keys are relative, not empty, and have no empty, '.' or '..' part.")
    return key


class LocalStore(Store):
    """A folder as a store; it is made at the first write.

    Writes are atomic and durable: a temporary file beside the target, fsync, then rename or link. Conditional puts are
    atomic among themselves, on every machine that shares the folder and its locks.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalStore({self.root!r})"

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with self._errors("read", path):
            try:
                with open(path, "rb") as file:
                    return file.read()
            except _NO_OBJECT:
                raise ObjectNotFoundError(f"There is no {path}.") from None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._errors("write", path), self._temporary(path, data) as temp:
            self._publish(temp, path)

    def put_if_absent(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._errors("write", path), self._temporary(path, data) as temp:
            try:
                os.link(temp, path)  # unlike rename, fails where the name is taken
            except FileExistsError:
                raise ConflictError(f"{path} exists already.") from None
            _sync_folder(path)
            return _etag_of(path)

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        path = self._path(key)
        with self._errors("write", path), self._temporary(path, data) as temp, _folder_lock(path):
            found = self.head(key)
            if found is None or found.etag != etag:
                raise ConflictError(f"{path} is {found.etag if found else 'gone'}, not the expected version {etag}.")
            self._publish(temp, path)
            return _etag_of(path)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        target = self._path(key)
        _source_size(path)
        with self._errors("write", target), self._temporary(target, None) as temp:
            shutil.copyfile(path, temp)
            _sync(temp)
            self._publish(temp, target)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with self._errors("read", path):
            return _local_info(key, path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors("list", self.root):
            keys = sorted(key for key in self._keys(prefix) if key.startswith(prefix))
        for key in keys:
            info = self.head(key)
            if info is not None:  # else removed since the walk
                yield info

    def _keys(self, prefix: str) -> Iterator[str]:
        start = os.path.join(self.root, os.path.dirname(prefix))
        for folder, _, names in os.walk(start):
            for name in names:
                if not name.startswith((_TEMP, _LOCK)):
                    yield os.path.relpath(os.path.join(folder, name), self.root).replace(os.sep, "/")

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors("delete", path), contextlib.suppress(*_NO_OBJECT):
            os.unlink(path)

    def delete_prefix(self, prefix: str) -> int:
        with self._errors("delete", self.root):
            keys = [key for key in self._keys(prefix) if key.startswith(prefix)]
        for key in keys:
            self.delete(key)
        # Object stores have no empty folders; here they would pile up, one for every checkpoint that is thinned out.
        for folder in sorted({os.path.dirname(self._path(key)) for key in keys}, key=len, reverse=True):
            self._prune(folder)
        return len(keys)

    def _prune(self, folder: str) -> None:
        while folder != self.root and folder.startswith(self.root):
            try:
                if all(name == _LOCK for name in os.listdir(folder)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(folder, _LOCK))
                os.rmdir(folder)
            except OSError:  # in use again, or by somebody else
                return
            folder = os.path.dirname(folder)

    def url_of(self, key: str = "") -> str:
        return os.path.join(self.root, key) if key else self.root

    def child(self, prefix: str) -> LocalStore:
        return LocalStore(os.path.join(self.root, _checked_key(prefix.strip("/"))))

    def check(self) -> None:
        with self._errors("write", self.root):
            os.makedirs(self.root, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass

    def _path(self, key: str) -> str:
        return os.path.join(self.root, _checked_key(key))

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes | None) -> Iterator[str]:
        handle, temp = _made_in(os.path.dirname(path))
        try:
            with open(handle, "wb") as file:
                os.fchmod(handle, 0o666 & ~_umask())  # mkstemp makes private files; a shared folder wants readers
                if data is not None:
                    file.write(data)
                    file.flush()
                    os.fsync(handle)
            yield temp
        finally:
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(temp)

    def _publish(self, temp: str, path: str) -> None:
        os.replace(temp, path)
        _sync_folder(path)

    @contextlib.contextmanager
    def _errors(self, doing: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise_local_error(error, doing, path)


def raise_local_error(error: OSError, doing: str, path: str) -> NoReturn:
    """Raise what an OSError of the local file system means to a user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFullError(f"No space left to {doing} {path}. Free some, or point the run at another disk.") from error
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        raise TransientStoreError(f"Could not {doing} {path}: {error.strerror}. The share may recover.") from error
    raise StoreAccessError(f"Could not {doing} {path}: {error.strerror}. Check the path and its rights.") from error


def _made_in(folder: str) -> tuple[int, str]:
    """A new temporary file in a folder, which is made if need be."""
    for attempt in range(ATTEMPTS):
        os.makedirs(folder, exist_ok=True)
        try:
            return tempfile.mkstemp(prefix=_TEMP, dir=folder)
        except FileNotFoundError:  # another thread or machine has just pruned it as empty
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _source_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file that is to be stored; told apart from trouble with the target."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise_local_error(error, "read", os.fspath(path))


@functools.cache
def _umask() -> int:
    # There is no way to read it but to set it, which other threads would notice if it happened at every write.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: str) -> None:
    _sync(os.path.dirname(path))  # without it a crash may forget the name, though it keeps the content


@contextlib.contextmanager
def _folder_lock(path: str) -> Iterator[None]:
    import fcntl

    with open(os.path.join(os.path.dirname(path), _LOCK), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the close, also when the process is killed
        yield


def _etag_of(path: str) -> str:
    info = _local_info("", path)
    if info is None:
        raise ConflictError(f"{path} was removed while it was being written.")
    return info.etag


def _local_info(key: str, path: str) -> ObjectInfo | None:
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_size <= CONTENT_ETAG_BYTES:
                version = file.read()
            else:
                version = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}".encode()
    except _NO_OBJECT:
        return None
    return ObjectInfo(key, stat.st_size, hashlib.sha256(version).hexdigest()[:32])


@dataclass(frozen=True)
class S3Access:
    """How S3 is reached, with the standard AWS variables filled in. None leaves it to the AWS libraries' own chain."""

    endpoint_url: str | None
    region: str | None
    access_key_id: str | None
    secret_access_key: str | None
    timeout_s: float

    @classmethod
    def of(cls, config: StoreConfig) -> S3Access:
        """Config first, then the environment. Raises StoreAccessError where only one half of a key pair is given."""
        if (config.access_key_id is None) != (config.secret_access_key is None):
            raise StoreAccessError("store.access_key_id and store.secret_access_key go together; give both or neither.")
        return cls(
            endpoint_url=config.endpoint_url or _env("AWS_ENDPOINT_URL_S3") or _env("AWS_ENDPOINT_URL"),
            region=config.region or _env("AWS_DEFAULT_REGION") or _env("AWS_REGION"),
            access_key_id=config.access_key_id,
            secret_access_key=config.secret_access_key,
            timeout_s=config.timeout_s,
        )

    @property
    def where(self) -> str:
        """The endpoint, for messages."""
        return self.endpoint_url or f"AWS S3 (region {self.region or 'us-east-1'})"


def _env(name: str) -> str | None:
    return os.environ.get(name) or None


def _aws_environment() -> tuple[tuple[str, str], ...]:
    """Part of every cache key: what the config leaves out is looked up here when a client is made."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


_clients_lock = threading.Lock()


def _client(access: S3Access, read_timeout_s: float) -> Any:
    with _clients_lock:
        return _new_client(access, read_timeout_s, _aws_environment())


@functools.lru_cache(maxsize=4)
def _session(environment: tuple[tuple[str, str], ...]) -> Any:
    """One session for many clients, which share its parsed service descriptions. Call it under `_clients_lock`."""
    import boto3.session

    return boto3.session.Session()


@functools.lru_cache(maxsize=16)
def _new_client(access: S3Access, read_timeout_s: float, environment: tuple[tuple[str, str], ...]) -> Any:
    from botocore.config import Config

    session = _session(environment)
    return session.client(
        "s3",
        endpoint_url=access.endpoint_url,
        region_name=access.region or session.region_name or "us-east-1",
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
        config=Config(
            connect_timeout=access.timeout_s / ATTEMPTS,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=32,
            # Many S3-compatible stores know neither bucket host names nor the newer default checksums.
            s3={"addressing_style": "path"} if access.endpoint_url else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class S3Store(Store):
    """A prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str, config: StoreConfig, reached: bool = False) -> None:
        """`prefix` has no slash at its ends. `reached`: the endpoint is known to have answered before."""
        self.bucket = bucket
        self.prefix = prefix
        self.config = config
        # Pickled along: a worker's first call is not the first contact when the driver has been talking to the store.
        self._reached = reached

    def __repr__(self) -> str:
        return f"S3Store({self.url_of()!r})"

    def get(self, key: str) -> bytes:
        return self._call(f"read {self.url_of(key)}", lambda: self._read(self._name(key)))

    def _read(self, name: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        for attempt in range(ATTEMPTS):
            body = self._s3.get_object(Bucket=self.bucket, Key=name)["Body"]
            # botocore retries until the headers are in; a connection lost in the body is ours to retry.
            with contextlib.closing(body):
                try:
                    data: bytes = body.read()
                    return data
                except BotoCoreError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data, {})

    def put_if_absent(self, key: str, data: bytes) -> str:
        return self._put(key, data, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        try:
            return self._put(key, data, {"IfMatch": f'"{etag}"'})
        except ObjectNotFoundError:
            raise ConflictError(f"{self.url_of(key)} is gone, not the expected version {etag}.") from None

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        def write() -> str:
            answer = self._s3.put_object(Bucket=self.bucket, Key=self._name(key), Body=data, **condition)
            return _bare(answer["ETag"])

        return self._call(f"write {self.url_of(key)}", write)

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        from boto3.s3.transfer import TransferConfig

        size = _source_size(path)
        # 10,000 parts is S3's limit, and the default parts of 8 MiB end at 80 GB.
        transfer = TransferConfig(max_concurrency=4, multipart_chunksize=max(8 << 20, -(-size // 9_000)))
        self._call(
            f"write {self.url_of(key)}",
            lambda: self._s3.upload_file(os.fspath(path), self.bucket, self._name(key), Config=transfer),
        )

    def head(self, key: str) -> ObjectInfo | None:
        def ask() -> ObjectInfo:
            answer = self._s3.head_object(Bucket=self.bucket, Key=self._name(key))
            return ObjectInfo(key, answer["ContentLength"], _bare(answer["ETag"]))

        try:
            return self._call(f"read {self.url_of(key)}", ask)
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = f"{self.prefix}/" if self.prefix else ""

        def walk() -> list[ObjectInfo]:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start + prefix)
            return [
                ObjectInfo(found["Key"].removeprefix(start), found["Size"], _bare(found["ETag"]))
                for page in pages
                for found in page.get("Contents", ())
                if not found["Key"].endswith("/")  # markers that consoles leave to show an empty folder
            ]

        # Sorted here, as some stores walk folder by folder and so put "a/x" before "a-b".
        yield from sorted(self._call(f"list {self.url_of(prefix)}", walk), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._call(f"delete {self.url_of(key)}", lambda: self._s3.delete_object(Bucket=self.bucket, Key=name))

    def delete_prefix(self, prefix: str) -> int:
        keys = [info.key for info in self.list(prefix)]
        for first in range(0, len(keys), _DELETE_BATCH):
            self._delete_batch(prefix, [self._name(key) for key in keys[first : first + _DELETE_BATCH]])
        return len(keys)

    def _delete_batch(self, prefix: str, names: Sequence[str]) -> None:
        doing = f"delete {self.url_of(prefix)}"
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self._call(doing, lambda: self._s3.delete_objects(Bucket=self.bucket, Delete=objects))
        for failed in answer.get("Errors", ()):
            raise StoreAccessError(
                f"Could not {doing}: {failed.get('Code')} {failed.get('Message')} for {failed.get('Key')}, first of "
                f"{len(answer['Errors'])}. Check that the credentials may delete."
            )

    def url_of(self, key: str = "") -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, key) if part)

    def child(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, self._name(prefix.strip("/")), self.config, self._reached)

    def check(self) -> None:
        def ask() -> None:
            # LIST, because the answer to HEAD has no body and cannot tell a missing bucket from a refused key. With a
            # short read time-out: something that accepts connections and stays silent is no S3 endpoint.
            access = S3Access.of(self.config)
            client = _client(access, access.timeout_s / ATTEMPTS)
            client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)

        try:
            self._call(f"list {self.url_of()}", ask)
        except TransientStoreError as error:
            if self._reached:
                raise
            raise StoreAccessError(f"{error} Check that store.endpoint_url is an S3 endpoint and is up.") from error

    @property
    def _s3(self) -> Any:
        return _client(S3Access.of(self.config), READ_TIMEOUT_S)

    def _name(self, key: str) -> str:
        _checked_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, doing: str, request: Callable[[], _T]) -> _T:
        """Run one request; its failure becomes one of our errors, saying what was being done."""
        try:
            result = request()
        except MantaError:
            raise
        except Exception as error:
            translated = self._translated(error, doing)
            self._reached = self._reached or isinstance(translated, ObjectNotFoundError | ConflictError)
            raise translated from error
        self._reached = True
        return result

    def _translated(self, error: Exception, doing: str) -> MantaError:
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as boto

        where = S3Access.of(self.config).where
        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
            return self._translated(error.__context__, doing)
        if isinstance(error, boto.ClientError):
            return _answer_error(error.response, doing, self.bucket, where)
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
            return StoreAccessError(
                f"Could not {doing}: no usable credentials were found ({error}). Set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or store.access_key_id and store.secret_access_key."
            )
        if isinstance(error, boto.SSLError):
            return StoreAccessError(
                f"Could not {doing}: no TLS with {where} ({error}). Is it http:// rather than https://?"
            )
        if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
            message = f"Could not {doing}: no connection to {where} in {ATTEMPTS} attempts ({_first_line(error)})."
            if self._reached:
                return TransientStoreError(f"{message} It answered before, so it may come back.")
            return StoreAccessError(f"{message} Is store.endpoint_url (or AWS_ENDPOINT_URL) right, and the store up?")
        if isinstance(error, boto.ParamValidationError | ValueError):
            return StoreAccessError(f"Could not {doing} at {where}: {_first_line(error)}. Check URL and endpoint.")
        return TransientStoreError(f"Could not {doing}: {where} did not answer in full ({_first_line(error)}).")


def _answer_error(answer: dict[str, Any], doing: str, bucket: str, where: str) -> MantaError:
    """What an error answer of an S3 server means to a user."""
    code = str(answer.get("Error", {}).get("Code", ""))
    text = str(answer.get("Error", {}).get("Message", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{status} {code}: {text}".rstrip(": ")
    if status == 507 or code.lower() in _FULL or any(words in text.lower() for words in _FULL_WORDS):
        return DiskFullError(f"Could not {doing}: {where} has no space left ({said}). Free some or raise its quota.")
    if code in _CONFLICT or status == 412:
        return ConflictError(f"Could not {doing}: the object exists already or is another version ({said}).")
    if code == "NoSuchBucket":
        return StoreAccessError(f"Could not {doing}: no bucket '{bucket}' at {where}. Create it, or correct the name.")
    if code in _DENIED or status in (401, 403):
        return StoreAccessError(
            f"Could not {doing}: {where} refused the credentials ({said}). Check the access key, the secret key, the "
            f"region and what they may do in bucket '{bucket}'."
        )
    if code in ("NoSuchKey", "404") or status == 404:
        return ObjectNotFoundError(f"Could not {doing}: there is no such object.")
    if status >= 500 or status == 429 or code in _TRANSIENT:
        return TransientStoreError(f"Could not {doing}: {where} kept failing through {ATTEMPTS} attempts ({said}).")
    return StoreAccessError(f"Could not {doing}: {where} refused ({said}). Check the URL, the endpoint and the region.")


def _bare(etag: str) -> str:
    return etag.strip('"')


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def filesystem_for(url: str, config: StoreConfig) -> tuple[Any, str]:
    """The pyarrow filesystem and the path in it for a shard; called where it is used, so nothing has to be pickled.

    Raises:
        InputError: unknown kind of URL, or gs:// without the optional extra it needs.
        StoreAccessError: half a key pair in the config.
    """
    scheme, rest = split_url(url)
    if scheme == "s3":
        return _s3_filesystem(S3Access.of(config), _aws_environment()), rest
    if scheme == "gs":
        return _gs_filesystem(config.timeout_s), rest
    from pyarrow import fs

    return fs.LocalFileSystem(), rest


@functools.lru_cache(maxsize=16)  # one pool of connections for all shards of a process
def _s3_filesystem(access: S3Access, environment: tuple[tuple[str, str], ...]) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {}
    if access.endpoint_url:
        scheme, separator, host = access.endpoint_url.partition("://")
        if not separator:
            raise StoreAccessError(f"The endpoint {access.endpoint_url} has no scheme. Write http://… or https://….")
        options = {"scheme": scheme, "endpoint_override": host.rstrip("/"), "region": access.region or "us-east-1"}
    elif access.region:
        options = {"region": access.region}  # without one, the AWS library looks into its profiles
    return fs.S3FileSystem(
        access_key=access.access_key_id,
        secret_key=access.secret_access_key,
        connect_timeout=access.timeout_s / ATTEMPTS,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **options,
    )


@functools.lru_cache(maxsize=1)
def _gs_filesystem(timeout_s: float) -> Any:
    from pyarrow import fs

    if hasattr(fs, "GcsFileSystem"):
        from datetime import timedelta

        # Its own default is to retry for 15 minutes, which looks like a hang.
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=timeout_s * ATTEMPTS))
    try:
        import gcsfs
    except ImportError:
        raise InputError("gs:// needs a package that is not installed. Run: pip install 'manta[gs]'") from None
    return fs.PyFileSystem(fs.FSSpecHandler(gcsfs.GCSFileSystem()))


class ShardFile(io.RawIOBase):
    """A shard, open for reading at any place, that reconnects when the network drops.

    Failures of the storage leave it as TransientStoreError or StoreAccessError, never as OSError. So an OSError from a
    decompressor or a Parquet reader on top of it is about the content, and the shard is to blame.
    """

    def __init__(self, url: str, config: StoreConfig, retry_delay_s: float = 0.2) -> None:
        """`retry_delay_s`: pause before the second try; it doubles before the third."""
        super().__init__()
        self.url = url
        self._filesystem, self._path = filesystem_for(url, config)
        self._retry_delay_s = retry_delay_s
        self._file: Any = None
        self._position = 0
        self._size = int(self._retried(lambda file: file.size()))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._position))
        if wanted == 0:
            return 0
        position = self._position
        data = self._retried(lambda file: file.read_at(wanted, position))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        file, self._file = getattr(self, "_file", None), None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _retried(self, action: Callable[[Any], _T]) -> _T:
        for attempt in range(ATTEMPTS):
            try:
                if self._file is None:
                    self._file = self._filesystem.open_input_file(self._path)
                return action(self._file)
            except FileNotFoundError:
                raise ObjectNotFoundError(f"{self.url} is gone.") from None
            except OSError as error:
                self._drop()
                if isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error):
                    raise StoreAccessError(f"Could not read {self.url}: access denied. Check its rights.") from error
                if attempt == ATTEMPTS - 1:
                    failure = f"Could not read {self.url} in {ATTEMPTS} attempts: {_first_line(error)}"
                    raise TransientStoreError(f"{failure}. The storage may recover.") from error
                time.sleep(self._retry_delay_s * 2**attempt)
        raise AssertionError("unreachable")
