"""Every use of Ray that is not public API, in one place; `tests/data/test_ray_internals.py` holds Ray to it by name.

Checked against Ray 2.60.0, the version the project pins.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import ray

if TYPE_CHECKING:
    from ray.data import Dataset


def ordered_block_refs(dataset: Dataset) -> Iterator[ray.ObjectRef[Any]]:
    """References to the blocks of a data set in order, without moving the blocks.

    `Dataset.iter_internal_ref_bundles` yields bundles in order when `preserve_order` is set on the context in which the
    data set was made.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for block in bundle.blocks:
            yield block.ref


def use_ordered_quiet_data() -> None:
    """Set this process's Ray Data to keep blocks in order, whole and without its own progress bars."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    # Half of the cluster would be held back for operators other than the one there is: with two CPUs, one of them.
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # A block is a whole unit: splitting one would break "one block, one unit".
    context.target_max_block_size = None


def quiet_driver() -> None:
    """Keep Ray from printing a paragraph about every process that dies; a run tells of deaths in its own words."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *args, **kwargs: None


def driver_node_id() -> str:
    """Id of the node this process runs on, for `label_selector`."""
    return str(ray.get_runtime_context().get_node_id())


_logger = logging.getLogger(__name__)

NODE_ID_LABEL = "ray.io/node-id"
"""Label that every node carries with its own id; equals `ray._raylet.RAY_NODE_ID_KEY`."""


def address_and_port() -> tuple[str, int]:
    """An address of this node that other nodes reach, and a free port on it."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


class GroupSize(Protocol):
    """Decides how many workers there are; asked in the controller's process."""

    def when_idle(self, free: int, total: int) -> tuple[int, float] | None:
        """No worker runs; `free` of `total` places for them are free.

        Returns how many to start, and seconds after which a start is taken to hang; None: none yet.
        """

    def when_running(self, workers: int, slots: int, on_draining: int) -> str | None:
        """`workers` run, `on_draining` of them on nodes about to go; `slots` are on the others, theirs included.

        Returns why the workers are to be killed, as they hang; None: they are not.
        """


class WorkersHung(Exception):
    """The workers were killed because they hung; `retry` is asked about it like about any failure."""


def places(per_worker: Mapping[str, float], ours: Mapping[str, int], *, probe: bool = False) -> tuple[int, int, int]:
    """Where workers fit on the cluster as it is, nodes that are dead or about to go left out.

    Args:
        per_worker: resources of one.
        ours: workers that run, by node.
        probe: leave out nodes that do not answer, too: Ray takes 15 s to declare one dead.

    Returns:
        places that are free or ours; places there would be if nobody else used the cluster; and how many of ours are
        on nodes about to go.
    """
    from ray._private.state import state

    draining = set(state.get_draining_nodes())
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    slots = total = 0
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    answering = [True] * len(nodes)
    if probe:
        with ThreadPoolExecutor(PROBES) as pool:
            answering = list(pool.map(_answers, nodes))
    for node, answers in zip(nodes, answering, strict=True):
        name = node["NodeID"]
        if answers and name not in draining:
            slots += ours.get(name, 0) + _fitting(free.get(name, {}), per_worker)
            total += _fitting(node["Resources"], per_worker)
    return slots, total, sum(count for name, count in ours.items() if name in draining)


def ask_for_places(requester: str, bundles: list[dict[str, float]], expire_after_s: float) -> None:
    """Have the autoscaler, where there is one, bring nodes for `bundles`; none takes an earlier request back.

    Through the actor that adds up what everybody asks for: `request_resources` knows only its last caller.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    coordinator = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
    if bundles:
        coordinator.request_resources.remote(requester_id=requester, resources=bundles, expire_after_s=expire_after_s)
    else:
        coordinator.cancel_request.remote(requester)


HEAD_NODE = "node:__internal_head__"
"""Resource of which the head node has 1, and no other node any; equals `HEAD_NODE_RESOURCE_NAME` of Ray's constants."""


def median_rule(**arguments: Any) -> Any:
    """Tune's median rule without its pauses: after one there would be nothing to go on from."""
    from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

    class UnpausedRule(MedianStoppingRule):
        def _on_insufficient_samples(self, *_: Any) -> str:
            return str(TrialScheduler.CONTINUE)

    return UnpausedRule(**arguments)


def population(new_config: Callable[[Any, Any], dict[str, Any]], **arguments: Any) -> Any:
    """Tune's population-based training for trials that a searcher made.

    Tune refuses any searcher, as one that learns would be misled; one that begins all trials at once does not.

    Args:
        new_config: given a trial and its donor, the config with which the trial goes on from the donor's state. What
            Tune passes to its own hook does not tell for which trial it is.

    Returns:
        the scheduler; its method `know(trial, step, score)` tells it where a trial stood that goes on.
    """
    from ray.tune.schedulers import PopulationBasedTraining
    from ray.tune.schedulers.pbt import _PBTTrialState

    class Population(PopulationBasedTraining):
        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._trial_state[trial] = _PBTTrialState(trial)

        def know(self, trial: Any, step: int, score: float) -> None:
            state = self._trial_state[trial]
            state.last_score, state.last_train_time, state.last_perturbation_time = score, step, step

        def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return new_config(trial, trial_to_clone), {}

    return Population(custom_explore_fn=lambda config: config, log_config=False, require_attrs=False, **arguments)


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), PROBE_TIMEOUT_S).close()
        return True
    except OSError:
        return False


