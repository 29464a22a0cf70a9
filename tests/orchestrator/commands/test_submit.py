"""What is checked before a run is submitted to a cluster, and the exit status of an ended job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.jobs import Job
from cluster.spec import GPU_STAND_IN, ClusterSpec, GroupSpec, StoreSpec
from data.errors import InputError
from orchestrator.commands.jobs import exit_status, newest_job, reach
from orchestrator.commands.shipped import Shipment
from orchestrator.commands.submit import adapt_to_local_cluster, next_id, packed, path_in_shipped, submit, was_lost
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import local_paths, refuse_keys
from orchestrator.config.result_fields import differing_fields, result_fields
from orchestrator.errors import RecipeError
from tests.orchestrator.finished_run import recipe_in
from tests.recipes import write_recipe

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


def test_a_recipe_outside_of_the_shipped_folder_is_refused_before_the_cluster_is_contacted(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    (tmp_path / "project").mkdir()
    with pytest.raises(InputError, match=f"--working-dir {tmp_path}"):
        submit(recipe, (), "http://127.0.0.1:1", folder=tmp_path / "project", wait=False)


class Accepting:
    """A cluster that takes every job."""

    def __init__(self, address: str, log: object) -> None:
        self.address = address
        entrypoints.clear()

    def list(self) -> list[Job]:
        return []

    def submit(self, entrypoint: str, job_id: str, environment: object, metadata: Mapping[str, str]) -> None:
        entrypoints[job_id] = shlex.split(entrypoint)


entrypoints: dict[str, list[str]] = {}
"""Words of the command of each job that was submitted last, by the job's id."""

CLUSTER = "http://127.0.0.1:1"

SPACE = {"train.lr": {"loguniform": [1e-4, 1e-2]}}


def test_a_sweep_is_submitted_with_the_recipe_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_in(tmp_path, "run")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / ".gitignore").write_text("*.yaml\n")
    sweep = write_recipe(tmp_path / "sweeps/mine.yaml", {"sweep": "mine", "recipe": "../run.yaml", "space": SPACE})
    submit(sweep, (), None, folder=tmp_path, wait=True, dry=True)
    listed = capsys.readouterr().out
    assert "  run.yaml\n" in listed and "  sweeps/mine.yaml\n" in listed

    monkeypatch.setattr("orchestrator.commands.submit.Jobs", Accepting)
    overrides = ["train.schedule={name: constant}", "searcher.trials=2"]
    assert submit(sweep, overrides, CLUSTER, folder=tmp_path, wait=False, takeover=True) == 0
    command = ["python", "-m", "manta_start", "tune", "sweeps/mine.yaml", "--patience", "45s"]
    assert entrypoints == {"mine-1": [*command, "--set", overrides[0], "--set", overrides[1], "--takeover"]}
    submit(tmp_path / "run.yaml", (), CLUSTER, folder=tmp_path, wait=False)
    assert entrypoints["run-1"][3:5] == ["train", "run.yaml"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"set": {"storage": "kept"}}, r"storage = 'kept': the cluster does not have the files"),
        ({"set": {"store.secret_access_key": "hush-hush"}}, r"store\.secret_access_key: a key must not be stored"),
        ({"recipe": "../run.yaml"}, r"run\.yaml is not in the shipped folder"),
        ({"space": {"train.lr": {"uniform": [-1, 1]}}}, r"a trial with train\.lr=-1\.0 would be refused"),
    ],
)
def test_a_sweep_is_refused_as_its_run_would_be(tmp_path: Path, changes: Mapping[str, Any], problem: str) -> None:
    recipe_in(tmp_path, "run")
    project = tmp_path / "project"
    project.mkdir()
    (project / "run.yaml").write_text((tmp_path / "run.yaml").read_text())
    sweep = write_recipe(project / "s.yaml", {"sweep": "s", "recipe": "run.yaml", "space": SPACE, **changes})
    with pytest.raises(InputError, match=problem):
        submit(sweep, (), CLUSTER, folder=project, wait=False)


def test_manta_is_shipped_with_a_project_that_lacks_it(tmp_path: Path) -> None:
    with packed(Shipment(Path(__file__).parents[3], {}, ())) as environment:
        assert "py_modules" not in environment
    with packed(Shipment(tmp_path, {}, ())) as environment:
        shipped = environment["py_modules"]
    assert [Path(each).name for each in shipped] == ["manta_start", "cluster", "data", "model", "orchestrator"]


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://head:10001", "auto/x"])
def test_an_address_for_something_else_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"address of the dashboard, such as http://HOST:8265"):
        reach(address)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_the_exit_status_is_the_jobs_own(status: str, code: int | None, expected: int) -> None:
    assert exit_status(job(status, code)) == expected


