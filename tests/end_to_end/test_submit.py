"""Jobs on a real cluster, over HTTP: the network drops, nodes die, runs are stopped and go on, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNode, LocalNodes
from cluster.local.ray_command import RAY
from cluster.local.s3 import LocalS3
from tests.end_to_end.manta_process import ROOT, MantaProcess
from tests.end_to_end.shadowing import shadow_packages
from tests.orchestrator.finished_run import recipe_in
from tests.recipes import write_recipe

pytestmark = pytest.mark.chaos

STEPS = 1500


@pytest.fixture(scope="module")
def nodes(s3_server: LocalS3) -> Iterator[LocalNodes]:
    """A real head without CPUs, and two nodes of one; the store's keys are in their environment and nowhere else."""
    s3_server.ensure_bucket("jobs")
    keys = {
        "AWS_ENDPOINT_URL": s3_server.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3_server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_access_key,
    }
    with (
        tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as folder,
        LocalNodes(Path(folder), environment=keys, with_dashboard=True) as cluster,
    ):
        cluster.add(2)
        yield cluster


def recipe(folder: Path, run: str, save_every_s: float = 3) -> Path:
    """A recipe in `folder` whose corpus all nodes have, as they are on this machine; its storage is S3.

    In the folder are files and folders of the names of the project's packages, too.
    """
    shadow_packages(folder)
    # At this rate the loss stays where nobody minds how it goes.
    train = {"steps": STEPS, "global_batch_size": 8, "schedule": {"name": "constant"}, "lr": 1e-5}
    path = recipe_in(folder, run, train=train, data={"prepare": "ahead"})
    more = {
        "storage": "s3://jobs/kept",
        "checkpoint": {"every_s": save_every_s},
        "scaling": {"num_workers": 2, "min_workers": 1},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return path


def manta(nodes: LocalNodes, folder: Path, *arguments: str, address: str = "") -> MantaProcess:
    """The command, as on a laptop that has the cluster's token and no key of the store."""
    environment = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_AUTH")}
    return MantaProcess(*arguments, "--address", address or nodes.dashboard, folder=folder, environment=environment)


def summary(nodes: LocalNodes, folder: Path, recipe: Path, *more: str) -> dict[str, Any]:
    """`manta show`, by somebody who has the store's keys."""
    arguments = ("show", str(recipe), "--json", *more)
    with MantaProcess(*arguments, folder=folder, environment=nodes.environment) as process:
        assert process.wait() == 0, process.output
        told: dict[str, Any] = json.loads(process.output)
    return told


def assert_whole(told: Mapping[str, Any]) -> None:
    """The run is finished, and every sample was trained on once and in order."""
    assert told["status"] == "finished" and told["step"] == STEPS
    samples = told["samples"]
    assert (samples["duplicated"], samples["missing"], samples["in_order"]) == (0, 0, True)


@pytest.mark.soak
def test_a_submitted_run_survives_the_network_and_a_node(nodes: LocalNodes, tmp_path: Path) -> None:
    path = recipe(tmp_path, "submitted")
    with (
        FaultyProxy(nodes.dashboard) as network,
        manta(nodes, tmp_path, "submit", str(path), address=network.endpoint_url) as submitted,
    ):
        submitted.wait_until(lambda: "checkpoint saved" in submitted.output, "a checkpoint")
        with manta(nodes, tmp_path, "submit", str(path)) as second:
            assert second.wait() == 2
            assert "Run 'submitted' is already on" in second.output and "manta stop submitted" in second.output
        network.cut()
        victim = next(node for node in nodes.living() if node.workers("TrainingWorker"))
        victim.kill()
        submitted.wait_until(lambda: "does not answer; trying again" in submitted.output, "a word about the network")
        network.mend()
        nodes.add(1)
        assert submitted.wait(300) == 0, submitted.output
        assert "answers again" in submitted.output
        lines = [line for line in submitted.output.splitlines() if "checkpoint saved" in line]
        assert len(lines) == len(set(lines)), "a line was shown twice"
        assert f"{STEPS:,} of {STEPS:,}" in submitted.output, "the end of the log is missing"
    told = summary(nodes, tmp_path, path)
    assert_whole(told)
    assert told["restarts"] >= 1


def bare_job_submit(nodes: LocalNodes, path: Path, at_step: Callable[[], object]) -> str:
    """What the job line of Ray's documentation prints that trains to the end; calls `at_step` at each step told."""
    line = [*RAY, "job", "submit", "--address", nodes.dashboard, "--working-dir", "."]
    with subprocess.Popen(
        [*line, "--", "manta", "train", path.name],
        cwd=path.parent,
        env={**nodes.environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen: list[str] = []
        for text in process.stdout:
            seen.append(text)
            if "] step " in text:
                at_step()
        assert process.wait() == 0, "".join(seen)
    return "".join(seen)


def test_a_run_that_is_stopped_saves_and_goes_on_as_a_bare_job_that_loses_a_node(
    nodes: LocalNodes, tmp_path: Path
) -> None:
    path = recipe(tmp_path, "stopped", save_every_s=600)
    with manta(nodes, tmp_path, "submit", str(path), "--detach") as submitted:
        assert submitted.wait() == 0 and "manta logs stopped" in submitted.output
    with manta(nodes, tmp_path, "logs", "stopped", "--follow") as followed:
        followed.wait_until(lambda: "workers" in followed.output and "step 1/" in followed.output, "a step")
        with manta(nodes, tmp_path, "stop", "stopped") as stop:
            assert stop.wait() == 0, stop.output
            assert "stopped; step" in stop.output and "checkpoint saved" in stop.output
        assert followed.wait() == 130, followed.output
    told = summary(nodes, tmp_path, path)
    assert told["status"] == "stopped" and 0 < told["step"] < STEPS
    assert told["checkpoints"][-1]["step"] == told["step"], "what had been done was not saved"
    with manta(nodes, tmp_path, "jobs", "--json") as listed:
        assert listed.wait() == 0
        mine = [job for job in json.loads(listed.output) if job["metadata"].get("manta_run") == "stopped"]
    assert [(job["id"], job["status"]) for job in mine] == [("stopped-1", "STOPPED")]

    killed: list[LocalNode] = []

    def kill_one() -> None:
        if not killed:
            killed.append(next(node for node in nodes.living() if node.workers("TrainingWorker")))
            killed[0].kill()

    bare_job_submit(nodes, path, kill_one)
    nodes.add(2 - len(nodes.living()))
    told = summary(nodes, tmp_path, path)
    assert_whole(told)
    assert told["restarts"] >= 1 and killed


@pytest.mark.soak
def test_a_submitted_sweep_ends_and_its_best_is_in_its_storage(nodes: LocalNodes, tmp_path: Path) -> None:
    recipe(tmp_path, "tried")
    sweep = {
        "sweep": "searched",
        "recipe": "tried.yaml",
        "set": {"train.steps": 8, "scaling.num_workers": 1},
        "space": {"train.lr": {"choice": [1e-5, 1e-3]}},
        "searcher": {"name": "grid"},
    }
    path = write_recipe(tmp_path / "searched.yaml", sweep)
    with manta(nodes, tmp_path, "submit", str(path), "--set", "scheduler.name=none") as submitted:
        assert submitted.wait(200) == 0, submitted.output
        assert "job searched-1 submitted" in submitted.output and "best: trial t00" in submitted.output
    told = summary(nodes, tmp_path, path, "--set", "scheduler.name=none")
    assert told["status"] == "finished" and told["best"] is not None
    assert [(trial["status"], trial["step"]) for trial in told["trials"]] == [("finished", 8)] * 2


def test_what_fails_on_the_cluster_has_its_own_exit_status_here(nodes: LocalNodes, tmp_path: Path) -> None:
    path = recipe(tmp_path, "broken")
    gone = "data.sources.0.path=/there/is/no/such/folder"
    with manta(nodes, tmp_path, "submit", str(path), "--set", gone) as submitted:
        assert submitted.wait() == 2, submitted.output
        assert "/there/is/no/such/folder" in submitted.output


def test_no_key_is_anywhere_that_ray_shows_or_keeps(nodes: LocalNodes, tmp_path: Path, s3_server: LocalS3) -> None:
    with manta(nodes, tmp_path, "jobs", "--json") as listed:
        assert listed.wait() == 0
        assert json.loads(listed.output), "this comes after the others"
        assert s3_server.secret_access_key not in listed.output
    logs = Path(nodes.folder) / "session_latest" / "logs"
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert files
    holding = [str(file) for file in files if s3_server.secret_access_key.encode() in file.read_bytes()]
    holding += [page for page, text in told_by_the_dashboard(nodes).items() if s3_server.secret_access_key in text]
    assert holding == []


PAGES = (
    *("api/jobs/", "nodes?view=details", "logical/actors", "api/cluster_status", "api/v0/actors?detail=1"),
    *("api/v0/runtime_envs?detail=1", "api/v0/workers?detail=1", "api/v0/tasks?detail=1", "api/v0/nodes?detail=1"),
)


def told_by_the_dashboard(nodes: LocalNodes) -> dict[str, str]:
    """What the dashboard's pages tell who has the token; some tell of an error of their own."""
    headers = {"Authorization": f"Bearer {nodes.environment['RAY_AUTH_TOKEN']}"}
    told = {}
    for page in PAGES:
        try:
            with urlopen(Request(f"{nodes.dashboard}/{page}", headers=headers), timeout=30) as answer:
                told[page] = answer.read().decode()
        except HTTPError as error:
            told[page] = error.read().decode()
    assert "manta train" in told["api/jobs/"], "it tells of the jobs"
    assert "class_name" in told["api/v0/actors?detail=1"], "it tells of the runs' actors"
    return told


def test_a_token_that_is_missing_is_asked_for(nodes: LocalNodes, tmp_path: Path) -> None:
    with MantaProcess("jobs", "--address", nodes.dashboard, folder=tmp_path, environment={}) as listed:
        assert listed.wait() == 1
        assert "RAY_AUTH_TOKEN" in listed.output and "Traceback" not in listed.output
