"""Reads a sweep's summary for display; missing or invalid values are left out instead of raising errors."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.report.format import is_number, label

Summary = Mapping[str, Any]

STATUSES = ("finished", "running", "paused", "pending", "stopped", "failed")
"""Statuses in the order in which trials are shown."""

AMBIGUOUS = ("name", "type", "kind")
"""Last parts of field names that say nothing without the part before."""

LOG_FROM = 20.0
"""A list of numbers whose ratio of largest to smallest is at least this is shown on a logarithmic axis."""


@dataclass(frozen=True)
class Field:
    """A searched field. `name` is dotted; `short` is the shortest unambiguous end of it."""

    name: str
    short: str
    is_numeric: bool
    is_log: bool
    values: tuple[Any, ...]
    when: Mapping[str, Any] = field(default_factory=dict)

    def of(self, trial: Trial) -> Any:
        """The trial's value; None where the trial does not use the field."""
        return trial.config.get(self.name)

    def number(self, trial: Trial) -> float | None:
        """The trial's position on this field's axis: the value, or its logarithm to base 10 on a logarithmic axis."""
        value = self.of(trial)
        if not is_number(value) or (self.is_log and value <= 0):
            return None
        return math.log10(value) if self.is_log else float(value)


@dataclass(frozen=True)
class Trial:
    """A trial; `curve` has (step, loss) by step, where the loss is a number."""

    id: str
    run: str
    status: str
    reason: str
    config: Mapping[str, Any]
    step: int
    steps: int
    loss: float | None
    curve: tuple[tuple[int, float], ...]
    worker_s: float
    started_at: float | None
    ended_at: float | None
    first_step_s: float | None
    workers: int
    parameters: int | None
    donor: tuple[str, int] | None
    is_best: bool

    @property
    def reached(self) -> int:
        """The last step that the trial did, which may be after its last reported loss."""
        return max(self.step, self.reported)

    @property
    def reported(self) -> int:
        """The step of the last reported loss; 0 before."""
        return self.curve[-1][0] if self.curve else 0

    def loss_at(self, step: int) -> float | None:
        """The last loss reported up to `step`; None where the trial did not reach it."""
        if not self.curve or self.reached < step:
            return None
        before = bisect_right(self.curve, (step, math.inf))
        return self.curve[before - 1][1] if before else None


@dataclass(frozen=True)
class Facts:
    """What is shown of a sweep; `trials` are in display order, the best first.

    `points` are what the sweep compares: the trials, or the means of points of several trials, under the id of the
    first of them.
    """

    fields: tuple[Field, ...]
    trials: tuple[Trial, ...]
    points: tuple[Trial, ...]
    rungs: tuple[int, ...]
    main: Field | None

    @property
    def best(self) -> Trial | None:
        """The best trial; None if there is none yet."""
        return next((trial for trial in self.trials if trial.is_best), None)

    def counts(self) -> dict[str, int]:
        """Number of trials by status, for the statuses that occur."""
        counted = Counter(trial.status for trial in self.trials)
        return {
            status: counted[status] for status in (*STATUSES, *sorted(set(counted) - set(STATUSES))) if counted[status]
        }

    def group(self, trial: Trial) -> int:
        """Index of the trial's value among the main field's values; -1 where there is no such field or value."""
        values = self.main.values if self.main else ()
        return next((i for i, value in enumerate(values) if self.main and value == self.main.of(trial)), -1)


