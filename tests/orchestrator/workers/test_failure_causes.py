"""Ray's paragraphs about deaths, in our words."""

import pickle
from types import SimpleNamespace

import pytest
import ray

from orchestrator.errors import BadLossError, WorkerDiedError
from orchestrator.run.progress import Progress
from orchestrator.workers.failure_causes import cause_of, describe_death, to_manta_error
from orchestrator.workers.hooks import Retry, Size
from orchestrator.workers.pool import PoolAction, WorkersHung

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
\tactor_id: e17c2eb1a088573989c8511501000000
\tpid: 12869
\tnamespace: manta
\tip: 10.0.0.2
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) it was killed"""

NODE = """The actor died unexpectedly before finishing this task.
\tpid: 17
\tip: 10.0.0.3
The actor died because its node has died. Node Id: 5f3. the actor's node was terminated unexpectedly"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            KILLED,
            "process 12869 on 10.0.0.2: Worker unexpectedly exits with a connection error code 2. End of file.",
        ),
        (NODE, "process 17 on 10.0.0.3: its node died"),
        ("[gloo/transport/tcp] Connection closed by peer", "its connection to another was cut"),
    ],
)
def test_a_death_is_told_in_a_line(message: str, said: str) -> None:
    assert describe_death(RuntimeError(message)) == said


def test_why_the_run_was_given_up_is_in_the_last_word() -> None:
    torn = RuntimeError("gloo: Connection closed by peer")
    found = to_manta_error(torn, Progress(row={"step": 12}, gave_up="it failed 3 times in a row"))
    assert isinstance(found, WorkerDiedError)
    assert "ended at step 12" in str(found) and "Not tried again: it failed 3 times in a row." in str(found)


def test_an_error_of_the_code_stays_what_it_is() -> None:
    error = ZeroDivisionError("oh")
    assert to_manta_error(error, Progress()) is error


def test_the_controller_can_be_sent_the_question() -> None:
    assert pickle.loads(pickle.dumps(Retry(monitor=None))) == Retry(monitor=None)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("[gloo/transport/tcp] Connection closed by peer"), "crash"),
        (RuntimeError("NCCL error; its node has died"), "node"),
        (WorkersHung("nothing heard of rank 0"), "hang"),
        (ZeroDivisionError("oh"), "error"),
    ],
)
def test_causes_are_told_apart(error: BaseException, cause: str) -> None:
    assert cause_of(error)[0] == cause


def test_one_word_of_a_hang_ends_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in the same breath, the monitor would say it again, of workers that are started only then."""
    answers = iter([PoolAction("no step for 16 s"), PoolAction("no step for 18 s")])
    asked: list[int] = []
    seen_running = SimpleNamespace(remote=lambda *_: asked.append(1) or next(answers))
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: ref)
    size = Size(SimpleNamespace(seen_running=seen_running))
    assert size.when_running(2, 2, 0, 0, 0) == PoolAction()
    assert size.when_running(2, 2, 0, 0, 0).hung == "no step for 16 s"
    assert len(asked) == 1
    assert size.when_running(2, 2, 0, 0, 0) == PoolAction(), "the next group is looked at afresh"


def test_an_error_of_one_rank_is_not_hidden_by_the_others_complaints() -> None:
    error = Exception("worker group failed")
    torn = RuntimeError("[gloo/transport/tcp] Connection closed by peer")
    error.worker_failures = {0: torn, 1: ZeroDivisionError("oh"), 2: torn}  # type: ignore[attr-defined]
    assert cause_of(error) == ("error", "oh")
    error.worker_failures = {0: torn, 1: ray.exceptions.ActorDiedError()}  # type: ignore[attr-defined]
    assert cause_of(error)[0] == "crash"


def test_why_a_second_bad_step_ends_the_run_is_said() -> None:
    found = to_manta_error(BadLossError("loss=nan in step 9."), Progress(gave_up="1 step has been left out before"))
    assert str(found) == "loss=nan in step 9. Not tried again: 1 step has been left out before."
