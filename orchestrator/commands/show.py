"""`manta show`: prints the summary of a run or a sweep."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.known_secrets import struck
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe_file import find_recipe
from orchestrator.console import Console
from orchestrator.errors import UnknownRunError
from orchestrator.report.terminal import print_run
from orchestrator.run.run import open_run, reaching_storage
from orchestrator.run.summary import summary_of_run
from orchestrator.sweep.best import find_sweep
from orchestrator.sweep.show import show_sweep


def show(run_or_recipe: str, as_json: bool = False, overrides: tuple[str, ...] = (), audits_all: bool = False) -> None:
    """Prints the summary of a run or a sweep, as JSON or as tables.

    Args:
        audits_all: audit a run's samples however many they are.

    Raises:
        UnknownRunError: there is no such run or recipe.
    """
    sweep = sweep_recipe(run_or_recipe)
    if sweep is not None:
        show_sweep(sweep, as_json, overrides)
        return
    config = load_recipe(find_recipe(run_or_recipe), overrides)
    with reaching_storage(config) as config:
        run = open_run(config)
        if as_json:
            print(struck(json.dumps(summary_of_run(run, audits_all=audits_all), indent=2)))
        else:
            print_run(run, Console(), audits_all=audits_all)


def sweep_recipe(name: str) -> Path | None:
    """The recipe of the sweep with this name or path; None if it is not a sweep."""
    try:
        return find_sweep(name)
    except UnknownRunError:
        return None
