"""Every error `data` raises on purpose, on one page.

    MantaError                      has an exit status and, where it can, a remedy in its message
    ├── InputError                  the user can fix it; exit status 2; retrying changes nothing
    │   ├── StoreAccessError        bucket missing, credentials refused, endpoint not reachable
    │   ├── BadShardError           a shard cannot be read as its format says
    │   ├── ShardChangedError       a shard is not the one the manifest pinned
    │   ├── DiskFullError           no space where something had to be written
    │   ├── CleaningError           a function of data.cleaning failed on a document
    │   └── TokenizerError          a tokenizer does not fit what it is asked to do
    ├── TransientStoreError         the store did not answer in time; worth a retry, exit status 1
    ├── ObjectNotFoundError         no object under this key; for the caller to act on
    └── ConflictError               a conditional write lost: somebody else wrote first; for the caller to act on

All survive pickling, because they cross process borders in Ray: one positional message and nothing else.
"""

from __future__ import annotations

from cluster.errors import MantaError

__all__ = [
    "BadShardError",
    "CleaningError",
    "ConflictError",
    "DiskFullError",
    "InputError",
    "MantaError",
    "ObjectNotFoundError",
    "ShardChangedError",
    "StoreAccessError",
    "TokenizerError",
    "TransientStoreError",
]


class InputError(MantaError):
    """Something the user gave cannot be used; nothing has been lost."""

    exit_status = 2


class StoreAccessError(InputError):
    """The object store refuses or cannot be found: bucket, credentials, endpoint or permissions."""


class BadShardError(InputError):
    """A shard cannot be read as its format says; the message names the shard, the place and the remedy."""


class ShardChangedError(InputError):
    """A shard was replaced, changed or removed after the manifest pinned it."""


class DiskFullError(InputError):
    """A write failed because the disk is full."""


class CleaningError(InputError):
    """A function that data.cleaning names raised, or returned what is no text."""


class TokenizerError(InputError):
    """The tokenizer does not fit the text or the model."""


class TransientStoreError(MantaError):
    """The store failed in a way that may pass (time-out, 5xx) and kept failing through the bounded retries."""


class ObjectNotFoundError(MantaError):
    """There is no object under the key that was asked for."""


class ConflictError(MantaError):
    """A conditional write was refused, because the object exists already or is no longer the version expected."""
