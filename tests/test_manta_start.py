"""The project's packages are found whatever else has their names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manta_start import PACKAGES, has_packages
from tests.end_to_end.shadowing import shadow_packages

ROOT = Path(__file__).parents[1]


def run_python(folder: Path, code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """`python -c` in `folder`, which is first on its search path, as it is in a job of Ray."""
    search_path = os.pathsep.join(map(str, (folder, *path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search_path},
        capture_output=True,
        text=True,
    )


def test_without_pinning_files_of_the_folder_come_first(tmp_path: Path) -> None:
    shadow_packages(tmp_path)
    assert "this file of the user" in run_python(tmp_path, "import model.config").stderr


def test_pinned_packages_are_the_projects(tmp_path: Path) -> None:
    shadow_packages(tmp_path)
    code = (
        "import manta_start; manta_start.pin_packages(); manta_start.pin_packages()\n"
        "import cluster.errors, data.errors, model.config, orchestrator.errors\n"
        f"print([each.__path__[0] for each in ({', '.join(PACKAGES)})])"
    )
    done = run_python(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert eval(done.stdout) == [str(ROOT / name) for name in PACKAGES]


def test_a_module_that_was_imported_in_place_of_a_package_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("MINE = True")
    code = (
        "import model; assert model.MINE\n"
        "import manta_start; manta_start.pin_packages()\n"
        "import model.config; print(model.config.__file__)"
    )
    assert run_python(tmp_path, code).stdout.strip() == str(ROOT / "model/config.py")


def test_other_modules_of_the_folder_are_found_as_ever(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import json, models_of_mine")
    (tmp_path / "models_of_mine.py").write_text("")
    code = "import manta_start; manta_start.pin_packages(); import mine; print(mine.__file__)"
    assert run_python(tmp_path, code).stdout.strip() == str(tmp_path / "mine.py")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_starts_in_such_a_folder(tmp_path: Path, arguments: list[str]) -> None:
    shadow_packages(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "manta_start", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_is_the_project_only_where_all_of_it_is_there(tmp_path: Path) -> None:
    assert has_packages(ROOT)
    shadow_packages(tmp_path)
    (tmp_path / "manta_start").mkdir()
    (tmp_path / "manta_start/__init__.py").write_text("")
    assert not has_packages(tmp_path)
