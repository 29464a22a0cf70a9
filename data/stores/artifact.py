"""Artifacts: objects that never change, named by a digest of what they hold; and objects that point to them.

Whoever reads one compares it with its name, so a damaged or replaced artifact is never used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import TypeVar

from data.errors import DamagedObjectError, InputError, ObjectNotFoundError
from data.stores.store import Store

_DIGEST = re.compile(r"[0-9a-f]{64}")

_Artifact = TypeVar("_Artifact")


def read_artifact(
    store: Store, key: str, digest: str, parse: Callable[[bytes], _Artifact], digest_of: Callable[[_Artifact], str]
) -> _Artifact:
    """The artifact under `key`.

    Args:
        digest: what `digest_of` must give for it.
        parse: makes it from the stored bytes; raises InputError where they are something else.

    Raises:
        DamagedObjectError: it is missing, or is not the one with this digest.
    """
    try:
        artifact = parse(store.get(key))
    except ObjectNotFoundError as error:
        raise DamagedObjectError(f"{store.url_of(key)} is missing.") from error
    except InputError as error:
        raise DamagedObjectError(f"{store.url_of(key)} is damaged: {error}") from error
    found = digest_of(artifact)
    if found != digest:
        raise DamagedObjectError(
            f"{store.url_of(key)} is damaged or was replaced: its content has the digest {found[:12]}…."
        )
    return artifact


def write_pointer(store: Store, key: str, digest: str) -> None:
    """Makes the object under `key` hold `digest`, with a digest of both, as any other pointer is as well formed."""
    store.put(key, f"{digest} {_seal(key, digest)}".encode())


def read_pointer(store: Store, key: str) -> str | None:
    """The digest that the object under `key` holds; None where there is none, or it is damaged or that of another key.

    Version 0.2.0 wrote the digest alone.
    """
    try:
        digest, _, seal = store.get(key).decode("ascii", "replace").partition(" ")
    except ObjectNotFoundError:
        return None
    return digest if _DIGEST.fullmatch(digest) and seal in ("", _seal(key, digest)) else None


def _seal(key: str, digest: str) -> str:
    return sha256(f"{key} {digest}".encode())


def json_digest(value: object) -> str:
    """sha256 of a value as JSON: equal values have equal digests."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def sha256(content: bytes) -> str:
    """The digest of bytes."""
    return hashlib.sha256(content).hexdigest()
