"""The agent between a node's memory and the store: what it saves is what it chooses again, whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.errors import TransientStoreError
from data.order.known_units import KnownUnits
from data.stores.local import LocalStore
from orchestrator.errors import CheckpointDamagedError, FencedError
from orchestrator.observe.event_files import TRAIN
from orchestrator.run.checkpoint import MODEL, OPTIMIZER, CheckpointName, list_checkpoints, tensor_files
from orchestrator.run.fence import Fence
from orchestrator.run.ledger import StepRow, metrics_lines
from orchestrator.run.state import START, RunState, StepSeconds
from orchestrator.snapshots import agent as agent_module
from orchestrator.snapshots.agent import SnapshotAgent
from tests.orchestrator.event_reader import curves_in

BATCH = 2


class Remote:
    """An actor's method, called in this process."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.calls: list[Any] = []

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return self._answer


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "kept"))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module.ray, "get", lambda answers: answers)


@pytest.fixture
def fence(store: LocalStore) -> Fence:
    fence = Fence.claim(store, "kept", {}, begun=False)
    fence.update(attempt={"from_step": 0})
    return fence


def job_of(store: LocalStore, attempt: int = 1, ema_decay: float | None = None) -> Any:
    return SimpleNamespace(
        store=store,
        attempt=attempt,
        facts={"config": {}},
        config=SimpleNamespace(
            seed=1,
            train=SimpleNamespace(global_batch_size=BATCH, ema_decay=ema_decay),
            checkpoint=SimpleNamespace(keep=3),
            observe=SimpleNamespace(tensorboard=True),
        ),
        feeder=SimpleNamespace(known=Remote(KnownUnits(np.arange(3)))),
        monitor=SimpleNamespace(note=Remote(None), saved=Remote(None), agents=Remote({})),
    )


@pytest.fixture
def agent(store: LocalStore, fence: Fence) -> Iterator[SnapshotAgent]:
    agent = SnapshotAgent(job_of(store), "node")
    agent.open_memory(0)
    yield agent
    agent.free()


def test_a_run_that_averages_its_weights_finds_the_average_too(agent: SnapshotAgent, store: LocalStore) -> None:
    with agent.open_memory(0).writing(4, rows(1, 4)) as folder:
        for name in tensor_files(averaged=True):
            (folder / name).write_bytes(name.encode())
    agent.save(4)
    agent.free()
    later = SnapshotAgent(job_of(store, ema_decay=0.9), "another node")
    memory = later.open_memory(0)
    assert later.choose({"another node": (-1, -1)}).name == CheckpointName(4, 1)
    assert all((memory.path(4) / name).read_bytes() == name.encode() for name in tensor_files(averaged=True))
    later.free()


def rows(first: int, last: int) -> list[StepRow]:
    return [StepRow(s, 1 / s, 0.1, 1.0, 10 * s, 1, 0.1, 0.0, np.arange(BATCH)) for s in range(first, last + 1)]


def keep(agent: SnapshotAgent, step: int, kept: list[StepRow]) -> None:
    """As a worker writes its state after `step`."""
    with agent.open_memory(0).writing(step, kept) as folder:
        for name in (MODEL, OPTIMIZER):
            (folder / name).write_bytes(f"{name} after {step}".encode())


def test_a_run_without_anything_begins_at_the_beginning(agent: SnapshotAgent) -> None:
    assert agent.choose({"node": (-1, -1), "other": (-1, -1)}) == (START, None, None)


def test_what_is_saved_is_what_the_next_attempt_finds_in_memory(agent: SnapshotAgent, store: LocalStore) -> None:
    agent.choose({"node": (-1, -1)})
    keep(agent, 4, rows(1, 4))
    assert agent.save(4) == 4
    keep(agent, 6, rows(5, 6))
    agent.save(6)
    assert list_checkpoints(store) == [CheckpointName(4, 1), CheckpointName(6, 1)]
    assert len(metrics_lines(store)) == 6
    agent.free()

    later = SnapshotAgent(job_of(store), "another node")
    memory = later.open_memory(0)
    origin = later.choose({"node": (-1, -1)})
    assert (origin.name, origin.holder) == (CheckpointName(6, 1), None)
    assert (origin.saved["tokens"], len(origin.saved["recent_losses"])) == (60, 6)
    assert RunState(origin.saved, rows(7, 8)).step_seconds == pytest.approx(StepSeconds(0.8, 0.8))
    assert agent._job.monitor.saved.calls[-1] == (6, origin.saved["saved_at"])
    assert len(origin.saved["ledger"]) == 2
    assert memory.newest() == (6, 7)
    assert (memory.path(6) / MODEL).read_bytes() == b"model.safetensors after 6"
    later.free()


