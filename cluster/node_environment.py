"""What nodes are told when they start, on whatever they run: by one spec, the same everywhere."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.spec import GPU_STAND_IN, ClusterSpec, Machine, bytes_of

HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
"""With these on the head, a machine that is gone is noticed in a few seconds; with Ray's own values it takes 15 s and
more. One that is busy starting is given time."""

GROUPS = "MANTA_CLUSTER_GROUPS"
"""Variable with the groups of a cluster: a JSON list of `GroupLimits`."""


@dataclass(frozen=True)
class GroupLimits:
    """What a group's nodes have, and how many there may be; 0: that is not known."""

    name: str
    resources: Mapping[str, float]
    max_nodes: int


def group_limits() -> list[GroupLimits]:
    """The groups of the cluster on whose node this process runs, as its spec has them; none where they are not known.

    Ray's autoscaler keeps them to itself, so clusters that are made from a `ClusterSpec` say them in a variable.
    """
    return [GroupLimits(**group) for group in json.loads(os.environ.get(GROUPS, "[]"))]


def groups_variable(spec: ClusterSpec, *, gpus_stood_in_for: bool) -> dict[str, str]:
    """The variable that `group_limits` reads, for all nodes of the cluster."""
    gpu = GPU_STAND_IN if gpus_stood_in_for else "GPU"
    groups = [
        {
            "name": group.name,
            "resources": {"CPU": group.cpus, **({gpu: group.gpus} if group.gpus else {}), **group.resources},
            "max_nodes": group.max,
        }
        for group in spec.groups
    ]
    return {GROUPS: json.dumps(groups)}


def node_variables(spec: ClusterSpec) -> dict[str, str]:
    """Variables of every node's processes, without secrets."""
    return {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{spec.grace_s:g}", **spec.variables}


def head_variables(spec: ClusterSpec, *, gpus_stood_in_for: bool) -> dict[str, str]:
    """Variables of the head's processes, without secrets. A job that is stopped has as long to save as a node."""
    groups = groups_variable(spec, gpus_stood_in_for=gpus_stood_in_for)
    return {**HEALTH_CHECK, **groups, "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(spec.grace_s)), **node_variables(spec)}


def shared_memory(machine: Machine) -> str:
    """What /dev/shm may hold: half the node's memory, for Ray's object store (30 %) and Manta's snapshots."""
    return f"{bytes_of(machine.memory) // 2 // 2**20}Mi"
