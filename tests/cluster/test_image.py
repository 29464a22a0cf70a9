"""The Dockerfile, which no test builds: it agrees with the pinned versions, and includes no secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cluster.known_secrets import looks_secret
from cluster.render.kuberay import RAY_VERSION, ray_cluster
from cluster.spec import ClusterSpec

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [
    line
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def of(instruction: str) -> list[str]:
    """Arguments of an instruction, for each occurrence."""
    return [line.split(maxsplit=1)[1] for line in LINES if line.split()[0] == instruction]


def arguments() -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in of("ARG"))


def copied() -> list[str]:
    """Sources of all COPY instructions."""
    words = [[word for word in line.split() if not word.startswith("--")] for line in of("COPY")]
    return [source for each in words for source in each[:-1]]


def test_it_is_rays_image_of_the_pinned_version() -> None:
    [base] = of("FROM")
    assert base == "rayproject/ray:${RAY_VERSION}-${PYTHON}${PLATFORM}"
    assert arguments()["RAY_VERSION"] == RAY_VERSION
    assert f"ray[data,train,tune,default]=={RAY_VERSION}" in PROJECT["project"]["dependencies"]
    assert re.fullmatch(r"py3(1[1-9])", arguments()["PYTHON"]), PROJECT["project"]["requires-python"]


def test_torch_is_pinned_and_everything_is_installed_with_constraints() -> None:
    [torch] = [need for need in PROJECT["project"]["dependencies"] if need.startswith("torch==")]
    installs = [line for line in of("RUN") if "pip install" in line]
    assert len(installs) == 2 and all("-c constraints.txt" in line for line in installs)
    assert installs[0].split()[-1] == torch
    assert set(arguments()["EXTRAS"].split(",")) <= PROJECT["project"]["optional-dependencies"].keys() - {"dev"}


def test_it_does_not_run_as_root() -> None:
    users = of("USER")
    pod = ray_cluster(ClusterSpec.model_validate({"cluster": "a", "image": "b", "groups": [{"name": "c", "max": 1}]}))[
        "spec"
    ]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert users == [f"{pod['runAsUser']}:{pod['runAsGroup']}"] and pod["runAsUser"] > 0
    assert LINES.index(f"USER {users[0]}") < next(i for i, line in enumerate(LINES) if line.startswith("RUN"))


def test_only_listed_files_are_copied() -> None:
    assert of("ADD") == [] and "." not in copied()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_it_contains_all_packages() -> None:
    packages = {name for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] if "." not in name}
    assert packages == {source for source in copied() if (ROOT / source).is_dir()}


@pytest.mark.parametrize("instruction", ["ARG", "ENV"])
def test_no_variable_is_a_secret(instruction: str) -> None:
    assert not any(looks_secret(line.split("=")[0]) for line in of(instruction))
