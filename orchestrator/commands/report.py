"""`manta report`: the report of a run or of a sweep, as a file here and beside what it tells of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.errors import MantaError
from orchestrator.commands.show import sweep_recipe
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe_file import find_recipe
from orchestrator.console import Console
from orchestrator.report.page import write_page
from orchestrator.report.run import html
from orchestrator.report.run_data import summary_of
from orchestrator.run.run import open_run, reaching_storage

FOLDER = Path(".manta/reports")
"""Where reports of runs go, unless told."""

REPORT = "report.html"
"""Name of the report in the run's folder."""


def report(run_or_recipe: str, to: Path | None = None, overrides: Sequence[str] = ()) -> None:
    """Write the report of a run or a sweep, and say where it is.

    Args:
        to: the file; None: `.manta/reports/RUN.html`, or `report.html` in the sweep's folder.

    Raises:
        UnknownRunError: no recipe and no run has this name, or it was never started.
        InputError: the file cannot be written.
    """
    console = Console()
    sweep = sweep_recipe(run_or_recipe)
    if sweep is not None:
        from orchestrator.sweep.show import report_sweep

        console.line(f"report: {report_sweep(sweep, to, overrides)}")
        return
    config = load_recipe(find_recipe(run_or_recipe), overrides)
    with reaching_storage(config) as config:
        run = open_run(config)
        page = html(summary_of(run))
        path = to or FOLDER / f"{config.run}.html"
        write_page(path, page)
        console.line(f"report: {path}")
        try:
            run.store.put(REPORT, page.encode())
        except MantaError as error:  # whoever may only read has it here
            console.line(f"It is not in the run's folder too: {error}")
        else:
            console.line(f"and in {run.store.url_of(REPORT)}")
