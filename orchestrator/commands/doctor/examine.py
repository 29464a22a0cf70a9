"""Runs all checks on this machine and prints them.

Every check is bounded in time, and none can stop the others. Ray and torch are tried in processes of their own, which
can be killed when they hang and which leave this process as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from orchestrator.commands.doctor.check import Check, bounded
from orchestrator.commands.doctor.machine import check_cores, check_disk, check_gpus, check_memory
from orchestrator.commands.doctor.packages import (
    all_pins,
    check_packages,
    check_python,
    direct_pins,
    installed_packages,
)
from orchestrator.commands.doctor.services import check_ray, check_recipe_storage
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Terminal


def examine(config: RunConfig | None) -> list[Check]:
    """Runs all checks.

    Args:
        config: the recipe whose object storage is tried; None: no storage is.
    """
    checks = [check_python(sys.version_info), *check_packages(installed_packages(), direct_pins(), all_pins())]
    checks += [check_cores(config), check_memory(), check_disk(Path.cwd())]
    checks.append(bounded("GPUs", 60, check_gpus))
    if config is not None:
        checks.append(bounded("object storage", 90, lambda: check_recipe_storage(config)))
    else:
        checks.append(Check("object storage", "ok", "not tried", "To try it: manta doctor RECIPE"))
    checks.append(check_ray())
    return checks


def print_checks(checks: Sequence[Check]) -> None:
    """Prints the checks as a table."""
    table = Table("", "check", "found", "what to do", title_justify="left")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        table.add_row(Text(check.status, style=colours[check.status]), check.name, check.found, check.remedy)
    Terminal().print(table)
