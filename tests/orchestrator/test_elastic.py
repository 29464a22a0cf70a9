"""A run on a cluster of several nodes that come, go and die: the same losses and samples as on one that stays."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.orchestrator.manta_process import MantaProcess

pytestmark = [pytest.mark.ray, pytest.mark.slow]

GLOBAL_BATCH_SIZE = 16
RECIPE = {
    "data": {"tokenizer": {"kind": "bytes"}, "seq_len": 64, "validation_fraction": 0},
    "model": {"n_layers": 2, "d_model": 64, "n_heads": 2},
    "train": {
        "steps": 1000000,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "micro_batch_size": 4,
        "lr": 1e-3,
        "schedule": {"name": "constant"},
    },
    "scaling": {"min_workers": 1, "max_workers": 4},
    "checkpoint": {"every_steps": 1000000},
}


@dataclass(frozen=True)
class Place:
    """A folder with text in it that runs are kept in."""

    folder: Path

    def command(self, command: str, run: str, *options: str, address: str | None = None) -> MantaProcess:
        """Start `manta COMMAND` on a run, on the cluster at `address` or on its own."""
        path = self.folder / f"{run}.yaml"
        data = {**RECIPE["data"], "sources": [{"path": str(self.folder / "text")}]}
        path.write_text(json.dumps({**RECIPE, "run": run, "storage": str(self.folder / "kept"), "data": data}))
        # A test before this one may have made Ray ask for a token, of this process and of the cluster it starts.
        token = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
        environment = {"RAY_ADDRESS": address, **token} if address else {}
        return MantaProcess(command, str(path), *options, folder=self.folder, environment=environment)

    def step_told(self, run: str) -> int:
        """Step of the run's newest sign of life; -1 before there is one."""
        path = self.folder / f"kept/runs/{run}/run.json"
        if not path.exists():
            return -1
        attempt = json.loads(path.read_text())["attempts"][-1]
        return int(attempt["step"]) if attempt["from_step"] is not None else -1

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"kept/runs/{run}/metrics.jsonl").read_text().splitlines()]

    def stop(self, run: str, process: MantaProcess) -> dict[str, Any]:
        """End the run by Ctrl-C; its story."""
        process.interrupt()
        assert process.wait() == 130, process.output
        with self.command("show", run, "--json") as shown:
            assert shown.wait() == 0, shown.output
            return json.loads(shown.output)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "text").mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse", "csv", "glob", "heapq", "shlex", "textwrap"):
        (folder / f"text/{name}.txt").write_text((library / f"{name}.py").read_text("utf-8"))
    return Place(folder)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs for the driver's actors, and one node of one CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield cluster
    cluster.shutdown()


def said(process: MantaProcess, pattern: str, times: int = 1) -> Callable[[], bool]:
    return lambda: len(re.findall(pattern, process.output)) >= times


def goes_on(place: Place, run: str, process: MantaProcess, steps: int = 1) -> None:
    """Wait until at least so many more steps have been told of."""
    wanted = place.step_told(run) + steps
    process.wait_until(lambda: place.step_told(run) >= wanted, f"step {wanted}")


def test_nodes_come_and_die_and_the_losses_do_not_notice(place: Place, cluster: Cluster) -> None:
    with place.command("train", "elastic", address=cluster.address) as process:
        goes_on(place, "elastic", process)
        added = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        process.wait_until(said(process, r"from 1 workers to 2: room for 2"), "a decision to grow")
        process.wait_until(said(process, r"going on with 2 workers; 0 steps"), "two workers")
        goes_on(place, "elastic", process)
        cluster.remove_node(added, allow_graceful=False)
        process.wait_until(said(process, r"going on with 1 workers"), "one worker")
        goes_on(place, "elastic", process)
        story = place.stop("elastic", process)
    assert "Traceback" not in process.output

    rows = place.metrics("elastic")
    with place.command(
        "train", "alone", "--set", f"train.steps={len(rows)}", "--set", "scaling.max_workers=1"
    ) as alone:
        assert alone.wait() == 0, alone.output
    reference = [row["loss"] for row in place.metrics("alone")]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["loss"] for row in rows] == pytest.approx(reference, rel=1e-5)
    assert [size for _, size in story["world_sizes"]] == [1, 2, 1]
    assert story["samples"]["seen"] == story["samples"]["expected"] == len(rows) * GLOBAL_BATCH_SIZE
    assert (story["samples"]["duplicated"], story["samples"]["missing"]) == (0, 0)
    assert (story["attempts"], story["restarts"]) == (1, 2)
    paused, died = (int(step) for step in re.findall(r"step (\d+): going on", process.output))
    assert died > paused > 0, "from the memory of the node that is left, newer than where it grew"
