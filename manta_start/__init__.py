"""Starts the `manta` command, and keeps the user's files from taking the place of the project's packages.

The packages have common names. Ray puts the folder that a command is called in, or that is submitted, first on the
search path of its processes, so a `model.py` there (nanoGPT's layout) would be imported in place of the package
`model`. `pin_packages` makes the four names mean the project, whatever the search path is. This module has a name that
nobody else uses: it is what the `manta` script and jobs start, and workers of Ray run `pin_packages` before anything.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("cluster", "data", "model", "orchestrator")
"""Top-level names that belong to the project."""

_MARK = '__project__ = "manta"'
"""A line of every package's `__init__.py`, by which it is told from a folder or file of the same name."""


class _PackageFinder(MetaPathFinder):
    """Finds the project's packages, and passes over anything else of their names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of PACKAGES, None for any other name, or where the project is not to be found."""
        if fullname not in PACKAGES:
            return None
        for entry in sys.path:
            spec = PathFinder.find_spec(fullname, [entry])
            if _is_ours(spec):
                return spec
        for finder in sys.meta_path:  # one of an editable installation, say
            if finder is not self and finder is not PathFinder and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, None)
                if _is_ours(spec):
                    return spec
        return None


def pin_packages() -> None:
    """Make the names of the project's packages mean the project in this process. Calling it again changes nothing."""
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is not None and not _is_ours(module.__spec__):
            for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[loaded]
    if not any(type(finder).__name__ == _PackageFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _PackageFinder())


def has_packages(folder: Path) -> bool:
    """Whether the project lies in `folder` itself: this module and all packages."""
    specs = [PathFinder.find_spec(name, [str(folder)]) for name in PACKAGES]
    return (folder / "manta_start/__init__.py").is_file() and all(map(_is_ours, specs))


def _is_ours(spec: ModuleSpec | None) -> bool:
    if spec is None or spec.origin is None or not spec.origin.endswith("__init__.py"):
        return False
    try:
        with open(spec.origin, encoding="utf-8") as file:
            return _MARK in file.read()
    except (OSError, UnicodeDecodeError):
        return False


def main() -> None:
    """Entry point of the `manta` script."""
    # As on Ctrl-C, from the first moment: commands that have something to save handle both signals themselves.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        pin_packages()
        from orchestrator.cli.main import main as run_command

        run_command()
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
