"""The record of a run in object storage, and the fence around it.

One JSON object, `run.json`, changed only by conditional puts. It names the run's attempts; the last of them is the one
that may write. An older attempt that still lives notices at its next sign of life, or at its next checkpoint, and
stops. What it may have written in between is recognized by `continues`: a later attempt says from which step it went
on, and nothing an earlier one wrote beyond that step belongs to the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.processes import start_time
from data.errors import ConflictError, ObjectNotFoundError
from data.prepare import Pins
from data.store import Store
from orchestrator.errors import FencedError, RunInUseError, UnknownRunError
from orchestrator.versions import versions

RECORD = "run.json"

HEARTBEAT_S = 3.0
"""Seconds between two signs of life of an attempt."""

PRESUMED_DEAD_S = 10 * HEARTBEAT_S
"""Silence after which an attempt on another machine is taken for dead."""

LIVE = ("preparing", "running")

CLAIM_TRIES = 5
"""Times a takeover may meet a sign of life of the attempt that it fences off, which comes every few seconds."""


@dataclass(frozen=True)
class Attempt:
    """One life of a run: one command, from its claim to its end.

    Attributes:
        from_step: step of the checkpoint it went on from; None until it knows.
        world_size: its workers; 0 while there are none.
        phase: what its loop was at, see `Progress.phase`.
        disruptions: ends of worker groups before the attempt's own, see `Disruption.story`.
        decisions: what was decided about workers, see `Progress.decisions`.
        evaluations: those on the way, see `Progress.evaluations`.
        versions: of what it ran with, by name.
        started_at, heartbeat_at: seconds since the epoch by the attempt's own clock.
        goodput: seconds by cause up to the last sign of life.
        device: what its workers compute on, as CUDA names it; "" until it knows.
        flops_per_token: model FLOPs for a target token, see `orchestrator.observe.utilization`; None until it knows.
    """

    number: int
    host: str
    boot_id: str
    pid: int
    pid_started: str
    started_at: float
    heartbeat_at: float
    status: str = "preparing"
    from_step: int | None = None
    step: int = 0
    world_size: int = 0
    phase: str = ""
    disruptions: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    first_step_s: float | None = None
    goodput: dict[str, float] = field(default_factory=dict)
    message: str = ""
    device: str = ""
    flops_per_token: float | None = None

    @property
    def identity(self) -> tuple[int, str, int, str, float]:
        """Tells this attempt from every other, also from one of the same number in a run that was deleted."""
        return self.number, self.boot_id, self.pid, self.pid_started, self.started_at


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run apart from its checkpoints.

    Attributes:
        result_fields: config fields that decide the result, by dotted name; pinned when the run is made.
        manifest, tokenizer: digests of the data and the vocabulary the run is pinned to; None until prepared.
        input_tokenizer: digest of a vocabulary for inputs alone; None where there is none.
        init: sha256 of the weights that the run began with; None where they are drawn, or not known yet.
        cleaning: what the run is pinned to as to `data.steps`, and their report; empty where it has none.
        result: final evaluation of a finished run.
    """

    run: str
    created_at: float
    result_fields: dict[str, Any]
    manifest: str | None = None
    tokenizer: str | None = None
    input_tokenizer: str | None = None
    cleaning: dict[str, Any] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)
    init: str | None = None

    @property
    def last(self) -> Attempt:
        """The attempt that may write."""
        return self.attempts[-1]

    @property
    def pins(self) -> Pins:
        """Digests of what the run is pinned to."""
        return Pins(self.manifest, self.tokenizer, self.input_tokenizer, self.cleaning)

    @property
    def averages_weights(self) -> bool:
        """Whether the run keeps a moving average of its weights, which is what evaluations are of."""
        return self.result_fields.get("train.ema_decay") is not None

    def continues(self, attempt: int, step: int) -> bool:
        """Whether what `attempt` wrote at `step` belongs to the run: no later attempt went on from before it."""
        return all(
            later.from_step is None or step <= later.from_step for later in self.attempts if later.number > attempt
        )

    def to_json(self) -> bytes:
        """The record as the object's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> RunRecord:
        """Inverse of `to_json`."""
        fields = json.loads(content)
        known = Attempt.__dataclass_fields__.keys()  # what an older version of this program wrote may have others
        fields["attempts"] = tuple(
            Attempt(**{name: value for name, value in attempt.items() if name in known})
            for attempt in fields["attempts"]
        )
        return cls(**fields)


def load_record(store: Store, key: str = RECORD) -> RunRecord:
    """The record of the run under `store`; `key` where it has another name.

    Raises:
        UnknownRunError: there is none.
    """
    try:
        return RunRecord.from_json(store.get(key))
    except ObjectNotFoundError:
        raise UnknownRunError(f"There is no run at {store.url_of('')}; `manta train RECIPE` makes one.") from None


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
        if info and not takeover and (sign := sign_of_life(record.last)):
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

    def sign_of_life(self) -> None:
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


def sign_of_life(attempt: Attempt, *, mine: bool = False) -> str | None:
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
