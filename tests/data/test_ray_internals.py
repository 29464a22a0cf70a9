"""The contract with Ray: all of its internals that are used, held to by name, so that an upgrade fails here first."""

import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
import ray.train
from ray.data import DataContext
from ray.train.backend import Backend, BackendConfig

from data.config import StoreConfig
from data.errors import BadShardError, MantaError
from data.ray_internals import (
    HEAD_NODE,
    NODE_ID_LABEL,
    GroupSize,
    WorkersHung,
    address_and_port,
    data_parallel_trainer,
    driver_node_id,
    ordered_block_refs,
    root_cause,
    use_ordered_quiet_data,
)
from data.shard_file import filesystem_for
from orchestrator.process_group import ProcessGroup, ProcessGroupConfig

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns of its own defaults whenever it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]

ROOT = Path(__file__).parents[2]

NAMES = [
    "ray._private.state.actors",
    "ray._private.worker.global_worker",
    "ray._raylet.ActorID.from_hex",
    "ray._raylet.CoreWorker.kill_actor",
    "ray.train.v2._internal.execution.worker_group.worker.RayTrainWorker",
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
    "ray.train.backend.Backend.on_start",
    "ray.train.backend.Backend.on_shutdown",
    "ray.train.backend.Backend.share_cuda_visible_devices",
    "ray.train.backend.BackendConfig.backend_cls",
    "ray.train.collective.broadcast_from_rank_zero",
    "ray.train.torch.get_device",
    "ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError",
    "ray.train.v2._internal.execution.failure_handling.FailureDecision.RAISE",
    "ray.train.v2._internal.execution.failure_handling.FailureDecision.RETRY",
    "ray.train.v2._internal.execution.failure_handling.FailurePolicy.make_decision",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.__len__",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_async",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single_async",
    "ray.train.v2._internal.callbacks.DatasetsCallback",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer.fit",
    "ray.train.v2.api.exceptions.ControllerError",
    "ray.train.v2.api.exceptions.WorkerGroupError",
]

DATA_SETTINGS = ["enable_progress_bars", "print_on_execution_start", "target_max_block_size"]


def test_ray_is_the_version_that_was_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in project["dependencies"] if line.startswith("ray[")]
    assert [pin.partition("==")[2] for pin in pins] == [ray.__version__]


@pytest.mark.parametrize("name", NAMES)
def test_ray_still_has(name: str) -> None:
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


@pytest.mark.parametrize("method", ["on_start", "on_shutdown"])
def test_a_backend_is_still_called_with_what_ours_takes(method: str) -> None:
    theirs = list(inspect.signature(getattr(ray.train.backend.Backend, method)).parameters)
    assert list(inspect.signature(getattr(ProcessGroup, method)).parameters) == theirs


def test_node_id_label_is_rays_own() -> None:
    from ray._raylet import RAY_NODE_ID_KEY

    assert NODE_ID_LABEL == RAY_NODE_ID_KEY


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

    def test_this_node_has_its_id_as_a_label_that_actors_can_be_tied_to(self) -> None:
        labels = [node["Labels"][NODE_ID_LABEL] for node in ray.nodes()]
        assert labels == [driver_node_id()]
        actor = ray.remote(Failing).options(num_cpus=0, label_selector={NODE_ID_LABEL: driver_node_id()}).remote()
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

    def test_a_worker_group_trains_as_an_attempt_asks_it_to_and_fails_in_our_words(self, tmp_path: Path) -> None:
        """The arguments are those of `orchestrator.attempt`; rank 1 fails as one that an actor tells of an error."""
        error = fit(tmp_path, add_up_ranks_then_fail)
        assert sorted(path.name for path in tmp_path.glob("sum-*")) == ["sum-0-of-2-is-3", "sum-1-of-2-is-3"]
        cause = root_cause(error, MantaError)
        assert type(cause) is BadShardError and str(cause) == MESSAGE

    def test_a_start_that_hangs_is_ended_and_made_again(self, tmp_path: Path) -> None:
        def again(error: BaseException) -> bool:
            return root_cause(error, ray.exceptions.RayActorError) is not None

        backend = HangsAtFirst(folder=str(tmp_path))
        trainer_of(tmp_path, end_at_once, retry=again, size=Impatient(1), backend=backend).fit()
        assert (tmp_path / "stopped").exists() and (tmp_path / "end").exists()

    def test_a_group_of_which_one_died_or_hung_is_started_again_as_long_as_it_is_let(self, tmp_path: Path) -> None:
        """Rank 1 is killed in the first group and stopped in the second; the third comes to its end."""

        def again(error: BaseException) -> bool:
            for kind in (ray.exceptions.RayActorError, WorkersHung):
                if root_cause(error, kind) is not None:
                    (tmp_path / f"asked-{kind.__name__}").touch()
                    return True
            return False

        trainer_of(tmp_path, come_to_grief_twice, retry=again, size=TellsOfHangs(2, tmp_path)).fit()
        seen = sorted(path.name for path in tmp_path.glob("asked-*"))
        assert seen == ["asked-RayActorError", "asked-WorkersHung"]
        assert {path.name for path in tmp_path.glob("end-*")} == {"end-0", "end-1"}
        assert not Path("/proc", (tmp_path / "stopped").read_text(), "cwd").exists(), "killed, stopped as it was"


