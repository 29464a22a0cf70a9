"""The errors for what S3 servers answer."""

from __future__ import annotations

from typing import Any

from data.errors import (
    ConflictError,
    DiskFullError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    TransientStoreError,
)
from data.stores.store import ATTEMPTS

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

_NOT_IMPLEMENTED = 501  # by this service: no later try succeeds

_TRANSIENT = frozenset({"RequestTimeout", "SlowDown", "Throttling"})  # in addition to every other status from 500 on


def answer_error(answer: dict[str, Any], doing: str, bucket: str, where: str) -> MantaError:
    """The MantaError for an error answer of an S3 server."""
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
    if (status >= 500 and status != _NOT_IMPLEMENTED) or status == 429 or code in _TRANSIENT:
        return TransientStoreError(f"Could not {doing}: {where} kept failing through {ATTEMPTS} attempts ({said}).")
    return StoreAccessError(f"Could not {doing}: {where} refused ({said}). Check the URL, the endpoint and the region.")


def no_store_error(url: str, where: str, what: str) -> StoreAccessError:
    """The error for a web server, or a page to log in at, in place of an object store."""
    return StoreAccessError(
        f"Could not use {url}: {where} answers, but not as an object store ({what}). Check store.endpoint_url: the "
        "port, and whether a proxy or a page to log in at is in between."
    )
