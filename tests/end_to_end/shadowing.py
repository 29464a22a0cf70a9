"""A folder as users have them: with files and folders of the names of the project's own packages."""

from __future__ import annotations

from pathlib import Path


def shadow_packages(folder: Path) -> None:
    """Put a module or package of the name of each of the project's packages into `folder`; importing one fails."""
    for name in ("model.py", "cluster.py", "orchestrator.py", "data/__init__.py"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "raise ImportError('this file of the user was imported in place of a package of the project')\n"
        )
