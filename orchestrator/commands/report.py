"""`manta report`: writes the report of a run or a sweep to a local file and to its folder in storage."""

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
from orchestrator.report.run_data import report_data
from orchestrator.run.run import open_run, reaching_storage
from orchestrator.sweep.show import report_sweep

FOLDER = Path(".manta/reports")
"""Default folder of runs' reports."""

REPORT = "report.html"
"""Key of the report in the run's folder."""


def report(run_or_recipe: str, to: Path | None = None, overrides: Sequence[str] = (), audits_all: bool = False) -> None:
    """Writes the report of a run or a sweep, and prints its path.

    Args:
        run_or_recipe: name of a run or sweep, or path of its recipe.
        to: the local file; None: `.manta/reports/RUN.html`, or `report.html` in the sweep's folder.
        audits_all: audit a run's samples however many they are.

    Raises:
        UnknownRunError: there is no such run or recipe, or the run was never started.
        InputError: the file cannot be written.
    """
    console = Console()
    sweep = sweep_recipe(run_or_recipe)
    if sweep is not None:
        console.line(f"report: {report_sweep(sweep, to, overrides)}")
        return
    config = load_recipe(find_recipe(run_or_recipe), overrides)
    with reaching_storage(config) as config:
        run = open_run(config)
        page = html(report_data(run, audits_all=audits_all))
        path = to or FOLDER / f"{config.run}.html"
        write_page(path, page)
        console.line(f"report: {path}")
        try:
            run.store.put(REPORT, page.encode())
        except MantaError as error:  # a user with read access only has the local file
            console.line(f"the report could not be written to the run's folder: {error}")
        else:
            console.line(f"report: {run.store.url_of(REPORT)}")
