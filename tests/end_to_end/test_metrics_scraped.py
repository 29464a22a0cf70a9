"""The metrics of a run on a real cluster, as a plain HTTP client reads them, beside what `manta show --json` says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.local.nodes import LocalNodes
from tests.end_to_end.manta_process import MantaProcess
from tests.orchestrator.finished_run import recipe_in

pytestmark = [pytest.mark.ray, pytest.mark.soak]

RUN = "scraped"
REPORT_MS = 2000
"""From one time that a process hands its metrics to the agent to the next; they stay for two of these."""

NODES = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
print(json.dumps([[node["NodeManagerAddress"], node["MetricsExportPort"]] for node in ray.nodes()]))
"""


class Site:
    """A cluster that collects metrics, and a folder with a recipe of a run that does not end by itself."""

    def __init__(self, nodes: LocalNodes, folder: Path) -> None:
        self.nodes, self._folder = nodes, folder
        self._recipe = recipe_in(
            folder,
            RUN,
            train={"steps": 1_000_000, "global_batch_size": 8},
            data={"tokenizer": {"kind": "bytes"}},
        )
        self._sets = [
            f"--set={each}"
            for each in ("scaling.num_workers=2", "checkpoint.every_steps=20", "observe.peak_flops=1e12")
        ]
        listed = subprocess.run(
            [sys.executable, "-c", NODES], env={**os.environ, **nodes.environment}, capture_output=True, text=True
        )
        self._agents = json.loads(listed.stdout)

    def train(self) -> MantaProcess:
        """Start it."""
        return MantaProcess(
            "train", str(self._recipe), *self._sets, folder=self._folder, environment=self.nodes.environment
        )

    def summary(self) -> dict[str, Any]:
        """What `manta show --json` says."""
        shown = MantaProcess("show", str(self._recipe), "--json", *self._sets, folder=self._folder, environment={})
        with shown as process:
            assert process.wait() == 0, process.output
            return json.loads(process.output)

    def scrape(self) -> dict[str, dict[str, float]]:
        """The run's metrics by wire name, and by the label background the run's ("" where there is none)."""
        found: dict[str, dict[str, float]] = {}
        for address, port in self._agents:
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith("ray_manta_") and sample.labels["run"] == RUN:
                        label = sample.labels.get("cause", sample.labels.get("phase", ""))
                        found.setdefault(sample.name, {})[label] = sample.value
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="mm", dir="/tmp"))  # names of sockets below it have to be short
    try:
        environment = {"RAY_metrics_report_interval_ms": str(REPORT_MS)}
        with LocalNodes(folder, environment=environment, metrics=True) as nodes:
            nodes.add(1, num_cpus=3)
            yield Site(nodes, tmp_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_is_scraped_is_what_show_says(site: Site) -> None:
    with site.train() as process:
        process.wait_until(lambda: value(site.scrape(), "ray_manta_checkpoint_step") > 0, "a checkpoint in the metrics")
        [first, *_] = site.nodes.nodes[0].workers("ray::TrainingWorker")
        os.kill(first, signal.SIGKILL)
        process.wait_until(lambda: total(site.scrape(), "ray_manta_restarts") == 1, "the restart in the metrics")

        def is_back() -> bool:
            nonlocal before
            before = site.summary()
            return bool((before["restarts"], before["world_size"]) == (1, 2))

        before: dict[str, Any] = {}
        process.wait_until(is_back, "both workers in the record")
        process.wait_until(
            lambda: value(site.scrape(), "ray_manta_step") >= before["step"] + 20,
            "the metrics to come after the summary",
        )
        between = site.scrape()
        process.interrupt()
        last = between
        while not process.has_ended() and (found := site.scrape()):
            last = found
        assert process.wait() == 130, process.output
        # A driver hands over what it has set last when it leaves; after two intervals the agent forgets it, bit by bit.
        while found := site.scrape():
            last |= {name: values for name, values in found.items() if len(values) >= len(last.get(name, {}))}
    after = site.summary()

    assert after["status"] == "stopped" and before["status"] == "running"
    same = ("steps", "attempts", "restarts", "world_size")
    assert [before[name] for name in same] == [after[name] for name in same] == [1_000_000, 1, 1, 2]
    for name in ("step", "tokens"):
        assert before[name] < value(between, f"ray_manta_{name}") <= after[name]
    for scraped in (between, last):
        assert value(scraped, "ray_manta_steps") == after["steps"]
        assert value(scraped, "ray_manta_attempts") == after["attempts"]
        assert value(scraped, "ray_manta_world_size") == after["world_size"]
        assert total(scraped, "ray_manta_restarts") == after["restarts"]
        assert scraped["ray_manta_restarts"][after["disruptions"][0]["cause"]] == 1
        assert total(scraped, "ray_manta_phase") == 1
    wall_s = total(between, "ray_manta_goodput_seconds")
    assert before["goodput"]["wall_s"] <= wall_s <= after["goodput"]["wall_s"]

    assert last["ray_manta_phase"]["done"] == 1
    assert value(last, "ray_manta_step") == value(last, "ray_manta_checkpoint_step") == after["step"]
    assert value(last, "ray_manta_checkpoint_step") == after["checkpoints"][-1]["step"]
    assert value(last, "ray_manta_tokens") == after["tokens"]
    assert value(last, "ray_manta_loss") == after["loss"]["train"]
    assert value(last, "ray_manta_tokens_per_second") == pytest.approx(after["tokens_per_s"], rel=1e-3)
    assert value(last, "ray_manta_model_flops_per_second") == pytest.approx(after["model_flops_per_s"], rel=1e-6)
    assert value(last, "ray_manta_mfu") == pytest.approx(after["mfu"], rel=1e-6)
    goodput = {f"{cause}_s": seconds for cause, seconds in last["ray_manta_goodput_seconds"].items()}
    told = {cause: seconds for cause, seconds in after["goodput"].items() if cause != "wall_s"}
    assert goodput == pytest.approx(told, abs=1e-3)


def value(scraped: Mapping[str, Mapping[str, float]], name: str) -> float:
    """A metric without a label of its own; -1 where it is not there."""
    return scraped.get(name, {}).get("", -1.0)


def total(scraped: Mapping[str, Mapping[str, float]], name: str) -> float:
    """A metric over all its labels."""
    return sum(scraped.get(name, {}).values())
