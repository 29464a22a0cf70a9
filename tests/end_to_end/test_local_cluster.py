"""`manta cluster` on this machine: from no nodes to a finished run, a node reclaimed on the way, and nothing left."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local.background import running_clusters
from cluster.local.processes import of_session
from cluster.spec import GPU_STAND_IN
from tests.end_to_end.manta_process import MantaProcess
from tests.orchestrator.finished_run import recipe_in
from tests.waiting import wait_until

pytestmark = pytest.mark.sweep

IDLE_S = 5


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a cluster that is up, of a group that tokenizes and one of GPUs that are stood in for."""
    name = f"t{uuid.uuid4().hex[:8]}"
    spec = {
        "cluster": name,
        "idle_timeout_s": IDLE_S,
        "grace_s": 20,
        "groups": [
            {"name": "tokenize", "cpus": 1, "max": 1},
            {"name": "train", "cpus": 1, "gpus": 1, "max": 3, "spot": True, "labels": {"zone": "here"}},
        ],
    }
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.yaml").write_text(json.dumps(spec))
    try:
        manta(folder, "cluster", "up", "cluster.yaml")
        yield name
    finally:
        kept = next((each for each in running_clusters() if each.name == name), None)
        if kept is not None:
            manta(folder, "cluster", "down", name, "--now")
            assert of_session(kept.session) == []


def manta(folder: Path, *arguments: str) -> str:
    """What a command prints that ends well."""
    with MantaProcess(*arguments, folder=folder, environment={}) as process:
        assert process.wait() == 0, process.output
        return process.output


