"""What is checked before a run is sent to a cluster, and how a job's end is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.jobs import Job
from orchestrator.config import load_recipe
from orchestrator.errors import InputError, RecipeError
from orchestrator.on_cluster import local_paths, refuse_keys
from orchestrator.submit import exit_status, reach, runtime_env, submit
from tests.orchestrator.finished_run import recipe_in

RECIPE = Path("mine.yaml")


def test_folders_of_this_machine_are_refused_by_name(tmp_path: Path) -> None:
    config = load_recipe(recipe_in(tmp_path), ["storage=kept", "data.sources.0.path=corpus/*.txt"])
    with pytest.raises(
        RecipeError, match=r"2 problems\n  storage = 'kept': .*\n  data\.sources\.0\.path = 'corpus/\*\.txt': "
    ):
        local_paths(config, RECIPE, this_machine=False)


def test_on_this_machine_folders_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_recipe(recipe_in(tmp_path), ["storage=kept"])
    assert local_paths(config, RECIPE, this_machine=True) == [f"storage={tmp_path}/kept"]


def test_a_store_for_one_machine_is_refused_elsewhere(tmp_path: Path) -> None:
    config = load_recipe(recipe_in(tmp_path), [f"store.serve={tmp_path}/s3"])
    with pytest.raises(RecipeError, match=r"store\.serve"):
        local_paths(config, RECIPE, this_machine=False)


def test_keys_are_not_shipped(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    refuse_keys(load_recipe(recipe), recipe)
    with pytest.raises(RecipeError, match=r"store\.secret_access_key") as raised:
        refuse_keys(load_recipe(recipe, ["store.secret_access_key=hush-hush"]), recipe)
    assert "hush-hush" not in str(raised.value)


def test_a_recipe_outside_of_what_is_shipped_is_refused_before_the_cluster_is_asked(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    (tmp_path / "project").mkdir()
    with pytest.raises(InputError, match=f"--working-dir {tmp_path}"):
        submit(load_recipe(recipe), recipe, (), "http://127.0.0.1:1", folder=tmp_path / "project", wait=False)


def test_manta_travels_with_a_project_that_lacks_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    assert "py_modules" not in runtime_env(root)
    shipped = runtime_env(tmp_path)["py_modules"]
    assert [Path(each).name for each in shipped] == ["orchestrator", "model", "data", "cluster"]


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://head:10001", "auto/x"])
def test_an_address_for_something_else_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"the dashboard's, as http://HOST:8265"):
        reach(address)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_the_exit_status_is_the_jobs_own(status: str, code: int | None, expected: int) -> None:
    assert exit_status(job(status, code)) == expected


def test_a_job_that_never_had_one_is_an_error_with_what_the_cluster_says() -> None:
    with pytest.raises(ClusterError, match="Job mine-1 failed: no such package"):
        exit_status(job("FAILED", None, "no such package"))


def job(status: str, code: int | None, message: str = "") -> Job:
    return Job("mine-1", status, "manta train", {}, message, code, 0.0, 1.0)
