"""Access to S3: endpoint, region, keys and time-outs, from the config and the standard AWS variables; and clients."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from typing import Any

from data.errors import StoreAccessError
from data.stores.config import StoreConfig
from data.stores.store import ATTEMPTS

READ_TIMEOUT_S = 60.0
"""Longest silence on an open connection. A large object may take longer, as long as bytes arrive."""


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
        """From the config, else the environment.

        Raises:
            StoreAccessError: only one half of a key pair is given.
        """
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


def aws_environment() -> tuple[tuple[str, str], ...]:
    """The AWS variables, part of every cache key: a client takes from them what the config does not set."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


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
            # Many S3-compatible stores support neither bucket host names nor the newer default checksums.
            s3={"addressing_style": "path"} if access.endpoint_url else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
