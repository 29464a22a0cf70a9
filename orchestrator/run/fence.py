"""The fence: only a run's newest attempt may write. Every change of the run's record is a conditional put.

An older attempt that is still alive notices at its next heartbeat, or at its next checkpoint, and stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.local.processes import start_time
from data.errors import ConflictError, ObjectNotFoundError
from data.stores.store import Store
from orchestrator.errors import FencedError, RunInUseError
from orchestrator.run.record import LIVE, RECORD, Attempt, RunRecord, load_record, shortened, versions

HEARTBEAT_S = 3.0
"""Seconds between two heartbeats of an attempt."""

PRESUMED_DEAD_S = 10 * HEARTBEAT_S
"""Seconds without a heartbeat after which an attempt on another machine is presumed dead."""

CLAIM_TRIES = 5
"""Tries of a takeover, each of which may collide with a heartbeat of the attempt that it fences off."""


_Claimed = TypeVar("_Claimed")


def when_free(claim: Callable[[], _Claimed], wait_s: float, log: Callable[[str], None]) -> _Claimed:
    """What `claim` returns; while a live attempt holds the run, it is called again for `wait_s` seconds.

    Raises:
        RunInUseError: a live attempt still holds it.
    """
    until, logged = time.monotonic() + wait_s, False
    while True:
        try:
            return claim()
        except RunInUseError as error:
            if time.monotonic() >= until:
                raise
            if not logged:
                log(f"{str(error).partition('. ')[0]}: waiting up to {wait_s:.0f} s for it")
                logged = True
        time.sleep(HEARTBEAT_S)


class Fence:
    """This process's hold on a run, made by `claim`: it may write while its attempt is the newest in the record.

    Every change is a conditional put on the version that was read last, so two holders never both succeed.
    """

    def __init__(self, store: Store, record: RunRecord, etag: str, key: str = RECORD) -> None:
        self._store, self._etag, self._key = store, etag, key
        self._lock = threading.Lock()  # heartbeats are written in a thread of their own
        self.record = record

    @classmethod
    def claim(
        cls,
        store: Store,
        run: str,
        result_fields: dict[str, Any],
        *,
        keep_pins: bool,
        started_at: float | None = None,
        takeover: bool = False,
        key: str = RECORD,
        from_step: int | None = None,
        tries: int = CLAIM_TRIES,
    ) -> Fence:
        """Adds an attempt to the run; creates the run if it is new.

        Args:
            keep_pins: keep the result fields, data and vocabulary of the record. False for a run without a checkpoint,
                which may still change all of them.
            started_at: when the command was started, seconds since the epoch; default now.
            takeover: fence off an attempt that seems alive.
            key: key of the record.
            from_step: step that the attempt continues from by the user's choice; what was written after it by earlier
                attempts is no part of the run any more.
            tries: tries left if a heartbeat of the attempt to be fenced off comes in between.

        Raises:
            RunInUseError: another attempt is alive and `takeover` is false.
        """
        info = store.head(key)
        record = load_record(store, key, run) if info else RunRecord(run, time.time(), result_fields)
        if info and not takeover and (sign := liveness(record.last, store, key)):
            other = record.last
            raise RunInUseError(
                f"Run {run!r} is in use: attempt {other.number} on {other.host} (pid {other.pid}) {sign}. Wait for it, "
                f"stop it, choose another `run:` name, or fence it off with `manta train --takeover`."
            )
        if not keep_pins:
            record = _without_pins(record, result_fields)
        record = replace(
            record,
            attempts=(*shortened(record.attempts), _this_attempt(len(record.attempts) + 1, started_at, from_step)),
        )
        try:
            return cls(store, record, _put(store, key, record, info.etag if info else None), key)
        except ConflictError:
            found = load_record(store, key).attempts if store.head(key) else ()
        if takeover and tries > 1 and len(found) == len(record.attempts) - 1 > 0:
            # Nobody else has claimed the run: the conflict was a heartbeat of the attempt to be fenced off.
            return cls.claim(
                store,
                run,
                result_fields,
                keep_pins=keep_pins,
                started_at=started_at,
                takeover=True,
                key=key,
                from_step=from_step,
                tries=tries - 1,
            )
        raise RunInUseError(f"Run {run!r} was claimed by another command at this very moment. Wait for it or stop it.")

    def update(
        self, *, attempt: dict[str, Any] | None = None, unless: Callable[[], bool] = lambda: False, **run: Any
    ) -> None:
        """Changes fields of the run and of this attempt. Counts as a heartbeat. Safe to call from several threads.

        Args:
            unless: where this is true once it is this call's turn, nothing is written.

        Raises:
            FencedError: a newer attempt has taken the run over.
        """
        with self._lock:
            if unless():
                return
            mine = replace(self.record.last, heartbeat_at=time.time(), **(attempt or {}))
            record = replace(self.record, attempts=(*self.record.attempts[:-1], mine), **run)
            try:
                self._etag = _put(self._store, self._key, record, self._etag)
            except ConflictError:
                self._etag = self._put_after_lost_answer(record)
            self.record = record

    def add_result(self, result: dict[str, Any], **run: Any) -> None:
        """Adds these to the `result` in the run's record, and changes fields of the run; see `update`."""
        self.update(result={**self.record.result, **result}, **run)

    def _put_after_lost_answer(self, record: RunRecord) -> str:
        """Repeats a put whose conflict was an earlier put of this process with a lost answer; returns the new etag.

        Raises:
            FencedError: the conflict was a put of another attempt.
        """
        # Read the etag before the record: read after it, it could be that of a takeover in between.
        info, found = self._store.head(self._key), load_record(self._store, self._key)
        if info is not None and found.last.identity == record.last.identity:
            with contextlib.suppress(ConflictError):
                return _put(self._store, self._key, record, info.etag)
        raise fenced(load_record(self._store, self._key), record.last.number)


