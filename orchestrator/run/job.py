"""What the driver hands every training worker. Free of torch, so that driver and controller start without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.stores.store import Store
from orchestrator.config.recipe import RunConfig
from orchestrator.run.vocabulary import Vocabulary


class PlannedRestart(Exception):
    """The worker group has kept its state in memory and ends, to be started again; never seen by the user."""


@dataclass(frozen=True)
class TrainJob:
    """The same for every rank.

    Attributes:
        store: where the run lives.
        done_before: newest step an earlier attempt did; up to it, steps done again count as replay.
        facts: what every checkpoint says of the run: resolved config, digests.
        feeder, monitor: handles of the actors `data.feeder.Feeder` and `orchestrator.driver.monitor.Monitor`.
        init: sha256 of the weights that the run begins with, see `orchestrator.driver.initial_weights`; None: drawn by seed.
        report_every_s: seconds between two words of rank 0 to the monitor; a call a step would cost short steps 1 %.
    """

    config: RunConfig
    store: Store
    attempt: int
    vocabulary: Vocabulary
    done_before: int
    facts: dict[str, Any]
    feeder: Any
    monitor: Any
    report_every_s: float = 1.0
    init: str | None = None


def initial_weights_key(digest: str) -> str:
    """Where the run's store keeps the weights that the run began with, given their sha256."""
    return f"init/{digest}.safetensors"
