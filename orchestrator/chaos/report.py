"""Prints the report of `manta chaos` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from orchestrator.console import Terminal

FILE_WIDTH = 116
"""Width in columns if the output is not a terminal."""


def print_report(report: Mapping[str, Any], console: Terminal) -> None:
    """Prints a table of the faults, one that compares the two runs, and one of the baseline if there is one."""
    console = _wide(console)
    console.print(_faults(report["faults"]))
    runs = Table(title="the two runs", title_justify="left")
    for name in ("", "undisturbed", "disturbed"):
        runs.add_column(name)
    pair = (report["undisturbed"], report)
    runs.add_row("status", *(run["status"] for run in pair))
    runs.add_row("samples", *(_samples(run["samples"]) for run in pair))
    runs.add_row("digest", *(run["samples"]["digest"][:16] for run in pair))
    runs.add_row("workers", *(", ".join(f"{size} from {step}" for step, size in run["world_sizes"]) for run in pair))
    runs.add_row("time", *(_goodput(run["goodput"]) for run in pair))
    difference = report["loss_max_rel_diff"]
    runs.add_row("losses", "", "steps differ" if difference is None else f"differ by at most {difference:.1e}")
    console.print(runs)
    if "baseline" in report:
        stock = Table(title="stock Ray Train, its own elastic settings", title_justify="left")
        for name in ("fault", "target", "without a new step", "repeated"):
            stock.add_column(name)
        for row in report["baseline"]["faults"]:
            stock.add_row(row["kind"], row["target"], _seconds(row["lost_s"]), f"{row['replayed_steps']} steps")
        console.print(stock)


def print_soak(report: Mapping[str, Any], console: Terminal) -> None:
    """Prints a table of the faults, one of their kinds, and one of what was lost and what is left."""
    console = _wide(console)
    console.print(_faults(report["faults"]))
    kinds = Table(title="kinds", title_justify="left")
    for name in ("fault", "times", "without a new step: mean", "longest"):
        kinds.add_column(name, justify="left" if name == "fault" else "right")
    for kind, row in report["kinds"].items():
        kinds.add_row(kind, str(row["count"]), _seconds(row["mean_lost_s"]), _seconds(row["max_lost_s"]))
    console.print(kinds)
    table = Table(title=f"after {report['soak_s']:.0f} s", title_justify="left", show_header=False)
    table.add_row("faults", str(len(report["faults"])))
    table.add_row("samples", _samples(report["samples"]) if report["samples"] else "no checkpoint")
    table.add_row("time", _goodput(report["goodput"]))
    ends = [end["by"] or f"status {end['status']}: {' '.join(end['said'][-1:])}" for end in report["ends"]]
    table.add_row("ends of the command", "\n".join(ends) or "none")
    table.add_row("exit status when stopped", str(report["exit_status"]))
    table.add_row("tracebacks", "\n".join(lines[-1] for lines in report["tracebacks"]) or "none")
    for name, found in report["left"].items():
        table.add_row(f"left: {name.replace('_', ' ')}", "\n".join(found) or "none")
    console.print(table)


def _wide(console: Terminal) -> Terminal:
    """The console, with room for a table if the output is not a terminal."""
    return console if console.is_terminal else Terminal(width=FILE_WIDTH)


def _faults(rows: Sequence[Mapping[str, Any]]) -> Table:
    faults = Table(title="faults", title_justify="left")
    for name in ("at", "fault", "target", "detected", "restarted", "without a new step", "repeated", "workers"):
        faults.add_column(name, justify="left" if name in ("fault", "target", "workers") else "right")
    for row in rows:
        faults.add_row(
            f"{row['at_s']:.0f} s",
            row["kind"],
            row["target"],
            _seconds(row["detect_s"]),
            _seconds(row["restart_s"]) if row["restarts"] else "no restart",
            _seconds(row["lost_s"]),
            f"{row['replayed_steps']} steps",
            " -> ".join(map(str, row.get("workers", []))),
        )
    return faults


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _samples(samples: Mapping[str, Any]) -> str:
    return f"{samples['seen']:,} seen, {samples['duplicated']} duplicated, {samples['missing']} missing"


def _goodput(goodput: Mapping[str, float]) -> str:
    seconds = {name.removesuffix("_s"): value for name, value in goodput.items() if value >= 0.05}
    wall = seconds.pop("wall", 0.0)
    return ", ".join(f"{cause} {value:.1f} s" for cause, value in seconds.items()) + f"; wall {wall:.1f} s"
