"""Every error Manta raises on purpose, on one page.

    MantaError                          a message for a person; the command line prints it without a traceback
    ├── InputError                      the user can fix it; exit status 2; retrying changes nothing
    │   ├── RecipeError                 the recipe: every problem found in it, one a line
    │   ├── UnknownRunError             no recipe and no run has this name
    │   ├── ConfigChangedError          a run is continued with fields that would change its result
    │   ├── RunInUseError               a live attempt holds the run
    │   ├── InitialWeightsError         what a run is to begin with does not fit it, or has changed since
    │   ├── ClusterTooSmallError        the cluster cannot hold what the recipe asks for
    │   ├── StoreAccessError            (data) bucket missing, credentials refused, endpoint not reachable
    │   ├── BadShardError               (data) a shard cannot be read as its format says
    │   ├── ShardChangedError           (data) a shard is not the one the manifest pinned
    │   ├── DiskFullError               (data) no space where something had to be written
    │   ├── CleaningError           (data) a function of data.cleaning failed on a document
    │   └── TokenizerError              (data) a tokenizer does not fit what it is asked to do
    ├── TransientStoreError             (data) the store did not answer in time; worth a retry; exit status 1
    ├── ObjectNotFoundError             (data) no object under this key; for the caller to act on
    ├── ConflictError                   (data) a conditional write lost: somebody else wrote first; likewise
    ├── CheckpointDamagedError          a checkpoint's files are not those its manifest names; the one before is used
    ├── WorkerDiedError                 a training worker ended without being asked to; worth a retry; exit status 1
    ├── BadLossError                    the loss went astray a second time; a retry would come to the same step again
    ├── FencedError                     a newer attempt has taken the run over; this one must stop writing
    └── ClusterError                    (cluster) a server or cluster did not start or answer; exit status 1

All survive pickling, because they cross process borders in Ray: one positional message and nothing else.
"""

from __future__ import annotations

from cluster.errors import ClusterError
from data.errors import (
    BadShardError,
    CleaningError,
    ConflictError,
    DiskFullError,
    InputError,
    MantaError,
    ObjectNotFoundError,
    ShardChangedError,
    StoreAccessError,
    TokenizerError,
    TransientStoreError,
)

__all__ = [
    "BadLossError",
    "BadShardError",
    "CheckpointDamagedError",
    "CleaningError",
    "ClusterError",
    "ClusterTooSmallError",
    "ConfigChangedError",
    "ConflictError",
    "DiskFullError",
    "FencedError",
    "InitialWeightsError",
    "InputError",
    "MantaError",
    "ObjectNotFoundError",
    "RecipeError",
    "RunInUseError",
    "ShardChangedError",
    "StoreAccessError",
    "TokenizerError",
    "TransientStoreError",
    "UnknownRunError",
    "WorkerDiedError",
]


class RecipeError(InputError):
    """A recipe cannot be used; the message lists every problem, one a line."""


class UnknownRunError(InputError):
    """Neither a recipe nor a run by this name is to be found."""


class ConfigChangedError(InputError):
    """A run was started with other values of fields that decide its result; the message names them."""


class InitialWeightsError(InputError):
    """The weights a run is to begin with are not of its model, or not those that it was begun with."""


class RunInUseError(InputError):
    """Another attempt of this run is alive; two would write over each other."""


class ClusterTooSmallError(InputError):
    """The cluster does not have the CPUs, GPUs or memory that the recipe asks for."""


class CheckpointDamagedError(MantaError):
    """A checkpoint is incomplete or its bytes are not those that were saved."""


class WorkerDiedError(MantaError):
    """A training worker ended by a signal or a lost machine; continuing from the last checkpoint is safe."""


class BadLossError(MantaError):
    """Loss or gradient became infinite, not a number, or jumped; what was saved before is untouched."""


class FencedError(MantaError):
    """A newer attempt holds the run's fence; everything this one still wrote would be wrong."""
