"""The fence around a run's record: changed only by conditional puts, by the attempt that is the record's last.

An older attempt that still lives notices at its next heartbeat, or at its next checkpoint, and stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.local.processes import start_time
from data.errors import ConflictError, ObjectNotFoundError
from data.stores.store import Store
from orchestrator.errors import FencedError, RunInUseError
from orchestrator.run.record import LIVE, RECORD, Attempt, RunRecord, load_record, versions

HEARTBEAT_S = 3.0
"""Seconds between two signs of life of an attempt."""

PRESUMED_DEAD_S = 10 * HEARTBEAT_S
"""Silence after which an attempt on another machine is taken for dead."""

CLAIM_TRIES = 5
"""Times a takeover may meet a sign of life of the attempt that it fences off, which comes every few seconds."""


class Fence:
    """This process's hold on a run: it may write as long as its attempt is the record's last.

    Made by `claim`. Every change is a conditional put on what was read last, so two holders never both succeed.
    """

    def __init__(self, store: Store, record: RunRecord, etag: str, key: str = RECORD) -> None:
        self._store, self._etag, self._key = store, etag, key
        self.record = record

    @classmethod
    def claim(
        cls,
        store: Store,
        run: str,
        result_fields: dict[str, Any],
        *,
        begun: bool,
        started_at: float | None = None,
        takeover: bool = False,
        key: str = RECORD,
        tries: int = CLAIM_TRIES,
    ) -> Fence:
        """Add an attempt to the run, making the run if it is new.

        Args:
            begun: the run has a checkpoint; before that, nothing is pinned that could not be chosen anew.
            started_at: when the command was given, seconds since the epoch; default now.
            takeover: fence off an attempt that seems alive.
            key: of the record.
            tries: times that a sign of life of the attempt to be fenced off may come in between.

        Raises:
            RunInUseError: another attempt lives, and `takeover` does not say to fence it off.
        """
        info = store.head(key)
        record = RunRecord.from_json(store.get(key)) if info else RunRecord(run, time.time(), result_fields)
        if info and not takeover and (sign := liveness(record.last)):
            other = record.last
            raise RunInUseError(
                f"Run {run!r} is in use: attempt {other.number} on {other.host} (pid {other.pid}) {sign}. Wait for it, "
                f"stop it, choose another `run:` name, or fence it off with `manta train --takeover`."
            )
        if not begun:
            record = replace(
                record,
                result_fields=result_fields,
                manifest=None,
                tokenizer=None,
                input_tokenizer=None,
                cleaning={},
                init=None,
            )
        record = replace(record, attempts=(*record.attempts, _this_attempt(len(record.attempts) + 1, started_at)))
        try:
            return cls(store, record, _put(store, key, record, info.etag if info else None), key)
        except ConflictError:
            found = load_record(store, key).attempts if store.head(key) else ()
        if takeover and tries > 1 and len(found) == len(record.attempts) - 1 > 0:
            # Nobody else has claimed it: the one to be fenced off has given a sign of life in between.
            return cls.claim(
                store, run, result_fields, begun=begun, started_at=started_at, takeover=True, key=key, tries=tries - 1
            )
        raise RunInUseError(f"Run {run!r} was claimed by another command at this very moment. Wait for it or stop it.")

    def heartbeat(self) -> None:
        """Give one if the last is HEARTBEAT_S old.

        Raises:
            FencedError: a newer attempt has taken the run over.
        """
        if time.time() - self.record.last.heartbeat_at >= HEARTBEAT_S:
            self.update()

    def update(self, *, attempt: dict[str, Any] | None = None, **run: Any) -> None:
        """Change fields of the run, and of this attempt; also a sign of life.

        Raises:
            FencedError: a newer attempt has taken the run over.
        """
        mine = replace(self.record.last, heartbeat_at=time.time(), **(attempt or {}))
        record = replace(self.record, attempts=(*self.record.attempts[:-1], mine), **run)
        try:
            self._etag = _put(self._store, self._key, record, self._etag)
        except ConflictError:
            self._etag = self._put_after_lost_answer(record)
        self.record = record

    def _put_after_lost_answer(self, record: RunRecord) -> str:
        """Put once more where an earlier put of ours was done and its answer lost; returns the new etag.

        Raises:
            FencedError: it was somebody else's put that got in between.
        """
        # The etag is read before the record, lest it be that of a takeover in between.
        info, found = self._store.head(self._key), load_record(self._store, self._key)
        if info is not None and found.last.identity == record.last.identity:
            with contextlib.suppress(ConflictError):
                return _put(self._store, self._key, record, info.etag)
        raise fenced(load_record(self._store, self._key), record.last.number)


def _put(store: Store, key: str, record: RunRecord, etag: str | None) -> str:
    """Write the record over version `etag` of it, or as the first where None; returns the new etag.

    Raises:
        ConflictError: somebody else wrote first.
    """
    content = record.to_json()
    try:
        return store.put_if_match(key, content, etag) if etag else store.put_if_absent(key, content)
    except ConflictError:
        # After a lost answer, the second try is refused for what the first has written. No other process writes the
        # same bytes: they name this one. The etag is read before them, lest it be that of a takeover in between.
        with contextlib.suppress(ObjectNotFoundError):
            if (info := store.head(key)) and store.get(key) == content:
                return info.etag
        raise


def check_fence(store: Store, attempt: int) -> RunRecord:
    """The run's record, if `attempt` may still write.

    Raises:
        FencedError: a newer attempt has taken the run over.
    """
    record = load_record(store)
    if record.last.number != attempt:
        raise fenced(record, attempt)
    return record


def fenced(record: RunRecord, attempt: int) -> FencedError:
    """The word with which attempt `attempt` stops."""
    newer = record.last
    return FencedError(
        f"Attempt {attempt} of run {record.run!r} stops: attempt {newer.number} on {newer.host} (pid {newer.pid}) has "
        f"taken the run over. Nothing saved before is lost; follow the newer one with `manta show {record.run}`."
    )


def liveness(attempt: Attempt, *, mine: bool = False) -> str | None:
    """Why `attempt` is taken for alive, or None: on this machine by its process, elsewhere by its last sign of life.

    Args:
        mine: whether one of this very process counts, too.
    """
    if attempt.status not in LIVE:
        return None
    if attempt.boot_id == _boot_id():
        alive = start_time(attempt.pid) == attempt.pid_started
        return "is running on this machine" if alive and (mine or attempt.pid != os.getpid()) else None
    silence_s = time.time() - attempt.heartbeat_at
    return f"gave a sign of life {silence_s:.0f} s ago" if silence_s < PRESUMED_DEAD_S else None


def _this_attempt(number: int, started_at: float | None) -> Attempt:
    now, pid = time.time(), os.getpid()
    return Attempt(
        number,
        socket.gethostname(),
        _boot_id(),
        pid,
        start_time(pid) or "",
        started_at or now,
        now,
        versions=versions(),
    )


def process_started_at() -> float:
    """When this process was started, interpreter and imports included; seconds since the epoch."""
    try:
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        ticks = float(start_time(os.getpid()) or "")
        return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):  # not Linux: imports are what is missed
        return time.time() - time.process_time()


def _boot_id() -> str:
    """Tells this start of this machine (container, where there is one) from any other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname()
