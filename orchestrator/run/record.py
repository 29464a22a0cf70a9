"""The record of a run in object storage: one JSON object, `run.json`, that names the run's attempts.

An older attempt may still write after a newer one took over. `continues` recognizes such writes: every attempt records
the step it continued from, and nothing that an earlier attempt wrote beyond that step belongs to the run.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from data.errors import DamagedObjectError, ObjectNotFoundError
from data.prepared import Pins
from data.stores.sealed_json import sealed, unsealed
from data.stores.store import Store
from orchestrator.config.renamed import with_new_names
from orchestrator.errors import UnknownRunError
from orchestrator.run.goodput import CAUSES
from orchestrator.run.stored_fields import (
    Count,
    Decision,
    Digest,
    Disruption,
    Evaluation,
    Number,
    Outage,
    Pinned,
    Result,
    Seconds,
    Time,
    checked,
    held_to,
    one_of,
)

RECORD = "run.json"

LIVE = ("preparing", "running")
"""Statuses of an attempt that has not ended."""

STATUSES = (*LIVE, "finished", "stopped", "failed")
"""Statuses of an attempt."""

DISRUPTIONS, DECISIONS, OUTAGES, EVALUATIONS = 500, 200, 50, 1000
"""Most entries of these lists of an attempt: a run of months makes any number, and the record is often written."""

VERSIONED_PACKAGES = ("manta", "ray", "torch")
"""Packages whose versions a run's record names."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: one `manta train` command, from its claim to its end.

    Attributes:
        number: counts from 1.
        boot_id, pid, pid_started: identify the process, see `orchestrator.run.fence.liveness`.
        started_at, heartbeat_at: seconds since the epoch by the attempt's own clock.
        status: one of STATUSES.
        from_step: step of the state it continued from; None until known, or until the user chose one.
        step: newest reported step.
        saved_step: step of the newest checkpoint that it saved or continued from; None before.
        world_size: workers; 0 while there are none.
        phase: what its loop is doing, see `Progress.phase`.
        disruptions: the newest ends of worker groups before the end of the attempt, see `Disruption.summary`.
        restart_counts: number of all of them by cause.
        decisions: decisions about workers, see `Progress.decisions`.
        evaluations: evaluations during training, see `Progress.evaluations`.
        outages: of stores, see `Progress.outages`.
        versions: versions of Python and packages, by name.
        first_step_s: seconds from the command to the first step; None before it.
        goodput: seconds by cause up to the last heartbeat.
        message: why it ended, if it failed.
        device: what its workers compute on, as CUDA names it; "" until known.
        flops_per_token: model FLOPs per target token, see `orchestrator.run.utilization`; None until known.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")  # another version may have written other fields

    number: Count
    host: str
    boot_id: str
    pid: Count
    pid_started: str
    started_at: Time
    heartbeat_at: Time
    status: Annotated[str, one_of(STATUSES)] = "preparing"
    from_step: Count | None = None
    step: Count = 0
    world_size: Count = 0
    phase: str = ""
    disruptions: list[Annotated[dict[str, Any], held_to(Disruption)]] = field(default_factory=list)
    restart_counts: dict[str, Count] = field(default_factory=dict)
    decisions: list[Annotated[dict[str, Any], held_to(Decision)]] = field(default_factory=list)
    evaluations: list[Annotated[dict[str, Any], held_to(Evaluation)]] = field(default_factory=list)
    outages: list[Annotated[dict[str, Any], held_to(Outage)]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    first_step_s: Seconds | None = None
    goodput: dict[Annotated[str, one_of(CAUSES)], Seconds] = field(default_factory=dict)
    message: str = ""
    device: str = ""
    flops_per_token: Annotated[Number, Field(ge=0, allow_inf_nan=False)] | None = None
    saved_step: Count | None = None

    @property
    def identity(self) -> tuple[int, str, int, str, float]:
        """Differs between any two attempts, also from one of the same number in a deleted run of the same name."""
        return self.number, self.boot_id, self.pid, self.pid_started, self.started_at


@dataclass(frozen=True)
class RunRecord:
    """The record of a run: its pins, its attempts and its result.

    Attributes:
        created_at: seconds since the epoch.
        result_fields: config fields that decide the result, by dotted name; pinned when the run is created.
        manifest, tokenizer: digests of the data and the vocabulary that the run is pinned to; None until prepared.
        input_tokenizer: digest of a separate vocabulary for inputs; None if there is none.
        cleaning: pins of the steps of `data.cleaning`, and their report; empty if there are no steps.
        attempts: oldest first.
        result: final evaluation of a finished run.
        init: sha256 of the initial weights; None if they are drawn from the seed, or not known yet.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    run: str
    created_at: Time
    result_fields: dict[str, Any]
    manifest: Digest | None = None
    tokenizer: Digest | None = None
    input_tokenizer: Digest | None = None
    cleaning: Annotated[dict[str, Any], held_to(Pinned)] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    result: Annotated[dict[str, Any], held_to(Result)] = field(default_factory=dict)
    init: Digest | None = None

    @property
    def last(self) -> Attempt:
        """The newest attempt, the only one that may write."""
        return self.attempts[-1]

    @property
    def pins(self) -> Pins:
        """Digests of the data and vocabularies that the run is pinned to."""
        return Pins(self.manifest, self.tokenizer, self.input_tokenizer, self.cleaning)

    @property
    def averages_weights(self) -> bool:
        """Whether the run keeps a moving average of its weights; if so, evaluations use it."""
        return self.result_fields.get("train.ema_decay") is not None

    @property
    def identity(self) -> str:
        """Differs between runs of the same name, and once the fields that decide the result, or the data, change."""
        pinned = (self.created_at, self.result_fields, asdict(self.pins), self.init)
        return hashlib.blake2b(json.dumps(pinned, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()

    @property
    def saved_step(self) -> int | None:
        """Step of a checkpoint that must be in storage, or a newer one; None where none is known to be."""
        for attempt in reversed(self.attempts):
            if attempt.saved_step is not None:
                return attempt.saved_step if self.continues(attempt.number, attempt.saved_step) else None
        return None

    def newest_step_of(self, attempt: int) -> int | None:
        """The newest step that belongs to the run of what `attempt` wrote or may still write; None: any step."""
        begun = [later.from_step for later in self.attempts if later.number > attempt and later.from_step is not None]
        return min(begun, default=None)

    def continues(self, attempt: int, step: int) -> bool:
        """Whether a write of `attempt` at `step` belongs to the run: no later attempt continued from before it."""
        newest = self.newest_step_of(attempt)
        return newest is None or step <= newest

    def to_json(self) -> bytes:
        """Encodes the record, an attempt a line: `indent` of json takes ten times as long, every few seconds."""
        attempts = ",\n  ".join(json.dumps(vars(attempt)) for attempt in self.attempts)
        fields = {name: json.dumps(value) for name, value in vars(self).items() if name != "attempts"}
        fields["attempts"] = f"[\n  {attempts}\n ]"
        return sealed(("{\n" + ",\n".join(f' "{name}": {text}' for name, text in fields.items()) + "\n}").encode())

    @classmethod
    def from_json(cls, content: bytes, url: str = RECORD) -> RunRecord:
        """Inverse of `to_json`.

        Args:
            url: where the record is stored, for the message.

        Raises:
            DamagedObjectError: it is damaged.
        """
        return unsealed(content, url, cls._of_fields)

    @classmethod
    def _of_fields(cls, fields: dict[str, Any]) -> RunRecord:
        record = checked(cls, fields)
        numbers = [attempt.number for attempt in record.attempts]
        if numbers != list(range(1, max(len(numbers), 1) + 1)):
            raise ValueError(f"attempts: their numbers are {numbers[:20]}, and not 1, 2, …")
        if record.cleaning and not {"code", "duplicates"} <= record.cleaning.keys():
            raise ValueError("cleaning: it has no code, or no duplicates")
        return replace(
            record,
            result_fields=with_new_names(record.result_fields),
            attempts=tuple(map(_with_restart_counts, record.attempts)),
        )


def _with_restart_counts(attempt: Attempt) -> Attempt:
    """Older versions listed all disruptions, and did not count them."""
    if attempt.restart_counts or not attempt.disruptions:
        return attempt
    return replace(attempt, restart_counts=dict(Counter(each["cause"] for each in attempt.disruptions)))


def shortened(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """The attempts with no more entries in their lists, all together, than the lists of one attempt may have.

    The newest entries stay. Of evaluations, the remaining ones are spread over the run.
    """
    room = {"disruptions": DISRUPTIONS, "decisions": DECISIONS, "outages": OUTAGES}
    stride = max(1, -(-sum(len(attempt.evaluations) for attempt in attempts) // EVALUATIONS))
    short = []
    for attempt in reversed(attempts):
        lists: dict[str, Any] = {"evaluations": attempt.evaluations[::-stride][::-1]}
        for name, most in room.items():
            entries = getattr(attempt, name)
            lists[name] = entries[max(0, len(entries) - most) :]
            room[name] = most - len(lists[name])
        short.append(replace(attempt, **lists))
    return tuple(reversed(short))


def load_record(store: Store, key: str = RECORD, name: str | None = None) -> RunRecord:
    """Reads the record of the run under `store`.

    Args:
        key: key of the record; another one than RECORD for a sweep.
        name: of the run or sweep whose record it must be; None: as it was when it was read with a name before.

    Raises:
        UnknownRunError: there is none.
        DamagedObjectError: it is damaged, or is the record of another run.
    """
    url = store.url_of(key)
    try:
        record = RunRecord.from_json(store.get(key), url)
    except ObjectNotFoundError:
        raise UnknownRunError(f"There is no run at {store.url_of('')}; `manta train RECIPE` makes one.") from None
    if name is not None:
        kind, other = ("run", "sweep") if key == RECORD else ("sweep", "run")
        if ("sweep" if key == RECORD else "seed") in record.result_fields:  # the fields of a sweep's runs are run.seed…
            raise DamagedObjectError(f"{url} is the record of a {other}, not of a {kind}. Restore it from a copy.")
        if record.run != name:
            raise DamagedObjectError(
                f"{url} is the record of {kind} {record.run!r}. Restore it from a copy; or, if the folder "
                f'is a copy, write "run": "{name}" into it, and remove the line with its sha256.'
            )
    return record


def versions() -> dict[str, str]:
    """Versions of Python and of VERSIONED_PACKAGES, without packages that are not installed (as in a source tree)."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
