"""Results of a benchmark: contestants in turn, medians, verdicts, and a report as JSON and as a table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parents[1] / "results"

_T = TypeVar("_T")


def arguments(doc: str) -> argparse.ArgumentParser:
    """A parser whose --help is the benchmark's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=_Help)


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def in_turn(rounds: int, contestants: Mapping[str, Callable[[], _T]]) -> dict[str, list[_T]]:
    """Each contestant's results, one per round, measured in the order A B C A B C ..."""
    results: dict[str, list[_T]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            print(f"  round {number + 1} of {rounds}: {name}", flush=True)
            results[name].append(contestant())
    return results


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": [round(value, 6) for value in values],
    }


@dataclass
class Verdict:
    """A measured value, and the bound that is required of it.

    Attributes:
        measure: name of the measured quantity.
        value: the result.
        unit: of the value.
        asked: the bound, as text; "" for none.
        met: whether the value keeps the bound; None without a bound.
    """

    measure: str
    value: float
    unit: str
    asked: str
    met: bool | None

    @classmethod
    def at_least(cls, measure: str, value: float, bound: float, unit: str = "") -> Verdict:
        """A value with a lower bound."""
        return cls(measure, value, unit, f">= {bound:g}", value >= bound)

    @classmethod
    def at_most(cls, measure: str, value: float, bound: float, unit: str = "") -> Verdict:
        """A value with an upper bound."""
        return cls(measure, value, unit, f"<= {bound:g}", value <= bound)

    @classmethod
    def without_bound(cls, measure: str, value: float, unit: str = "") -> Verdict:
        """A value for information only."""
        return cls(measure, value, unit, "", None)


_LOAD_BEFORE = os.getloadavg()


def report(name: str, settings: argparse.Namespace | Mapping[str, Any], verdicts: list[Verdict], details: Any) -> None:
    """Writes bench/results/<name>.json and prints the verdicts."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray", "tiktoken")},
        "load_before": _LOAD_BEFORE,
        "load_after": os.getloadavg(),
    }
    result = {
        "benchmark": name,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine,
        "settings": dict(settings if isinstance(settings, Mapping) else vars(settings)),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "details": details,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n")
    table = Table(title=name, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("required", justify="right")
    table.add_column("")
    for verdict in verdicts:
        held = {True: "met", False: "NOT MET", None: ""}[verdict.met]
        table.add_row(verdict.measure, f"{_short(verdict.value)} {verdict.unit}".strip(), verdict.asked, held)
    Console(width=120).print(table)
    print(f"load {_LOAD_BEFORE[0]:.1f} before, {os.getloadavg()[0]:.1f} after; written to {path}", flush=True)


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.2e}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
