"""The job that the driver gives to every training worker. Without torch, so driver and controller start without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.stores.store import Store
from orchestrator.config.recipe import RunConfig
from orchestrator.run.record import RunRecord
from orchestrator.run.vocabulary import Vocabulary


class PlannedRestart(Exception):
    """Ends a worker group that has a snapshot, to restart it at another size; never reaches the user."""


@dataclass(frozen=True)
class Owner:
    """An attempt as the owner of snapshots in the memory of nodes.

    Attributes:
        run_url: of the run's folder in object storage.
        identity: `RunRecord.identity`: snapshots of another run of the same name, or of other data, are of no use.
        earlier: newest step that belongs to the run (None: any step), by earlier attempt.
    """

    run_url: str
    attempt: int
    identity: str = ""
    earlier: Mapping[int, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, run_url: str, record: RunRecord) -> Owner:
        """The newest attempt in the record."""
        earlier = {each.number: record.newest_step_of(each.number) for each in record.attempts[:-1]}
        return cls(run_url, record.last.number, record.identity, earlier)

    @property
    def folder(self) -> str:
        """Name of the folder of its snapshots."""
        return f"a{self.attempt}-{self.identity}"


@dataclass(frozen=True)
class TrainJob:
    """The job of every rank of an attempt.

    Attributes:
        store: folder of the run.
        until: step after which the run saves and ends: its last one, unless it is a trial that is paused there.
        done_before: newest step of the earlier attempts; steps up to it are repeated and count as replay.
        evaluated: steps whose evaluation is in the record of an earlier attempt.
        facts: fields that every checkpoint's state.json repeats: resolved config, digests.
        feeder, monitor: handles of the actors `data.feed.feeder.Feeder` and `orchestrator.monitor.monitor.Monitor`.
        report_every_s: seconds between two reports of rank 0 to the monitor. A report per step would cost short steps
            1 % of their time.
        init: sha256 of the initial weights, see `orchestrator.driver.initial_weights`; None: drawn from the seed.
        owner: the attempt as the owner of snapshots.
    """

    config: RunConfig
    store: Store
    attempt: int
    owner: Owner
    vocabulary: Vocabulary
    until: int
    done_before: int
    evaluated: frozenset[int]
    facts: dict[str, Any]
    feeder: Any
    monitor: Any
    report_every_s: float = 1.0
    init: str | None = None


def initial_weights_key(digest: str) -> str:
    """Key of the initial weights in the run's store, given their sha256."""
    return f"init/{digest}.safetensors"