def nodes(folder: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Nodes by group, as `manta cluster status --json` has them."""
    told = json.loads(manta(folder, "cluster", "status", name, "--json"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for node in told["nodes"]:
        groups.setdefault(node["group"], []).append(node)
    return groups


@pytest.mark.soak
def test_runs_bring_nodes_wait_for_them_survive_a_reclaim_and_leave_none(name: str, tmp_path: Path) -> None:
    assert nodes(tmp_path, name).keys() == {"head"}
    # Neither run ends by itself: nothing here depends on how fast this machine trains.
    first = endless(tmp_path, "first", workers=2, at_least=1)
    second = endless(tmp_path, "second", workers=3, at_least=3)
    with submitted(tmp_path, name, first) as training:
        training.wait_until(lambda: summary_of(tmp_path, first)["world_size"] == 2, "two workers")
        there = nodes(tmp_path, name)["train"]
        assert 2 <= len(there) <= 3
        assert all(node["total"] == {"CPU": 1.0, GPU_STAND_IN: 1.0} for node in there)
        before = len(summary_of(tmp_path, first)["disruptions"])
        said = manta(tmp_path, "cluster", "reclaim", "train", "--cluster", name, "--grace", "20s")
        assert "notice given; it ends in 20 s" in said
        training.wait_until(
            lambda: len(summary_of(tmp_path, first)["disruptions"]) > before, "workers that leave the node"
        )
        training.wait_until(lambda: summary_of(tmp_path, first)["world_size"] == 2, "two workers again")
        with submitted(tmp_path, name, second) as waiting:
            waiting.wait_until(lambda: "of at most 3 nodes up" in waiting.output, "a word about what is waited for")
            assert "waiting for nodes for" in waiting.output and "group train: " in waiting.output
            manta(tmp_path, "stop", "first", "--address", name)
            assert training.wait() == 130, training.output
            waiting.wait_until(lambda: "step 1/" in waiting.output, "its turn")
            manta(tmp_path, "stop", "second", "--address", name)
            assert waiting.wait() == 130, waiting.output
    summary = summary_of(tmp_path, first)
    assert summary["status"] == "stopped" and summary["checkpoints"][-1]["step"] == summary["step"] > 0
    assert (summary["samples"]["duplicated"], summary["samples"]["missing"]) == (0, 0)
    assert [each["replayed_steps"] for each in summary["disruptions"]] == [0] * len(summary["disruptions"])
    wait_until(lambda: nodes(tmp_path, name).keys() == {"head"}, "idle nodes' end", timeout_s=120)


def endless(folder: Path, run: str, workers: int, at_least: int) -> Path:
    """A recipe of a run of one GPU per worker, that ends when it is stopped."""
    train = {"steps": 1_000_000, "schedule": {"name": "constant"}, "global_batch_size": 12, "lr": 1e-5}
    recipe = recipe_in(folder, run, train=train)
    scaling = {"num_workers": workers, "min_workers": at_least, "gpus_per_worker": 1, "gpu_resource": GPU_STAND_IN}
    # Its storage is relative to where the command is given, also for the job.
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "scaling": scaling, "storage": "kept"}))
    return recipe


def submitted(folder: Path, name: str, recipe: Path) -> MantaProcess:
    """`manta submit`, which follows the run."""
    return MantaProcess("submit", recipe.name, "--address", name, folder=folder, environment={})


def summary_of(folder: Path, recipe: Path) -> dict[str, Any]:
    """What `manta show` tells of a run; of one that has not begun, only that it has no workers."""
    with MantaProcess("show", recipe.name, "--json", folder=folder, environment={}) as show:
        return json.loads(show.output) if show.wait() == 0 else {"world_size": 0}


def test_a_worker_that_no_group_holds_is_refused_at_once(name: str, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "toobig")
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "scaling": {"cpus_per_worker": 64}}))
    with MantaProcess("submit", recipe.name, "--address", name, folder=tmp_path, environment={}) as submitted:
        assert submitted.wait() == 2
        assert "no group has nodes large enough for a worker of 64 CPU" in submitted.output


def test_the_head_examines_itself(name: str, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "examined")
    output = manta(tmp_path, "doctor", recipe.name, "--cluster", "--address", name, "--json")
    checks = {check["name"]: check for check in json.loads(output)}
    assert checks["cluster"]["status"] == "ok"
    assert checks["head: object storage"]["status"] == "ok"
    ray = next(check for found, check in checks.items() if found.startswith("head: Ray at"))
    assert ray["status"] == "ok" and "ran a task" in ray["found"]


def test_a_second_of_the_name_is_refused_and_its_token_is_nobody_elses(name: str, tmp_path: Path) -> None:
    spec = {"cluster": name, "groups": [{"name": "a", "max": 1}]}
    (tmp_path / "again.yaml").write_text(json.dumps(spec))
    with MantaProcess("cluster", "up", "again.yaml", folder=tmp_path, environment={}) as again:
        assert again.wait() == 1
        assert f"manta cluster down {name}" in again.output
    kept = next(each for each in running_clusters() if each.name == name)
    token = kept.environment["RAY_AUTH_TOKEN"]
    assert token not in manta(tmp_path, "cluster", "status", name) and token not in repr(kept)
    assert f"export RAY_AUTH_TOKEN={token}" in manta(tmp_path, "cluster", "env", name)
    file = Path(f"/tmp/manta-clusters-{os.getuid()}/{name}.json")
    assert file.stat().st_mode & 0o077 == 0


def test_a_group_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with MantaProcess("cluster", "reclaim", "nosuch", "--cluster", name, folder=tmp_path, environment={}) as reclaim:
        assert reclaim.wait() == 2
        assert "it has tokenize, train" in reclaim.output


def test_down_stops_jobs_first_which_save_and_leaves_no_process(name: str, tmp_path: Path) -> None:
    kept = next(each for each in running_clusters() if each.name == name)
    train = {"steps": 100_000, "schedule": {"name": "constant"}}
    recipe = recipe_in(tmp_path, "long", train=train)
    manta(tmp_path, "submit", recipe.name, "--address", name, "--detach")
    with MantaProcess("logs", "long", "--address", name, "-f", folder=tmp_path, environment={}) as followed:
        followed.wait_until(lambda: "step 1/" in followed.output, "a step")
        assert "long-1: asked to save and stop" in manta(tmp_path, "cluster", "down", name)
    summary = json.loads(manta(tmp_path, "show", recipe.name, "--json"))
    assert summary["status"] == "stopped"
    assert summary["checkpoints"][-1]["step"] == summary["step"] > 0
    assert of_session(kept.session) == []
    assert not Path(kept.folder).exists()