def read(summary: Summary, *, curves: bool = True) -> Facts:
    """Reads a summary; without `curves`, which may be long, reading is fast."""
    best_id = (summary.get("best") or {}).get("id")
    trials = [_trial(each, best_id, curves) for each in summary.get("trials") or ()]
    points = [_trial(each, best_id, curves) for each in summary.get("points") or ()] or trials
    space: Mapping[str, Mapping[str, Any]] = summary.get("space") or {}
    names = list(dict.fromkeys([*space, *(name for trial in trials for name in trial.config)]))
    short = short_names(names)
    fields = tuple(_field(name, short[name], space.get(name) or {}, trials) for name in names)
    rungs = tuple(sorted({int(rung["step"]) for rung in summary.get("rungs") or () if is_number(rung.get("step"))}))
    ordered, compared = (tuple(sorted(each, key=_order)) for each in (trials, points))
    return Facts(fields, ordered, compared, rungs, _main(fields, trials))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest unambiguous end of each dotted name, such as `optimizer.name`."""
    found = {}
    for name in names:
        parts = name.split(".")
        ends = (".".join(parts[-count:]) for count in range(1 + (parts[-1] in AMBIGUOUS), len(parts) + 1))
        found[name] = next(
            (end for end in ends if sum(other == end or other.endswith("." + end) for other in names) == 1), name
        )
    return found


def config_text(trial: Trial, fields: Iterable[Field]) -> str:
    """The trial's values as one line."""
    return "  ".join(f"{f.short}={label(f.of(trial))}" for f in fields if f.name in trial.config)


def _trial(summary: Mapping[str, Any], best_id: str | None, curves: bool) -> Trial:
    donor = summary.get("from_trial")
    loss = summary.get("loss")
    curve = sorted(
        (int(at), float(y)) for at, y in (curves and summary.get("curve")) or () if is_number(at) and is_number(y)
    )
    return Trial(
        id=str(summary["id"]),
        run=str(summary.get("run") or ""),
        status=str(summary.get("status") or "pending"),
        reason=str(summary.get("reason") or ""),
        config={name: value for name, value in (summary.get("config") or {}).items() if value is not None},
        step=int(summary.get("step") or 0),
        steps=int(summary.get("steps") or 0),
        loss=float(loss) if loss is not None and is_number(loss) else None,
        curve=tuple(curve),
        worker_s=float(summary.get("worker_s") or 0.0),
        started_at=summary.get("started_at"),
        ended_at=summary.get("ended_at"),
        first_step_s=summary.get("first_step_s"),
        workers=int(summary.get("workers") or 0),
        parameters=int(summary.get("parameters") or 0) or None,
        donor=(str(donor["id"]), int(donor["step"])) if donor else None,
        is_best=best_id is not None and summary["id"] == best_id,
    )


def _field(name: str, short: str, domain: Mapping[str, Any], trials: Sequence[Trial]) -> Field:
    listed = tuple(domain.get("values") or ())
    seen = [trial.config[name] for trial in trials if name in trial.config]
    known = [*listed, *seen, *(domain[end] for end in ("low", "high") if end in domain)]
    numbers = [value for value in known if is_number(value)]
    is_numeric = bool(numbers) and len(numbers) == len(known)
    is_log = (
        is_numeric
        and min(numbers) > 0
        and (
            domain.get("kind") == "loguniform"
            or bool(domain.get("log"))
            or (bool(listed) and max(numbers) / min(numbers) >= LOG_FROM)
        )
    )
    values: list[Any] = []
    for value in (*listed, *seen):  # they need not be hashable
        if value is not None and value not in values:
            values.append(value)
    return Field(name, short, is_numeric, is_log, tuple(values), domain.get("when") or {})


def _main(fields: Sequence[Field], trials: Sequence[Trial]) -> Field | None:
    """The choice that colours the trials: the one that most other fields depend on, else the first one."""
    asked = Counter(name for f in fields for name in f.when)
    choices = [f for f in fields if not f.is_numeric and 1 < len(f.values) <= 8]
    return max(choices, key=lambda f: asked[f.name], default=None)


def _order(trial: Trial) -> tuple[bool, int, float, str]:
    known = STATUSES.index(trial.status) if trial.status in STATUSES else len(STATUSES)
    return not trial.is_best, known, trial.loss if trial.loss is not None else math.inf, trial.id
