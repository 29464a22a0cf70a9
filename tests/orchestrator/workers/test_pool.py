"""The worker pool: workers that outlive their groups, are replaced, killed, or not waited for any longer."""

import os
import signal
from collections import Counter

import pytest
import ray

from cluster.ray_nodes import driver_node_id
from orchestrator.policy.hang import Beat, Hang
from orchestrator.workers.pool import DEATHS, StartTimeoutError, WorkerPool
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster_small")]

TIMEOUT_S = 60.0


def nothing() -> None:
    """A `prepare` that does nothing."""


def nowhere(beat: Beat) -> bool:
    """Sends no beat."""
    return False


def new_pool(cpus: int = 1) -> WorkerPool:
    return WorkerPool({"CPU": cpus}, nothing, nowhere, most_workers=4)


def pids(pool: WorkerPool, workers: int) -> list[int]:
    return [ray.get(member.metadata).pid for member in pool.form_group(workers, TIMEOUT_S)]


def test_a_dead_worker_is_replaced_and_live_ones_stay() -> None:
    here, pool = driver_node_id(), new_pool()
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
    here, pool = driver_node_id(), new_pool()
    pool.fill(2, {here: 4})
    group = pids(pool, 2)
    pool.start_worker(here)
    assert len(pool.warm_spares({here})) == 1
    assert pool.warm_spares({"another"}) == [], "its node is draining"
    pool.fill(1, {here: 4})
    assert pids(pool, 1) == group[:1]
    pool.keep({"another"})
    assert pool.nodes() == Counter()


def test_workers_that_hang_are_killed_and_leave_with_their_group() -> None:
    here, pool = driver_node_id(), new_pool()
    pool.fill(3, {here: 3})
    members = pool.form_group(3, TIMEOUT_S)
    pool.rank_by([member.actor for member in reversed(members)])
    assert pool.names() == tuple(member.name for member in reversed(members)) and pool.nodes_of([0, 7]) == {here}
    stopped = members[0]
    os.kill(ray.get(stopped.metadata).pid, signal.SIGSTOP)
    assert pool.kill(Hang("rank 9 is silent", ("no such worker",))) == "", "a decision about an earlier group"
    told = "rank 2 is silent; killed 1 of 3 workers"
    assert pool.kill(Hang("rank 2 is silent", (stopped.name,))) == told
    assert (pool.pop_hung(), pool.pop_hung(), pool.failed_on) == (told, "", {here})
    assert pool.leave_group() == Counter({here: 1}) and pool.ready() == 2
    pool.form_group(2, TIMEOUT_S)
    assert pool.kill(Hang("no progress", pool.names())) == "no progress; killed 2 of 2 workers"
    assert pool.failed_on == set(), "it is not known where"
    pool.leave_group()
    assert pool.nodes() == Counter()


def test_a_node_to_avoid_gets_workers_only_where_no_other_has_room() -> None:
    here, other, pool = driver_node_id(), "0" * 56, new_pool()
    pool.fill(2, {other: 3, here: 1}, avoid={other})
    assert pool.nodes() == Counter({here: 1, other: 1})
    pool.end()


def test_a_worker_with_a_process_is_told_of_once_and_one_without_a_slot_is_not() -> None:
    told: list[Beat] = []
    here = driver_node_id()
    pool = WorkerPool({"CPU": 3}, nothing, lambda beat: told.append(beat) is not None, most_workers=4)
    pool.fill(2, {here: 2})  # the node has room for one

    def tells() -> bool:
        pool.tell_of_processes()
        return bool(told)

    wait_until(tells, "a process")
    pool.tell_of_processes()
    [beat] = told
    assert beat.worker in pool.names(2)  # Ray chooses which of them gets the slot
    assert (beat.node, beat.phase, beat.rank) == (here, "created", None)
    pool.end()


def test_a_worker_that_is_stopped_is_not_waited_for_as_long_as_one_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.workers.pool.LEAVE_S", 3600.0)
    here, pool = driver_node_id(), new_pool()
    pool.fill(2, {here: 2})
    os.kill(pids(pool, 2)[0], signal.SIGSTOP)
    assert pool.leave_group() == Counter({here: 1}) and pool.ready() == 1
    pool.end()


def test_the_wait_for_an_occupied_slot_ends() -> None:
    here, pool = driver_node_id(), new_pool(cpus=3)
    pool.fill(1, {here: 1})
    pids(pool, 1)
    pool.fill(2, {here: 2})
    with pytest.raises(StartTimeoutError, match="1 workers did not start within 1 s"):
        pool.form_group(2, 1.0)
    assert pool.nodes() == Counter({here: 1})
    pool.end()


def test_a_start_on_a_lost_node_fails() -> None:
    pool = new_pool()
    pool.start_worker("0" * 56)
    with pytest.raises((*DEATHS, StartTimeoutError)):
        pool.form_group(1, 10.0)
    assert pool.nodes() == Counter()
