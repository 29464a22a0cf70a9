"""Computes the cost of every fault from its time and the disruptions in the run's record. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from orchestrator.chaos.faults import Injected
from orchestrator.run.record import Attempt


def costs(
    faults: Sequence[Injected], disruptions: Sequence[Mapping[str, Any]], started_at: float
) -> list[dict[str, Any]]:
    """Builds a row for every fault.

    Args:
        faults: in the order of injection.
        disruptions: see `Disruption.summary` and `command_restarts`, in any order; each belongs to the newest fault
            before it.
        started_at: start of the run, seconds since the epoch.

    Returns:
        for each fault: `kind`, `target`, `at_s`; `detect_s` to the end of the workers; `restart_s` from there to the
        first new step; `lost_s`, seconds without a new step, which for a planned restart start at the pause;
        `replayed_steps`; and the phases of the restart.
    """
    disruptions = sorted(disruptions, key=lambda each: float(each["at"]))
    ends = [fault.at for fault in faults[1:]] + [float("inf")]
    return [
        _cost(fault, [each for each in disruptions if fault.at <= each["at"] < until], started_at)
        for fault, until in zip(faults, ends, strict=True)
    ]


def _cost(fault: Injected, disruptions: Sequence[Mapping[str, Any]], started_at: float) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": fault.kind, "target": fault.target, "at_s": fault.at - started_at}
    if not disruptions:
        return row | {"restarts": 0, "detect_s": None, "restart_s": None, "lost_s": 0.0, "replayed_steps": 0}
    first, last = disruptions[0], disruptions[-1]
    lost = [_lost(fault, each) for each in disruptions]
    stepped_at = _stepped_at(last)
    return row | {
        "restarts": len(disruptions),
        "cause": first["cause"],
        "detect_s": first["at"] - fault.at,
        "restart_s": None if stepped_at is None else stepped_at - first["at"],
        "lost_s": None if None in lost else sum(each for each in lost if each is not None),
        "replayed_steps": sum(each["replayed_steps"] or 0 for each in disruptions),
        "phases": {f"{name}_s": seconds for name, seconds in first["phases"].items()},
        "workers": [first["workers"], last["workers_after"]],
    }


def _lost(fault: Injected, disruption: Mapping[str, Any]) -> float | None:
    """Seconds without a new step: from the fault or, if steps were completed after it, from the last of them."""
    stepped_at = _stepped_at(disruption)
    return None if stepped_at is None else stepped_at - max(fault.at, disruption["at"] - disruption["detection_s"])


def _stepped_at(disruption: Mapping[str, Any]) -> float | None:
    """When the first new step after the disruption was completed, seconds since the epoch; None if none was."""
    if disruption["lost_s"] is None:
        return None
    return float(disruption["at"] - disruption["detection_s"] + disruption["lost_s"])


def standstill_s(steps_at: Sequence[float], at: float, until: float) -> float | None:
    """Longest time between two steps, as far as it is after `at` and before `until`; None without a later step.

    Args:
        at: of a fault.
        until: of the next one, whose part of a time without steps is not counted.
        steps_at: when each step of the run was completed, in order, seconds since the epoch.
    """
    ends = [(before, after) for before, after in pairwise([float("-inf"), *steps_at]) if at < after and before < until]
    return max((min(after, until) - max(at, before) for before, after in ends), default=None)


def command_restarts(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """The starts of the command after its first one, in the form of `Disruption.summary`.

    The end of the older attempt is not known if it was killed; its last heartbeat is at most seconds before.
    """
    return [
        {
            "cause": "command",
            "at": after.started_at,
            "detection_s": max(0.0, after.started_at - before.heartbeat_at),
            "lost_s": None
            if after.first_step_s is None
            else after.first_step_s + max(0.0, after.started_at - before.heartbeat_at),
            "replayed_steps": max(0, before.step - (after.from_step or 0)),
            "workers": before.world_size,
            "workers_after": after.world_size,
            "phases": {},
        }
        for before, after in pairwise(attempts)
    ]


def largest_difference(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """Largest relative difference of two runs' losses, step by step; None if their steps do not match."""
    if len(one) != len(other) or any((a is None) != (b is None) for a, b in zip(one, other, strict=True)):
        return None
    both = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return max((abs(a - b) / abs(a) for a, b in both), default=0.0)


def gaps_after(faults: Sequence[Injected], steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cost of every fault to a loop that logs only `step` and `at`: seconds to the next new step, repeated steps."""
    rows = []
    for fault, until in pairwise([*faults, Injected("end", float("inf"), "")]):
        before = max((each["step"] for each in steps if each["at"] <= fault.at), default=0)
        later = [each for each in steps if fault.at < each["at"]]
        repeated = sum(each["step"] <= before for each in later if each["at"] < until.at)
        new_at = min((each["at"] for each in later if each["step"] > before), default=None)
        row = {"kind": fault.kind, "target": fault.target, "replayed_steps": repeated}
        rows.append(row | {"lost_s": None if new_at is None else new_at - fault.at})
    return rows
