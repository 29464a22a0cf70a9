"""Nodes and errors as Ray knows them, beyond its public API; `tests/cluster/test_ray_nodes.py` holds Ray to it."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


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


class FreeCapacity(NamedTuple):
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


def find_free_capacity(per_worker: Mapping[str, float], *, probe: bool = False) -> FreeCapacity:
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
    return FreeCapacity(free, total, draining, beside)


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
