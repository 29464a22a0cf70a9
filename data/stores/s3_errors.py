"""The errors for what S3 servers answer, and for what keeps them from it."""

from __future__ import annotations

from typing import Any

from data.errors import (
    ConflictError,
    DiskFullError,
    MantaError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreSilentError,
    TransientStoreError,
)
from data.stores.store import ATTEMPTS, first_line

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


def call_error(error: Exception, doing: str, bucket: str, where: str, *, answered_before: bool) -> MantaError:
    """The MantaError for what a call of boto3's raised.

    Args:
        answered_before: the service has answered, so silence is an outage and not a wrong address.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as boto

    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return call_error(error.__context__, doing, bucket, where, answered_before=answered_before)
    if isinstance(error, boto.ClientError):
        return _answer_error(error.response, doing, bucket, where)
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
        message = f"Could not {doing}: no connection to {where} in {ATTEMPTS} attempts ({first_line(error)})."
        if answered_before:
            return TransientStoreError(f"{message} It answered before, so it may come back.")
        return StoreSilentError(f"{message} Is store.endpoint_url (or AWS_ENDPOINT_URL) right, and the store up?")
    if isinstance(error, boto.ParamValidationError | ValueError):
        return StoreAccessError(f"Could not {doing} at {where}: {first_line(error)}. Check URL and endpoint.")
    return TransientStoreError(f"Could not {doing}: {where} did not answer in full ({first_line(error)}).")


def _answer_error(answer: dict[str, Any], doing: str, bucket: str, where: str) -> MantaError:
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


def endless_list_error(url: str, most: int) -> StoreAccessError:
    """The error for a prefix that lists more than `most` objects."""
    return StoreAccessError(
        f"{url} lists more than {most:,} objects. Point to a narrower prefix, or pack small shards into larger ones; "
        "if it has fewer, its service's lists have no end."
    )
