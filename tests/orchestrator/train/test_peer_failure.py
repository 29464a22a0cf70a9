"""A rank whose peer dies keeps the state of the last whole step, and only then."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.optim.weight_average import WeightAverage
from orchestrator.snapshots.store import NodeMemory
from orchestrator.snapshots.tensors import load_state
from orchestrator.train import peer_failure as peer_failure
from orchestrator.train.peer_failure import MAX_SAVE_S, PeerFailureGuard

TORN = "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5262"


@pytest.fixture
def memory(tmp_path: Path) -> NodeMemory:
    return NodeMemory(tmp_path / "a1" / "node")


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Groups that were left."""
    left: list[bool] = []
    monkeypatch.setattr(peer_failure, "leave_group", lambda: left.append(True))
    return left


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def rank_of(memory: NodeMemory, step: int | None) -> PeerFailureGuard:
    rank = PeerFailureGuard(SimpleNamespace(memory=memory), *trained())  # type: ignore[arg-type]
    rank.step = step
    return rank


def fail(rank: PeerFailureGuard, message: str) -> None:
    with pytest.raises(RuntimeError, match=message[:5].replace("[", r"\[")), rank.keeping_its_state():
        raise RuntimeError(message)


def test_the_state_after_the_last_whole_step_is_there_for_the_next_group(memory: NodeMemory, left: list[bool]) -> None:
    rank = rank_of(memory, 7)
    fail(rank, TORN)
    assert (memory.steps(), left) == ([7], [True])
    model, optimizer = trained()
    load_state(memory.path(7), model, optimizer)
    expected: Any = rank._model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_average_is_kept_with_it(memory: NodeMemory) -> None:
    model, optimizer = trained()
    average = WeightAverage(model, 0.9)
    average.update(7)
    rank = PeerFailureGuard(SimpleNamespace(memory=memory), model, optimizer, average)  # type: ignore[arg-type]
    rank.step = 7
    fail(rank, TORN)
    other = WeightAverage(trained()[0], 0.9)
    load_state(memory.path(7), *trained(), other)
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in other.state_dict().items())


def test_one_of_several_ranks_on_a_node_does_it(memory: NodeMemory) -> None:
    fail(rank_of(memory, 7), TORN)
    first = (memory.path(7) / "model.safetensors").stat().st_mtime_ns
    fail(rank_of(memory, 7), TORN)
    assert (memory.path(7) / "model.safetensors").stat().st_mtime_ns == first
    fail(rank_of(memory, 8), TORN)  # it had got the last sum, and the one before had not
    assert memory.steps() == [7, 8]


@pytest.mark.parametrize(
    ("step", "cost_s", "message"), [(None, 0.0, TORN), (7, 2 * MAX_SAVE_S, TORN), (7, 0.0, "oh, no")]
)
def test_it_keeps_nothing_before_a_step_or_if_it_took_too_long_or_after_an_error_of_its_own(
    memory: NodeMemory, step: int | None, cost_s: float, message: str
) -> None:
    rank = rank_of(memory, step)
    rank.cost_s = cost_s
    fail(rank, message)
    assert memory.steps() == []
