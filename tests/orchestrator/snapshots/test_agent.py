"""SnapshotAgent: saves a snapshot completely or not at all, and later chooses what it saved."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from orchestrator.run import metrics_file
from orchestrator.run.checkpoint import MODEL, OPTIMIZER, CheckpointName, list_checkpoints, tensor_files
from orchestrator.run.fence import Fence, check_fence
from orchestrator.run.job import Owner
from orchestrator.run.ledger import MERGED, StepRow, read_rows
from orchestrator.run.metrics_file import METRICS
from orchestrator.run.state import START, RunState, StepSeconds
from orchestrator.snapshots import agent as agent_module
from orchestrator.snapshots.agent import SnapshotAgent
from orchestrator.snapshots.store import snapshot_roots
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
def store(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(str(tmp_path / "kept"))
    yield store
    for root in snapshot_roots(store.url_of("")):
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module.ray, "get", lambda answers: answers)


@pytest.fixture
def fence(store: LocalStore) -> Fence:
    fence = Fence.claim(store, "kept", {}, keep_pins=False)
    fence.update(attempt={"from_step": 0})
    return fence


def job_of(store: LocalStore, attempt: int = 1, ema_decay: float | None = None) -> Any:
    return SimpleNamespace(
        store=store,
        attempt=attempt,
        owner=Owner(store.url_of(""), attempt, "kept"),
        facts={"config": {}},
        config=SimpleNamespace(
            seed=1,
            train=SimpleNamespace(global_batch_size=BATCH, ema_decay=ema_decay, steps=1000),
            checkpoint=SimpleNamespace(keep=3),
            observe=SimpleNamespace(tensorboard=True),
            store=SimpleNamespace(patience=0.0),
        ),
        feeder=SimpleNamespace(known=Remote(KnownUnits(np.arange(3)))),
        monitor=SimpleNamespace(
            log=Remote(None),
            report_checkpoint=Remote(None),
            report_restored=Remote(None),
            report_outage=Remote(None),
            newest_checkpoint=Remote(None),
            agents=Remote({}),
        ),
    )


@pytest.fixture
def agent(store: LocalStore, fence: Fence) -> Iterator[SnapshotAgent]:
    agent = SnapshotAgent(job_of(store), "node")
    agent.open_memory(0)
    yield agent
    agent.free()


def test_the_average_is_downloaded_where_the_run_keeps_one(agent: SnapshotAgent, store: LocalStore) -> None:
    with agent.open_memory(0).writing(4, rows(1, 4)) as folder:
        for name in tensor_files(averaged=True):
            (folder / name).write_bytes(name.encode())
    agent.save(4)
    agent.free()
    later = SnapshotAgent(job_of(store, ema_decay=0.9), "another node")
    memory = later.open_memory(0)
    assert later.choose_resume_point({"another node": (-1, -1)}).name == CheckpointName(4, 1)
    assert all((memory.path(4) / name).read_bytes() == name.encode() for name in tensor_files(averaged=True))
    later.free()


def rows(first: int, last: int) -> list[StepRow]:
    return [StepRow(s, 1 / s, 0.1, 1.0, 10 * s, 1, 0.1, 0.0, np.arange(BATCH)) for s in range(first, last + 1)]


def steps_in_metrics(store: LocalStore) -> list[int]:
    return [json.loads(line)["step"] for line in store.get(METRICS).splitlines()]


def keep(agent: SnapshotAgent, step: int, kept: list[StepRow]) -> None:
    """Writes a snapshot as a worker does."""
    with agent.open_memory(0).writing(step, kept) as folder:
        for name in (MODEL, OPTIMIZER):
            (folder / name).write_bytes(f"{name} after {step}".encode())


def test_the_attempt_after_a_killed_one_continues_from_its_newest_snapshot(
    agent: SnapshotAgent, store: LocalStore, fence: Fence
) -> None:
    agent.choose_resume_point({"node": (-1, -1)})
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    keep(agent, 6, rows(5, 6))
    next_fence = Fence.claim(store, "kept", {}, keep_pins=True, takeover=True)
    job = job_of(store, 2)
    job.owner = replace(Owner.of(store.url_of(""), next_fence.record), identity=agent._job.owner.identity)
    later = SnapshotAgent(job, "node")  # the machine's node may have another id by now
    held = {"node": later.open_memory(0).newest()}
    origin = later.choose_resume_point(held)
    assert (origin.saved["step"], origin.holder) == (4, ("node", 6))
    assert later.save(6) == 6 and steps_in_metrics(store) == [1, 2, 3, 4, 5, 6]
    later.free()


def test_an_agent_that_died_in_a_save_is_followed_by_one_that_saves_the_same(
    agent: SnapshotAgent, store: LocalStore
) -> None:
    agent.choose_resume_point({"node": (-1, -1)})
    keep(agent, 4, rows(1, 4))
    with agent.open_memory(0).pinned(4):  # at the time of its death
        successor = SnapshotAgent(agent._job, "node")
        assert successor.newest() == (4, 1), "it finds the snapshots without a worker"
        assert successor.save(4) == 4
    state = agent._job.monitor.report_checkpoint.calls[-1][2]
    agent._job.monitor.newest_checkpoint._answer = state
    before = store.head(f"checkpoints/{CheckpointName(4, 1)}/state.json")
    assert SnapshotAgent(agent._job, "node").save(4) == 4, "repeated, because the answer was lost"
    assert store.head(f"checkpoints/{CheckpointName(4, 1)}/state.json") == before


def test_a_run_without_state_starts_at_step_0(agent: SnapshotAgent) -> None:
    assert agent.choose_resume_point({"node": (-1, -1), "other": (-1, -1)}) == (START, None, None)


def test_the_next_attempt_finds_the_saved_state_in_memory(agent: SnapshotAgent, store: LocalStore) -> None:
    agent.choose_resume_point({"node": (-1, -1)})
    keep(agent, 4, rows(1, 4))
    assert agent.save(4) == 4
    keep(agent, 6, rows(5, 6))
    agent.save(6)
    assert list_checkpoints(store) == [CheckpointName(4, 1), CheckpointName(6, 1)]
    assert steps_in_metrics(store) == [1, 2, 3, 4, 5, 6]
    agent.free()

    later = SnapshotAgent(job_of(store), "another node")
    memory = later.open_memory(0)
    origin = later.choose_resume_point({"node": (-1, -1)})
    assert (origin.name, origin.holder) == (CheckpointName(6, 1), None)
    assert (origin.saved["tokens"], len(origin.saved["recent_losses"])) == (60, 6)
    assert RunState(origin.saved, rows(7, 8)).step_seconds == pytest.approx(StepSeconds(0.8, 0.8))
    *reported, state = agent._job.monitor.report_checkpoint.calls[-1]
    assert reported == [6, origin.saved["saved_at"]] and json.loads(json.dumps(state)) == origin.saved
    assert len(origin.saved["ledger"]) == 2
    assert memory.newest() == (6, 7)
    assert (memory.path(6) / MODEL).read_bytes() == b"model.safetensors after 6"
    later.free()


def test_a_newer_snapshot_is_preferred_to_a_checkpoint(agent: SnapshotAgent) -> None:
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    keep(agent, 7, rows(5, 7))
    origin = agent.choose_resume_point({"other": (-1, -1), "node": agent.newest()})
    assert (origin.saved["step"], origin.holder) == (4, ("node", 7))


def test_a_newer_snapshot_of_a_node_without_workers_is_preferred_too(
    agent: SnapshotAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the other nodes is gone and never answers."""
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    idle = SimpleNamespace(newest=Remote((9, 5)))
    gone = SimpleNamespace(newest=Remote("no answer"))
    agent._job.monitor.agents = Remote({"idle": idle, "gone": gone, "node": agent})
    monkeypatch.setattr(
        agent_module.ray, "wait", lambda asked, **_: ([(9, 5)], [each for each in asked if each != (9, 5)])
    )
    assert agent.choose_resume_point({"node": (-1, -1)}).holder == ("idle", 9)
    assert agent.choose_resume_point({"node": (6, 5)}).holder == ("node", 6), (
        "where one of the group's nodes has a snapshot, the others are not asked"
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_chosen(agent: SnapshotAgent, store: LocalStore) -> None:
    for step in (4, 6):
        keep(agent, step, rows(1, step))
        agent.save(step)
    store.put(f"checkpoints/{CheckpointName(6, 1)}/{MODEL}", b"something else")
    origin = agent.choose_resume_point({"node": (-1, -1)})
    assert origin.name == CheckpointName(4, 1)
    assert "step-00000006-a1/ is damaged" in str(agent._job.monitor.log.calls).replace("a1 is", "a1/ is")
    assert list_checkpoints(store) == [CheckpointName(4, 1)], "the next group must not resume from it"
    store.put(f"checkpoints/{CheckpointName(4, 1)}/{MODEL}", b"something else")
    with pytest.raises(CheckpointDamagedError, match="No checkpoint is left"):
        agent.choose_resume_point({"node": (-1, -1)})
    assert list_checkpoints(store) == [CheckpointName(4, 1)], "else the run would silently restart from step 0"


def test_skipped_steps_are_in_every_later_checkpoint(agent: SnapshotAgent) -> None:
    bad = [StepRow(3, None, 0.1, None, 20, 1, 0.1, 0.0, np.arange(BATCH))]
    keep(agent, 4, [*rows(1, 2), *bad, *rows(4, 4)])
    agent.save(4)
    keep(agent, 6, rows(5, 6))  # a snapshot holds only rows that are not saved yet
    agent.save(6)
    keep(agent, 8, rows(7, 8))
    agent.save(8)
    assert agent.choose_resume_point({"node": (-1, -1)}).saved["skipped_steps"] == [3]


def test_tensorboards_files_follow_the_saved_steps(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure to write them does not fail the save, and the next save writes them."""
    keep(agent, 4, rows(1, 4))
    put = store.put

    def fail(key: str, data: bytes) -> None:
        if key.startswith(TRAIN):
            raise TransientStoreError("busy")
        put(key, data)

    monkeypatch.setattr(store, "put", fail)
    agent.save(4)
    assert "not yet in TensorBoard's files: busy" in str(agent._job.monitor.log.calls)
    monkeypatch.setattr(store, "put", put)
    keep(agent, 6, rows(5, 6))
    agent.save(6)
    assert len(list(store.list(TRAIN))) == 2
    assert curves_in(Path(store.url_of(TRAIN)))["loss"] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def fail_for(monkeypatch: pytest.MonkeyPatch, store: LocalStore, method: str, prefix: str) -> None:
    """Lets a method of the store fail for keys that start with `prefix`, once there are many segments."""
    work = getattr(store, method)

    def fail(key: str, *arguments: Any) -> Any:
        if key.startswith(prefix):
            raise TransientStoreError("busy")
        return work(key, *arguments)

    monkeypatch.setattr(store, method, fail)


def segments_in(store: LocalStore) -> list[str]:
    return [info.key.removeprefix("ledger/") for info in store.list("ledger/")]


def test_after_many_saves_there_are_few_segments_and_every_step_is_there_once(
    agent: SnapshotAgent, store: LocalStore
) -> None:
    steps = MERGED + 4
    for step in range(1, steps + 1):
        keep(agent, step, rows(step, step))
        agent.save(step)
    state = agent.choose_resume_point({"other": (-1, -1)}).saved
    assert state["ledger"] == [
        f"00000001-{MERGED:08d}-a1.parquet",
        *(f"{step:08d}-{step:08d}-a1.parquet" for step in range(MERGED + 1, steps + 1)),
    ]
    assert segments_in(store) == state["ledger"], "those that were merged are in none of the checkpoints that are kept"
    every_step = list(range(1, steps + 1))
    assert read_rows(store, state["ledger"])["step"].to_pylist() == every_step == steps_in_metrics(store)
    assert [step for step, _ in curves_in(Path(store.url_of(TRAIN)))["loss"]] == every_step
    assert "not yet" not in str(agent._job.monitor.log.calls)


def test_segments_stay_as_long_as_a_checkpoint_that_is_kept_lists_them(agent: SnapshotAgent, store: LocalStore) -> None:
    for step in range(1, MERGED + 2):
        keep(agent, step, rows(step, step))
        agent.save(step)
        for name in list_checkpoints(store):
            listed = json.loads(store.get(f"checkpoints/{name}/state.json"))["ledger"]
            assert read_rows(store, listed)["step"].to_pylist() == list(range(1, name.step + 1))
    assert len(segments_in(store)) > MERGED


@pytest.mark.parametrize(
    ("method", "prefix", "told"),
    [
        ("open", "ledger/", "segments of the ledger are not yet merged"),
        ("put_file", "ledger/", "segments of the ledger are not yet merged"),
        ("put_if_match", METRICS, "not yet in metrics.jsonl"),
        ("list", "ledger/", "old segments of the ledger are not yet deleted"),
    ],
)
def test_a_save_does_not_fail_with_the_housekeeping_which_a_later_save_does(
    method: str, prefix: str, told: str, agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(1, MERGED):
        keep(agent, step, rows(step, step))
        agent.save(step)
    with monkeypatch.context() as failing:
        fail_for(failing, store, method, prefix)
        keep(agent, MERGED, rows(MERGED, MERGED))
        assert agent.save(MERGED) == MERGED
    assert f"step {MERGED}: {told}: busy" in str(agent._job.monitor.log.calls)
    assert list_checkpoints(store)[-1].step == MERGED
    keep(agent, MERGED + 1, rows(MERGED + 1, MERGED + 1))
    agent.save(MERGED + 1)
    state = agent.choose_resume_point({"other": (-1, -1)}).saved
    assert len(state["ledger"]) == 2 and steps_in_metrics(store) == list(range(1, MERGED + 2))


def test_a_long_run_s_metrics_are_written_now_and_then_and_whole_at_its_end(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by agents that have just started, as after every restart."""
    monkeypatch.setattr(metrics_file, "SHORT_STEPS", 20)
    job, newest = agent._job, []
    for step in (20, 30, 31, 32, 33, 40, 41):
        job.config.train.steps = 41
        agent = SnapshotAgent(job, "node")
        keep(agent, step, rows(1, step))
        agent.save(step)
        job.monitor.newest_checkpoint._answer = job.monitor.report_checkpoint.calls[-1][2]
        newest.append(steps_in_metrics(store)[-1])
        assert steps_in_metrics(store) == list(range(1, newest[-1] + 1))
    assert newest == [20, 30, 30, 32, 32, 40, 41]


def test_a_slow_agent_of_a_group_that_is_gone_does_not_replace_newer_metrics(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer save comes in between: before the slow agent looks, and after it has looked."""
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    for step, method in ((6, "head"), (9, "put_if_match")):
        work = getattr(store, method)

        def slow(key: str, *arguments: Any, step: int = step, method: str = method, work: Any = work) -> Any:
            if key != METRICS:
                return work(key, *arguments)
            monkeypatch.setattr(store, method, work)
            other = SnapshotAgent(agent._job, "another node")
            keep(other, step + 1, rows(1, step + 1))
            other.save(step + 1)
            other.free()
            return work(key, *arguments)

        monkeypatch.setattr(store, method, slow)
        keep(agent, step, rows(1, step))
        agent.save(step)
        assert steps_in_metrics(store) == list(range(1, step + 2)), method


def test_a_failed_save_can_be_repeated(
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
    assert steps_in_metrics(store) == [1, 2, 3, 4, 5]


def test_a_snapshot_is_saved_though_newer_ones_replace_it_in_a_slow_save(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a store that answers after seconds; the rows of the snapshot are saved, too."""
    keep(agent, 4, rows(1, 4))

    def slow(store: LocalStore, attempt: int) -> Any:
        for step in (5, 6, 7):
            keep(agent, step, rows(1, step))
        return check_fence(store, attempt)

    monkeypatch.setattr(agent_module, "check_fence", slow)
    assert agent.save(4) == 4
    [name] = list_checkpoints(store)
    assert store.get(f"checkpoints/{name}/{MODEL}") == f"{MODEL} after 4".encode()
    assert steps_in_metrics(store) == [1, 2, 3, 4]


def test_a_group_starts_from_memory_alone_while_the_store_is_away(
    agent: SnapshotAgent, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    _, _, state = agent._job.monitor.report_checkpoint.calls[-1]
    keep(agent, 6, rows(5, 6))
    away = SnapshotAgent(job_of(Away(store.root)), "node")
    away.open_memory(0)
    away._job.monitor.newest_checkpoint = Remote(state)
    assert away.choose_resume_point({"node": (6, 5)}) == (state, None, ("node", 6))
    assert away._job.monitor.report_outage.calls == []
    with pytest.raises(TransientStoreError):  # no node has the newest state
        away.choose_resume_point({"other": (-1, -1)})
    [(doing, outage)] = away._job.monitor.report_outage.calls
    assert (doing, outage.problem) == ("restoring the state", "The store is away.")


class Away(LocalStore):
    """A store that does not answer."""

    def get(self, key: str) -> bytes:
        raise TransientStoreError("The store is away.")


def test_a_checkpoint_pruned_before_all_nodes_have_fetched_it_comes_from_the_first_node(agent: SnapshotAgent) -> None:
    keep(agent, 4, rows(1, 4))
    agent.save(4)
    other = SnapshotAgent(job_of(agent._store), "other")
    memory = other.open_memory(0)
    agent._store.delete_prefix("checkpoints/")
    with pytest.raises(CheckpointDamagedError):
        other.fetch(CheckpointName(4, 1))
    first = SimpleNamespace(newest=Remote((4, 5)), files=Remote(agent.files(4)))
    other._job.monitor.agents = Remote({"node": first})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_module.ray, "wait", lambda asked, **_: (asked, []))
        other.fetch(CheckpointName(4, 1))
    assert first.files.calls == [(4,)]
    assert memory.newest()[0] == 4 and (memory.path(4) / MODEL).read_bytes() == f"{MODEL} after 4".encode()


def test_a_fenced_agent_saves_nothing(agent: SnapshotAgent, store: LocalStore) -> None:
    keep(agent, 4, rows(1, 4))
    Fence.claim(store, "kept", {}, keep_pins=False, takeover=True)
    with pytest.raises(FencedError):
        agent.save(4)
    assert list_checkpoints(store) == [] and store.head(METRICS) is None
