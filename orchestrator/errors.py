"""All errors that Manta raises on purpose.

    MantaError                          message for the user; the CLI prints it without a traceback; exit status 1
    ├── InputError                      the user can fix it; a retry cannot; exit status 2
    │   ├── RecipeError                 the recipe is invalid; the message has one line per problem
    │   ├── UnknownRunError             no recipe and no run has this name
    │   ├── ConfigChangedError          a run is continued with other values of fields that decide its result
    │   ├── RunInUseError               another attempt at the run is alive
    │   ├── InitialWeightsError         the initial weights do not fit the model, or have changed since the run started
    │   ├── CheckpointsLostError        the run's record knows a checkpoint that is not in its storage
    │   ├── ClusterTooSmallError        the cluster has fewer CPUs or GPUs, or less memory, than the recipe needs
    │   ├── StoreAccessError            (data) bucket missing, credentials refused, or endpoint not reachable
    │   ├── BadShardError               (data) a shard cannot be read in its format
    │   ├── ShardChangedError           (data) a shard differs from the one that the manifest pins
    │   ├── DamagedObjectError          (data) an object in storage is gone, or not what was written there
    │   ├── DiskFullError               (data) no disk space left
    │   ├── CleaningError               (data) a function of data.cleaning failed on a document
    │   └── TokenizerError              (data) a tokenizer does not fit its use
    ├── OutOfMemoryError                (data) a node has too little memory to read a shard
    ├── TransientStoreError             (data) the store did not answer in time; worth a retry
    ├── ObjectNotFoundError             (data) no object under this key; callers handle it
    ├── ConflictError                   (data) a conditional write came second; callers handle it
    ├── CheckpointDamagedError          a checkpoint's files do not match its manifest; the one before is used
    ├── SnapshotGoneError               newer snapshots have replaced one that was to be saved; callers handle it
    ├── WorkerDiedError                 a training worker ended unexpectedly; worth a retry
    ├── BadLossError                    the loss diverged or spiked a second time; a retry would reach the same step
    ├── NoResultError                   every trial of a sweep has failed
    ├── FencedError                     a newer attempt has taken the run over; this one must not write
    └── ClusterError                    (cluster) a server or cluster did not start or answer

All survive pickling, because they cross process borders in Ray: they take one positional message and nothing else.
"""

from __future__ import annotations

from cluster.errors import ClusterError
from data.errors import (
    BadShardError,
    CleaningError,
    ConflictError,
    DamagedObjectError,
    DiskFullError,
    InputError,
    MantaError,
    ObjectNotFoundError,
    OutOfMemoryError,
    ShardChangedError,
    StoreAccessError,
    TokenizerError,
    TransientStoreError,
)

__all__ = [
    "BadLossError",
    "BadShardError",
    "CheckpointDamagedError",
    "CheckpointsLostError",
    "CleaningError",
    "ClusterError",
    "ClusterTooSmallError",
    "ConfigChangedError",
    "ConflictError",
    "DamagedObjectError",
    "DiskFullError",
    "FencedError",
    "InitialWeightsError",
    "InputError",
    "MantaError",
    "NoResultError",
    "ObjectNotFoundError",
    "OutOfMemoryError",
    "RecipeError",
    "RunInUseError",
    "ShardChangedError",
    "SnapshotGoneError",
    "StoreAccessError",
    "TokenizerError",
    "TransientStoreError",
    "UnknownRunError",
    "WorkerDiedError",
]


class RecipeError(InputError):
    """A recipe is invalid; the message has one line per problem."""


class UnknownRunError(InputError):
    """No recipe and no run has this name."""


class ConfigChangedError(InputError):
    """A run was started with other values of fields that decide its result; the message lists them."""


class InitialWeightsError(InputError):
    """The initial weights do not fit the run's model, or differ from those that the run started with."""


class RunInUseError(InputError):
    """Another attempt at this run is alive; two would overwrite each other's files."""


class ClusterTooSmallError(InputError):
    """The cluster does not have the CPUs, GPUs or memory that the recipe needs."""


class CheckpointsLostError(InputError):
    """The run's record knows a checkpoint that is not in its storage; the user decides what the run goes on from."""


class CheckpointDamagedError(MantaError):
    """A checkpoint is incomplete, or its files have changed since it was saved."""


class SnapshotGoneError(MantaError):
    """Newer snapshots have replaced the one that was to be saved."""


class WorkerDiedError(MantaError):
    """A training worker was killed or its node was lost; continuing from the last checkpoint is safe."""


class BadLossError(MantaError):
    """Loss or gradient became infinite or NaN, or the loss spiked; earlier checkpoints are untouched."""


class NoResultError(MantaError):
    """Every trial of a sweep has failed; the message has the reason of one."""


class FencedError(MantaError):
    """A newer attempt holds the run's fence; this one must not write any more."""
