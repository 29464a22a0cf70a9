"""The worker pool: workers that outlive their groups, are replaced, killed, or not waited for any longer."""

import os
import signal
from collections import Counter

import pytest
import ray

from cluster.ray_nodes import driver_node_id
from orchestrator.workers.pool import DEATHS, StartTimeoutError, WorkerPool

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster_small")]

TIMEOUT_S = 60.0


def nothing() -> None:
    """A `prepare` that does nothing."""


def pids(pool: WorkerPool, workers: int) -> list[int]:
    return [ray.get(member.metadata).pid for member in pool.form_group(workers, TIMEOUT_S)]


def test_a_dead_worker_is_replaced_and_live_ones_stay() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(3, {here: 4, "another": 0})
    first = pids(pool, 3)
    assert (pool.group_size, pool.ready(), pool.nodes()) == (3, 3, Counter({here: 3}))
    os.kill(first[1], signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(pool._members[1].actor.execute.remote(int), timeout=TIMEOUT_S)
    assert pool.leave_group() == Counter({here: 1})
    assert (pool.group_size, pool.ready()) == (0, 2)
    pool.fill(3, {here: 4})
    again = pids(pool, 3)
    assert again[:2] == [first[0], first[2]] and again[2] not in first
    pool.end()


def test_a_spare_worker_is_killed_with_its_node_or_when_there_are_too_many() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(2, {here: 4})
    group = pids(pool, 2)
    pool.start_worker(here)
    assert len(pool.warm_spares({here})) == 1
    assert pool.warm_spares({"another"}) == [], "its node is draining"
    pool.fill(1, {here: 4})
    assert pids(pool, 1) == group[:1]
    pool.keep({"another"})
    assert pool.nodes() == Counter()


def test_members_are_sorted_by_rank() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(2, {here: 2})
    one, other = pool.form_group(2, TIMEOUT_S)
    pool.rank_by([other.actor, one.actor])
    os.kill(ray.get(one.metadata).pid, signal.SIGSTOP)
    assert pool.kill_silent() == [(1, here)], "the worker that does not answer"
    assert pool.kill_silent() == [(0, here)], (
        "all workers, if all answer: the loop hangs, and it is not known on which rank"
    )
    assert pool.group_size == 0
    pool.end()


def test_the_wait_for_an_occupied_slot_ends() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 3}, nothing)
    pool.fill(1, {here: 1})
    pids(pool, 1)
    pool.fill(2, {here: 2})
    with pytest.raises(StartTimeoutError, match="1 workers did not start within 1 s"):
        pool.form_group(2, 1.0)
    assert pool.nodes() == Counter({here: 1})
    pool.end()


def test_a_start_on_a_lost_node_fails() -> None:
    pool = WorkerPool({"CPU": 1}, nothing)
    pool.start_worker("0" * 56)
    with pytest.raises((*DEATHS, StartTimeoutError)):
        pool.form_group(1, 10.0)
    assert pool.nodes() == Counter()
