"""The contract with Ray Train: the internals that are used, by name, and what they are used for."""

import dataclasses
import inspect
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.context import DistributedContext
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

from cluster.local.processes import is_alive
from cluster.ray_nodes import root_cause
from data.config import StoreConfig
from data.errors import BadShardError, MantaError
from data.stores.shard_file import filesystem_for
from orchestrator.nodes.requests import NodeRequests
from orchestrator.policy.hang import Beat, Hang
from orchestrator.policy.scaling import Observation
from orchestrator.workers.group_size import GroupSize, PoolAction, StartAction
from orchestrator.workers.pool import WorkersHung
from orchestrator.workers.pooled_group import Losses
from orchestrator.workers.process_group import ProcessGroup, ProcessGroupConfig
from orchestrator.workers.ray_train import WorkerGroupTrainer
from orchestrator.workers.warm import WarmWorkers
from orchestrator.workers.worker import TrainingWorker
from tests.ray_contract import MESSAGE, Failing, assert_ray_has
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.ray,
    # Ray Data warns about its own defaults when it copies its context.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data"),
]

NAMES = [
    "ray.train.backend.Backend.on_start",
    "ray.train.backend.Backend.share_cuda_visible_devices",
    "ray.train.backend.BackendConfig.backend_cls",
    "ray.train.torch.get_device",
    "ray.train.v2._internal.callbacks.DatasetsCallback",
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback",
    "ray.train.v2._internal.exceptions.WorkerGroupStartupFailedError",
    "ray.train.v2._internal.exceptions.WorkerGroupStartupTimeoutError",
    "ray.train.v2._internal.execution.context.DistributedContext",
    "ray.train.v2._internal.execution.context.get_train_context",
    "ray.train.v2._internal.execution.context.set_train_context",
    "ray.train.v2._internal.execution.controller.controller.TrainController._run_control_loop_iteration",
    "ray.train.v2._internal.execution.controller.controller.TrainController.worker_group_cls",
    "ray.train.v2._internal.execution.failure_handling.FailureDecision.RAISE",
    "ray.train.v2._internal.execution.failure_handling.FailureDecision.RETRY",
    "ray.train.v2._internal.execution.failure_handling.FailurePolicy.make_decision",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy._maybe_send_resource_request",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.after_controller_start",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.before_controller_abort",
    "ray.train.v2._internal.execution.scaling_policy.FixedScalingPolicy.before_controller_shutdown",
    "ray.train.v2._internal.execution.scaling_policy.NoopDecision",
    "ray.train.v2._internal.execution.scaling_policy.ResizeDecision",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.__len__",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_async",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single",
    "ray.train.v2._internal.execution.worker_group.WorkerGroup.execute_single_async",
    "ray.train.v2._internal.execution.worker_group.state.WorkerGroupState.shutdown",
    "ray.train.v2._internal.execution.worker_group.thread_runner.ThreadRunner.is_running",
    "ray.train.v2._internal.execution.worker_group.worker.RayTrainWorker",
    "ray.train.v2._internal.execution.worker_group.worker.Worker",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._assign_worker_ranks",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._decorate_worker_log_file_paths",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._init_train_context",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._init_train_context_on_workers",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._start_impl",
    "ray.train.v2._internal.util.invoke_context_managers",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._initialize_and_run_controller",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer.fit",
    "ray.train.v2.api.exceptions.ControllerError",
    "ray.train.v2.api.exceptions.WorkerGroupError",
]


@pytest.mark.parametrize("name", NAMES)
def test_ray_train_has(name: str) -> None:
    assert_ray_has(name)


def test_our_backend_has_the_signature_of_ray_trains() -> None:
    theirs = list(inspect.signature(Backend.on_start).parameters)
    assert list(inspect.signature(ProcessGroup.on_start).parameters) == theirs


def test_our_worker_has_the_signatures_of_ray_trains() -> None:
    for method in ("get_metadata", "poll_status", "run_train_fn"):
        ours, theirs = (inspect.signature(getattr(kind, method)) for kind in (TrainingWorker, RayTrainWorker))
        added = {"_ray_trace_ctx"}  # to a class that has been an actor's
        assert len(ours.parameters.keys() - added) == len(theirs.parameters.keys() - added), method
    assert {"world_rank", "world_size"} <= {field.name for field in dataclasses.fields(DistributedContext)}


@pytest.mark.usefixtures("ray_cluster_small")
def test_the_actor_that_adds_up_requests_for_nodes_takes_them_by_name() -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    assert callable(module.get_or_create_autoscaling_coordinator)
    parameters = inspect.signature(module._AutoscalingCoordinatorActor.request_resources).parameters
    assert {"requester_id", "resources", "expire_after_s"} <= parameters.keys()


