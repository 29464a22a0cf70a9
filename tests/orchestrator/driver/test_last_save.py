"""What becomes of the nodes' snapshots when an attempt ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from data.errors import DiskFullError, TransientStoreError
from orchestrator.driver.last_save import is_needed_later, save_last_state
from orchestrator.errors import FencedError, WorkerDiedError
from orchestrator.run.progress import Progress

AWAY = {"doing": "saving checkpoints", "since": 0.0, "until": None, "problem": "away"}


@pytest.mark.parametrize(
    ("error", "outages", "is_saved", "expected"),
    [
        (TransientStoreError("for hours"), [], True, True),  # of the heartbeat: nothing was saved after it
        (TransientStoreError("for hours"), [], False, True),
        (WorkerDiedError("at step 7"), [], False, True),
        (WorkerDiedError("at step 7"), [AWAY], True, False),
        (KeyboardInterrupt(), [], True, False),
        (KeyboardInterrupt(), [AWAY], True, True),  # leaves at once, while the store is away
        (KeyboardInterrupt(), [AWAY | {"until": 1.0}], True, False),
        (FencedError("taken over"), [AWAY], False, False),
    ],
)
def test_memory_is_kept_where_the_store_lacks_the_newest_state(
    error: BaseException, outages: list[dict[str, Any]], is_saved: bool, expected: bool
) -> None:
    progress = Progress(restored_step=0, outages=outages)
    assert is_needed_later(error, progress, is_saved=is_saved) is expected


class Method:
    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    def remote(self, *_: Any) -> Any:
        self.calls += 1
        return self.answer


@pytest.mark.parametrize(
    ("restored", "newest", "outcome", "is_saved", "saves"),
    [
        (4, 4, 4, True, 0),
        (4, 7, 7, True, 1),
        (4, 7, TransientStoreError("away"), False, 1),
        (4, ray.exceptions.RayActorError(), None, True, 0),
        (None, -1, None, True, 0),
        (None, 7, None, False, 0),  # adopted from an earlier attempt
    ],
)
def test_the_newest_snapshot_is_saved(
    monkeypatch: pytest.MonkeyPatch, restored: int | None, newest: Any, outcome: Any, is_saved: bool, saves: int
) -> None:
    def get(answer: Any, timeout: float) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    agent = SimpleNamespace(
        newest=Method(newest if isinstance(newest, BaseException) else (newest, 1)), save=Method(outcome)
    )
    monitor = SimpleNamespace(agents=Method({"node": agent}))
    console: Any = SimpleNamespace(line=lambda text: None)
    assert save_last_state(monitor, Progress(restored_step=restored), console) is is_saved
    assert agent.save.calls == saves
    monitor.agents.answer = ray.exceptions.RayActorError()
    assert save_last_state(monitor, Progress(restored_step=restored), console) is False


def test_a_save_that_fails_names_the_problem_and_no_line_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    full = DiskFullError("Could not write x: the bucket has no space left.")
    failed = ray.exceptions.RayTaskError("save", "Traceback\n  File agent.py, line 3\n", full).as_instanceof_cause()

    def get(answer: Any, timeout: float) -> Any:
        if answer is failed:
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    agent = SimpleNamespace(newest=Method((7, 1)), save=Method(failed))
    told: list[str] = []
    console: Any = SimpleNamespace(line=told.append)
    monitor = SimpleNamespace(agents=Method({"node": agent}))
    assert save_last_state(monitor, Progress(restored_step=4), console) is False
    assert told == [f"step 7: could not be saved from a node's memory: {full}"]
