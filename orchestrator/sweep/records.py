"""What is known of a sweep's trials, kept in object storage as it becomes known: what a continued sweep is made from.

    sweeps/NAME/sweep.json          the sweep's record and fence: attempts, what decides its result, how it ended
    sweeps/NAME/trials/t001.json    a trial: its point, its reports, how it ended

Only the process that holds the sweep's fence writes, and a report is written before the scheduler hears of it: what
searcher and scheduler have learned can be told them again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from data.stores.store import Store
from orchestrator.config.renamed import with_new_names

RECORD = "sweep.json"

ENDED = ("finished", "stopped", "failed")


@dataclass
class Report:
    """A trial's word at a step.

    Attributes:
        number: counts the reports of the whole sweep, in the order in which they came.
        trial_run: number of the trial's run it belongs to; a trial that went on from another's state began a new one.
        attempt: of the run, which wrote the checkpoint of this step; 0 where there need not be one.
    """

    number: int
    step: int
    loss: float | None
    worker_s: float
    at: float
    trial_run: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Donor:
    """The state a trial went on from: another trial's checkpoint."""

    id: str
    run: str
    step: int
    attempt: int


@dataclass
class TrialRun:
    """A run of a trial. All but the first begin with a donor's state.

    Attributes:
        step: newest step done.
    """

    run: str
    point: dict[str, Any]
    donor: Donor | None = None
    step: int = 0

    @property
    def steps_done(self) -> int:
        """Steps that were done here and not by the donor."""
        return max(0, self.step - (self.donor.step if self.donor else 0))


@dataclass
class TrialRecord:
    """A trial.

    Attributes:
        number: from 1.
        status: pending, running, finished, stopped (by the scheduler) or failed.
        rungs: steps at which the scheduler decided on it.
        worker_s: seconds times workers.
        setup_s: seconds from its start to that of its run: what a trial costs more than the run by itself.
        first_step_s: seconds from its start to its first step done.
    """

    number: int
    trial_runs: list[TrialRun]
    status: str = "pending"
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    rungs: list[int] = field(default_factory=list)
    worker_s: float = 0.0
    workers: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    setup_s: float | None = None
    first_step_s: float | None = None

    @property
    def id(self) -> str:
        """Names it within the sweep."""
        return f"t{self.number:03d}"

    @property
    def trial_run(self) -> TrialRun:
        """Its run."""
        return self.trial_runs[-1]

    @property
    def point(self) -> dict[str, Any]:
        """Its values, by dotted name."""
        return self.trial_run.point

    @property
    def has_ended(self) -> bool:
        """Whether it is never run again."""
        return self.status in ENDED

    @property
    def loss(self) -> float | None:
        """What it reported last."""
        return self.reports[-1].loss if self.reports else None

    @property
    def step(self) -> int:
        """Steps done, over all of its runs."""
        return sum(trial_run.steps_done for trial_run in self.trial_runs)

    def has_reported(self, step: int) -> bool:
        """Whether its run has told of `step`, or of a later one."""
        return any(report.trial_run == len(self.trial_runs) - 1 and report.step >= step for report in self.reports)

    def end(self, status: str, reason: str = "") -> None:
        """Note how it ended."""
        self.status, self.reason, self.ended_at, self.workers = status, reason, time.time(), 0

    def to_json(self) -> bytes:
        """The record as the object's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> TrialRecord:
        """Inverse of `to_json`."""
        fields = json.loads(content)
        if "stints" in fields:  # as version 0.1.0 wrote it
            fields["trial_runs"] = fields.pop("stints")
            fields["reports"] = [{**each, "trial_run": each.pop("stint")} for each in fields["reports"]]
        fields["reports"] = [Report(**report) for report in fields["reports"]]
        fields["trial_runs"] = [
            TrialRun(
                **{
                    **trial_run,
                    "point": with_new_names(trial_run["point"]),
                    "donor": Donor(**trial_run["donor"]) if trial_run["donor"] else None,
                }
            )
            for trial_run in fields["trial_runs"]
        ]
        return cls(**fields)


class TrialBook:
    """The trials of a sweep. `store` is the sweep's own folder."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trials: dict[str, TrialRecord] = {}
        for info in store.list("trials/"):
            record = TrialRecord.from_json(store.get(info.key))
            self._trials[record.id] = record
        self._reports = max((report.number for record in self for report in record.reports), default=0)

    def __iter__(self) -> Iterator[TrialRecord]:
        """All trials, by number."""
        return iter(sorted(self._trials.values(), key=lambda record: record.number))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._trials)

    def __getitem__(self, name: str) -> TrialRecord:
        """A trial by its id."""
        return self._trials[name]

    def add(self, record: TrialRecord) -> TrialRecord:
        """Keep a new trial."""
        self._trials[record.id] = record
        self.save(record)
        return record

    def save(self, record: TrialRecord) -> None:
        """Keep what has changed of a trial."""
        self._store.put(f"trials/{record.id}.json", record.to_json())

    def report(self, record: TrialRecord, step: int, loss: float | None, worker_s: float, attempt: int) -> Report:
        """Keep a report; it is in the store when this returns."""
        self._reports += 1
        trial_run = len(record.trial_runs) - 1
        record.reports.append(Report(self._reports, step, loss, worker_s, time.time(), trial_run, attempt))
        self.save(record)
        return record.reports[-1]