def test_a_nodes_memory_comes_before_the_store(agent: SnapshotAgent) -> None:
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    keep(agent, 7, rows(5, 7))
    origin = agent.choose({"other": (-1, -1), "node": agent.newest()})
    assert (origin.saved["step"], origin.holder) == (4, ("node", 7))


def test_the_memory_of_a_node_without_workers_comes_before_the_store_too(
    agent: SnapshotAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the others, one is gone and never answers."""
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    idle = SimpleNamespace(newest=Remote((9, 5)))
    gone = SimpleNamespace(newest=Remote("no answer"))
    agent._job.monitor.agents = Remote({"idle": idle, "gone": gone, "node": agent})
    answered = [(9, 5)]
    monkeypatch.setattr(agent_module.ray, "wait", lambda asked, **_: ([each for each in asked if each in answered], []))
    assert agent.choose({"node": (-1, -1)}).holder == ("idle", 9)
    assert agent.choose({"node": (6, 5)}).holder == ("node", 6), "the group's own is not asked about"


def test_a_damaged_checkpoint_is_named_and_what_joins_on_to_the_one_before_is_chosen(
    agent: SnapshotAgent, store: LocalStore
) -> None:
    for step in (4, 6):
        keep(agent, step, rows(1, step))
        agent.save(step)
    store.put(f"checkpoints/{CheckpointName(6, 1)}/{MODEL}", b"something else")
    origin = agent.choose({"node": (-1, -1)})
    assert origin.name == CheckpointName(4, 1)
    assert "step-00000006-a1/ is damaged" in str(agent._job.monitor.note.calls).replace("a1 is", "a1/ is")
    assert list_checkpoints(store) == [CheckpointName(4, 1)], "the next group is not to go on from it"
    store.put(f"checkpoints/{CheckpointName(4, 1)}/{MODEL}", b"something else")
    with pytest.raises(CheckpointDamagedError, match="No checkpoint is left"):
        agent.choose({"node": (-1, -1)})
    assert list_checkpoints(store) == [CheckpointName(4, 1)], "else the run would quietly begin again"


def test_steps_whose_data_was_left_out_are_remembered_by_every_later_checkpoint(agent: SnapshotAgent) -> None:
    bad = [StepRow(3, None, 0.1, None, 20, 1, 0.1, 0.0, np.arange(BATCH))]
    keep(agent, 4, [*rows(1, 2), *bad, *rows(4, 4)])
    agent.save(4)
    keep(agent, 6, rows(5, 6))  # rows of steps that are saved are not brought along any more
    agent.save(6)
    keep(agent, 8, rows(7, 8))
    agent.save(8)
    assert agent.choose({"node": (-1, -1)}).saved["skipped_steps"] == [3]


def test_tensorboards_files_are_those_of_what_is_saved(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not take them fails no save, and the next save makes up for it."""
    keep(agent, 4, rows(1, 4))
    put = store.put

    def fail(key: str, data: bytes) -> None:
        if key.startswith(TRAIN):
            raise TransientStoreError("busy")
        put(key, data)

    monkeypatch.setattr(store, "put", fail)
    agent.save(4)
    assert "not in TensorBoard's files yet: busy" in str(agent._job.monitor.note.calls)
    monkeypatch.setattr(store, "put", put)
    keep(agent, 6, rows(5, 6))
    agent.save(6)
    assert len(list(store.list(TRAIN))) == 2
    assert curves_in(Path(store.url_of(TRAIN)))["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def test_a_save_that_failed_can_be_made_again(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(agent, 4, rows(1, 4))
    put_file = store.put_file

    def fail(key: str, path: Any) -> None:
        raise TransientStoreError("busy")

    monkeypatch.setattr(store, "put_file", fail)
    with pytest.raises(TransientStoreError):
        agent.save(4)
    assert list_checkpoints(store) == []
    monkeypatch.setattr(store, "put_file", put_file)
    keep(agent, 5, rows(1, 5))
    agent.save(5)
    assert [row["step"] for row in map(__import__("json").loads, metrics_lines(store))] == [1, 2, 3, 4, 5]


def test_a_fenced_keeper_saves_nothing(agent: SnapshotAgent, store: LocalStore) -> None:
    keep(agent, 4, rows(1, 4))
    Fence.claim(store, "kept", {}, begun=False, takeover=True)
    with pytest.raises(FencedError):
        agent.save(4)
    assert list_checkpoints(store) == [] and metrics_lines(store) == []
