"""Shows a sweep: the live table while it runs, and `manta show SWEEP` and the report at any time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.live import Live

from cluster.known_secrets import struck
from data.stores.store import Store
from orchestrator.console import Console
from orchestrator.report.page import write_page
from orchestrator.run.run import reaching_storage, stores
from orchestrator.sweep.best import FOLDER
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.report.page import html
from orchestrator.sweep.report.table import live_table, print_sweep
from orchestrator.sweep.summary import SweepSummary, describe_sweep

REPORT = "report.html"
"""Name of the report, in the sweep's folder here and in its storage."""

REFRESHES_PER_S = 2
"""Redraws of the live table per second."""

Watch = Callable[[SweepSummary], None]
"""Callback that gets the sweep's summary about once a second while the sweep runs."""


@contextmanager
def live(console: Console) -> Iterator[Watch | None]:
    """Shows the live table inside the block; yields None where the output is not a terminal, and lines are logged."""
    if not console.rich.is_terminal:
        yield None
        return
    with Live(console=console.rich, refresh_per_second=REFRESHES_PER_S, transient=True) as screen:
        yield lambda summary: screen.update(live_table(summary))


def write_report(summary: SweepSummary, store: Store, to: Path | None = None) -> Path:
    """Writes the report to a local file and to the sweep's storage; returns the local path.

    Args:
        to: the local file; None: report.html in the sweep's folder.
    """
    page = html(summary)
    path = to or FOLDER / summary["sweep"] / REPORT
    write_page(path, page)
    store.put(REPORT, page.encode())
    return path


def report_sweep(recipe: Path, to: Path | None, overrides: Sequence[str]) -> Path:
    """Writes a new report of a sweep; returns its local path.

    Raises:
        UnknownRunError: the sweep was never started.
    """
    sweep = load_sweep(recipe, overrides)
    with reaching_storage(sweep.base) as base:
        sweep = sweep.reaching(base)
        root, _ = stores(base)
        root.check()
        return write_report(describe_sweep(sweep, root), root.child(f"sweeps/{sweep.name}"), to)


def show_sweep(recipe: Path, as_json: bool, overrides: Sequence[str]) -> None:
    """Prints the summary of a sweep, as JSON or as tables; with tables, also writes a new report.

    Raises:
        UnknownRunError: the sweep was never started.
    """
    sweep, console = load_sweep(recipe, overrides), Console()
    with reaching_storage(sweep.base) as base:
        sweep = sweep.reaching(base)
        root, _ = stores(base)
        root.check()
        summary = describe_sweep(sweep, root)
        if as_json:
            print(struck(json.dumps(summary, indent=2)))
            return
        print_sweep(summary, console.rich)
        console.line(f"report: {write_report(summary, root.child(f'sweeps/{sweep.name}'))}")