MESSAGE = "s3://bucket/x.gz is cut off. Write it again."


def fail() -> None:
    raise BadShardError(MESSAGE)


class Always(NamedTuple):
    """A number of workers that does not change."""

    workers: int

    def when_idle(self, free: int, total: int) -> tuple[int, float] | None:
        assert free <= total
        return self.workers, 60.0

    def when_running(self, workers: int, slots: int, on_draining: int) -> str | None:
        assert slots >= workers == self.workers and on_draining == 0
        return None


class TellsOfHangs(NamedTuple):
    """Two workers, of which one is found hanging as soon as it has said that it will."""

    workers: int
    folder: Path

    def when_idle(self, free: int, total: int) -> tuple[int, float] | None:
        (self.folder / "is-stopped").unlink(missing_ok=True)
        return self.workers, 60.0

    def when_running(self, workers: int, slots: int, on_draining: int) -> str | None:
        return "rank 1 has stopped" if (self.folder / "is-stopped").exists() else None


class Impatient(NamedTuple):
    """Starts that hang are ended after a moment."""

    workers: int

    def when_idle(self, free: int, total: int) -> tuple[int, float] | None:
        return self.workers, 8.0

    def when_running(self, workers: int, slots: int, on_draining: int) -> str | None:
        return None


@dataclass
class HangsAtFirst(BackendConfig):
    """A backend whose first start stops the worker's process."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return StopsOnce


class StopsOnce(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, HangsAtFirst)
        ray.get(worker_group.execute_single_async(0, stop_once, backend_config.folder))


def stop_once(folder: str) -> None:
    if not (Path(folder) / "stopped").exists():
        (Path(folder) / "stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def end_at_once(config: dict[str, str]) -> None:
    (Path(config["folder"]) / "end").touch()


class Failing:
    """Body of an actor."""

    def fail(self) -> None:
        fail()

    def fail_through(self, other: Any) -> None:
        ray.get(other.fail.remote())

    def node(self) -> str:
        return driver_node_id()


def fit(folder: Path, worker: Callable[[dict[str, str]], None]) -> BaseException:
    """Train with two workers, as `orchestrator.attempt` does; returns what that ended with."""
    with pytest.raises(Exception, match=r".") as raised:
        trainer_of(folder, worker, retry=lambda error: False).fit()
    return raised.value


def trainer_of(
    folder: Path,
    worker: Callable[[dict[str, str]], None],
    retry: Callable[[BaseException], bool],
    size: GroupSize = Always(2),  # noqa: B008
    backend: BackendConfig | None = None,
) -> Any:
    filesystem, path = filesystem_for(str(folder / "ray-train"), StoreConfig())
    return data_parallel_trainer(
        worker,
        own_cluster=True,
        retry=retry,
        size=size,
        train_loop_config={"folder": str(folder)},
        backend_config=backend or ProcessGroupConfig(use_gpu=False, timeout_s=60),
        scaling_config=ray.train.ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="attempt-1", storage_path=path, storage_filesystem=filesystem),
    )


def add_up_ranks_then_fail(config: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    assert (dist.get_rank(), dist.get_world_size(), get_device().type) == (rank, world_size, "cpu")
    assert broadcast_from_rank_zero({"from": rank}) == {"from": 0}
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    (Path(config["folder"]) / f"sum-{rank}-of-{world_size}-is-{int(total)}").touch()
    dist.barrier()
    if rank == 1:
        ray.get(ray.remote(Failing).remote().fail.remote())  # as from the feeder
    dist.barrier()


def come_to_grief_twice(config: dict[str, str]) -> None:
    import torch.distributed as dist

    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    dist.barrier()
    if rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and not (folder / "stopped").exists():
        (folder / "stopped").write_text(str(os.getpid()))
        (folder / "is-stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()
    (folder / f"end-{rank}").touch()


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
