"""The sweep on a terminal: order, width, what is left out, and no summary it stumbles over."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import HealthCheck, given, settings
from rich.cells import cell_len

from orchestrator.console import Terminal
from orchestrator.report.format import duration, label
from orchestrator.sweep.report.facts import short_names
from orchestrator.sweep.report.table import live_table, print_sweep
from tests.orchestrator.sweep.summaries import realistic, summaries


def printed(thing: Any, width: int = 100) -> str:
    console = Terminal(file=io.StringIO(), width=width, color_system=None)
    print_sweep(thing, console) if isinstance(thing, dict) else console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(summaries())
def test_any_summary_fits_100_columns(summary: dict[str, Any]) -> None:
    for text in (printed(live_table(summary)), printed(summary)):
        assert max(map(cell_len, text.split("\n"))) <= 100
        assert "\x00" not in text


def test_the_best_is_first_then_those_that_run_then_the_others() -> None:
    summary = realistic(status="running")
    for number in (3, 8):
        summary["trials"][number] |= {"status": "running", "reason": ""}
    lines = [line for line in printed(live_table(summary)).splitlines() if " t0" in line and "│" in line]
    order = [line.split("│")[2].strip() for line in lines]
    assert lines[0].split()[1] == "t004" and "*" in lines[0]
    rest = order[1:]
    assert rest == sorted(rest, key=["running", "finished", "stopped", "failed"].index)
    assert rest[:2] == ["running", "running"]
    stopped = [float(line.split("│")[4]) for line in lines if " stopped " in line]
    assert stopped == sorted(stopped)


def test_beyond_so_many_rows_trials_are_only_counted() -> None:
    text = printed(live_table(realistic(trials=40), max_rows=6))
    assert sum("│ t0" in line for line in text.splitlines()) == 6
    assert "and 34 more: " in text and "1 failed" in text


def test_markup_in_a_summary_is_text() -> None:
    summary = realistic()
    summary["trials"][9]["reason"] = "[red]no[/red] [nope"
    assert "[red]no[/red] [nope" in printed(live_table(summary))


def test_what_manta_show_prints() -> None:
    text = printed(realistic())
    assert "optimizer.name" in text and "not enough points to tell of" in text
    for part in (
        "sweep quickstart-lr",
        "optuna, asha",
        "4.3893",
        "rung 35",
        "24 of 24 units",
        "best.yaml",
        "1 failed",
        "unbeaten",
    ):
        assert part in text


def test_values_are_printed_short() -> None:
    told = {
        3e-4: "3e-4",
        0.05: "0.05",
        1e-8: "1e-8",
        123456789: "1.23e8",
        True: "true",
        None: "none",
        0: "0",
        0.9: "0.9",
    }
    assert {value: label(value) for value in told} == told
    assert label([1, "a"]) == "[1, a]"
    assert short_names(["train.lr", "model.lr", "train.optimizer.name", "seed"]) == {
        "train.lr": "train.lr",
        "model.lr": "model.lr",
        "train.optimizer.name": "optimizer.name",
        "seed": "seed",
    }
    assert [duration(s) for s in (12.34, 245, 7380, None)] == ["12.3 s", "4:05 min", "2:03 h", ""]
