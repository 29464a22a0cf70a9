"""Checks of the Python interpreter and of the installed packages against the tested versions."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.commands.doctor.check import Check

_ROOT = Path(__file__).resolve().parents[3]

# Another release of these may fail or compute other results; of the other packages, any release should work.
_EXACT = ("ray", "torch")

_SET_UP = "Set up again: make .venv/.ready, or pip install -c constraints.txt -e ."


def check_python(version: tuple[Any, ...]) -> Check:
    """Checks that the interpreter is at least Python 3.11."""
    found = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) < (3, 11):
        return Check("Python", "fail", found, "Install 3.11 or newer, then make PYTHON=/path/to/python3.11 …")
    return Check("Python", "ok", found)


def check_packages(installed: Mapping[str, str], direct: Mapping[str, str], pins: Mapping[str, str]) -> list[Check]:
    """Checks that all packages are installed in the tested versions.

    Args:
        installed: version of each installed package, by name.
        direct: tested version of each package that Manta imports itself, by name.
        pins: tested version of every package, by name.
    """
    if not pins:
        return [Check("packages", "warn", "constraints.txt is missing, so versions cannot be compared", "")]
    checks = []
    for name, wanted in direct.items():
        found = installed.get(name)
        if found is None:
            checks.append(Check(name, "fail", "not installed", _SET_UP))
        elif name in _EXACT and _public(found) != wanted:
            checks.append(Check(name, "fail", f"{found}, needs {wanted}", _SET_UP))
    named = {check.name for check in checks}
    others = [n for n, v in pins.items() if n in installed and n not in named and _public(installed[n]) != v]
    if others:
        shown = ", ".join(f"{name} {installed[name]} (tested: {pins[name]})" for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        checks.append(Check("packages", "warn", shown + more, _SET_UP))
    if not checks:
        exact = ", ".join(f"{name} {direct[name]}" for name in _EXACT if name in direct)
        checks.append(Check("packages", "ok", f"{sum(name in installed for name in pins)} as tested, {exact}"))
    return checks


def installed_packages() -> dict[str, str]:
    """Version of each installed package, by name."""
    return {_canonical(d.metadata["Name"]): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}


def direct_pins() -> dict[str, str]:
    """Tested versions of the dependencies in pyproject.toml; empty if Manta is not run from its source tree."""
    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    except FileNotFoundError:
        return {}
    pins = all_pins()
    names = [_canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in project["dependencies"]]
    return {name: pins[name] for name in names if name in pins}


def all_pins() -> dict[str, str]:
    """Tested versions of all packages, from constraints.txt; empty if Manta is not run from its source tree."""
    try:
        lines = (_ROOT / "constraints.txt").read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version.strip() for name, version in pairs}


def _canonical(name: str) -> str:
    """The normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    """The version without its local part: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]
