"""Snapshots in a node's memory: whole or not there, the newest kept, handed from node to node."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from model.config import ModelConfig, OptimizerConfig
from model.optimizer import build_optimizer
from model.transformer import Transformer
from orchestrator.ledger import StepRow
from orchestrator.node_memory import COST_SHARE, KEEP, NodeMemory, SnapshotClock
from orchestrator.restore import hand_out, held_by_rank, is_first_of_node, newest_holder


def trainee(seed: int, updates: int = 1) -> tuple[Transformer, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(n_layers=1, d_model=16, n_heads=2), 20, 8, 0)
    optimizer = build_optimizer(model, OptimizerConfig(), 1e-2)
    for _ in range(updates):
        tokens = torch.randint(20, (2, 9))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def rows(first: int, last: int) -> list[StepRow]:
    return [StepRow(step, 1.0 / step, 0.1, 2.0, 10 * step, 2, 0.5, np.arange(3)) for step in range(first, last + 1)]


def same(one: Transformer, other: Transformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def memory(tmp_path: Path) -> NodeMemory:
    return NodeMemory(tmp_path / "a1" / "node")


def test_what_is_loaded_is_what_was_kept(memory: NodeMemory) -> None:
    model, optimizer = trainee(seed=1)
    memory.write(5, model, optimizer, rows(3, 5))
    other, its_optimizer = trainee(seed=2)
    loaded = memory.load(5, other, its_optimizer)
    assert same(model, other)
    assert [row.step for row in loaded] == [3, 4, 5] and memory.first_row(5) == 3
    ours, theirs = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[number][name], theirs[number][name]) for number in ours for name in ours[number])


def test_only_the_newest_are_kept_and_one_done_again_replaces_itself(memory: NodeMemory) -> None:
    model, optimizer = trainee(seed=1)
    for step in (2, 4, 6, 8, 8):
        memory.write(step, model, optimizer, [])
    assert memory.steps() == [6, 8] and len(memory.steps()) == KEEP
    assert memory.first_row(8) == 9


def test_what_a_killed_process_left_unfinished_is_not_a_snapshot(memory: NodeMemory) -> None:
    model, optimizer = trainee(seed=1)
    memory.write(2, model, optimizer, [])
    shutil.copytree(memory.folder / "step-00000002", memory.folder / "unfinished")
    assert memory.steps() == [2]
    memory.write(3, model, optimizer, [])
    assert memory.steps() == [2, 3]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A run's address nobody else has; what is kept for it is gone afterwards."""
    yield str(tmp_path)
    shutil.rmtree(NodeMemory.on_this_node(str(tmp_path), 0, "any").folder.parents[1], ignore_errors=True)


def test_an_attempt_knows_nothing_of_another_ones_and_frees_them(url: str) -> None:
    model, optimizer = trainee(seed=1)
    first = NodeMemory.on_this_node(url, 1, "node")
    first.write(2, model, optimizer, [])
    assert NodeMemory.on_this_node(url, 1, "node").steps() == [2]
    assert NodeMemory.on_this_node(url, 1, "another node").steps() == []
    second = NodeMemory.on_this_node(url, 2, "node")
    assert second.steps() == [] and first.steps() == []
    second.write(3, model, optimizer, [])
    for _ in range(2):  # as every rank of a node does
        second.discard()
    assert not second.folder.parents[1].exists()


@pytest.mark.parametrize(
    ("held", "saved", "holder"),
    [
        ([(-1, -1), (-1, -1)], 0, None),
        ([(7, 1), (9, 1), (9, 1)], 0, 1),
        ([(7, 6), (9, 8)], 5, 0),  # rows 6 and 7 of the newest are nowhere: the checkpoint of step 7 was damaged
        ([(9, 8)], 9, None),  # the checkpoint is as new
        ([(9, 10)], 7, None),  # nothing of 8 and 9 but the state
        ([(12, 4), (-1, -1)], 8, 0),
    ],
)
def test_the_newest_that_joins_on_to_the_checkpoint_is_chosen(
    held: list[tuple[int, int]], saved: int, holder: int | None
) -> None:
    assert newest_holder(held, saved) == holder


def share_among_nodes(rank: int, folder: str) -> None:
    """Body of a rank: three ranks on two nodes, of which the second (ranks 1 and 2) has the newer snapshot."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=3)
    node = min(rank, 1)
    keeper = is_first_of_node(f"node-{node}")
    assert keeper == (rank < 2)
    memory = NodeMemory(Path(folder) / "a1" / f"node-{node}")
    if keeper:
        memory.write((4, 6)[node], *trainee(seed=node), rows(1, (4, 6)[node]))
    dist.barrier()
    held = held_by_rank(memory)
    holder = newest_holder(held, saved_step=0)
    assert (held, holder) == ([(4, 1), (6, 1), (6, 1)], 1)
    hand_out(memory, 6, held, holder, keeper=keeper)
    mine, optimizer = trainee(seed=7 + rank)
    assert len(memory.load(6, mine, optimizer)) == 6
    assert same(mine, trainee(seed=1)[0])
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_node_that_lacks_the_newest_gets_it_from_one_that_has_it(tmp_path: Path) -> None:
    mp.spawn(share_among_nodes, (str(tmp_path),), nprocs=3)


@given(
    base=st.floats(1e-4, 0.2),
    scatter=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20),
    steps_s=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20),
)
def test_snapshots_take_no_more_than_their_share_of_time(
    base: float, scatter: list[float], steps_s: list[float]
) -> None:
    """Costs scatter fourfold: one may cost four times what was expected. Nothing is known of the first."""
    clock, spent, trained = SnapshotClock(), 0.0, 0.0
    costs = itertools.cycle(scatter)
    for step_s in itertools.islice(itertools.cycle(steps_s), 500):
        trained += step_s
        if clock.is_due(step_s):
            paid = base * next(costs)
            spent += paid
            clock.taken(paid)
    assert spent <= 4 * COST_SHARE * trained + 2 * base


def test_a_snapshot_that_costs_nothing_is_taken_every_step() -> None:
    clock = SnapshotClock()
    for _ in range(5):
        assert clock.is_due(1.0)
        clock.taken(0.001)


def test_a_snapshot_that_costs_much_waits_its_hundredfold() -> None:
    clock = SnapshotClock()
    assert clock.is_due(0.5)
    clock.taken(0.1)
    due: list[Any] = [clock.is_due(0.5) for _ in range(20)]
    assert due == [False] * 19 + [True]
