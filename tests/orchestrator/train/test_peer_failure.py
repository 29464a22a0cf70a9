"""A rank whose peer dies keeps the state after the last whole step, and only then."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.optim.weight_average import WeightAverage
from orchestrator.errors import BadLossError
from orchestrator.run.job import PlannedRestart
from orchestrator.snapshots.store import NodeMemory
from orchestrator.snapshots.tensors import load_state
from orchestrator.train import peer_failure
from orchestrator.train.peer_failure import MAX_SAVE_S, PeerFailureGuard, leaving_group_on_error
from orchestrator.train.state import TrainState

TORN = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5262"


@pytest.fixture
def memory(tmp_path: Path) -> NodeMemory:
    return NodeMemory(tmp_path / "a1" / "node")


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each call of `leave_group`."""
    left: list[bool] = []
    monkeypatch.setattr(peer_failure, "leave_group", lambda: left.append(True))
    return left


def trained(*, averaged: bool = False) -> TrainState:
    """A state after one update."""
    model: Any = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(model, 0.9) if averaged else None
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    if average is not None:
        average.update(7)
    return TrainState(model, optimizer, average, rank=0, world_size=2, device=torch.device("cpu"))


def guard_of(memory: NodeMemory, step: int | None, state: TrainState | None = None) -> PeerFailureGuard:
    guard = PeerFailureGuard(SimpleNamespace(memory=memory), state or trained())  # type: ignore[arg-type]
    if step is not None:
        guard.step_done(step, [])
    return guard


def fail(guard: PeerFailureGuard, message: str) -> None:
    with pytest.raises(RuntimeError, match=message[:5].replace("[", r"\[")), guard.keeping_state():
        raise RuntimeError(message)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_next_group_finds_the_state_after_the_last_whole_step(
    memory: NodeMemory, left: list[bool], averaged: bool
) -> None:
    state, loaded = trained(averaged=averaged), trained(averaged=averaged)
    fail(guard_of(memory, 7, state), TORN)
    assert (memory.steps(), left) == ([7], [True])
    load_state(memory.path(7), loaded.model, loaded.optimizer, loaded.average)
    expected = state.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    if state.average is not None and loaded.average is not None:
        averages = state.average.state_dict()
        assert all(torch.equal(value, averages[name]) for name, value in loaded.average.state_dict().items())


def test_one_of_several_ranks_on_a_node_writes_it(memory: NodeMemory) -> None:
    fail(guard_of(memory, 7), TORN)
    first = (memory.path(7) / "model.safetensors").stat().st_mtime_ns
    fail(guard_of(memory, 7), TORN)
    assert (memory.path(7) / "model.safetensors").stat().st_mtime_ns == first
    fail(guard_of(memory, 8), TORN)  # this rank got the last sum, and the one before did not
    assert memory.steps() == [7, 8]


@pytest.mark.parametrize(
    ("step", "snapshot_s", "message"), [(None, 0.0, TORN), (7, 2 * MAX_SAVE_S, TORN), (7, 0.0, "oh, no")]
)
def test_nothing_is_written_before_a_step_or_if_it_takes_too_long_or_after_an_error_of_its_own(
    memory: NodeMemory, step: int | None, snapshot_s: float, message: str
) -> None:
    guard = guard_of(memory, step)
    guard.snapshot_s = snapshot_s
    fail(guard, message)
    assert memory.steps() == []


@pytest.mark.parametrize(
    ("error", "leaves"),
    [(RuntimeError(TORN), True), (KeyboardInterrupt(), True), (PlannedRestart(), False), (BadLossError("nan"), False)],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_group_is_left_unless_all_ranks_end_together(left: list[bool], error: BaseException, leaves: bool) -> None:
    with pytest.raises(type(error)), leaving_group_on_error():
        raise error
    assert left == [True] * leaves
