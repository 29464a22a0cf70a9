"""Prints the report of `manta chaos` as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 116
"""Width in columns if the output is not a terminal."""


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints a table of the faults, one that compares the two runs, and one of the baseline if there is one."""
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH, highlight=False)
    faults = Table(title="faults", title_justify="left")
    for name in ("at", "fault", "target", "detected", "restarted", "without a new step", "repeated", "workers"):
        faults.add_column(name, justify="left" if name in ("fault", "target", "workers") else "right")
    for row in report["faults"]:
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
    console.print(faults)
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


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _samples(samples: Mapping[str, Any]) -> str:
    return f"{samples['seen']:,} seen, {samples['duplicated']} duplicated, {samples['missing']} missing"


def _goodput(goodput: Mapping[str, float]) -> str:
    seconds = {name.removesuffix("_s"): value for name, value in goodput.items() if value >= 0.05}
    wall = seconds.pop("wall", 0.0)
    return ", ".join(f"{cause} {value:.1f} s" for cause, value in seconds.items()) + f"; wall {wall:.1f} s"
