"""The recipe's section `store`: how to reach object storage.

Separate from `data.config`, which builds on the readers, which build on the stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from data.duration import Duration
from data.section import Section, UrlOrPath

SECRET = ("access_key_id", "secret_access_key")
"""Fields that are never printed and never stored with a run, because runs are shared more freely than keys."""


class StoreConfig(Section):
    """How to reach S3-compatible object storage. Fields that are not set come from the standard AWS variables."""

    endpoint_url: UrlOrPath | None = Field(
        None, description="URL of the S3 endpoint; default AWS_ENDPOINT_URL, else AWS."
    )
    region: str | None = Field(None, description="Region of the bucket; default AWS_DEFAULT_REGION, else us-east-1.")
    access_key_id: str | None = Field(None, description="Access key; default the standard AWS credential chain.")
    secret_access_key: str | None = Field(
        None, description="Secret key; prefer AWS_SECRET_ACCESS_KEY in the environment."
    )
    serve: str | None = Field(
        None,
        description="Folder of a local S3 server, started when a command needs it and stopped after the last one.",
    )
    patience: Duration = Field(
        6 * 3600.0,
        ge=0,
        description="How long a run waits for a store that fails after it has answered; such as 30m, 6h, or seconds.",
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds to wait for a connection before giving up on it.")

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The fields that are printed, in a traceback for example: no keys."""
        yield from (each for each in super().__repr_args__() if each[0] not in SECRET)
