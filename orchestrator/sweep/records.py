"""The records of a sweep's trials in object storage, from which an interrupted sweep continues.

    sweeps/NAME/sweep.json          the sweep's record and fence: attempts, fields that decide its result, how it ended
    sweeps/NAME/trials/t001.json    a trial: its point, its reports, how it ended

Only the process that holds the sweep's fence writes: a trial's record names the attempt at the sweep that wrote it, and
an older attempt never replaces what a newer one wrote. A report is written before the scheduler sees it, so the state
of searcher and scheduler can be rebuilt from the records.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from data.errors import ConflictError, DamagedObjectError, ObjectNotFoundError
from data.stores.patience import Patience
from data.stores.sealed_json import sealed, unsealed
from data.stores.store import Store
from orchestrator.config.renamed import with_new_names
from orchestrator.run.fence import fenced
from orchestrator.run.record import load_record

RECORD = "sweep.json"
"""Key of the sweep's own record."""

ENDED = ("finished", "stopped", "failed")
"""Statuses of a trial that does not run again, unless trials are added to the sweep."""

DRAWN = -1
"""`TrialRecord.given` of a trial whose point the searcher chose."""

SAVE_TRIES = 5
"""Tries to save a trial, each of which may collide with a write of an older attempt."""


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

    number: int
    step: int
    loss: float | None
    worker_s: float
    at: float
    trial_run: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Donor:
    """The checkpoint of another trial, from which a trial continued."""

    id: str
    run: str
    step: int
    attempt: int


@dataclass
class TrialRun:
    """A run of a trial. All but the first start from a donor's state.

    Attributes:
        run: name of the run.
        point: values of the searched fields by dotted name.
        step: newest step done.
        is_forked: whether the donor's state has been copied.
    """

    run: str
    point: dict[str, Any]
    donor: Donor | None = None
    step: int = 0
    is_forked: bool = False

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
        refused: points that were drawn for it and refused by the recipe's rules, with the reason.
        parameters: number of the model's parameters; None before it trains, and in records of version 0.2.0.
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
    attempt: int = 0
    given: int | None = None
    failures: list[str] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    parameters: int | None = None

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


def _key(name: str) -> str:
    return f"trials/{name}.json"


class TrialBook:
    """All trial records of a sweep, each stored when it changes.

    Args:
        store: the sweep's own folder.
        attempt: number of the attempt at the sweep that this process is; 0 where it only reads.
        patience: for a store that fails when a trial is saved.

    Raises:
        DamagedObjectError: a record is damaged, missing, or that of another trial.
    """

    def __init__(self, store: Store, attempt: int = 0, patience: Patience | None = None) -> None:
        self._store, self._attempt, self._patience = store, attempt, patience or Patience(0.0)
        self._trials: dict[str, TrialRecord] = {}
        self._etags: dict[str, str] = {}
        self._numbered: dict[int, TrialRecord] = {}
        for info in store.list("trials/"):
            record, url = TrialRecord.from_json(store.get(info.key), store.url_of(info.key)), store.url_of(info.key)
            if info.key != _key(record.id):
                raise DamagedObjectError(f"{url} is the record of trial {record.id}. Restore it from a copy.")
            self._trials[record.id], self._etags[record.id] = record, info.etag
        if missing := set(range(1, max(self.by_number, default=0))) - self.by_number.keys():  # they are added in order
            raise DamagedObjectError(
                f"{store.url_of(_key(f't{min(missing):03d}'))} is missing, though there are later trials. Restore it "
                f"from a copy."
            )
        self._reports = max((report.number for record in self for report in record.reports), default=0)

    def __iter__(self) -> Iterator[TrialRecord]:
        """All trials, by number."""
        return iter(self.by_number.values())

    @property
    def by_number(self) -> dict[int, TrialRecord]:
        """All trials by number, in its order."""
        if len(self._numbered) != len(self._trials):
            by_number = sorted(self._trials.values(), key=lambda record: record.number)
            self._numbered = {record.number: record for record in by_number}
        return self._numbered

    def __len__(self) -> int:
        """Number of trials."""
        return len(self._trials)

    def __getitem__(self, name: str) -> TrialRecord:
        """The trial with this id."""
        return self._trials[name]

    def add(self, record: TrialRecord) -> TrialRecord:
        """Adds and stores a new trial."""
        self._trials[record.id] = record
        self.save(record)
        return record

    def save(self, record: TrialRecord) -> None:
        """Stores a changed trial.

        Raises:
            FencedError: a newer attempt has taken the sweep over.
            TransientStoreError: the store has failed for as long as `patience` allows.
        """
        record.attempt = self._attempt
        self._patience.call(lambda: self._put(record.id, record.to_json()))

    def _put(self, name: str, content: bytes) -> None:
        key = _key(name)
        for tries_left in reversed(range(SAVE_TRIES)):
            etag = self._etags.get(name)
            try:
                put = self._store.put_if_match(key, content, etag) if etag else self._store.put_if_absent(key, content)
            except ConflictError:
                if self._is_written_after_conflict(name, key, content):
                    return
                if not tries_left:
                    raise
            else:
                self._etags[name] = put
                return

    def _is_written_after_conflict(self, name: str, key: str, content: bytes) -> bool:
        """Whether the conflict was a put of this process with a lost answer; otherwise it may be tried again.

        Raises:
            FencedError: the conflict was a put of a newer attempt.
        """
        # Read the etag before the record: read after it, it could be that of a newer attempt's put in between.
        info = self._store.head(key)
        try:
            found = self._store.get(key) if info else None
        except ObjectNotFoundError:
            found = None
        if info is None or found is None:
            self._etags.pop(name, None)
            return False
        if TrialRecord.from_json(found, self._store.url_of(key)).attempt > self._attempt:
            raise fenced(load_record(self._store, RECORD), self._attempt)
        self._etags[name] = info.etag
        return found == content

    def report(self, record: TrialRecord, step: int, loss: float | None, worker_s: float, attempt: int) -> Report:
        """Adds a report to a trial; it is in the store when this returns."""
        self._reports += 1
        trial_run = len(record.trial_runs) - 1
        record.reports.append(Report(self._reports, step, loss, worker_s, time.time(), trial_run, attempt))
        self.save(record)
        return record.reports[-1]
