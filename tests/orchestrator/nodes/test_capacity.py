"""Runs that no growth of their cluster would ever hold are refused, and no others."""

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
NOBODY = FreeCapacity(Counter(), Counter(), frozenset())


def gpus(workers: int, **more: int) -> ScalingConfig:
    return ScalingConfig(num_workers=workers, gpus_per_worker=1, **more)


def test_who_tokenizes_needs_no_gpu_where_another_group_has_cpus() -> None:
    assert beyond_groups(gpus(3), True, [TRAIN, TOKENIZE], NOBODY) == ""
    told = beyond_groups(gpus(3), True, [TRAIN], NOBODY)
    assert "never have more than 3 places for them, one of which is needed to tokenize in: 3 nodes of train" in told
    assert "Lower scaling.num_workers" in told
    assert beyond_groups(gpus(2), True, [TRAIN], NOBODY) == ""
    roomy = GroupLimits("train", {"CPU": 2.0, "GPU": 1.0}, 3)
    assert beyond_groups(gpus(3), True, [roomy], NOBODY) == ""


def test_where_all_is_tokenized_every_place_is_a_worker_s() -> None:
    assert beyond_groups(gpus(3), False, [TRAIN], NOBODY) == ""
    assert "never have more than 3 places for them: 3 nodes" in beyond_groups(gpus(4), False, [TRAIN], NOBODY)


def test_the_fewest_workers_decide() -> None:
    assert beyond_groups(gpus(9, min_workers=3), True, [TRAIN, TOKENIZE], NOBODY) == ""
    assert "Lower scaling.min_workers" in beyond_groups(gpus(9, min_workers=4), True, [TRAIN, TOKENIZE], NOBODY)


def test_what_is_there_beside_the_groups_counts() -> None:
    assert beyond_groups(gpus(5), True, [TRAIN, TOKENIZE], FreeCapacity(Counter(), Counter(head=5), frozenset())) == ""
    assert beyond_groups(gpus(3), True, [TRAIN], FreeCapacity(Counter(), Counter(), frozenset(), beside=1)) == ""


def test_groups_of_no_known_size_may_hold_anything() -> None:
    assert beyond_groups(gpus(99), True, [TRAIN, GroupLimits("train", {"CPU": 1.0, "GPU": 1.0}, 0)], NOBODY) == ""


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_a_run_is_refused_just_where_no_full_cluster_has_room(
    sizes: list[tuple[int, int]], cpus: int, workers: int
) -> None:
    """Against filling all nodes that there may be, one by one."""
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
    assert bool(beyond_groups(scaling, True, groups, NOBODY)) == (node is None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_node_of_one_cpu_holds_no_worker_of_two(workers: int) -> None:
    small = GroupLimits("small", {"CPU": 1.0}, 64)
    assert beyond_groups(ScalingConfig(num_workers=workers, cpus_per_worker=2), True, [small], NOBODY)
