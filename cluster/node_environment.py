"""Environment variables of a cluster's nodes: derived from the spec, the same on every platform."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.kubernetes_syntax import bytes_of
from cluster.spec import GPU_STAND_IN, ClusterSpec, Machine

FAILOVER = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_object_manager_pull_timeout_ms": "2000",
}
"""Settings with which a lost machine costs a few seconds. The head notices it by health checks, which by default take
15 s and more; the initial delay spares a machine that is busy starting. And an object that was asked of a machine that
is gone is asked of another one after two seconds, not ten."""

GROUPS = "MANTA_CLUSTER_GROUPS"
"""Variable with the groups of a cluster: a JSON list of `GroupLimits`."""


@dataclass(frozen=True)
class GroupLimits:
    """A group of nodes.

    Attributes:
        name: of the group.
        resources: of one of its nodes.
        max_nodes: maximum number of nodes; 0 if it is not known.
    """

    name: str
    resources: Mapping[str, float]
    max_nodes: int


def group_limits() -> list[GroupLimits]:
    """The groups of the cluster that this process runs on, from its spec; empty if they are not known.

    Ray's autoscaler does not publish them, so clusters made from a `ClusterSpec` set them as a variable.
    """
    groups = json.loads(os.environ.get(GROUPS, "[]"))
    # Manifests rendered by version 0.1.0 call the maximum "most".
    return [
        GroupLimits(each["name"], each["resources"], each["max_nodes"] if "max_nodes" in each else each["most"])
        for each in groups
    ]


def groups_variable(spec: ClusterSpec, *, with_gpu_stand_ins: bool) -> dict[str, str]:
    """The variable that `group_limits` reads, for all nodes of the cluster."""
    gpu = GPU_STAND_IN if with_gpu_stand_ins else "GPU"
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
    """Variables of the processes of every node, without secrets."""
    return {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{spec.grace_s:g}", **spec.variables}


def head_variables(spec: ClusterSpec, *, with_gpu_stand_ins: bool) -> dict[str, str]:
    """Variables of the head's processes, without secrets. A stopped job has as long to save as a drained node."""
    groups = groups_variable(spec, with_gpu_stand_ins=with_gpu_stand_ins)
    return {**FAILOVER, **groups, "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(spec.grace_s)), **node_variables(spec)}


def shared_memory(machine: Machine) -> str:
    """Size of /dev/shm: half of the node's memory, for Ray's object store (30 %) and Manta's snapshots."""
    return f"{bytes_of(machine.memory) // 2 // 2**20}Mi"
