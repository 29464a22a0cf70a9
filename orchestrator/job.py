"""What the driver hands every training worker. Free of torch, so that driver and controller start without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.store import Store
from orchestrator.config import RunConfig
from orchestrator.errors import BadLossError
from orchestrator.vocabulary import Vocabulary


class PlannedRestart(Exception):
    """The worker group has kept its state in memory and ends, to be started again; never seen by the user."""


@dataclass(frozen=True)
class TrainJob:
    """The same for every rank.

    Attributes:
        store: where the run lives.
        done_before: newest step an earlier attempt did; up to it, steps done again count as replay.
        facts: what every checkpoint says of the run: resolved config, digests.
        feeder, monitor: handles of the actors `data.feeder.Feeder` and `orchestrator.monitor.Monitor`.
        init: sha256 of the weights that the run begins with, see `orchestrator.initial_weights`; None: drawn by seed.
        tell_every_s: seconds between two words of rank 0 to the monitor; a call a step would cost short steps 1 %.
    """

    config: RunConfig
    store: Store
    attempt: int
    vocabulary: Vocabulary
    done_before: int
    facts: dict[str, Any]
    feeder: Any
    monitor: Any
    tell_every_s: float = 1.0
    init: str | None = None


def initial_weights_key(digest: str) -> str:
    """Where the run's store keeps the weights that the run began with, given their sha256."""
    return f"init/{digest}.safetensors"


def prepare_worker(config: RunConfig) -> None:
    """Import what training takes, in a worker's process, ahead of its use; seconds, most of them torch's."""
    if not config.train.compile:
        from model.eager import skip_compiler

        skip_compiler()
    import orchestrator.train_loop  # noqa: F401


def train_worker(worker_config: dict[str, TrainJob]) -> None:
    """Entry point of a Ray Train worker, in a process that `prepare_worker` has made ready.

    Raises:
        see `orchestrator.train_loop.train_loop`.
    """
    from orchestrator.process_group import leave_group
    from orchestrator.train_loop import train_loop

    try:
        train_loop(worker_config["job"])
    except (PlannedRestart, BadLossError):  # all ranks have agreed on it, and none waits for another
        raise
    except BaseException:
        leave_group()  # a rank that waits for this one is to know at once
        raise
