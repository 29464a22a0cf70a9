"""All errors that `data` raises on purpose.

    MantaError                      has an exit status and, where it can, a remedy in its message
    ├── InputError                  the user can fix it; exit status 2; retrying changes nothing
    │   ├── StoreAccessError        bucket missing, credentials refused, endpoint not reachable
    │   ├── BadShardError           a shard cannot be read as its format says
    │   ├── ShardChangedError       a shard is not the one the manifest pinned
    │   ├── DamagedObjectError      an object that we stored is gone, or not what we stored
    │   ├── DiskFullError           no space where something had to be written
    │   ├── CleaningError           a function of data.cleaning failed on a document
    │   └── TokenizerError          a tokenizer does not fit what it is asked to do
    ├── OutOfMemoryError            this node has too little memory for what it was to read; exit status 1
    ├── TransientStoreError         the store did not answer in time; worth a retry, exit status 1
    ├── ObjectNotFoundError         no object under this key; for the caller to act on
    └── ConflictError               a conditional write lost to another writer; for the caller to act on

All take one positional message and nothing else, so that they survive pickling between Ray's processes.
"""

from __future__ import annotations

from cluster.errors import MantaError

__all__ = [
    "BadShardError",
    "CleaningError",
    "ConflictError",
    "DamagedObjectError",
    "DiskFullError",
    "InputError",
    "MantaError",
    "ObjectNotFoundError",
    "OutOfMemoryError",
    "ShardChangedError",
    "StoreAccessError",
    "TokenizerError",
    "TransientStoreError",
    "install_command",
]


def install_command(extra: str) -> str:
    """The command that installs an optional extra of this project, for messages.

    It does not name the package `manta`, because that name on PyPI belongs to another project.
    """
    return f"pip install -c constraints.txt -e '.[{extra}]' in Manta's folder"


class InputError(MantaError):
    """The user's input cannot be used; nothing has been lost."""

    exit_status = 2


class StoreAccessError(InputError):
    """The object store refuses or cannot be found: bucket, credentials, endpoint or permissions."""


class StoreSilentError(StoreAccessError):
    """The object store does not answer at the first contact: it is away, or there is none at this endpoint."""


class BadShardError(InputError):
    """A shard cannot be read as its format says; the message names the shard, the place and the remedy."""


class ShardChangedError(InputError):
    """A shard was replaced, changed or removed after the manifest pinned it."""


class DamagedObjectError(InputError):
    """An object that this project stored is missing, damaged or replaced; the message names it."""


class DiskFullError(InputError):
    """A write failed because the disk is full."""


class CleaningError(InputError):
    """A function named in data.cleaning raised, or returned something other than text."""


class TokenizerError(InputError):
    """The tokenizer does not fit the text or the model."""


class OutOfMemoryError(MantaError):
    """This node has too little memory to read a shard, which may be sound: another node would read it."""


class TransientStoreError(MantaError):
    """The store failed temporarily (time-out, 5xx) and kept failing through the bounded retries."""


class ObjectNotFoundError(MantaError):
    """There is no object under this key."""


class ConflictError(MantaError):
    """A conditional write was refused: the object exists already, or is not the expected version."""
