"""Nodes and errors of Ray, beyond its public API: free capacity, placement, root causes of errors.

`tests/cluster/test_ray_nodes.py` checks every name of Ray that is used.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PROBES, PROBE_TIMEOUT_S = 16, 1.0
"""Nodes probed at once, and seconds for each connection."""

_CAUSES = ("cause", "_base_exc", "controller_failure", "health_check_failure", "__cause__", "__context__")
"""Attributes under which Ray's and Python's errors keep their causes."""


def quiet_driver() -> None:
    """Silences Ray's paragraph about every process that dies; a run logs lost processes itself."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *args, **kwargs: None


def driver_node_id() -> str:
    """Id of the node that this process runs on, for `on_node`."""
    return str(ray.get_runtime_context().get_node_id())


def on_node(node_id: str) -> dict[str, Any]:
    """Ray's options of an actor or a task that must run on this node.

    Not a label selector: whatever is started from within a placement group, such as a trial of Ray Tune, would be
    placed in the group.
    """
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def address_and_port() -> tuple[str, int]:
    """An address of this node that other nodes can reach, and a free port on it."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


class FreeCapacity(NamedTuple):
    """Number of workers that fit on each node of the cluster. Dead and draining nodes are left out of the counts.

    Attributes:
        free: workers that fit into the free resources, by node.
        total: workers that would fit if nothing else used the cluster; contains every node.
        draining: nodes that will be removed.
        spare_cpus: CPUs that would remain if workers used all of `total`; for tasks of one CPU each.
    """

    free: Counter[str]
    total: Counter[str]
    draining: frozenset[str]
    spare_cpus: int = 0


def find_free_capacity(per_worker: Mapping[str, float], *, probe: bool = False) -> FreeCapacity:
    """Counts the workers that fit on the cluster's nodes.

    Args:
        per_worker: resources of a worker.
        probe: whether to leave out nodes that do not answer, too: Ray takes up to 15 s to declare a node dead.
    """
    from ray._private.state import state

    draining = frozenset(state.get_draining_nodes())
    available = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    answering = [True] * len(nodes)
    if probe:
        with ThreadPoolExecutor(PROBES) as pool:
            answering = list(pool.map(_answers, nodes))
    free, total, spare_cpus = Counter[str](), Counter[str](), 0
    for node, answers in zip(nodes, answering, strict=True):
        name = node["NodeID"]
        if answers and name not in draining:
            free[name] = _fitting(available.get(name, {}), per_worker)
            total[name] = _fitting(node["Resources"], per_worker)
            spare_cpus += int(node["Resources"].get("CPU", 0) - total[name] * per_worker.get("CPU", 0))
    return FreeCapacity(free, total, draining, spare_cpus)


def has_process(actor: Any) -> bool:
    """Whether an actor has been given a process, though it may still be on its way to answer calls."""
    from ray._private.state import actors

    told: Mapping[str, Any] = actors(actor._actor_id.hex())
    return bool(told.get("Pid"))


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), PROBE_TIMEOUT_S).close()
        return True
    except OSError:
        return False


def _fitting(resources: Mapping[str, float], per_worker: Mapping[str, float]) -> int:
    """Workers that fit into free resources, which Ray counts in steps of 0.0001."""
    return min(
        round(10_000 * resources.get(kind, 0.0)) // round(10_000 * need)
        for kind, need in per_worker.items()
        if need > 0
    )


def root_cause(error: BaseException, wanted: type[BaseException]) -> BaseException | None:
    """The first error of class `wanted` among an error and its causes, inside the wrappers that Ray adds."""
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        # A RayTaskError is an instance of its cause's class, too, but only the cause has the plain message.
        if isinstance(current, wanted) and not isinstance(current, ray.exceptions.RayTaskError):
            return current
        pending += [getattr(current, name, None) for name in _CAUSES]
        pending += getattr(current, "worker_failures", {}).values()
    return None
