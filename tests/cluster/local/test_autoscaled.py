"""The local autoscaled cluster: the names of Ray that it uses, and the start and complete removal of nodes."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.local.autoscaled import HEAD_NODE_ID, PROVIDER, AutoscaledCluster
from cluster.local.fake_provider import LocalNodeProvider
from cluster.local.processes import of_session
from cluster.local.session import START
from cluster.spec import GPU_STAND_IN, ClusterSpec, GroupSpec
from tests.waiting import wait_until

DRIVER = Path(__file__).parent / "autoscaled_driver.py"
IDLE_TIMEOUT_S = 4.0


def spec(idle_timeout_s: float = 60, **group: Any) -> ClusterSpec:
    """A cluster of one group."""
    group = {"name": "worker", "cpus": 1, "max": 3} | group
    return ClusterSpec(cluster="test", groups=(GroupSpec(**group),), idle_timeout_s=idle_timeout_s)


class TestContract:
    """Private names of Ray that are used. A failure names what an upgrade has changed."""

    def test_the_provider_exists_and_uses_this_id_of_the_head(self) -> None:
        module, _, name = PROVIDER.rpartition(".")
        provider_module = importlib.import_module(module)
        provider = getattr(provider_module, name).__base__
        assert importlib.import_module(provider.__module__).FAKE_HEAD_NODE_ID == HEAD_NODE_ID
        assert list(inspect.signature(provider).parameters) == ["provider_config", "cluster_name"]
        source = inspect.getsource(provider)
        for word in ("gcs_address", "head_node_id", "launch_multiple", "RAY_FAKE_CLUSTER", "RAY_CLOUD_INSTANCE_ID"):
            assert word in source, word

    def test_autoscaler_v2_accepts_the_configuration(self) -> None:
        from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

        labels = {"zone": "a"}
        asked = spec(90, name="train", cpus=2, gpus=1, min=1, max=5, resources={"disk": 3}, labels=labels)
        config = AutoscalingConfig(AutoscaledCluster(asked)._config(), skip_content_hash=True)
        assert config.get_idle_timeout_s() == 90
        assert config.get_max_num_worker_nodes() == 5
        assert config.disable_node_updaters()
        node_type = config.get_node_type_configs()["train"]
        assert {kind: node_type.resources[kind] for kind in ("CPU", GPU_STAND_IN, "disk")} == {
            "CPU": 2,
            GPU_STAND_IN: 1,
            "disk": 3,
        }
        assert node_type.labels == asked.groups[0].all_labels and node_type.labels.items() >= labels.items()
        assert (node_type.min_worker_nodes, node_type.max_worker_nodes) == (1, 5)

    def test_nodes_unpack_working_directories_in_a_folder_of_this_name(self) -> None:
        from ray._private import node, parameter
        from ray._private.ray_constants import DEFAULT_RUNTIME_ENV_DIR_NAME

        assert parameter.RayParams().runtime_env_dir_name == DEFAULT_RUNTIME_ENV_DIR_NAME
        assert "ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME" in inspect.getsource(parameter.RayParams.__init__)
        assert "self._ray_params.runtime_env_dir_name" in inspect.getsource(node.Node)
        assert "_create_node_with_resources_and_labels" in vars(LocalNodeProvider.__base__)

    def test_ray_reads_the_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray
        from ray._private.services import get_node_instance_id
        from ray.autoscaler._private import constants

        monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "this-one")
        assert get_node_instance_id() == "this-one"
        assert hasattr(ray._config, "enable_autoscaler_v2")
        source = inspect.getsource(constants)
        for name in ("AUTOSCALER_UPDATE_INTERVAL_S", "AUTOSCALER_METRIC_PORT"):
            assert f'env_integer("{name}"' in source


class TestSession:
    def _start(self, command: str) -> tuple[subprocess.Popen[str], int]:
        agent = subprocess.Popen(
            [*START, "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert agent.stdout is not None
        return agent, int(agent.stdout.readline())

    def test_ends_grandchildren_when_its_input_ends(self) -> None:
        agent, session = self._start("(sleep 300 &) ; sleep 300")
        wait_until(lambda: len(of_session(session)) >= 2, "the command's own processes")
        with agent:
            assert agent.stdin is not None
            agent.stdin.close()
            agent.wait(10)
        assert of_session(session) == []

    def test_ends_leftover_processes_of_a_command_and_returns_its_status(self) -> None:
        agent, session = self._start("(sleep 300 &) ; exit 7")
        with agent:
            assert agent.wait(10) == 7
        assert of_session(session) == []

    def test_ends_with_a_process_that_was_killed(self) -> None:
        script = (
            "import subprocess, sys; p = subprocess.Popen([*sys.argv[1:], 'sleep', '300'], stdin=subprocess.PIPE,"
            "stdout=subprocess.PIPE, text=True); print(p.stdout.readline(), flush=True); p.wait()"
        )
        with subprocess.Popen([sys.executable, "-c", script, *START], stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            session = int(owner.stdout.readline())
            assert of_session(session)
            owner.kill()
            wait_until(lambda: not of_session(session), "the session's end")


@pytest.mark.ray
def test_nodes_start_on_demand_and_end_when_idle_without_leftovers() -> None:
    with AutoscaledCluster(spec(IDLE_TIMEOUT_S)) as cluster:
        done = subprocess.run(
            [sys.executable, DRIVER],
            env={**cluster._head_environment(), **cluster.environment, "PYTHONPATH": str(DRIVER.parents[3])},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:] + cluster.autoscaler_log()
        found = json.loads(done.stdout.splitlines()[-1])
        session, folder = cluster.session, cluster.folder
    assert found["at first"] == 0
    assert found["bundles: up"] > 0
    assert found["actors are where they were placed"]
    assert found["one unused: down to 2"] >= 0
    assert found["with an impossible request pending: up to 3"] >= 0
    assert found["new capacity is left to others"]
    assert found["placement groups left"] == 0
    assert found["all released: down"] >= 0
    assert of_session(session) == []
    assert not folder.exists()


@pytest.mark.ray
def test_a_head_that_does_not_start_says_why() -> None:
    with tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as folder:
        cluster = AutoscaledCluster(spec().model_copy(update={"idle_timeout_s": -60}), folder=Path(folder))
        with pytest.raises(ClusterError, match="ended while starting") as raised, cluster:
            pass
        assert "-1.0 is less than the minimum of 0" in str(raised.value)
        assert folder in str(raised.value)
        assert of_session(cluster.session) == []


def test_a_folder_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="33 are allowed"), AutoscaledCluster(spec(), folder=tmp_path / ("x" * 60)):
        pass


def test_joining_with_ray_imported_without_a_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray  # noqa: F401

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ClusterError, match="imported before"), AutoscaledCluster(spec()).joined():
        pass
