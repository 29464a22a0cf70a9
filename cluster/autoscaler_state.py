"""What Ray's autoscaler makes of a cluster: nodes by group, those that are coming, and why others do not come.

Reads Ray's own report, `ray.autoscaler.v2.sdk.get_cluster_status`, which is not public;
`tests/cluster/test_autoscaler_state.py` holds Ray to it by name. Checked against Ray 2.60.0.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.node_environment import GroupLimits

HEAD_RESOURCE = "node:__internal_head__"

_AS_BYTES = ("memory", "object_store_memory")


@dataclass(frozen=True)
class NodeState:
    """A node that has joined.

    Attributes:
        group: its group, "head" for the head; "" where it is of none.
        state: "busy" or "idle".
        idle_s: seconds since it was last in use; 0 where it is.
        used, total: CPUs, GPUs and custom resources.
        activity: why it counts as busy, in Ray's words.
    """

    node_id: str
    group: str
    state: str
    idle_s: float
    address: str
    used: Mapping[str, float]
    total: Mapping[str, float]
    activity: Sequence[str] = ()


@dataclass(frozen=True)
class AutoscalerState:
    """The cluster at one moment.

    Attributes:
        starting: nodes asked for that have not joined yet, by group, and what their provider says of each.
        failures: launches that failed in the last minutes, the newest first: group, seconds ago, why.
        demands: what waits for room: a bundle of resources, and how many of it.
        is_looked_after: whether an autoscaler brings nodes.
    """

    nodes: tuple[NodeState, ...] = ()
    starting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failures: tuple[tuple[str, float, str], ...] = ()
    demands: tuple[tuple[Mapping[str, float], int], ...] = ()
    is_looked_after: bool = True

    def up(self) -> Counter[str]:
        """Nodes by group."""
        return Counter(node.group for node in self.nodes)


def look(gcs_address: str, timeout_s: int = 5) -> AutoscalerState:
    """Ask the cluster at `gcs_address`; RAY_AUTH_* in the environment say who asks.

    Raises:
        RuntimeError, ConnectionError, ...: Ray's own, where it does not answer within `timeout_s`.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    return state_of(get_cluster_status(gcs_address, timeout=timeout_s), time.time())


def state_of(status: Any, now: float) -> AutoscalerState:
    """Ray's report in our words.

    Args:
        now: seconds since the epoch.
    """
    starting: dict[str, list[str]] = {}
    for launch in status.pending_launches:
        starting.setdefault(launch.ray_node_type_name, []).extend([launch.details or ""] * launch.count)
    for node in status.pending_nodes:
        starting.setdefault(node.ray_node_type_name, []).append(node.details or "")
    failures = [
        (each.ray_node_type_name, now - each.failed_ts_s, each.details or "") for each in status.failed_launches
    ]
    demand = status.resource_demands
    return AutoscalerState(
        nodes=tuple(
            _node(node, state)
            for nodes, state in ((status.active_nodes, "busy"), (status.idle_nodes, "idle"))
            for node in nodes
        ),
        starting={group: tuple(details) for group, details in starting.items()},
        failures=tuple(sorted(failures, key=lambda failure: failure[1])),
        demands=_bundles(*demand.placement_group_demand, *demand.ray_task_actor_demand),
        is_looked_after=status.stats.autoscaler_version not in (None, "0"),  # the first report is 1
    )


def _bundles(*requests: Any) -> tuple[tuple[Mapping[str, float], int], ...]:
    return tuple((each.bundle, each.count) for request in requests for each in request.bundles_by_count)


def _node(node: Any, state: str) -> NodeState:
    usage = node.resource_usage
    total, used = node.total_resources(), node.used_resources()
    is_head = HEAD_RESOURCE in total
    counted = [kind for kind in total if not kind.startswith("node:") and kind not in _AS_BYTES]
    is_named = node.ray_node_type_name != f"node_{node.node_id}"  # Ray makes a name up for a node of no group
    return NodeState(
        node_id=node.node_id or "",
        group="head" if is_head else node.ray_node_type_name if is_named else "",
        state=state,
        idle_s=(usage.idle_time_ms / 1000 if usage and state == "idle" else 0.0),
        address=node.ip_address,
        used={kind: used[kind] for kind in counted},
        total={kind: total[kind] for kind in counted},
        activity=tuple(node.node_activity or ()),
    )


def why_waiting(state: AutoscalerState, groups: Sequence[GroupLimits], per_worker: Mapping[str, float]) -> str:
    """Why there is no room for a worker, as far as Ray can tell; "" where it can tell nothing.

    Args:
        per_worker: resources that a worker takes.
    """
    if not state.is_looked_after:
        return "no autoscaler looks after this cluster: nodes have to be added by hand"
    # Groups that are not known by their spec are known once they have a node, or one on its way.
    seen = {*state.up(), *state.starting, *(group for group, _, _ in state.failures)} - {"head", ""}
    groups = groups or [GroupLimits(name, per_worker, 0) for name in sorted(seen)]
    if not groups:
        return "its autoscaler has not begun to start any node"
    able = [group for group in groups if fitting(group, per_worker)]
    if not able:
        largest = "; ".join(f"{group.name} {_told(group.resources)}" for group in groups)
        return f"no group has nodes that hold a worker of {_told(per_worker)}: {largest}"
    up = state.up()
    return "; ".join(_told_of_group(group, up[group.name], state) for group in able)


def _told_of_group(group: GroupLimits, up: int, state: AutoscalerState) -> str:
    line = f"group {group.name}: {up} " + (
        f"of at max_nodes {group.max_nodes} nodes up" if group.max_nodes else "nodes up"
    )
    coming = state.starting.get(group.name, ())
    if group.max_nodes:  # Ray goes on for a moment counting as starting what has joined
        coming = coming[: max(0, group.max_nodes - up)]
    if coming:
        line += f", {len(coming)} starting" + _said(coming)
    failed = next((failure for failure in state.failures if failure[0] == group.name), None)
    if failed is not None:
        line += f", a start failed {failed[1]:.0f} s ago: {' '.join(failed[2].split())[:300] or 'no reason given'}"
    if not coming and failed is None and up >= group.max_nodes > 0:
        line += ", all of them taken"
    return line


def _said(details: Iterable[str]) -> str:
    said = sorted({" ".join(each.split())[:200] for each in details if each})
    return f" ({'; '.join(said)})" if said else ""


def fitting(group: GroupLimits, need: Mapping[str, float]) -> int:
    """How many of what needs so much a node of the group holds."""
    return min(int(group.resources.get(kind, 0.0) // amount) for kind, amount in need.items() if amount > 0)


def _told(resources: Mapping[str, float]) -> str:
    told = [f"{amount:g} {kind}" for kind, amount in sorted(resources.items()) if kind not in _AS_BYTES and amount]
    return ", ".join(told) or "nothing"
