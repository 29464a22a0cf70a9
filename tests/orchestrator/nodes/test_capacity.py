"""Runs that never fit on their cluster are refused, and no others."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.node_environment import GroupLimits
from cluster.ray_nodes import FreeCapacity
from orchestrator.config.sections import ScalingConfig
from orchestrator.nodes.capacity import beyond_groups

TRAIN = GroupLimits("train", {"CPU": 1.0, "GPU": 1.0}, 3)
TOKENIZE = GroupLimits("tokenize", {"CPU": 4.0}, 1)
NO_NODES = FreeCapacity(Counter(), Counter(), frozenset())


def gpus(workers: int, **more: int) -> ScalingConfig:
    return ScalingConfig(num_workers=workers, gpus_per_worker=1, **more)


def test_tokenizing_needs_no_gpu_slot_if_another_group_has_cpus() -> None:
    assert beyond_groups(gpus(3), True, [TRAIN, TOKENIZE], NO_NODES) == ""
    problem = beyond_groups(gpus(3), True, [TRAIN], NO_NODES)
    assert "never have more than 3 slots for them, one of which is needed for tokenizing: 3 nodes of train" in problem
    assert "Lower scaling.num_workers" in problem
    assert beyond_groups(gpus(2), True, [TRAIN], NO_NODES) == ""
    roomy = GroupLimits("train", {"CPU": 2.0, "GPU": 1.0}, 3)
    assert beyond_groups(gpus(3), True, [roomy], NO_NODES) == ""


def test_without_tokenizing_every_slot_is_for_workers() -> None:
    assert beyond_groups(gpus(3), False, [TRAIN], NO_NODES) == ""
    assert "never have more than 3 slots for them: 3 nodes" in beyond_groups(gpus(4), False, [TRAIN], NO_NODES)


def test_min_workers_decides() -> None:
    assert beyond_groups(gpus(9, min_workers=3), True, [TRAIN, TOKENIZE], NO_NODES) == ""
    assert "Lower scaling.min_workers" in beyond_groups(gpus(9, min_workers=4), True, [TRAIN, TOKENIZE], NO_NODES)


def test_nodes_outside_the_groups_count() -> None:
    assert beyond_groups(gpus(5), True, [TRAIN, TOKENIZE], FreeCapacity(Counter(), Counter(head=5), frozenset())) == ""
    assert beyond_groups(gpus(3), True, [TRAIN], FreeCapacity(Counter(), Counter(), frozenset(), spare_cpus=1)) == ""


def test_groups_without_a_known_limit_refuse_nothing() -> None:
    assert beyond_groups(gpus(99), True, [TRAIN, GroupLimits("train", {"CPU": 1.0, "GPU": 1.0}, 0)], NO_NODES) == ""


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_a_run_is_refused_exactly_if_it_does_not_fit_on_the_full_cluster(
    sizes: list[tuple[int, int]], cpus: int, workers: int
) -> None:
    """Compared with filling all nodes of the cluster at its limits, one by one."""
    groups = [GroupLimits(f"g{n}", {"CPU": float(c)}, max_nodes) for n, (c, max_nodes) in enumerate(sizes)]
    scaling = ScalingConfig(num_workers=workers, cpus_per_worker=cpus)
    free = [c for c, max_nodes in sizes for _ in range(max_nodes)]
    for _ in range(workers):
        node = next((n for n, left in enumerate(free) if left >= cpus), None)
        if node is None:
            break
        free[node] -= cpus
    else:
        node = next((n for n, left in enumerate(free) if left >= 1), None)
    assert bool(beyond_groups(scaling, True, groups, NO_NODES)) == (node is None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_of_one_cpu_has_no_slot_for_a_worker_of_two(workers: int) -> None:
    small = GroupLimits("small", {"CPU": 1.0}, 64)
    assert beyond_groups(ScalingConfig(num_workers=workers, cpus_per_worker=2), True, [small], NO_NODES)
