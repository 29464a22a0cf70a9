"""The record of a run in object storage: one JSON object, `run.json`, that names the run's attempts.

What an older attempt may have written after a newer one took over is recognized by `continues`: a later attempt says
from which step it went on, and nothing an earlier one wrote beyond that step belongs to the run.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data.errors import ObjectNotFoundError
from data.prepare import Pins
from data.stores.store import Store
from orchestrator.config.renamed import with_new_names
from orchestrator.errors import UnknownRunError

RECORD = "run.json"

LIVE = ("preparing", "running")


@dataclass(frozen=True)
class Attempt:
    """One life of a run: one command, from its claim to its end.

    Attributes:
        from_step: step of the checkpoint it went on from; None until it knows.
        world_size: its workers; 0 while there are none.
        phase: what its loop was at, see `Progress.phase`.
        disruptions: ends of worker groups before the attempt's own, see `Disruption.summary`.
        decisions: what was decided about workers, see `Progress.decisions`.
        evaluations: those on the way, see `Progress.evaluations`.
        versions: of what it ran with, by name.
        started_at, heartbeat_at: seconds since the epoch by the attempt's own clock.
        goodput: seconds by cause up to the last sign of life.
        device: what its workers compute on, as CUDA names it; "" until it knows.
        flops_per_token: model FLOPs for a target token, see `orchestrator.run.utilization`; None until it knows.
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
        cleaning: what the run is pinned to as to `data.cleaning`, and their report; empty where it has none.
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
        return cls(**fields | {"result_fields": with_new_names(fields["result_fields"])})


def load_record(store: Store, key: str = RECORD) -> RunRecord:
    """The record of the run under `store`; `key` where it has another name.

    Raises:
        UnknownRunError: there is none.
    """
    try:
        return RunRecord.from_json(store.get(key))
    except ObjectNotFoundError:
        raise UnknownRunError(f"There is no run at {store.url_of('')}; `manta train RECIPE` makes one.") from None


TOLD = ("manta", "ray", "torch")
"""Packages whose versions a run's record names."""


def versions() -> dict[str, str]:
    """Version by name, Python's among them; a package that is not installed, as a source tree is not, is left out."""
    found = {"python": platform.python_version()}
    for name in TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
