"""Opens the store at a URL.

A module of its own, because every kind of store imports `data.stores.store`, and this one imports every kind.
"""

from __future__ import annotations

from data.errors import InputError
from data.stores.config import StoreConfig
from data.stores.local import LocalStore
from data.stores.s3 import S3Store
from data.stores.store import Store, split_url


def open_store(url: str, config: StoreConfig) -> Store:
    """The store at `s3://bucket/prefix`, `file:///path` or a plain path. Contacts nothing; `check()` does.

    Raises:
        InputError: `url` is of another kind. gs:// may hold shards only: it is accessed without conditional writes.
    """
    scheme, rest = split_url(url)
    if scheme == "file":
        return LocalStore(rest)
    if scheme == "gs":
        raise InputError(f"{url}: gs:// may hold shards, not run state. Give s3://bucket/prefix or a path.")
    bucket, _, prefix = rest.partition("/")
    return S3Store(bucket, prefix.strip("/"), config)
