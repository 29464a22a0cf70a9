"""Leaving a process group: no rank keeps waiting for a dead one, not even indirectly."""

import multiprocessing
import os
import signal
import time
from multiprocessing.queues import Queue

import pytest

from cluster.local.nodes import free_port

WORLD_SIZE, DIES, TIMEOUT_S = 4, 1, 120.0


@pytest.mark.slow
def test_when_a_rank_dies_all_others_fail_at_once_and_can_form_a_group_again() -> None:
    context = multiprocessing.get_context("spawn")
    results: Queue[tuple[int, float, float]] = context.Queue()
    ports = free_port(), free_port()
    ranks = [context.Process(target=run_rank, args=(rank, ports, results)) for rank in range(WORLD_SIZE)]
    try:
        for rank in ranks:
            rank.start()
        answers = [results.get(timeout=TIMEOUT_S) for _ in range(WORLD_SIZE - 1)]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    assert sorted(rank for rank, _, _ in answers) == [0, 2, 3]
    assert {total for _, total, _ in answers} == {3.0}, "the second group has three members"
    # Far less than the timeout of a collective, for which they would wait otherwise.
    assert max(took_s for *_, took_s in answers) < TIMEOUT_S / 4


def run_rank(rank: int, ports: tuple[int, int], results: "Queue[tuple[int, float, float]]") -> None:
    """Body of a rank: trains in a group of four until one is killed, then joins a group of three with the others."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from orchestrator.workers.process_group import join_group, leave_group

    def train() -> None:
        model = DistributedDataParallel(torch.nn.Linear(300, 300))
        for step in range(10_000):
            model(torch.ones(1, 300)).sum().backward()
            if rank == DIES and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    join_group("gloo", f"tcp://127.0.0.1:{ports[0]}", rank, WORLD_SIZE, TIMEOUT_S)
    began = time.monotonic()
    try:
        train()
    except RuntimeError:
        leave_group()
    took_s = time.monotonic() - began
    again = rank - (rank > DIES)
    join_group("gloo", f"tcp://127.0.0.1:{ports[1]}", again, WORLD_SIZE - 1, TIMEOUT_S)
    total = torch.ones(())
    dist.all_reduce(total)
    results.put((rank, float(total), took_s))
    dist.barrier()
