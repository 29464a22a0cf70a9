"""What a soak counts, and what makes it fail."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from rich.console import Console as RichConsole

from orchestrator.chaos.process import Command
from orchestrator.chaos.report import print_soak
from orchestrator.chaos.soak import BUDGET, counted, is_clean, still_running
from orchestrator.console import Console
from orchestrator.policy.failure import CRASHES_PER_HOUR, Failure, FailurePolicy, GiveUp
from tests.waiting import wait_until


def soak(**changed: Any) -> dict[str, Any]:
    """The report of a soak without anything wrong."""
    samples = {"seen": 8, "expected": 8, "duplicated": 0, "missing": 0, "in_order": True}
    left: dict[str, list[str]] = {"processes": [], "placement_groups": [], "shm": [], "uploads": []}
    end = {"at": 1.0, "status": -9, "by": "kill-driver", "said": []}
    report = {"samples": samples, "tracebacks": [], "left": left, "ends": [end], "exit_status": 130}
    faults = [{"kind": "kill-node", "lost_s": 2.0}, {"kind": "kill-node", "lost_s": 4.0}]
    return {**report, "faults": faults, "kinds": counted(faults), **changed}


def test_kinds_are_counted_with_the_time_they_cost() -> None:
    rows = [{"kind": "a", "lost_s": 1.0}, {"kind": "a", "lost_s": None}, {"kind": "b", "lost_s": None}]
    assert counted(rows) == {
        "a": {"count": 2, "mean_lost_s": 1.0, "max_lost_s": 1.0},
        "b": {"count": 1, "mean_lost_s": None, "max_lost_s": None},
    }


def test_a_run_that_lost_and_left_nothing_is_clean() -> None:
    assert is_clean(soak())


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": {**soak()["samples"], "missing": 1}},
        {"samples": {**soak()["samples"], "duplicated": 1}},
        {"samples": {**soak()["samples"], "in_order": False}},
        {"samples": {}},
        {"tracebacks": [["Traceback (most recent call last):", "ValueError"]]},
        *({"left": {**soak()["left"], name: ["x"]}} for name in soak()["left"]),
        {"ends": [{"at": 1.0, "status": 1, "by": None, "said": ["error: something else"]}]},
        {"exit_status": -9},
    ],
)
def test_anything_lost_or_left_or_unexplained_is_found(changed: dict[str, Any]) -> None:
    assert not is_clean(soak(**changed))


def test_an_end_by_the_budget_of_an_hour_is_explained() -> None:
    policy = FailurePolicy()
    crashes = (Failure(step, "crash", "it died") for step in range(CRASHES_PER_HOUR + 1))
    *_, decision = (policy.decide(failure, now=0.0) for failure in crashes)
    assert isinstance(decision, GiveUp) and BUDGET in decision.why
    assert is_clean(soak(ends=[{"at": 1.0, "status": 1, "by": None, "said": [f"error: {decision.why}"]}]))


def test_a_process_that_outlives_its_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNodes:
        def processes(self) -> list[int]:
            return []

    monkeypatch.setattr("orchestrator.chaos.soak.REST_S", 0)
    read = "import sys; sys.stdin.read()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {read!r}], stdin=subprocess.PIPE).wait()"
    with Command("run", [sys.executable, "-c", code], {}, Console()) as running:
        wait_until(lambda: any(each.endswith(read) for each in still_running(NoNodes(), running)), "the child")  # type: ignore[arg-type]
        running.kill()  # the child reads the end of its input then


def test_the_report_names_what_is_wrong() -> None:
    lines = ["Traceback (most recent call last):", "ValueError: x"]
    row = {"at_s": 1.0, "target": "t", "detect_s": None, "restart_s": None, "restarts": 0, "replayed_steps": 0}
    faults = [{**row, "kind": "kill-node", "lost_s": 2.0}]
    report = soak(tracebacks=[lines], faults=faults, soak_s=60.0, goodput={"wall_s": 60.0})
    report["left"]["shm"] = ["/dev/shm/kept"]
    console = RichConsole(width=120, force_terminal=True, color_system=None)
    with console.capture() as printed:
        print_soak(report, console)
    for told in ("ValueError: x", "/dev/shm/kept", "kill-driver", "kill-node", "0 missing"):
        assert told in printed.get()
