"""Causes of a failed worker group, and the hooks that pass them on."""

import pickle
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from data.errors import MantaError
from orchestrator.errors import BadLossError, WorkerDiedError
from orchestrator.policy.hang import Beat, Hang
from orchestrator.policy.scaling import Observation
from orchestrator.run.job import PlannedRestart
from orchestrator.run.progress import Progress
from orchestrator.workers.failure_causes import cause_of, describe_death, failed_ranks, to_manta_error
from orchestrator.workers.group_size import PoolAction
from orchestrator.workers.hooks import BeatHook, RetryHook, SizeHook
from orchestrator.workers.pool import WorkersHung
from orchestrator.workers.pooled_group import Losses

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tactor_id: e17c2eb1a088573989c8511501000000
\tpid: 12869
\tnamespace: manta
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) it was killed"""

OUT_OF_MEMORY = """The actor died unexpectedly before finishing this task.
\tpid: 31
\tip: 10.0.0.4
The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: Task \
was killed due to the node running low on memory. Some common causes include: (1) it was killed by the OOM killer"""

NODE = """The actor died unexpectedly before finishing this task.
\tpid: 17
\tip: 10.0.0.3
The actor died because its node has died. Node Id: 5f3. the actor's node was terminated unexpectedly"""


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            KILLED,
            "process 12869 on 10.0.0.2: Worker unexpectedly exits with a connection error code 2. End of file.",
        ),
        (
            OUT_OF_MEMORY,
            "process 31 on 10.0.0.4: out of memory: Task was killed due to the node running low on memory.",
        ),
        (NODE, "process 17 on 10.0.0.3: its node died"),
        ("[gloo/transport/tcp] Connection closed by peer", "its connection to a peer broke"),
    ],
)
def test_a_death_is_described_in_one_line(message: str, line: str) -> None:
    assert describe_death(RuntimeError(message)) == line


def test_the_final_error_states_why_the_run_was_given_up() -> None:
    torn = RuntimeError("gloo: Connection closed by peer")
    found = to_manta_error(torn, Progress(row={"step": 12}, gave_up="it failed 3 times in a row"))
    assert isinstance(found, WorkerDiedError)
    assert "failed at step 12: its connection to a peer broke. " in str(
        found
    ) and "Not retried: it failed 3 times in a row." in str(found)


def test_an_error_of_the_code_is_not_replaced() -> None:
    error = ZeroDivisionError("oh")
    assert to_manta_error(error, Progress()) is error


def test_the_retry_hook_is_picklable() -> None:
    assert pickle.loads(pickle.dumps(RetryHook(monitor=None))) == RetryHook(monitor=None)


class FakeMonitor:
    """Records the method that a hook calls, and answers True."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: self.calls.append((name, *args)) or True)


@pytest.mark.parametrize(
    ("error", "node_lost", "calls"),
    [
        (BadLossError("loss=nan"), False, [("restart_after_loss_spike",)]),
        (MantaError("wrong data"), False, []),
        (PlannedRestart(), False, [("report_planned_restart",)]),
        (WorkerGroupStartupTimeoutError(2), False, [("report_start_timeout",)]),
        (ZeroDivisionError("oh"), False, [("restart_after_failure", "error", "oh", {"a"}, {"a", "b"})]),
        (ZeroDivisionError("oh"), True, [("restart_after_failure", "node", "oh", {"a"}, {"a", "b"})]),
        (WorkersHung("no step"), True, [("restart_after_failure", "hang", "no step", {"a"}, {"a", "b"})]),
    ],
)
def test_the_retry_hook_calls_the_monitor_by_kind_of_error(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, node_lost: bool, calls: list[tuple[object, ...]]
) -> None:
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    monitor = FakeMonitor()
    assert RetryHook(monitor)(error, Losses(node_lost, frozenset({"a"}), frozenset({"a", "b"}))) == bool(calls)
    assert monitor.calls == calls


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("[gloo/transport/tcp] Connection closed by peer"), "crash"),
        (RuntimeError("NCCL error; its node has died"), "node"),
        (WorkersHung("rank 0 does not answer"), "hang"),
        (ZeroDivisionError("oh"), "error"),
    ],
)
def test_the_cause_of_each_kind_of_error(error: BaseException, cause: str) -> None:
    assert cause_of(error)[0] == cause


def test_a_hang_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call at once would make the monitor report the hang again, for workers that only start then."""
    hangs = [Hang("no step for 16 s", ("w0",)), Hang("no step for 18 s", ("w0",))]
    answers = iter([PoolAction(hung=hang) for hang in hangs])
    calls: list[Observation] = []
    decide_running = SimpleNamespace(remote=lambda seen: calls.append(seen) or next(answers))
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    hook, seen = SizeHook(SimpleNamespace(decide_running=decide_running)), Observation(workers=2, slots=2)
    assert hook.when_running(seen) == PoolAction()
    assert hook.when_running(seen).hung == hangs[0]
    assert calls == [seen]
    assert hook.when_running(seen) == PoolAction(), "the next group starts afresh"


def test_an_error_of_one_rank_is_not_hidden_by_its_effects_on_others() -> None:
    error = Exception("worker group failed")
    torn = RuntimeError("[gloo/transport/tcp] Connection closed by peer")
    error.worker_failures = {0: torn, 1: ZeroDivisionError("oh"), 2: torn}  # type: ignore[attr-defined]
    assert cause_of(error) == ("error", "oh") and failed_ranks(error) == [1]
    error.worker_failures = {0: torn, 1: ray.exceptions.ActorDiedError()}  # type: ignore[attr-defined]
    assert cause_of(error)[0] == "crash" and failed_ranks(error) == [1]
    assert failed_ranks(ZeroDivisionError("oh")) == []


def test_a_beat_is_passed_on_with_the_answer_whether_stacks_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda ref, timeout: ref)
    monitor, beat = FakeMonitor(), Beat("w0", "n", 0, 1, "step", 1, 0.5, 2.0)
    hook = BeatHook(monitor)
    assert hook(beat) is True and monitor.calls == [("beat", beat)]
    assert pickle.loads(pickle.dumps(BeatHook(monitor=None))) == BeatHook(monitor=None)


def test_the_error_of_a_second_loss_spike_states_the_limit() -> None:
    found = to_manta_error(BadLossError("loss=nan in step 9."), Progress(gave_up="the limit is 1"))
    assert str(found) == "loss=nan in step 9. Not retried: the limit is 1."
