"""The record of a sweep's trial in object storage."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from data.stores.sealed_json import sealed, unsealed
from orchestrator.config.renamed import with_new_names
from orchestrator.run.stored_fields import Count, Number, Seconds, Time, checked, one_of

ENDED = ("finished", "stopped", "failed")
"""Statuses of a trial that does not run again, unless trials are added to the sweep."""

DRAWN = -1
"""`TrialRecord.given` of a trial whose point the searcher chose."""

STATUSES = ("pending", "running", "paused", *ENDED)
"""Statuses of a trial."""

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Name of a run, and of its folder."""


@dataclass
class Report:
    """The loss of a trial at a step.

    Attributes:
        number: position among the reports of the whole sweep, from 1.
        loss: None where the loss was not finite.
        worker_s: worker-seconds of the trial so far.
        at: time of the report, seconds since the epoch.
        trial_run: index of the trial's run; a trial that continues from another's state starts a new run.
        attempt: attempt of the run that wrote the checkpoint of this step; 0 where no checkpoint is needed.
    """

    number: Count
    step: Count
    loss: Number | None
    worker_s: Seconds
    at: Time
    trial_run: Count = 0
    attempt: Count = 0


@dataclass(frozen=True)
class Donor:
    """The checkpoint of another trial, from which a trial continued."""

    id: str
    run: RunName
    step: Count
    attempt: Count


@dataclass
class TrialRun:
    """A run of a trial. All but the first start from a donor's state.

    Attributes:
        run: name of the run.
        point: values of the searched fields by dotted name.
        step: newest step done.
        is_forked: whether the donor's state has been copied.
    """

    run: RunName
    point: dict[str, Any]
    donor: Donor | None = None
    step: Count = 0
    is_forked: Annotated[bool, Field(strict=True)] = False

    @property
    def steps_done(self) -> int:
        """Steps that this run did, without those of the donor."""
        return max(0, self.step - (self.donor.step if self.donor else 0))


@dataclass
class TrialRecord:
    """A trial.

    Attributes:
        number: from 1.
        status: pending, running, paused (at a rung, or after a failure that may pass), finished, stopped (by the
            scheduler) or failed.
        rungs: steps at which the trial was compared with others.
        worker_s: worker-seconds: seconds times workers.
        workers: workers that train now.
        setup_s: seconds from the trial's start to the run's start, which a run outside of a sweep does not take.
        first_step_s: seconds from the trial's start to the end of its first step.
        attempt: attempt at the sweep that wrote the record.
        given: index of the given point that it tries; DRAWN where the searcher chose; None in records of version
            0.1.0, where the first trials tried the points.
        failures: why it failed, as often as it was tried again.
        failures_of_leg: how many of them came after the last leg that ended.
        refused: points that were drawn for it and refused by the recipe's rules, with the reason.
        parameters: number of the model's parameters; None before it trains, and in records of version 0.2.0.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    number: Count
    trial_runs: list[TrialRun]
    status: Annotated[str, one_of(STATUSES)] = "pending"
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    rungs: list[Count] = field(default_factory=list)
    worker_s: Seconds = 0.0
    workers: Count = 0
    started_at: Time | None = None
    ended_at: Time | None = None
    setup_s: Seconds | None = None
    first_step_s: Seconds | None = None
    attempt: Count = 0
    given: Annotated[int, Field(strict=True, ge=DRAWN)] | None = None
    failures: list[str] = field(default_factory=list)
    failures_of_leg: Count = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    parameters: Count | None = None

    @property
    def id(self) -> str:
        """Name of the trial within the sweep."""
        return f"t{self.number:03d}"

    @property
    def trial_run(self) -> TrialRun:
        """The current run."""
        return self.trial_runs[-1]

    @property
    def point(self) -> dict[str, Any]:
        """Values of the searched fields by dotted name."""
        return self.trial_run.point

    @property
    def has_ended(self) -> bool:
        """Whether the trial never runs again."""
        return self.status in ENDED

    @property
    def loss(self) -> float | None:
        """The loss of the last report."""
        return self.reports[-1].loss if self.reports else None

    @property
    def step(self) -> int:
        """Steps done over all runs of the trial."""
        return sum(trial_run.steps_done for trial_run in self.trial_runs)

    def has_reported(self, step: int) -> bool:
        """Whether the current run has reported `step` or a later step."""
        return any(report.trial_run == len(self.trial_runs) - 1 and report.step >= step for report in self.reports)

    def end(self, status: str, reason: str = "") -> None:
        """Marks the trial as ended."""
        self.status, self.reason, self.ended_at, self.workers = status, reason, time.time(), 0

    def to_json(self) -> bytes:
        """Encodes the record."""
        return sealed(json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def from_json(cls, content: bytes, url: str = "the trial's record") -> TrialRecord:
        """Inverse of `to_json`.

        Args:
            url: where the record is stored, for the message.

        Raises:
            DamagedObjectError: it is damaged.
        """
        return unsealed(content, url, cls._of_fields)

    @classmethod
    def _of_fields(cls, fields: dict[str, Any]) -> TrialRecord:
        if "stints" in fields:  # version 0.1.0 called them stints
            fields["trial_runs"] = fields.pop("stints")
            fields["reports"] = [
                {("trial_run" if name == "stint" else name): value for name, value in each.items()}
                for each in fields["reports"]
            ]
        record = checked(cls, fields)
        if not record.trial_runs:
            raise ValueError("trial_runs: there are none")
        if any(report.trial_run >= len(record.trial_runs) for report in record.reports):
            raise ValueError(f"reports: one is of a trial run that is not among the {len(record.trial_runs)}")
        for trial_run in record.trial_runs:
            trial_run.point = with_new_names(trial_run.point)
        return record
