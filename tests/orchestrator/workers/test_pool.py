"""Workers that outlive their groups: who is counted, who is let go, and who is waited for no longer."""

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
    """There is nothing to prepare."""


def pids(pool: WorkerPool, workers: int) -> list[int]:
    return [ray.get(member.metadata).pid for member in pool.enlist(workers, TIMEOUT_S)]


def test_who_dies_is_replaced_and_who_lives_stays() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(3, {here: 4, "another": 0})
    first = pids(pool, 3)
    assert (pool.in_group, pool.ready(), pool.nodes()) == (3, 3, Counter({here: 3}))
    os.kill(first[1], signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(pool._members[1].actor.execute.remote(int), timeout=TIMEOUT_S)
    assert pool.leave_group() == Counter({here: 1})
    assert (pool.in_group, pool.ready()) == (0, 2)
    pool.fill(3, {here: 4})
    again = pids(pool, 3)
    assert again[:2] == [first[0], first[2]] and again[2] not in first
    pool.end()


def test_a_worker_that_stands_by_is_let_go_with_its_node_or_when_there_are_too_many() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(2, {here: 4})
    group = pids(pool, 2)
    pool.begin(here)
    assert len(pool.warm_spares({here})) == 1
    assert pool.warm_spares({"another"}) == [], "its node is about to go"
    pool.fill(1, {here: 4})
    assert pids(pool, 1) == group[:1]
    pool.keep({"another"})
    assert pool.nodes() == Counter()


def test_ranks_are_in_the_order_that_the_group_gives_them() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 1}, nothing)
    pool.fill(2, {here: 2})
    one, other = pool.enlist(2, TIMEOUT_S)
    pool.rank_by([other.actor, one.actor])
    os.kill(ray.get(one.metadata).pid, signal.SIGSTOP)
    assert pool.kill_silent() == [(1, here)], "the one that does not answer"
    assert pool.kill_silent() == [(0, here)], "all, where all answer: the loop hangs, and nobody can say in whom"
    assert pool.in_group == 0
    pool.end()


def test_a_place_that_somebody_else_has_is_not_waited_for_for_ever() -> None:
    here, pool = driver_node_id(), WorkerPool({"CPU": 3}, nothing)
    pool.fill(1, {here: 1})
    pids(pool, 1)
    pool.fill(2, {here: 2})
    with pytest.raises(StartTimeoutError, match="1 workers did not start within 1 s"):
        pool.enlist(2, 1.0)
    assert pool.nodes() == Counter({here: 1})
    pool.end()


def test_a_node_that_is_gone_is_no_place_to_start_on() -> None:
    pool = WorkerPool({"CPU": 1}, nothing)
    pool.begin("0" * 56)
    with pytest.raises((*DEATHS, StartTimeoutError)):
        pool.enlist(1, 10.0)
    assert pool.nodes() == Counter()