def _fitting(resources: Mapping[str, float], per_worker: Mapping[str, float]) -> int:
    return min(int(resources.get(kind, 0.0) // need) for kind, need in per_worker.items() if need > 0)


WORKER_CLASS = "RayTrainWorker"
"""Name of the class of Ray Train's worker actors; also in the titles of their processes."""

PROBES, PROBE_TIMEOUT_S = 16, 1.0
"""Nodes asked at once whether they are there, and seconds each has to take the call."""

IDLE_LOOK_S = 0.25
"""Seconds between two looks at a cluster that has too little room."""


def data_parallel_trainer(
    *args: Any, own_cluster: bool, retry: Callable[[BaseException], bool], size: GroupSize, **kwargs: Any
) -> Any:
    """Ray Train V2's trainer with neither a framework nor data sets; takes what `TorchTrainer` takes.

    The public one, TorchTrainer, imports torch in driver and controller. Its callback for data sets starts an actor and
    imports Ray Data in every worker, also where there are none: seconds and megabytes, for a run with its own feeder.

    Args:
        own_cluster: the cluster ends with this process. Then nobody has to be asked for nodes, and nothing cleaned up
            after a controller that died: the two actors that do so are not started.
        retry: asked whether a worker group that failed with this error is started again; picklable, since the
            controller asks it in its own process.
        size: asked how many workers there are to be; picklable likewise.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
    from ray.train.v2._internal.execution.scaling_policy import (
        FixedScalingPolicy,
        NoopDecision,
        ResizeDecision,
        ScalingDecision,
    )
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    unused = (DatasetsCallback, PlacementGroupCleanerCallback) if own_cluster else (DatasetsCallback,)

    class AskedPolicy(FailurePolicy):
        def make_decision(self, training_failed_error: BaseException) -> FailureDecision:
            return FailureDecision.RETRY if retry(training_failed_error) else FailureDecision.RAISE

    class AskedSize(FixedScalingPolicy):
        _watch: threading.Timer | None = None

        def _has_started_or_failed(self) -> None:
            if self._watch is not None:
                self._watch.cancel()

        def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
            per_worker = self.scaling_config._resources_per_worker_not_none
            try:
                self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
                free, total, _ = places(per_worker, {}, probe=True)
            except Exception as error:  # the controller does not survive one; what is not seen now is seen later
                _logger.warning("The cluster's state is not to be had: %s", error)
                free = total = 0
            self._has_started_or_failed()
            decision = size.when_idle(free, total)
            if decision is None:
                time.sleep(IDLE_LOOK_S)  # the controller asks again at once
                return NoopDecision()
            workers, patience_s = decision
            # The controller waits for a group that starts, however long, and asks nothing meanwhile.
            self._watch = threading.Timer(patience_s, _kill_workers, [f"They have not started in {patience_s:.0f} s"])
            self._watch.daemon = True
            self._watch.start()
            return ResizeDecision(num_workers=workers, resources_per_worker=per_worker)

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            self._has_started_or_failed()
            workers = worker_group_state.workers
            ours = Counter(worker.metadata.node_id for worker in workers)
            try:
                self._maybe_send_resource_request()  # type: ignore[no-untyped-call]
                slots, _, on_draining = places(self.scaling_config._resources_per_worker_not_none, ours)
            except Exception as error:
                _logger.warning("The cluster's state is not to be had: %s", error)
                slots, on_draining = len(workers), 0
            hung = size.when_running(len(workers), slots, on_draining)
            if hung is not None:
                for worker in workers:  # asked to end, one that hangs would be waited for
                    ray.kill(worker.actor)
                raise WorkersHung(hung)
            return NoopDecision()

    class UncoordinatedSize(AskedSize):
        def after_controller_start(self, *_args: Any, **_kwargs: Any) -> None:
            """The original asks the coordinator of autoscaling for the workers' resources."""

        def _maybe_send_resource_request(self) -> None:
            """As above, from then on."""

    class WorkerGroupTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

        def _initialize_and_run_controller(self, **controller: Any) -> Any:
            controller["failure_policy"] = AskedPolicy(controller["failure_policy"].failure_config)
            policy = UncoordinatedSize if own_cluster else AskedSize
            controller["scaling_policy"] = policy(controller["scaling_policy"].scaling_config)
            return super()._initialize_and_run_controller(**controller)

    return WorkerGroupTrainer(*args, **kwargs)


def _kill_workers(why: str) -> None:
    """Kill all training workers of this job."""
    from ray._private.state import actors
    from ray._private.worker import global_worker
    from ray._raylet import ActorID

    _logger.warning("The workers are killed. %s.", why)
    this: Any = global_worker
    for actor_id, told in actors(job_id=this.current_job_id, actor_state_name="ALIVE").items():
        if told["ActorClassName"] == WORKER_CLASS:
            this.core_worker.kill_actor(ActorID.from_hex(actor_id), True)


def timed_out_starting(error: BaseException) -> bool:
    """Whether a worker group was not started because its places were not to be had."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return root_cause(error, WorkerGroupStartupTimeoutError) is not None


def root_cause(error: BaseException, wanted: type[BaseException]) -> BaseException | None:
    """The first error of class `wanted` inside the wrappers Ray puts around what a task or a training worker raised."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        inner = [
            getattr(current, name, None)
            for name in (
                "cause",
                "_base_exc",
                "controller_failure",
                "health_check_failure",
                "__cause__",
                "__context__",
            )
        ]
        # A RayTaskError passes for its cause's class; the cause itself has the plain message.
        if isinstance(current, wanted) and not isinstance(current, ray.exceptions.RayTaskError):
            return current
        pending += [*inner, *getattr(current, "worker_failures", {}).values()]
    return None
