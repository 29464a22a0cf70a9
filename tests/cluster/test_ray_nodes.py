"""Ray's internals that `cluster.ray_nodes` uses: an upgrade of Ray that lacks them fails here first."""

import socket
import tomllib
from pathlib import Path

import pytest
import ray

from cluster.errors import MantaError
from cluster.ray_nodes import _fitting, address_and_port, driver_node_id, on_node, root_cause
from data.errors import BadShardError
from tests.ray_contract import MESSAGE, Failing, assert_ray_has, fail

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]

NAMES = [
    "ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER",  # cluster.local.ray
    "ray._private.state.GlobalState.available_resources_per_node",
    "ray._private.state.GlobalState.get_draining_nodes",
    "ray._private.worker.listen_error_messages",
    "ray._private.worker.print_to_stdstream",
    "ray.actor.ActorHandle",
    "ray.cloudpickle.register_pickle_by_value",  # cluster.local.ray
    "ray.exceptions.RayActorError",
    "ray.exceptions.RayTaskError",
    "ray.train._internal.utils.get_address_and_port",
]


def test_ray_is_the_version_that_was_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in project["dependencies"] if line.startswith("ray[")]
    assert [pin.partition("==")[2] for pin in pins] == [ray.__version__]


@pytest.mark.parametrize("name", NAMES)
def test_ray_still_has(name: str) -> None:
    assert_ray_has(name)


@pytest.mark.usefixtures("ray_cluster_small")
class TestWithACluster:
    def test_this_node_has_an_id_that_actors_can_be_tied_to(self) -> None:
        assert [node["NodeID"] for node in ray.nodes()] == [driver_node_id()]
        actor = ray.remote(Failing).options(num_cpus=0, **on_node(driver_node_id())).remote()
        assert ray.get(actor.node.remote(), timeout=60) == driver_node_id()

    def test_address_and_port_can_be_listened_on(self) -> None:
        address, port = address_and_port()
        with socket.create_server((address, port)):
            assert port > 0

    @pytest.mark.parametrize("wrap", ["task", "actor", "actor in an actor"])
    def test_root_cause_finds_our_error_and_its_plain_message(self, wrap: str) -> None:
        ref = {
            "task": lambda: ray.remote(fail).remote(),
            "actor": lambda: ray.remote(Failing).remote().fail.remote(),
            "actor in an actor": lambda: ray.remote(Failing).remote().fail_through.remote(ray.remote(Failing).remote()),
        }[wrap]()
        with pytest.raises(ray.exceptions.RayTaskError) as raised:
            ray.get(ref, timeout=60)
        cause = root_cause(raised.value, MantaError)
        assert type(cause) is BadShardError and str(cause) == MESSAGE
        assert root_cause(raised.value, ZeroDivisionError) is None


@pytest.mark.parametrize("parts", range(1, 40))
def test_as_many_workers_fit_on_a_gpu_as_it_has_parts(parts: int) -> None:
    share = 10_000 // parts / 10_000
    for gpus in (1, 2, 8):
        assert _fitting({"GPU": float(gpus), "CPU": 1000.0}, {"GPU": share, "CPU": 1.0}) == gpus * parts
