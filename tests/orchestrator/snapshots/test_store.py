"""NodeMemory: snapshots are complete or absent, the newest are kept, and another node can receive them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import DiskFullError
from model.config import ModelConfig
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer
from model.transformer import Transformer
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots.store import KEEP, NodeMemory, remove_attempt
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


def test_a_loaded_snapshot_is_the_one_written(memory: NodeMemory) -> None:
    model, optimizer = trainee(seed=1)
    write(memory, 5, (model, optimizer), rows(3, 5))
    other, its_optimizer = trainee(seed=2)
    load_state(memory.path(5), other, its_optimizer)
    assert same(model, other)
    assert [row.step for row in memory.rows(5)] == [3, 4, 5] and memory.newest() == (5, 3)
    ours, theirs = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[number][name], theirs[number][name]) for number in ours for name in ours[number])


def test_the_newest_are_kept_and_a_repeated_step_replaces_itself(memory: NodeMemory) -> None:
    assert memory.newest() == (-1, -1)
    for step in (2, 4, 6, 8, 8):
        write(memory, step, trainee(seed=1), [])
    assert memory.steps() == [6, 8] and len(memory.steps()) == KEEP
    assert memory.newest() == (8, 9)


def test_snapshots_newer_than_a_replayed_step_are_removed(memory: NodeMemory) -> None:
    for step in (4, 6, 3):
        write(memory, step, trainee(seed=1), [])
    assert memory.steps() == [3]


def test_an_unfinished_folder_of_a_killed_process_is_no_snapshot(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), [])
    shutil.copytree(memory.path(2), memory.folder / "unfinished")
    assert memory.steps() == [2]
    write(memory, 3, trainee(seed=1), [])
    assert memory.steps() == [2, 3]


def test_a_full_disk_raises_and_leaves_no_partial_snapshot(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), [])
    with pytest.raises(DiskFullError, match="MB are free"), memory.writing(3, []) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert memory.steps() == [2] and {path.name for path in memory.folder.iterdir()} == {"lock", "step-00000002"}


def test_a_snapshot_in_upload_stays_while_newer_ones_are_written(memory: NodeMemory) -> None:
    write(memory, 2, trainee(seed=1), rows(1, 2))
    with memory.pinned(2) as (folder, kept):
        for step in (3, 4, 5):
            write(memory, step, trainee(seed=step), [])
        assert [row.step for row in kept] == [1, 2]
        model, optimizer = trainee(seed=9)
        load_state(folder, model, optimizer)
        assert same(model, trainee(seed=1)[0])
    assert memory.steps() == [4, 5] and len(list(memory.folder.iterdir())) == 2 + len(["lock"])


def test_another_node_receives_the_whole_snapshot(memory: NodeMemory, tmp_path: Path) -> None:
    write(memory, 6, trainee(seed=1), rows(1, 6))
    other = NodeMemory(tmp_path / "a1" / "other")
    write(other, 4, trainee(seed=2), rows(1, 4))
    other.receive(6, memory.files(6))
    model, optimizer = trainee(seed=3)
    load_state(other.path(6), model, optimizer)
    assert same(model, trainee(seed=1)[0]) and other.newest() == (6, 1)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """URL of a run of this test alone; its snapshots are removed afterwards."""
    yield str(tmp_path)
    shutil.rmtree(NodeMemory.on_this_node(str(tmp_path), 0, "any", 0).folder.parents[1], ignore_errors=True)


def test_an_attempt_removes_the_snapshots_of_others(url: str) -> None:
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


def test_remove_attempt_also_removes_those_of_nodes_that_are_gone(url: str) -> None:
    gone, here = (NodeMemory.on_this_node(url, 1, node_id, 0) for node_id in ("gone", "here"))
    for memory in (gone, here):
        write(memory, 2, trainee(seed=1), [])
    remove_attempt(url, 2)
    assert gone.folder.is_dir() and here.folder.is_dir()
    remove_attempt(url, 1)
    assert not gone.folder.parent.parent.exists()


def test_where_shared_memory_is_too_small_the_temporary_folder_is_used(url: str) -> None:
    roomy = NodeMemory.on_this_node(url, 1, "node", 1 << 60)
    write(roomy, 2, trainee(seed=1), [])
    assert NodeMemory.on_this_node(url, 1, "node", 0) == roomy, (
        "existing snapshots are found again when there is room in shared memory"
    )
    roomy.free()
    assert NodeMemory.on_this_node(url, 1, "node", 0) != roomy
