"""A run on a cluster whose nodes Ray brings up through KubeRay, from none, and loses one of."""

from __future__ import annotations

import json
import re
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.render.kuberay import ray_cluster
from cluster.spec import ClusterSpec, GroupSpec, HeadSpec
from tests.cluster.kuberay.kuberay_stand_in import KubeRayCluster
from tests.end_to_end.manta_process import MantaProcess
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.soak]

STEPS, GLOBAL_BATCH_SIZE, WORKERS = 800, 8, 2
RECIPE = {
    "run": "small",
    "data": {"tokenizer": {"kind": "bytes"}, "seq_len": 64, "validation_fraction": 0},
    "model": {"n_layers": 2, "d_model": 64, "n_heads": 2},
    "train": {"steps": STEPS, "global_batch_size": GLOBAL_BATCH_SIZE, "micro_batch_size": 4, "lr": 1e-3},
    "scaling": {"num_workers": WORKERS, "min_workers": WORKERS, "max_workers": WORKERS},
    "checkpoint": {"every_s": 4},
}
SPEC = ClusterSpec(
    cluster="small",
    image="manta",
    head=HeadSpec(cpus=1, memory="1Gi"),
    groups=(GroupSpec(name="train", cpus=1, memory="1Gi", max=WORKERS, spot=True),),
    idle_timeout_s=10,
    grace_s=5,
)


@pytest.fixture
def cluster() -> Iterator[KubeRayCluster]:
    """A head, and no nodes yet."""
    with (
        tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as folder,
        KubeRayCluster(ray_cluster(SPEC), Path(folder)) as running,
    ):
        yield running


def test_a_run_from_no_nodes_that_loses_a_pod_is_the_whole_run(cluster: KubeRayCluster, tmp_path: Path) -> None:
    with MantaProcess("train", recipe_in(tmp_path), folder=tmp_path, environment=cluster.environment) as run:
        run.wait_until(lambda: step_of(run) > 20, "it trains")
        lost = cluster.pods_of("train")[0]
        cluster.delete_pod(lost)
        assert run.wait(400) == 0 and "Traceback" not in run.output, run.output
    assert not cluster.pods[lost].is_alive() and not cluster.pods[lost].was_killed
    assert len(cluster.pods) >= 1 + WORKERS + 1  # the head, the first two, and who came in place of the one lost
    wait_until(lambda: cluster.pods_of("train") == [], "idle nodes go")

    with MantaProcess("show", "small.yaml", "--json", folder=tmp_path, environment={}) as show:
        assert show.wait() == 0, show.output
        summary = json.loads(show.output)
    samples = summary["samples"]
    assert summary["status"] == "finished" and summary["step"] == STEPS
    assert samples["seen"] == samples["expected"] == STEPS * GLOBAL_BATCH_SIZE
    assert (samples["duplicated"], samples["missing"]) == (0, 0) and samples["in_order"]


def recipe_in(folder: Path) -> str:
    """Path of the recipe, and background it the text it is of."""
    text = folder / "text"
    text.mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse", "csv", "glob", "heapq", "shlex", "textwrap"):
        (text / f"{name}.txt").write_text((library / f"{name}.py").read_text("utf-8"))
    data = {**RECIPE["data"], "sources": [{"path": str(text)}]}  # type: ignore[dict-item]
    recipe = folder / "small.yaml"
    recipe.write_text(json.dumps({**RECIPE, "storage": str(folder / "kept"), "data": data}))
    return str(recipe)


def step_of(run: MantaProcess) -> int:
    """The newest step that it has told of."""
    return max((int(step) for step in re.findall(r"step (\d+)/", run.output)), default=0)
