"""Snapshots in a node's memory: whole or not there, the newest kept, handed from node to node."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DiskFullError
from model.config import ModelConfig
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer
from model.transformer import Transformer
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.agent import newest_holder
from orchestrator.snapshots.store import COST_SHARE, KEEP, SECOND_SNAPSHOT_S, NodeMemory, SnapshotClock, remove_attempt
from orchestrator.snapshots.tensors import load_state, save_state


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
    return [
        StepRow(step, 1.0 / step, 0.1, 2.0, 10 * step, 2, 0.5, 0.0, np.arange(3)) for step in range(first, last + 1)
    ]


def same(one: Transformer, other: Transformer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture
def memory(tmp_path: Path) -> NodeMemory:
    return NodeMemory(tmp_path / "a1" / "node")


def write(memory: NodeMemory, step: int, of: tuple[Transformer, torch.optim.Optimizer], kept: list[StepRow]) -> None:
    with memory.writing(step, kept) as folder:
        save_state(folder, *of)


def test_what_is_loaded_is_what_was_kept(memory: NodeMemory) -> None:
    model, optimizer = trainee(seed=1)
    write(memory, 5, (model, optimizer), rows(3, 5))
    other, its_optimizer = trainee(seed=2)
    load_state(memory.path(5), other, its_optimizer)
    assert same(model, other)
    assert [row.step for row in memory.rows(5)] == [3, 4, 5] and memory.newest() == (5, 3)
    ours, theirs = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[number][name], theirs[number][name]) for number in ours for name in ours[number])


def test_only_the_newest_are_kept_and_one_done_again_replaces_itself(memory: NodeMemory) -> None:
    assert memory.newest() == (-1, -1)
    for step in (2, 4, 6, 8, 8):
        write(memory, step, trainee(seed=1), [])
    assert memory.steps() == [6, 8] and len(memory.steps()) == KEEP
    assert memory.newest() == (8, 9)


def test_what_is_newer_than_where_the_run_went_on_from_is_no_more(memory: NodeMemory) -> None:
    for step in (4, 6, 3):
        write(memory, step, trainee(seed=1), [])
    assert memory.steps() == [3]


def test_what_a_killed_process_left_unfinished_is_not_a_snapshot(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), [])
    shutil.copytree(memory.path(2), memory.folder / "unfinished")
    assert memory.steps() == [2]
    write(memory, 3, trainee(seed=1), [])
    assert memory.steps() == [2, 3]


def test_without_room_it_is_said_and_nothing_is_left_half_written(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), [])
    with pytest.raises(DiskFullError, match="MB are free"), memory.writing(3, []) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert memory.steps() == [2] and {path.name for path in memory.folder.iterdir()} == {"lock", "step-00000002"}


def test_one_that_is_being_uploaded_stays_while_newer_ones_come(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), rows(1, 2))
    with memory.pinned(2) as folder:
        for step in (3, 4, 5):
            write(memory, step, trainee(seed=step), [])
        model, optimizer = trainee(seed=9)
        load_state(folder, model, optimizer)
        assert same(model, trainee(seed=1)[0])
    assert memory.steps() == [4, 5] and len(list(memory.folder.iterdir())) == 2 + len(["lock"])


def test_another_node_is_handed_all_of_it(memory: NodeMemory, tmp_path: Path) -> None:
    write(memory, 6, trainee(seed=1), rows(1, 6))
    other = NodeMemory(tmp_path / "a1" / "other")
    write(other, 4, trainee(seed=2), rows(1, 4))
    other.receive(6, memory.files(6))
    model, optimizer = trainee(seed=3)
    load_state(other.path(6), model, optimizer)
    assert same(model, trainee(seed=1)[0]) and other.newest() == (6, 1)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A run's address nobody else has; what is kept for it is gone afterwards."""
    yield str(tmp_path)
    shutil.rmtree(NodeMemory.on_this_node(str(tmp_path), 0, "any", 0).folder.parents[1], ignore_errors=True)


