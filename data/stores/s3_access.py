"""Access to S3: endpoint, region, keys and time-outs, from the config and the standard AWS variables; and clients."""

from __future__ import annotations

import functools
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.known_secrets import remember
from data.errors import StoreAccessError
from data.stores.bounded_call import DaemonExecutor, refuse_abandoned
from data.stores.config import SECRET, StoreConfig
from data.stores.store import ATTEMPTS

READ_TIMEOUT_S = 30.0
"""Longest silence on an open connection; tried ATTEMPTS times. `data.stores.bounded_call` bounds the rest."""


_KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TOKEN_VARIABLES = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
"""Variables of temporary keys, which do not belong to other ones."""


@dataclass(frozen=True)
class S3Access:
    """Resolved access to S3. None leaves a value to the AWS libraries' own chain."""

    endpoint_url: str | None
    region: str | None
    access_key_id: str | None
    secret_access_key: str | None
    timeout_s: float

    @classmethod
    def of(cls, config: StoreConfig) -> S3Access:
        """From the config, the files of the server that it names, or the environment.

        Raises:
            ClusterError: the file with the keys of `serve` is damaged.
            StoreAccessError: only one half of a key pair is given.
        """
        if (config.access_key_id is None) != (config.secret_access_key is None):
            raise StoreAccessError("store.access_key_id and store.secret_access_key go together; give both or neither.")
        keys = (config.access_key_id, config.secret_access_key)
        if config.serve is not None and config.access_key_id is None:
            keys = _keys_of_server(config.serve)
        remember(keys)
        return cls(
            endpoint_url=config.endpoint_url or _env("AWS_ENDPOINT_URL_S3") or _env("AWS_ENDPOINT_URL"),
            region=config.region or _env("AWS_DEFAULT_REGION") or _env("AWS_REGION"),
            access_key_id=keys[0],
            secret_access_key=keys[1],
            timeout_s=config.timeout_s,
        )

    @property
    def where(self) -> str:
        """The endpoint, for messages."""
        return self.endpoint_url or f"AWS S3 (region {self.region or 'us-east-1'})"


@contextmanager
def keys_as_variables(config: StoreConfig) -> Iterator[StoreConfig]:
    """Yields the config without keys; in the block, they are variables of this process and of those that it starts.

    They are then in nothing that is passed on: arguments of actors, records, dumps.

    Raises:
        StoreAccessError: only one half of a key pair is given.
    """
    S3Access.of(config)
    if config.access_key_id is None or config.secret_access_key is None:
        yield config
        return
    names = (*_KEY_VARIABLES, *TOKEN_VARIABLES)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(zip(_KEY_VARIABLES, (config.access_key_id, config.secret_access_key), strict=True))
    try:
        yield config.model_copy(update=dict.fromkeys(SECRET))
    finally:
        for name in _KEY_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


@functools.cache
def _keys_of_server(folder: str) -> tuple[str, str]:
    """Keys of the S3 server whose files are in `folder`, which this user's other processes may read.

    Raises:
        ClusterError: the file is damaged.
        StoreAccessError: it is missing, as on another machine.
    """
    from cluster.local.seaweedfs import KEYS_FILE, keys_in

    file = Path(folder) / KEYS_FILE
    if not file.exists():
        raise StoreAccessError(
            f"store.serve = {folder}: no keys of an S3 server are there on this machine ({platform.node()}). A server "
            "that a command starts serves its own machine only; name a bucket that all machines reach."
        )
    return keys_in(file)


def _env(name: str) -> str | None:
    return os.environ.get(name) or None


def aws_environment() -> tuple[tuple[str, str], ...]:
    """The AWS variables, part of every cache key: a client takes from them what the config does not set."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@contextmanager
def in_parts(client: Any, at_once: int, **settings: Any) -> Iterator[Any]:
    """Yields boto3's `S3Transfer`, whose threads end with the call that they work for."""
    from boto3.s3.transfer import S3Transfer, TransferConfig
    from s3transfer.manager import TransferManager  # type: ignore[import-untyped]

    config = TransferConfig(max_concurrency=at_once, **settings)
    with TransferManager(client, config, executor_cls=DaemonExecutor) as manager:
        yield S3Transfer(manager=manager)


_clients_lock = threading.Lock()


def s3_client(access: S3Access, read_timeout_s: float) -> Any:
    """The boto3 client, shared by all threads of a process with the same access."""
    with _clients_lock:
        return _new_client(access, read_timeout_s, aws_environment())


@functools.lru_cache(maxsize=4)
def _session(environment: tuple[tuple[str, str], ...]) -> Any:
    """One session for all clients, which share its parsed service descriptions. Call it under `_clients_lock`."""
    import boto3.session

    return boto3.session.Session()


@functools.lru_cache(maxsize=16)
def _new_client(access: S3Access, read_timeout_s: float, environment: tuple[tuple[str, str], ...]) -> Any:
    from botocore.config import Config

    session = _session(environment)
    client = session.client(
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
            # Many S3-compatible stores support neither bucket host names nor the newer default checksums.
            s3={"addressing_style": "path"} if access.endpoint_url else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register("before-send.s3", refuse_abandoned)
    return client
