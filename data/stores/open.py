"""From a URL to the store behind it: the one place that knows every kind."""

from __future__ import annotations

from data.config import StoreConfig
from data.errors import InputError
from data.stores.local import LocalStore
from data.stores.s3 import S3Store
from data.stores.store import Store, split_url


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
