"""The state of Ray's autoscaler: nodes by group, nodes that are starting, and why others do not start.

Reads Ray's own report, `ray.autoscaler.v2.sdk.get_cluster_status`, which is not a public API;
`tests/cluster/test_autoscaler_state.py` checks every name that is used. Verified with Ray 2.60.0.
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
        node_id: Ray's id of it.
        group: its group, "head" for the head; "" if it belongs to none.
        state: "busy" or "idle".
        idle_s: seconds since it was last in use; 0 if it is in use.
        address: its IP address.
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
        nodes: those that have joined.
        starting: requested nodes that have not joined yet, by group, each with its provider's details.
        failures: launches that failed in the last minutes, the latest first: group, seconds ago, reason.
        demands: pending requests for resources: a bundle, and the number of such bundles.
        has_autoscaler: whether an autoscaler starts nodes in this cluster.
    """

    nodes: tuple[NodeState, ...] = ()
    starting: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failures: tuple[tuple[str, float, str], ...] = ()
    demands: tuple[tuple[Mapping[str, float], int], ...] = ()
    has_autoscaler: bool = True

    def nodes_by_group(self) -> Counter[str]:
        """Number of nodes that have joined, by group."""
        return Counter(node.group for node in self.nodes)


def read_autoscaler_state(gcs_address: str, timeout_s: int = 5) -> AutoscalerState:
    """Requests the state from the cluster at `gcs_address`, with the credentials in RAY_AUTH_* of the environment.

    Raises:
        RuntimeError, ConnectionError, ...: Ray's own, if the cluster does not answer within `timeout_s`.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status

    return parse_status(get_cluster_status(gcs_address, timeout=timeout_s), time.time())


def parse_status(status: Any, now: float) -> AutoscalerState:
    """Converts Ray's report.

    Args:
        status: `ray.autoscaler.v2.schema.ClusterStatus`.
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
        has_autoscaler=status.stats.autoscaler_version not in (None, "0"),  # an autoscaler's first report is 1
    )


def _bundles(*requests: Any) -> tuple[tuple[Mapping[str, float], int], ...]:
    return tuple((each.bundle, each.count) for request in requests for each in request.bundles_by_count)


def _node(node: Any, state: str) -> NodeState:
    usage = node.resource_usage
    total, used = node.total_resources(), node.used_resources()
    is_head = HEAD_RESOURCE in total
    counted = [kind for kind in total if not kind.startswith("node:") and kind not in _AS_BYTES]
    is_named = node.ray_node_type_name != f"node_{node.node_id}"  # Ray's name for a node without a group
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
    """Why no node has room for a worker, as far as Ray reports it; "" if it reports nothing.

    Args:
        state: of the autoscaler.
        groups: of the cluster's spec; empty if they are not known.
        per_worker: resources of a worker.
    """
    if not state.has_autoscaler:
        return "this cluster has no autoscaler: nodes must be added by hand"
    # A group that is not known from the spec becomes known when it has a node, or one that is starting.
    seen = {*state.nodes_by_group(), *state.starting, *(group for group, _, _ in state.failures)} - {"head", ""}
    groups = groups or [GroupLimits(name, per_worker, 0) for name in sorted(seen)]
    if not groups:
        return "the autoscaler has not started any node yet"
    able = [group for group in groups if workers_per_node(group, per_worker)]
    if not able:
        nodes = "; ".join(f"{group.name} {_resources_text(group.resources)}" for group in groups)
        return f"no group has nodes large enough for a worker of {_resources_text(per_worker)}: {nodes}"
    joined = state.nodes_by_group()
    return "; ".join(_group_text(group, joined[group.name], state) for group in able)


def workers_per_node(group: GroupLimits, per_worker: Mapping[str, float]) -> int:
    """Number of workers that fit on an empty node of the group."""
    return min(int(group.resources.get(kind, 0.0) // amount) for kind, amount in per_worker.items() if amount > 0)


def _group_text(group: GroupLimits, joined: int, state: AutoscalerState) -> str:
    line = f"group {group.name}: {joined} " + (f"of at most {group.max_nodes} " if group.max_nodes else "") + "nodes up"
    starting = state.starting.get(group.name, ())
    if group.max_nodes:  # Ray counts a node as starting for a moment after it has joined
        starting = starting[: max(0, group.max_nodes - joined)]
    if starting:
        line += f", {len(starting)} starting" + _details_text(starting)
    failed = next((failure for failure in state.failures if failure[0] == group.name), None)
    if failed is not None:
        line += f", a start failed {failed[1]:.0f} s ago: {' '.join(failed[2].split())[:300] or 'no reason given'}"
    if not starting and failed is None and joined >= group.max_nodes > 0:
        line += ", all of them in use"
    return line


def _details_text(details: Iterable[str]) -> str:
    texts = sorted({" ".join(each.split())[:200] for each in details if each})
    return f" ({'; '.join(texts)})" if texts else ""


def _resources_text(resources: Mapping[str, float]) -> str:
    amounts = [f"{amount:g} {kind}" for kind, amount in sorted(resources.items()) if kind not in _AS_BYTES and amount]
    return ", ".join(amounts) or "nothing"
