"""Every use of Ray that is not public API, in one place; `tests/data/test_ray_internals.py` holds Ray to it by name.

Checked against Ray 2.60.0, the version the project pins.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
    """Id of the node this process runs on, for `on_node`."""
    return str(ray.get_runtime_context().get_node_id())


def on_node(node_id: str) -> dict[str, Any]:
    """Options of an actor or a task that belongs on this node and no other.

    A label selector would say the same, but what is started from within a placement group, as a trial of Ray Tune's is,
    would be taken into the group.
    """
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def address_and_port() -> tuple[str, int]:
    """An address of this node that other nodes reach, and a free port on it."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


class Room(NamedTuple):
    """Where workers fit on the cluster as it is, by node; nodes that are dead or about to go have no place in it.

    Attributes:
        free: workers that fit into what is free.
        total: workers that would fit if nobody else used the cluster; has every node there is.
        draining: nodes that are about to go.
        beside: tasks of one CPU that would fit beside all those workers.
    """

    free: Counter[str]
    total: Counter[str]
    draining: frozenset[str]
    beside: int = 0


def look_for_room(per_worker: Mapping[str, float], *, probe: bool = False) -> Room:
    """Look at the cluster for places for workers.

    Args:
        per_worker: resources of one.
        probe: leave out nodes that do not answer, too: Ray takes 15 s to declare one dead.
    """
    from ray._private.state import state

    draining = frozenset(state.get_draining_nodes())
    available = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    answering = [True] * len(nodes)
    if probe:
        with ThreadPoolExecutor(PROBES) as pool:
            answering = list(pool.map(_answers, nodes))
    free, total, beside = Counter[str](), Counter[str](), 0
    for node, answers in zip(nodes, answering, strict=True):
        name = node["NodeID"]
        if answers and name not in draining:
            free[name] = _fitting(available.get(name, {}), per_worker)
            total[name] = _fitting(node["Resources"], per_worker)
            beside += int(node["Resources"].get("CPU", 0) - total[name] * per_worker.get("CPU", 0))
    return Room(free, total, draining, beside)


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


PROBES, PROBE_TIMEOUT_S = 16, 1.0
"""Nodes asked at once whether they are there, and seconds each has to take the call."""


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