def test_a_job_without_an_exit_status_is_an_error_with_the_clusters_reason() -> None:
    with pytest.raises(ClusterError, match="Job mine-1 failed: no such package"):
        exit_status(job("FAILED", None, "no such package"))


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "a-1"),
        (["a-1", "a-2"], "a-3"),
        (["a-2"], "a-3"),
        (["a-2-1", "b-7", "a-x"], "a-1"),
        (["a-9", "a-10"], "a-11"),
    ],
)
def test_the_next_job_id_is_one_above_the_largest(taken: list[str], expected: str) -> None:
    assert next_id("a", taken) == expected


def test_the_job_of_a_run_comes_before_a_job_of_that_name() -> None:
    class Listed:
        address = "http://cluster:8265"

        def list(self) -> list[Job]:
            mine = {"manta_run": "a-2"}
            return [job("RUNNING", None, name="a-2-1", metadata=mine), job("RUNNING", None, name="a-2")]

    assert newest_job(Listed(), "a-2").id == "a-2-1"  # type: ignore[arg-type]
    assert newest_job(Listed(), "a-2-1").id == "a-2-1"  # type: ignore[arg-type]
    with pytest.raises(InputError, match="There is no job of a run 'b'"):
        newest_job(Listed(), "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [Path("/"), Path.home()])
def test_a_home_directory_and_a_whole_disk_are_not_shipped(folder: Path) -> None:
    with pytest.raises(InputError, match="would be shipped as a whole"):
        path_in_shipped(folder / "mine.yaml", folder)


def test_a_run_continues_with_its_folders_as_absolute_paths(tmp_path: Path) -> None:
    here = load_recipe(recipe_in(tmp_path), ["data.sources.0.path=corpus/a"])
    there = load_recipe(recipe_in(tmp_path), [f"data.sources.0.path={tmp_path}/corpus/a"])
    other = load_recipe(recipe_in(tmp_path), [f"data.sources.0.path={tmp_path}/corpus/b"])
    assert differing_fields(result_fields(here), result_fields(there)) == []
    assert differing_fields(result_fields(there), result_fields(here)) == []
    assert [each[0] for each in differing_fields(result_fields(here), result_fields(other))] == ["data.sources.0.path"]


def job(
    status: str, code: int | None, message: str = "", name: str = "mine-1", metadata: Mapping[str, str] | None = None
) -> Job:
    return Job(name, status, "manta train", metadata or {}, message, code, 0.0, 1.0)


def test_a_config_is_adapted_to_a_local_cluster(tmp_path: Path) -> None:
    groups = (GroupSpec(name="train", cpus=1, gpus=1, max=2),)
    spec = ClusterSpec(cluster="here", groups=groups, store=StoreSpec(url="s3://bucket/there"))
    config = load_recipe(recipe_in(tmp_path), ["scaling.gpus_per_worker=1"])
    changed, overrides = adapt_to_local_cluster(config, spec)
    assert changed == load_recipe(recipe_in(tmp_path), ["scaling.gpus_per_worker=1", *overrides])
    assert changed.storage == "s3://bucket/there" and changed.scaling.per_worker == {"CPU": 1, GPU_STAND_IN: 1}
    named = load_recipe(recipe_in(tmp_path), ["scaling.gpus_per_worker=1", "scaling.gpu_resource=other"])
    assert adapt_to_local_cluster(named, ClusterSpec(cluster="here", groups=groups)) == (named, [])


@pytest.mark.parametrize(
    ("status", "message", "lost"),
    [
        (
            "FAILED",
            "runtime_env setup failed: …\nOSError: Failed to download runtime_env file package gcs://a.zip",
            True,
        ),
        ("FAILED", "runtime_env setup failed: …\nRuntimeError: pip is not there", False),
        ("FAILED", "Job entrypoint command failed with exit code 1", False),
        ("SUCCEEDED", "Failed to download runtime_env file package", False),
    ],
)
def test_a_job_whose_shipped_files_were_lost_is_recognized(status: str, message: str, lost: bool) -> None:
    assert was_lost(job(status, None, message)) is lost
