"""Refuses runs that can never fit on their cluster, instead of waiting forever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ray

from cluster.autoscaler_state import AutoscalerState, why_waiting, workers_per_node
from cluster.local.ray import joins_cluster
from cluster.node_environment import GroupLimits, group_limits
from cluster.ray_nodes import FreeCapacity, find_free_capacity
from cluster.spec import GPU_STAND_IN
from orchestrator.config.sections import ScalingConfig
from orchestrator.errors import ClusterTooSmallError


def refuse_small_cluster(scaling: ScalingConfig, *, tokenizes: bool) -> None:
    """Checks that the workers can run at the same time once the cluster has grown to its limits.

    A cluster that is joined and was not made from a spec has no known limits, and passes.

    Args:
        tokenizes: whether the run needs a CPU beside its workers for tokenizing.

    Raises:
        ClusterTooSmallError: they cannot, or no node will ever fit a worker.
    """
    groups = group_limits()
    if groups:
        _refuse_by_groups(scaling, tokenizes, groups, find_free_capacity(scaling.per_worker))
    elif not joins_cluster():
        _refuse_by_sum(scaling, tokenizes)


def _refuse_by_groups(
    scaling: ScalingConfig, tokenizes: bool, groups: Sequence[GroupLimits], capacity: FreeCapacity
) -> None:
    if not capacity.total.total() and not any(workers_per_node(group, scaling.per_worker) for group in groups):
        raise ClusterTooSmallError(f"No worker fits: {why_waiting(AutoscalerState(), groups, scaling.per_worker)}.")
    if problem := beyond_groups(scaling, tokenizes, groups, capacity):
        raise ClusterTooSmallError(problem)


def beyond_groups(
    scaling: ScalingConfig, tokenizes: bool, groups: Sequence[GroupLimits], capacity: FreeCapacity
) -> str:
    """Why `min_workers` workers, and a tokenizing task, do not fit into the node groups at their limits; "": they do.

    Args:
        capacity: of the nodes there are, which may belong to no group.
    """
    if any(group.max_nodes == 0 for group in groups):  # the limit is not known
        return ""
    per_node = {group.name: workers_per_node(group, scaling.per_worker) for group in groups}
    slots = max(capacity.total.total(), sum(group.max_nodes * per_node[group.name] for group in groups))
    spare_cpus = capacity.spare_cpus + sum(
        group.max_nodes * int(group.resources.get("CPU", 0) - per_node[group.name] * scaling.cpus_per_worker)
        for group in groups
    )
    reserved_slots = int(tokenizes and spare_cpus == 0)
    if slots - reserved_slots >= scaling.effective_min_workers:
        return ""
    nodes = ", ".join(f"{group.max_nodes} nodes of {group.name} with {per_node[group.name]} each" for group in groups)
    taken = ", one of which is needed for tokenizing" if reserved_slots else ""
    field = (
        "scaling.min_workers"
        if scaling.effective_min_workers < scaling.effective_max_workers
        else "scaling.num_workers"
    )
    return (
        f"The run needs {scaling.effective_min_workers} workers, and the cluster will never have more than {slots} "
        f"slots for them{taken}: {nodes}. Lower {field}, or raise the max of a group."
    )


def _refuse_by_sum(scaling: ScalingConfig, tokenizes: bool) -> None:
    have: Counter[str] = Counter(ray.cluster_resources())  # type: ignore[no-untyped-call]
    for kind, each in scaling.per_worker.items():
        count = scaling.effective_max_workers * each + (tokenizes and kind == "CPU")
        if have[kind] < count:
            stand_in = kind == "GPU" and GPU_STAND_IN in have
            hint = f", or, as there is {GPU_STAND_IN}, set scaling.gpu_resource={GPU_STAND_IN}" if stand_in else ""
            raise ClusterTooSmallError(
                f"The cluster has {have[kind]:g} {kind}s, and the run needs {count:g}: "
                f"{scaling.effective_max_workers} workers of {scaling.cpus_per_worker} CPUs and "
                f"{scaling.gpus_per_worker} GPUs{', and a CPU for tokenizing' if tokenizes else ''}. "
                f"Lower scaling.num_workers or scaling.{'cpus' if kind == 'CPU' else 'gpus'}_per_worker, or add "
                f"nodes{hint}."
            )
