"""Reads the bytes of shards by `pyarrow.fs`: the file system of a URL, and a file that reconnects."""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data.errors import InputError, ObjectNotFoundError, StoreAccessError, TransientStoreError, install_command
from data.stores.bounded_call import Transfer, bounded
from data.stores.config import StoreConfig
from data.stores.s3_access import READ_TIMEOUT_S, S3Access, aws_environment
from data.stores.store import ATTEMPTS, first_line, split_url

_T = TypeVar("_T")


def filesystem_for(url: str, config: StoreConfig) -> tuple[Any, str]:
    """The pyarrow file system of a URL, and the path in it. File systems are made where they are used, never pickled.

    Raises:
        InputError: the kind of URL is unknown, or gs:// lacks the optional extra that it needs.
        StoreAccessError: the config has half of a key pair.
    """
    scheme, rest = split_url(url)
    if scheme == "s3":
        return _s3_filesystem(S3Access.of(config), aws_environment()), rest
    if scheme == "gs":
        return _gs_filesystem(config.timeout_s), rest
    from pyarrow import fs

    return fs.LocalFileSystem(), rest


@functools.lru_cache(maxsize=16)  # all shards of a process share one pool of connections
def _s3_filesystem(access: S3Access, environment: tuple[tuple[str, str], ...]) -> Any:
    from pyarrow import fs

    options: dict[str, Any] = {}
    if access.endpoint_url:
        scheme, separator, host = access.endpoint_url.partition("://")
        if not separator:
            raise StoreAccessError(f"The endpoint {access.endpoint_url} has no scheme. Write http://… or https://….")
        options = {"scheme": scheme, "endpoint_override": host.rstrip("/"), "region": access.region or "us-east-1"}
    elif access.region:
        options = {"region": access.region}  # without one, the AWS library reads its profiles
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

        # The default is to retry for 15 minutes, which looks like a hang.
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=timeout_s * ATTEMPTS))
    try:
        import gcsfs
    except ImportError:
        raise InputError(f"gs:// needs a package that is not installed: {install_command('gs')}.") from None
    return fs.PyFileSystem(fs.FSSpecHandler(gcsfs.GCSFileSystem()))


class ShardFile(io.RawIOBase):
    """A shard open for random reads, which reconnects when the connection drops.

    Failures of the storage are raised as TransientStoreError or StoreAccessError, never as OSError. So an OSError from
    a decompressor or a Parquet reader on top of it is an error in the shard's content.
    """

    _file: Any = None  # on the class, because close() also runs after a constructor that failed

    def __init__(self, url: str, config: StoreConfig, retry_delay_s: float = 0.2) -> None:
        """`retry_delay_s`: pause before the second attempt; it doubles before the third."""
        super().__init__()
        self.url = url
        self._filesystem, self._path = filesystem_for(url, config)
        self._is_remote = split_url(url)[0] in ("s3", "gs")
        self._retry_delay_s = retry_delay_s
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
        data = self._retried(lambda file: file.read_at(wanted, self._position), wanted)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _retried(self, action: Callable[[Any], _T], size: int = 0) -> _T:
        for attempt in range(ATTEMPTS):
            try:
                file, result = self._bounded(action, size)
                self._file = file
                return result
            except FileNotFoundError:
                raise ObjectNotFoundError(f"{self.url} is gone.") from None
            except OSError as error:
                self._drop()
                if isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error):
                    raise StoreAccessError(f"Could not read {self.url}: access denied. Check its rights.") from error
                if attempt == ATTEMPTS - 1:
                    failure = f"Could not read {self.url} in {ATTEMPTS} attempts: {first_line(error)}"
                    raise TransientStoreError(f"{failure}. The storage may recover.") from error
                time.sleep(self._retry_delay_s * 2**attempt)
        raise AssertionError("unreachable")

    def _bounded(self, action: Callable[[Any], _T], size: int) -> tuple[Any, _T]:
        """The open file, and what `action` gives of it, which transfers `size` bytes."""
        opened = self._file

        def act(_: Transfer | None = None) -> tuple[Any, _T]:
            file = self._filesystem.open_input_file(self._path) if opened is None else opened
            return file, action(file)

        if not self._is_remote:
            return act()
        try:
            return bounded(act, f"read {self.url}", size=size)
        except TransientStoreError:  # the thread that was given up keeps the connection
            self._file = None
            raise