@pytest.mark.usefixtures("ray_cluster_small")
class TestWithACluster:
    def test_a_worker_group_trains_and_fails_with_our_error(self, tmp_path: Path) -> None:
        """The arguments are those of `orchestrator.driver.trainer`; rank 1 fails with an error raised in an actor."""
        error = fit(tmp_path, add_up_ranks_then_fail)
        assert sorted(path.name for path in tmp_path.glob("sum-*")) == ["sum-0-of-2-is-3", "sum-1-of-2-is-3"]
        cause = root_cause(error, MantaError)
        assert type(cause) is BadShardError and str(cause) == MESSAGE

    @pytest.mark.soak
    def test_a_start_that_hangs_is_ended_and_repeated(self, tmp_path: Path) -> None:
        def retry(error: BaseException, losses: Losses) -> bool:
            (tmp_path / "retried").write_text(str(root_cause(error, WorkersHung)))
            return root_cause(error, ray.exceptions.RayActorError) is not None

        backend = HangsAtFirst(folder=str(tmp_path))
        trainer_of(tmp_path, end_at_once, retry=retry, size=ShortTimeout(1), backend=backend).fit()
        assert (tmp_path / "stopped").exists() and (tmp_path / "end").exists()
        assert (tmp_path / "retried").read_text() == "the workers did not start within 8 s; killed 1 of 1 workers"

    def test_of_a_group_in_which_one_hangs_while_it_starts_the_others_go_on(self, tmp_path: Path) -> None:
        """The last of three ranks stops before it joins their process group, where the others wait for it."""

        def retry(error: BaseException, losses: Losses) -> bool:
            (tmp_path / "retried").write_text(str(root_cause(error, WorkersHung)))
            return True

        backend, size = LastHangsAtFirst(folder=str(tmp_path)), FindsHangs(3, tmp_path)
        trainer_of(tmp_path, end_at_once, retry=retry, size=size, backend=backend).fit()
        assert (tmp_path / "end").exists()
        assert (tmp_path / "retried").read_text() == "it is stopped; killed 1 of 3 workers"
        assert len(list(tmp_path.glob("joined-*"))) == 3 + 2, "one that waited is in the second group; rank 0 has ended"

    def test_a_group_with_a_dead_or_hung_worker_is_restarted(self, tmp_path: Path) -> None:
        """Rank 1 is killed in the first group and stopped in the second; the third finishes."""

        def retry(error: BaseException, losses: Losses) -> bool:
            assert len(losses.nodes) == 1 and losses.failed_on == losses.nodes and not losses.node_lost
            for kind in (ray.exceptions.RayActorError, WorkersHung):
                if root_cause(error, kind) is not None:
                    (tmp_path / f"retried-{kind.__name__}").touch()
                    return True
            return False

        trainer_of(tmp_path, be_killed_then_stopped, retry=retry, size=ReportsHangs(2, tmp_path)).fit()
        seen = sorted(path.name for path in tmp_path.glob("retried-*"))
        assert seen == ["retried-RayActorError", "retried-WorkersHung"]
        ends = {path.name: path.read_text() for path in tmp_path.glob("end-*")}
        assert ends.keys() == {"end-0", "end-1"}
        assert (tmp_path / "survivor").read_text() in ends.values(), "the surviving rank is still the same process"
        stopped = int((tmp_path / "stopped").read_text())
        wait_until(lambda: not is_alive(stopped), "the rank that hung is killed, although it was stopped")

    def test_runs_of_one_process_follow_each_other_in_the_same_workers(self, tmp_path: Path) -> None:
        """The second has fewer; after it, they are ended."""
        warm, processes = WarmWorkers(), []
        for run, workers in (("one", 2), ("two", 1)):
            (tmp_path / run).mkdir()
            trainer_of(tmp_path / run, note_own_process, retry=never, size=FixedSize(workers), warm=warm).fit()
            processes.append({int(path.name) for path in (tmp_path / run).glob("[0-9]*")})
        first, second = processes
        assert len(first) == 2 and len(second) == 1 and second < first
        wait_until(lambda: [is_alive(each) for each in first - second] == [False], "the one that is not needed ends")
        assert is_alive(*second)
        warm.end()
        wait_until(lambda: not is_alive(*second), "the other ends with the process that kept it")


class FixedSize(NamedTuple):
    """A fixed number of workers."""

    workers: int

    def when_idle(self, seen: Observation) -> StartAction | None:
        assert seen.warm_spares <= seen.slots <= seen.total_slots
        assert seen.reserved_slots == 1, "all CPUs are slots, and tokenizing needs one"
        return StartAction(self.workers, timeout_s=60.0)

    def when_running(self, seen: Observation) -> PoolAction:
        assert seen.slots >= seen.workers == self.workers and seen.on_draining == seen.warm_spares == 0
        return PoolAction()

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        return None

    def report_start_phase(self, phase: str) -> None:
        assert phase in ("teardown", "placement", "processes", "process_group")


