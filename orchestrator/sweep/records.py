"""The records of a sweep's trials in object storage, from which an interrupted sweep continues.

    sweeps/NAME/sweep.json          the sweep's record and fence: attempts, fields that decide its result, how it ended
    sweeps/NAME/trials/t001.json    a trial: its point, its reports, how it ended

Only the process that holds the sweep's fence writes: a trial's record names the attempt at the sweep that wrote it, and
an older attempt never replaces what a newer one wrote. A report is written before the scheduler sees it, so the state
of searcher and scheduler can be rebuilt from the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

from data.errors import ConflictError, DamagedObjectError, ObjectNotFoundError
from data.stores.patience import Patience
from data.stores.store import Store
from orchestrator.errors import UnknownRunError
from orchestrator.run.fence import fenced
from orchestrator.run.record import load_record
from orchestrator.sweep.trial_record import Report, TrialRecord

RECORD = "sweep.json"
"""Key of the sweep's own record."""

SAVE_TRIES = 5
"""Tries to save a trial, each of which may collide with a write of an older attempt."""


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
        recorded = 0
        with suppress(UnknownRunError):
            recorded = load_record(store, RECORD).result.get("trials", 0)  # before the list, which grows
        for info in store.list("trials/"):
            record, url = TrialRecord.from_json(store.get(info.key), store.url_of(info.key)), store.url_of(info.key)
            if info.key != _key(record.id):
                raise DamagedObjectError(f"{url} is the record of trial {record.id}. Restore it from a copy.")
            self._trials[record.id], self._etags[record.id] = record, info.etag
        most = max([recorded, *self.by_number])
        if missing := set(range(1, most + 1)) - self.by_number.keys():  # they are added in order
            raise DamagedObjectError(
                f"{store.url_of(_key(f't{min(missing):03d}'))} is missing, though the sweep had {most} trials. Restore "
                f"it from a copy."
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