def _without_pins(record: RunRecord, result_fields: dict[str, Any]) -> RunRecord:
    """The record with these result fields, and data and vocabulary not chosen yet."""
    return replace(
        record,
        result_fields=result_fields,
        manifest=None,
        tokenizer=None,
        input_tokenizer=None,
        cleaning={},
        init=None,
    )


def _put(store: Store, key: str, record: RunRecord, etag: str | None) -> str:
    """Writes the record over its version `etag`, or as the first version if None; returns the new etag.

    Raises:
        ConflictError: another process wrote first.
    """
    content = record.to_json()
    try:
        return store.put_if_match(key, content, etag) if etag else store.put_if_absent(key, content)
    except ConflictError:
        # After a lost answer, the store's retry conflicts with its own first try. No other process writes the same
        # bytes, since they name this process. Read the etag first: read later, it could be that of a takeover.
        with contextlib.suppress(ObjectNotFoundError):
            if (info := store.head(key)) and store.get(key) == content:
                return info.etag
        raise


def check_fence(store: Store, attempt: int) -> RunRecord:
    """Returns the run's record if `attempt` may still write.

    Raises:
        FencedError: a newer attempt has taken the run over.
    """
    record = load_record(store)
    if record.last.number != attempt:
        raise fenced(record, attempt)
    return record


def fenced(record: RunRecord, attempt: int) -> FencedError:
    """The error with which attempt `attempt` stops: the record's last attempt has taken over."""
    newer = record.last
    return FencedError(
        f"Attempt {attempt} of run {record.run!r} stops: attempt {newer.number} on {newer.host} (pid {newer.pid}) has "
        f"taken the run over. Nothing saved before is lost; follow the newer one with `manta show {record.run}`."
    )


def liveness(last: Attempt, store: Store, key: str = RECORD, *, mine: bool = False) -> str | None:
    """Says why a run's last attempt is presumed alive, or None.

    On this machine its process counts, elsewhere the age of its last heartbeat: of the record, by the store's clock.

    Args:
        key: key of the record.
        mine: whether an attempt of this very process counts as alive.
    """
    if last.status not in LIVE:
        return None
    if last.boot_id == _boot_id():
        alive = start_time(last.pid) == last.pid_started
        return "is running on this machine" if alive and (mine or last.pid != os.getpid()) else None
    silence_s = store.age_s(key)
    if silence_s is None or silence_s >= PRESUMED_DEAD_S:
        return None
    return f"sent a heartbeat {silence_s:.0f} s ago"


def _this_attempt(number: int, started_at: float | None, from_step: int | None) -> Attempt:
    now, pid = time.time(), os.getpid()
    return Attempt(
        number,
        socket.gethostname(),
        _boot_id(),
        pid,
        start_time(pid) or "",
        started_at or now,
        now,
        from_step=from_step,
        versions=versions(),
    )


def process_started_at() -> float:
    """Start time of this process, before interpreter start-up and imports; seconds since the epoch."""
    try:
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        ticks = float(start_time(os.getpid()) or "")
        return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):  # not Linux: CPU time so far stands in for start-up and imports
        return time.time() - time.process_time()


def _boot_id() -> str:
    """Identifies this boot of this machine and, in a container, its PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname()