class ReportsHangs(NamedTuple):
    """Two workers, of which one counts as hung when its file says that it is stopped."""

    workers: int
    folder: Path

    def when_idle(self, seen: Observation) -> StartAction | None:
        (self.folder / "is-stopped").unlink(missing_ok=True)
        return StartAction(self.workers, timeout_s=60.0)

    def when_running(self, seen: Observation) -> PoolAction:
        is_stopped = (self.folder / "is-stopped").exists()
        return PoolAction(hung=Hang("rank 1 has stopped", seen.members[1:]) if is_stopped else None)

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        return None

    def report_start_phase(self, phase: str) -> None:
        """Ignored."""


class ShortTimeout(NamedTuple):
    """A fixed number of workers, whose starts time out after 8 s."""

    workers: int

    def when_idle(self, seen: Observation) -> StartAction | None:
        return StartAction(self.workers, timeout_s=8.0)

    def when_running(self, seen: Observation) -> PoolAction:
        return PoolAction()

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        raise RuntimeError("the monitor does not answer")

    def report_start_phase(self, phase: str) -> None:
        """Ignored."""


class FindsHangs(NamedTuple):
    """A fixed number of workers; finds the hang of the last one while a group starts."""

    workers: int
    folder: Path

    def when_idle(self, seen: Observation) -> StartAction | None:
        return StartAction(self.workers, timeout_s=600.0)

    def when_running(self, seen: Observation) -> PoolAction:
        return PoolAction()

    def while_starting(self, workers: Sequence[str]) -> Hang | None:
        is_found = (self.folder / "stopped").exists() and not (self.folder / "retried").exists()
        return Hang("it is stopped", tuple(workers[-1:])) if is_found else None

    def report_start_phase(self, phase: str) -> None:
        """Ignored."""


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


@dataclass
class LastHangsAtFirst(ProcessGroupConfig):
    """Our backend; the worker of the last rank stops at the first start."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[Backend]:
        return LastStopsOnce


class LastStopsOnce(ProcessGroup):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, LastHangsAtFirst)
        for rank in range(len(worker_group)):
            worker_group.execute_single_async(rank, note_process, backend_config.folder)
        worker_group.execute_single_async(len(worker_group) - 1, stop_once, backend_config.folder)
        super().on_start(worker_group, backend_config)


def note_process(folder: str) -> None:
    (Path(folder) / f"joined-{os.getpid()}").touch()


def stop_once(folder: str) -> None:
    if not (Path(folder) / "stopped").exists():
        (Path(folder) / "stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def always() -> bool:
    return True


def nowhere(beat: Beat) -> bool:
    return False


def import_torch() -> None:
    import torch  # noqa: F401


def never(error: BaseException, losses: Losses) -> bool:
    return False


def note_own_process(config: dict[str, str]) -> None:
    (Path(config["folder"]) / str(os.getpid())).touch()


def end_at_once(config: dict[str, str]) -> None:
    (Path(config["folder"]) / "end").touch()


def fit(folder: Path, worker: Callable[[dict[str, str]], None]) -> BaseException:
    """Trains with two workers, as `orchestrator.driver.trainer` does; returns the error that ends it."""
    with pytest.raises(Exception, match=r".") as raised:
        trainer_of(folder, worker, retry=lambda error, losses: False).fit()
    return raised.value


def trainer_of(
    folder: Path,
    worker: Callable[[dict[str, str]], None],
    retry: Callable[[BaseException, Losses], bool],
    size: GroupSize = FixedSize(2),  # noqa: B008
    backend: BackendConfig | None = None,
    warm: WarmWorkers | None = None,
) -> Any:
    filesystem, path = filesystem_for(str(folder / "ray-train"), StoreConfig())
    return WorkerGroupTrainer(
        worker,
        own_cluster=True,
        node_requests=NodeRequests("test", {"CPU": 1}, min_workers=2, max_workers=2),
        tokenizes=always,
        retry=retry,
        size=size,
        prepare=import_torch,
        send=nowhere,
        warm=warm,
        train_loop_config={"folder": str(folder)},
        backend_config=backend or ProcessGroupConfig(use_gpu=False, timeout_s=60),
        scaling_config=ray.train.ScalingConfig(num_workers=2, use_gpu=False, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="attempt-1", storage_path=path, storage_filesystem=filesystem),
    )


def add_up_ranks_then_fail(config: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    assert (dist.get_rank(), dist.get_world_size(), get_device().type) == (rank, world_size, "cpu")
    total = torch.tensor(rank + 1)
    dist.all_reduce(total)
    (Path(config["folder"]) / f"sum-{rank}-of-{world_size}-is-{int(total)}").touch()
    dist.barrier()
    if rank == 1:
        ray.get(ray.remote(Failing).remote().fail.remote())  # as the feeder would
    dist.barrier()


def be_killed_then_stopped(config: dict[str, str]) -> None:
    import torch.distributed as dist

    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    if rank == 0 and not (folder / "killed").exists():
        (folder / "survivor").write_text(str(os.getpid()))
    dist.barrier()
    if rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and not (folder / "stopped").exists():
        (folder / "stopped").write_text(str(os.getpid()))
        (folder / "is-stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()
    (folder / f"end-{rank}").write_text(str(os.getpid()))
