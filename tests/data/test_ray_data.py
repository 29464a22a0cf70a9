"""The contract with Ray: all of its internals that are used, held to by name, so that an upgrade fails here first."""

import importlib
import inspect
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train
from ray.data import DataContext

from cluster.ray_nodes import address_and_port, driver_node_id, on_node, root_cause
from data.errors import BadShardError, MantaError
from data.ray_data import ordered_block_refs, use_ordered_quiet_data
from orchestrator.sweep.tune_internals import HEAD_NODE

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]

ROOT = Path(__file__).parents[2]

NAMES = [
    "ray._private.state.GlobalState.available_resources_per_node",
    "ray._private.state.GlobalState.get_draining_nodes",
    "ray._private.worker.listen_error_messages",
    "ray._private.worker.print_to_stdstream",
    "ray._raylet.RAY_NODE_ID_KEY",
    "ray.actor.ActorHandle",
    "ray.data.Dataset.iter_internal_ref_bundles",
    "ray.exceptions.RayActorError",
    "ray.exceptions.RayTaskError",
    "ray.train._internal.utils.get_address_and_port",
]

DATA_SETTINGS = ["enable_progress_bars", "print_on_execution_start", "target_max_block_size"]


def test_ray_is_the_version_that_was_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in project["dependencies"] if line.startswith("ray[")]
    assert [pin.partition("==")[2] for pin in pins] == [ray.__version__]


@pytest.mark.parametrize("name", NAMES)
def test_ray_still_has(name: str) -> None:
    found_by_name(name)


def found_by_name(name: str) -> None:
    """Fails where there is no module, class, method or attribute of this dotted name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            assert hasattr(found, part), f"Ray {ray.__version__} has no {name}"
            found = getattr(found, part)
        return
    pytest.fail(f"Ray {ray.__version__} has no {name}")


@pytest.mark.parametrize("name", DATA_SETTINGS)
def test_ray_data_still_has_the_setting(name: str) -> None:
    assert name in DataContext.__dataclass_fields__, f"setting DataContext.{name} would do nothing"


def test_ray_data_still_has_the_setting_for_order() -> None:
    assert "preserve_order" in inspect.signature(ray.data.ExecutionOptions).parameters


def test_driver_and_controller_start_without_torch() -> None:
    code = "import sys, orchestrator.attempt; print([m for m in ('torch', 'ray.train.torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


@pytest.fixture
def data_context() -> Iterator[DataContext]:
    """This process's Ray Data settings; what a test changes is put back."""
    context = DataContext.get_current()
    before = {name: getattr(context, name) for name in DATA_SETTINGS}
    order = context.execution_options.preserve_order
    yield context
    for name, value in before.items():
        setattr(context, name, value)
    context.execution_options.preserve_order = order


@pytest.mark.usefixtures("ray_cluster_small")
class TestWithACluster:
    def test_blocks_come_in_order_one_an_item_though_the_first_is_finished_last(
        self, tmp_path: Path, data_context: DataContext
    ) -> None:
        def finish_backwards(batch: pa.Table) -> pa.Table:
            item = batch["item"][0].as_py()
            while item < 3 and not (tmp_path / str(item + 1)).exists():
                Event().wait(0.02)
            (tmp_path / str(item)).touch()
            return pa.table({"item": [item] * (item + 1)})

        use_ordered_quiet_data()
        dataset = ray.data.from_items([{"item": item} for item in range(4)], override_num_blocks=4)
        refs = list(ordered_block_refs(dataset.map_batches(finish_backwards, batch_size=None, batch_format="pyarrow")))
        assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
        blocks = [block["item"].to_pylist() for block in ray.get(refs, timeout=60)]
        assert blocks == [[0], [1, 1], [2, 2, 2], [3, 3, 3, 3]]

    def test_a_block_is_never_split_by_its_size(self, data_context: DataContext) -> None:
        def three_megabytes(_: pa.Table) -> pa.Table:
            return pa.table({"row": [np.zeros(1 << 20, np.uint8).tobytes()] * 3})

        def blocks() -> int:
            dataset = ray.data.from_items([{"item": 0}], override_num_blocks=1)
            mapped = dataset.map_batches(three_megabytes, batch_size=None, batch_format="pyarrow")
            return len(list(ordered_block_refs(mapped)))

        data_context.target_max_block_size = 1 << 20
        assert blocks() > 1  # this is what would break "one block, one unit"
        use_ordered_quiet_data()
        assert blocks() == 1

    def test_an_iteration_that_is_left_early_can_be_left(self, data_context: DataContext) -> None:
        use_ordered_quiet_data()
        refs = ordered_block_refs(ray.data.from_items(list(range(8)), override_num_blocks=8))
        assert ray.get(next(refs), timeout=60).num_rows == 1
        refs.close()

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


MESSAGE = "s3://bucket/x.gz is cut off. Write it again."


def fail() -> None:
    raise BadShardError(MESSAGE)


class Failing:
    """Body of an actor."""

    def fail(self) -> None:
        fail()

    def fail_through(self, other: Any) -> None:
        ray.get(other.fail.remote())

    def node(self) -> str:
        return driver_node_id()


def test_tune_has_what_population_based_training_and_the_median_rule_are_changed_in() -> None:
    from ray.tune.schedulers import MedianStoppingRule, PopulationBasedTraining
    from ray.tune.schedulers.pbt import _PBTTrialState

    assert list(inspect.signature(PopulationBasedTraining._get_new_config).parameters) == [
        "self",
        "trial",
        "trial_to_clone",
    ]
    assert list(inspect.signature(MedianStoppingRule._on_insufficient_samples).parameters) == [
        "self",
        "tune_controller",
        "trial",
        "time",
    ]
    state = _PBTTrialState(SimpleNamespace(experiment_tag=""))
    for name in ("last_score", "last_train_time", "last_perturbation_time"):
        assert hasattr(state, name)


def test_the_head_node_has_a_resource_of_its_own() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert HEAD_NODE == HEAD_NODE_RESOURCE_NAME


def test_the_actor_that_adds_up_requests_for_nodes_takes_them_by_name() -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    assert callable(module.get_or_create_autoscaling_coordinator)
    parameters = inspect.signature(module._AutoscalingCoordinatorActor.request_resources).parameters
    assert {"requester_id", "resources", "expire_after_s"} <= parameters.keys()
