"""S3 and services with its protocol as a store, by boto3."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from data.errors import (
    ConflictError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreSilentError,
    TransientStoreError,
)
from data.stores.bounded_call import Transfer, bounded
from data.stores.config import StoreConfig
from data.stores.s3_access import READ_TIMEOUT_S, S3Access, in_parts, s3_client
from data.stores.s3_errors import call_error, endless_list_error, no_store_error
from data.stores.shard_file import ShardFile
from data.stores.store import (
    ATTEMPTS,
    ObjectInfo,
    Store,
    checked_key,
    first_line,
    raise_local_error,
    source_size,
)

_DELETE_BATCH = 1000  # most keys of one DeleteObjects request

_PIECE_BYTES, _ENTRY_BYTES = 1 << 18, 200  # of one read; of an object in a list, about

MOST_LISTED = 2_000_000
"""Most objects below a prefix; their list is held in memory."""

_T = TypeVar("_T")

PARTS_AT_ONCE = 4
"""Parts of a large file that are sent or fetched at the same time."""

_ANSWERED: set[str] = set()
"""Where a service has answered this process: there, silence is an outage, and not a wrong address."""


class S3Store(Store):
    """A prefix of an S3 bucket."""

    def __init__(self, bucket: str, prefix: str, config: StoreConfig, reached: bool = False) -> None:
        """`prefix` has no slash at its ends. `reached`: the endpoint has answered before."""
        self.bucket = bucket
        self.prefix = prefix
        self.config = config
        self._reached = reached

    def __getstate__(self) -> dict[str, Any]:
        # A worker's first call is not the first contact where the driver has used the store.
        return {**self.__dict__, "_reached": self._answered_before}

    def __repr__(self) -> str:
        return f"S3Store({self.url_of()!r})"

    def get(self, key: str) -> bytes:
        return self._call(f"read {self.url_of(key)}", lambda transfer: self._read(self._name(key), transfer))

    def _read(self, name: str, transfer: Transfer) -> bytes:
        from botocore.exceptions import BotoCoreError

        for attempt in range(ATTEMPTS):
            body = self._s3.get_object(Bucket=self.bucket, Key=name)["Body"]
            # botocore retries until it has the headers; a connection lost in the body is retried here.
            with contextlib.closing(body):
                try:
                    data = io.BytesIO()
                    while part := body.read(_PIECE_BYTES):
                        data.write(part)
                        transfer.add(len(part))
                    return data.getvalue()  # not copied
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
        # Without a checksum, some servers replace the object by the part that arrived of an interrupted request.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()

        def write(_: Transfer) -> str:
            answer = self._s3.put_object(
                Bucket=self.bucket, Key=self._name(key), Body=data, ContentMD5=digest, **condition
            )
            if "ETag" not in answer:
                raise self._is_no_store("it keeps no version of what is written")
            return _bare(answer["ETag"])

        return self._call(f"write {self.url_of(key)}", write, size=len(data))

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        size = source_size(path)
        # 10,000 parts is S3's limit, and the default parts of 8 MiB end at 80 GB.
        part_bytes = max(8 << 20, -(-size // 9_000))
        source, name = os.fspath(path), self._name(key)

        def send(moved: Transfer) -> None:
            with in_parts(self._s3, PARTS_AT_ONCE, multipart_chunksize=part_bytes) as parts:
                parts.upload_file(source, self.bucket, name, callback=moved.add)

        self._call(f"write {self.url_of(key)}", send)

    def get_file(self, key: str, path: str | os.PathLike[str]) -> None:
        def fetch(moved: Transfer) -> None:
            try:
                with in_parts(self._s3, PARTS_AT_ONCE, num_download_attempts=ATTEMPTS) as parts:
                    parts.download_file(self.bucket, self._name(key), os.fspath(path), callback=moved.add)
            except OSError as error:
                if not isinstance(error, ConnectionError | TimeoutError):
                    raise_local_error(error, "write", os.fspath(path))
                raise

        self._call(f"read {self.url_of(key)}", fetch)

    def open(self, key: str) -> ShardFile:
        return ShardFile(self.url_of(key), self.config)

    def head(self, key: str) -> ObjectInfo | None:
        def ask(_: Transfer) -> ObjectInfo:
            answer = self._s3.head_object(Bucket=self.bucket, Key=self._name(key))
            return ObjectInfo(key, answer["ContentLength"], _bare(answer["ETag"]))

        try:
            return self._call(f"read {self.url_of(key)}", ask)
        except ObjectNotFoundError:
            return None

    def age_s(self, key: str) -> float | None:
        def ask(_: Transfer) -> float:
            answer = self._s3.head_object(Bucket=self.bucket, Key=self._name(key))
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")  # of the clock that LastModified is from
            now = parsedate_to_datetime(date).timestamp() if date else time.time()
            return max(0.0, now - float(answer["LastModified"].timestamp()))

        try:
            return self._call(f"read {self.url_of(key)}", ask)
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = f"{self.prefix}/" if self.prefix else ""

        def walk(transfer: Transfer) -> list[ObjectInfo]:
            return [
                ObjectInfo(found["Key"].removeprefix(start), found["Size"], _bare(found["ETag"]))
                for found in self._pages(
                    self._s3.get_paginator("list_objects_v2"), "Contents", start + prefix, transfer
                )
                if not found["Key"].endswith("/")  # markers that consoles create to show an empty folder
            ]

        # Sorted here, because some stores list folder by folder, which puts "a/x" before "a-b".
        yield from sorted(self._call(f"list {self.url_of(prefix)}", walk), key=lambda info: info.key)

    def _pages(self, paginator: Any, field: str, prefix: str, transfer: Transfer) -> Iterator[Any]:
        """The entries of a list that comes in pages.

        Raises:
            StoreAccessError: it has no end.
        """
        count = 0
        for page in paginator.paginate(Bucket=self.bucket, Prefix=prefix):
            entries = page.get(field, ())
            yield from entries
            count += len(entries)
            transfer.add(_ENTRY_BYTES * len(entries))
            if count > MOST_LISTED:
                raise endless_list_error(f"s3://{self.bucket}/{prefix}", MOST_LISTED)

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._call(f"delete {self.url_of(key)}", lambda _: self._s3.delete_object(Bucket=self.bucket, Key=name))

    def delete_prefix(self, prefix: str) -> int:
        keys = [info.key for info in self.list(prefix)]
        for first in range(0, len(keys), _DELETE_BATCH):
            self._delete_batch(prefix, [self._name(key) for key in keys[first : first + _DELETE_BATCH]])
        self.delete_unfinished(prefix)
        return len(keys)

    def delete_unfinished(self, prefix: str) -> None:
        for key, upload in self._uploads(prefix):
            self._abort(key, upload)

    def unfinished(self, prefix: str = "") -> Sequence[str]:
        return sorted({key for key, _ in self._uploads(prefix)})

    def _uploads(self, prefix: str) -> Sequence[tuple[str, str]]:
        """Key and id of every upload in parts that has begun and not ended. Its parts are stored, and paid for."""
        start = f"{self.prefix}/" if self.prefix else ""

        def walk(transfer: Transfer) -> Sequence[tuple[str, str]]:
            paginator = self._s3.get_paginator("list_multipart_uploads")
            found = self._pages(paginator, "Uploads", start + prefix, transfer)
            return [(each["Key"].removeprefix(start), each["UploadId"]) for each in found]

        try:
            return self._call(f"list uploads to {self.url_of(prefix)}", walk)
        except (StoreAccessError, ObjectNotFoundError):
            return []  # it takes rights of its own, and some services do not have the request

    def _abort(self, key: str, upload: str) -> None:
        name = self._name(key)
        with contextlib.suppress(ObjectNotFoundError, StoreAccessError):  # ended meanwhile; or no right to
            self._call(
                f"delete an upload to {self.url_of(key)}",
                lambda _: self._s3.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload),
            )

    def _delete_batch(self, prefix: str, names: Sequence[str]) -> None:
        doing = f"delete {self.url_of(prefix)}"
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self._call(doing, lambda _: self._s3.delete_objects(Bucket=self.bucket, Delete=objects))
        for failed in answer.get("Errors", ()):
            raise StoreAccessError(
                f"Could not {doing}: {failed.get('Code')} {failed.get('Message')} for {failed.get('Key')}, first of "
                f"{len(answer['Errors'])}. Check that the credentials may delete."
            )

    def url_of(self, key: str = "") -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix, key) if part)

    def child(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, self._name(prefix.strip("/")), self.config, self._reached)

    @property
    def _answered_before(self) -> bool:
        return self._reached or S3Access.of(self.config).where in _ANSWERED

    def _answers(self) -> None:
        if not self._reached:
            self._reached = True
            _ANSWERED.add(S3Access.of(self.config).where)

    def check(self) -> None:
        from botocore.parsers import ResponseParserError

        def ask(_: Transfer) -> None:
            # LIST, because the answer to HEAD has no body, so it does not distinguish a missing bucket from a refused
            # key. With a short read time-out: a server that accepts connections and stays silent is no S3 endpoint.
            access = S3Access.of(self.config)
            client = s3_client(access, access.timeout_s / ATTEMPTS)
            try:
                answer = client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
            except ResponseParserError as error:
                raise self._is_no_store(first_line(error)) from error
            if not {"Name", "IsTruncated", "KeyCount"} & answer.keys():
                raise self._is_no_store("its list of objects is none")

        try:
            self._call(f"list {self.url_of()}", ask)
        except ObjectNotFoundError as error:  # a store that lacks the bucket says so
            raise self._is_no_store("404") from error
        except TransientStoreError as error:
            if self._answered_before:
                raise
            raise StoreSilentError(f"{error} Check that store.endpoint_url is an S3 endpoint and is up.") from error

    def _is_no_store(self, what: str) -> StoreAccessError:
        return no_store_error(self.url_of(), S3Access.of(self.config).where, what)

    @property
    def _s3(self) -> Any:
        return s3_client(S3Access.of(self.config), READ_TIMEOUT_S)

    def _name(self, key: str) -> str:
        checked_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _call(self, doing: str, request: Callable[[Transfer], _T], size: int = 0) -> _T:
        """Runs one request within bounds. Raises its failure as a MantaError that names the operation `doing`."""
        try:
            result = bounded(request, doing, size=size)
        except MantaError:
            raise
        except Exception as error:
            where = S3Access.of(self.config).where
            translated = call_error(error, doing, self.bucket, where, answered_before=self._answered_before)
            if isinstance(translated, ObjectNotFoundError | ConflictError):
                self._answers()
            raise translated from error
        self._answers()
        return result


def _bare(etag: str) -> str:
    return etag.strip('"')
