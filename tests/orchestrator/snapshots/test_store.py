"""NodeMemory: snapshots are complete or absent, the newest are kept, and another node can receive them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from data.errors import DiskFullError, InputError
from model.config import ModelConfig
from model.optim.config import OptimizerConfig
from model.optim.optimizer import build_optimizer
from model.transformer import Transformer
from orchestrator.errors import SnapshotGoneError
from orchestrator.run.job import Owner
from orchestrator.run.ledger import StepRow
from orchestrator.snapshots import store as store_module
from orchestrator.snapshots.store import (
    COPIES,
    KEEP,
    NodeMemory,
    remove_attempt,
    remove_runs,
    snapshot_roots,
    unfilled_object_store_bytes,
)
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
    for root in snapshot_roots(str(tmp_path)):
        shutil.rmtree(root, ignore_errors=True)


def memory_of(url: str, attempt: int, node_id: str = "node", state_bytes: int = 0, **owner: Any) -> NodeMemory:
    return NodeMemory.on_this_node(Owner(url, attempt, **{"identity": "i", **owner}), node_id, state_bytes)


def test_an_attempt_finds_its_own_snapshots_again_and_those_of_no_other_node(url: str) -> None:
    first = memory_of(url, 1)
    write(first, 2, trainee(seed=1), [])
    assert memory_of(url, 1).steps() == [2]
    assert memory_of(url, 1, "another node").steps() == []
    for _ in range(2):  # as every agent of a machine with several nodes does
        first.free()
    assert not first.folder.parents[1].exists()


@pytest.mark.parametrize(
    ("owner", "adopted"),
    [
        ({"earlier": {1: None}}, 9),
        ({"earlier": {1: 9}}, 9),
        ({"earlier": {1: 8}}, 6),  # another attempt in between continued from step 8, or before
        ({"earlier": {1: 3}}, None),
        ({"earlier": {}}, None),  # not an attempt of this run, as far as its record says
        ({"earlier": {1: None}, "identity": "another"}, None),  # of a deleted run of the same name, or of other data
    ],
)
def test_the_next_attempt_adopts_the_newest_snapshot_that_belongs_to_the_run(
    url: str, owner: dict[str, Any], adopted: int | None
) -> None:
    killed = [memory_of(url, 1, node_id) for node_id in ("gone", "here")]
    for memory, step, seed in ((killed[0], 4, 1), (killed[1], 6, 2), (killed[0], 9, 3)):
        write(memory, step, trainee(seed), rows(step, step))
    (killed[0].folder / "unfinished").mkdir()
    found = [memory_of(url, 2, node_id, **owner) for node_id in ("here", "new")]
    assert found[0].newest() == ((-1, -1) if adopted is None else (adopted, adopted))
    assert found[1].steps() == [], "one snapshot on a machine is enough, and the rest is in the way"
    assert not any(memory.folder.exists() for memory in killed)
    if adopted == 9:
        model, optimizer = trainee(seed=5)
        load_state(found[0].path(9), model, optimizer)
        assert same(model, trainee(seed=3)[0])
    write(found[0], 10, trainee(seed=1), [])
    assert found[0].steps()[-1] == 10


def test_snapshots_of_a_deleted_run_of_the_same_name_are_removed(url: str) -> None:
    deleted = memory_of(url, 1, identity="deleted")
    write(deleted, 2, trainee(seed=1), [])
    assert memory_of(url, 1).steps() == [] and not deleted.folder.exists()


def test_an_older_attempt_that_wakes_leaves_the_snapshots_of_a_newer_one_alone(url: str) -> None:
    newer = memory_of(url, 2)
    write(newer, 2, trainee(seed=1), [])
    memory_of(url, 1)
    assert newer.steps() == [2]


def test_what_a_killed_agent_had_pinned_is_removed(memory: NodeMemory) -> None:
    write(memory, 4, trainee(seed=1), [])
    with memory.pinned(4) as (folder, _):
        memory.unpin()  # as its successor does
        assert not folder.exists() and memory.steps() == [4]


def test_a_snapshot_that_was_replaced_cannot_be_pinned(memory: NodeMemory) -> None:
    write(memory, 4, trainee(seed=1), [])
    with pytest.raises(SnapshotGoneError, match="step 3 was replaced"), memory.pinned(3):
        raise AssertionError("unreachable")
    assert not list(memory.folder.glob("pinned-*"))


def test_remove_attempt_also_removes_those_of_nodes_that_are_gone(url: str) -> None:
    gone, here = (memory_of(url, 1, node_id) for node_id in ("gone", "here"))
    for memory in (gone, here):
        write(memory, 2, trainee(seed=1), [])
    remove_attempt(url, 2)
    assert gone.folder.is_dir() and here.folder.is_dir()
    remove_attempt(url, 1)
    assert not gone.folder.parent.parent.exists()


def test_where_shared_memory_is_too_small_the_temporary_folder_is_used(url: str) -> None:
    roomy = memory_of(url, 1, state_bytes=1 << 60)
    write(roomy, 2, trainee(seed=1), [])
    assert memory_of(url, 1) == roomy, "existing snapshots are found again when there is room in shared memory"
    roomy.free()
    assert memory_of(url, 1) != roomy


@pytest.mark.parametrize("object_store", [0, 1 << 62], ids=["small", "large"])
def test_shared_memory_that_the_object_store_will_take_is_not_free(
    object_store: int, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "unfilled_object_store_bytes", lambda _: object_store)
    found = memory_of(url, 1, state_bytes=1024 // COPIES).folder
    assert snapshot_roots(url)[-1 if object_store == 0 else 0] in found.parents


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster_small")
def test_what_the_object_store_will_take_shrinks_as_it_fills() -> None:
    shared_memory = Path("/dev/shm")
    before = ray.get(ray.remote(unfilled_object_store_bytes).remote(shared_memory))
    held = ray.put(np.ones(64 << 20, np.uint8))
    after = ray.get(ray.remote(unfilled_object_store_bytes).remote(shared_memory))
    assert 128 << 20 <= before <= 512 << 20, "the cluster's object store has 256 MB"
    assert before - after >= 48 << 20
    del held


def hostile(root: Path, kind: str, theirs: Path) -> None:
    """Another user's folder in place of a run's."""
    if kind == "link":
        root.symlink_to(theirs)
    else:
        root.mkdir(mode=0o700)
        (root / "a1-planted").mkdir()
        if kind == "open to all":
            root.chmod(0o777)
        else:
            os.chown(root, 12345, 12345)


@pytest.mark.parametrize("kind", ["link", "open to all", "theirs"])
def test_a_folder_that_another_user_made_is_neither_used_nor_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "theirs" and os.geteuid() != 0:
        pytest.skip("only root gives a folder to another user")
    for name in ("shm", "tmp", "victim/a1-x"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv(store_module.SHARED_MEMORY, str(tmp_path / "shm"))
    monkeypatch.setattr(store_module.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    here, there = snapshot_roots("s3://bucket/runs/night")
    hostile(there, kind, tmp_path / "victim")
    owner = Owner("s3://bucket/runs/night", 2, "mine", {1: None})
    memory = NodeMemory.on_this_node(owner, "node", 1)
    write(memory, 1, trainee(0), rows(1, 1))
    assert here in memory.folder.parents and here.stat().st_mode & 0o077 == 0
    remove_attempt(owner.run_url, 1)
    remove_runs([owner.run_url])
    assert (tmp_path / "victim/a1-x").is_dir() and (kind == "link" or (there / "a1-planted").is_dir())

    hostile(here, kind, tmp_path / "victim")
    with pytest.raises(InputError, match="are other users' folders"):
        NodeMemory.on_this_node(owner, "node", 1)