def test_an_attempt_knows_nothing_of_another_ones_and_frees_them(url: str) -> None:
    first = NodeMemory.on_this_node(url, 1, "node", 0)
    write(first, 2, trainee(seed=1), [])
    assert NodeMemory.on_this_node(url, 1, "node", 0).steps() == [2]
    assert NodeMemory.on_this_node(url, 1, "another node", 0).steps() == []
    second = NodeMemory.on_this_node(url, 2, "node", 0)
    assert second.steps() == [] and first.steps() == []
    write(second, 3, trainee(seed=1), [])
    for _ in range(2):  # as every agent of a machine with several nodes does
        second.free()
    assert not second.folder.parents[1].exists()


def test_an_attempt_that_has_ended_leaves_nothing_also_of_nodes_that_are_gone(url: str) -> None:
    gone, here = (NodeMemory.on_this_node(url, 1, node_id, 0) for node_id in ("gone", "here"))
    for memory in (gone, here):
        write(memory, 2, trainee(seed=1), [])
    remove_attempt(url, 2)
    assert gone.folder.is_dir() and here.folder.is_dir()
    remove_attempt(url, 1)
    assert not gone.folder.parent.parent.exists()


def test_where_shared_memory_is_too_small_another_place_is_found_and_kept_to(url: str) -> None:
    roomy = NodeMemory.on_this_node(url, 1, "node", 1 << 60)
    write(roomy, 2, trainee(seed=1), [])
    assert NodeMemory.on_this_node(url, 1, "node", 0) == roomy, "what is there is not lost when there is room again"
    roomy.free()
    assert NodeMemory.on_this_node(url, 1, "node", 0) != roomy


@pytest.mark.parametrize(
    ("held", "saved", "holder"),
    [
        ([(-1, -1), (-1, -1)], 0, None),
        ([(7, 1), (9, 1), (9, 1)], 0, 1),
        ([(7, 6), (9, 8)], 5, 0),  # rows 6 and 7 of the newest are nowhere: the checkpoint of step 7 was damaged
        ([(9, 8)], 9, 0),  # as new as the checkpoint, and at hand
        ([(9, 8)], 10, None),
        ([(-1, -1)], 0, None),
        ([(9, 10)], 7, None),  # nothing of 8 and 9 but the state
        ([(12, 4), (-1, -1)], 8, 0),
    ],
)
def test_the_newest_that_joins_on_to_the_checkpoint_is_chosen(
    held: list[tuple[int, int]], saved: int, holder: int | None
) -> None:
    found = newest_holder({f"node-{number}": newest for number, newest in enumerate(held)}, saved)
    assert found == (None if holder is None else (f"node-{holder}", held[holder][0]))


@given(
    base=st.floats(1e-4, 0.2),
    scatter=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20),
    steps_s=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20),
)
def test_snapshots_take_no_more_than_their_share_of_time(
    base: float, scatter: list[float], steps_s: list[float]
) -> None:
    """Costs scatter fourfold: one may cost four times what was expected. Nothing is known of the first two."""
    clock, spent, trained = SnapshotClock(), 0.0, 0.0
    costs = itertools.cycle(scatter)
    for step_s in itertools.islice(itertools.cycle(steps_s), 500):
        trained += step_s
        if clock.is_due(step_s):
            paid = base * next(costs)
            spent += paid
            clock.taken(paid)
    assert spent <= 4 * COST_SHARE * trained + 4 * base


def test_a_snapshot_that_costs_nothing_is_taken_every_step() -> None:
    clock = SnapshotClock()
    for _ in range(5):
        assert clock.is_due(SECOND_SNAPSHOT_S)
        clock.taken(0.001)


def test_the_first_sets_no_pace_and_one_that_costs_much_waits_its_hundredfold() -> None:
    clock = SnapshotClock()
    assert clock.is_due(0.5)
    clock.taken(3.0)
    due: list[Any] = [clock.is_due(0.5) for _ in range(4)]
    assert due == [False] * 3 + [True]
    clock.taken(0.1)
    due = [clock.is_due(0.5) for _ in range(20)]
    assert due == [False] * 19 + [True]
