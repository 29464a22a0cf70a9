"""What the driver hands every training worker. Free of torch, so that driver and controller start without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data.store import Store
from orchestrator.config import RunConfig


@dataclass(frozen=True)
class TrainJob:
    """The same for every rank.

    Attributes:
        store: where the run lives.
        vocab_size: rows of the embedding.
        done_before: newest step an earlier attempt did; up to it, steps done again count as replay.
        facts: what every checkpoint says of the run: resolved config, digests.
        feeder, monitor: handles of the actors `data.feeder.Feeder` and `orchestrator.monitor.Monitor`.
        tell_every_s: seconds between two words of rank 0 to the monitor; a call a step would cost short steps 1 %.
    """

    config: RunConfig
    store: Store
    attempt: int
    vocab_size: int
    end_of_text: int
    done_before: int
    facts: dict[str, Any]
    feeder: Any
    monitor: Any
    tell_every_s: float = 1.0


def train_worker(worker_config: dict[str, TrainJob]) -> None:
    """Entry point of a Ray Train worker."""
    from model.eager import skip_compiler

    job = worker_config["job"]
    if not job.config.train.compile:
        skip_compiler()
    from orchestrator.train_loop import train_loop

    train_loop(job)
