"""Versions of what a result was computed with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

TOLD = ("manta", "ray", "torch")
"""Packages whose versions a run's record names."""


def versions() -> dict[str, str]:
    """Version by name, Python's among them; a package that is not installed, as a source tree is not, is left out."""
    found = {"python": platform.python_version()}
    for name in TOLD:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
