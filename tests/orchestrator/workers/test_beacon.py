"""The beacon of a worker: what it tells, and that it tells whatever the training thread does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from orchestrator.policy.hang import BEAT_S, Beat, HangPolicy
from orchestrator.workers import beacon as beacon_module
from orchestrator.workers.beacon import STACKS_CHARS, Beacon, answer_of, mark, stacks_of_threads
from orchestrator.workers.worker import TrainingWorker
from tests.waiting import wait_until


@pytest.fixture
def beacon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Beacon]:
    """This process's beacon, whose thread does not run."""

    class Context:
        def get_node_id(self) -> str:
            return "here"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    beacon = Beacon("w0", lambda beat: False, workers=1000)
    monkeypatch.setattr(beacon_module, "_beacon", beacon)
    yield beacon


def test_it_tells_what_the_worker_is_doing(beacon: Beacon) -> None:
    first = beacon.beat()
    assert first._replace(age_s=0.0) == Beat("w0", "here", None, 0, "starting", 0, 0.0, 10.0)
    beacon.join(3, 4)
    mark("step")
    mark()
    second = beacon.beat()
    assert second._replace(age_s=0.0) == Beat("w0", "here", 3, 1, "step", 3, 0.0, BEAT_S)
    assert 0 <= second.age_s < first.age_s + 60
    beacon.leave()
    assert (beacon.beat().rank, beacon.beat().phase, beacon.beat().interval_s) == (None, "idle", 10.0)


def test_without_a_beacon_marks_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beacon_module, "_beacon", None)
    mark("step")


def test_stacks_name_the_threads_and_are_bounded() -> None:
    release, waiting = threading.Event(), threading.Event()

    def deep(calls: int) -> None:
        if calls:
            return deep(calls - 1)
        waiting.set()
        release.wait()

    threads = [threading.Thread(target=deep, args=(3,), name=f"number-{number}") for number in range(300)]
    for thread in threads:
        thread.start()
    waiting.wait()
    stacks = stacks_of_threads()
    release.set()
    for thread in threads:
        thread.join()
    assert "Thread 'number-" in stacks and "return deep(calls - 1)" in stacks and "stacks_of_threads" not in stacks
    assert len(stacks) == STACKS_CHARS


class Agent:
    """An agent that answers, and whose call ends with its third answer."""

    def __init__(self) -> None:
        self.newest, self.answers = self, 0

    def remote(self) -> str:
        self.answers += 1
        return "ping"


def test_a_long_call_is_progress_as_long_as_the_actor_answers(monkeypatch: pytest.MonkeyPatch, beacon: Beacon) -> None:
    agent = Agent()
    ready = {"ping": lambda: True, "call": lambda: agent.answers >= 3}
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([ref for ref in refs if ready[ref]()], []))
    monkeypatch.setattr(ray, "get", lambda ref: f"result of {ref}")
    assert answer_of(agent, "call") == "result of call"  # type: ignore[arg-type]
    assert beacon.beat().marks == 2
    ready["ping"] = lambda: False  # it has been stopped
    ready["call"] = iter([False] * 5 + [True]).__next__
    answer_of(agent, "call")  # type: ignore[arg-type]
    assert beacon.beat().marks == 2


class Monitor:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self._policy, self._beats, self._now = HangPolicy(), [], 0.0

    def beat(self, beat: Beat) -> bool:
        self._beats.append(beat)
        return not any(each.stacks for each in self._beats)

    def beats(self) -> list[Beat]:
        return self._beats


class Send:
    """Sends a beat to the monitor."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def __call__(self, beat: Beat) -> bool:
        return bool(ray.get(self._monitor.beat.remote(beat)))


def stand_still() -> None:
    """A call that never ends."""
    threading.Event().wait()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster_small")
def test_a_worker_is_heard_in_its_longest_call_and_not_when_its_process_is_stopped() -> None:
    monitor: Any = ray.remote(Monitor).options(num_cpus=0).remote()
    worker: Any = ray.remote(TrainingWorker).remote("w0", Send(monitor), 1)
    pid = ray.get(worker.get_metadata.remote()).pid
    worker.execute.remote(stand_still)

    def heard() -> list[Beat]:
        beats: list[Beat] = ray.get(monitor.beats.remote())
        return beats

    wait_until(lambda: any("stand_still" in beat.stacks for beat in heard()), "stacks of the call")
    before = len(heard())
    wait_until(lambda: len(heard()) > before, "another beat")
    os.kill(pid, signal.SIGSTOP)
    stopped = len(heard())
    other: Any = ray.remote(TrainingWorker).remote("w1", Send(monitor), 1)
    wait_until(lambda: sum(beat.worker == "w1" for beat in heard()) > 3, "several beats of another worker")
    assert sum(beat.worker == "w0" for beat in heard()) <= stopped + 1, "one may have been under way"
    ray.kill(worker)
    ray.kill(other)
