"""The thread of Ray Train: a controller that dies has a successor, as far as the failure policy allows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator.driver import trainer as module
from orchestrator.driver.trainer import TrainerThread
from orchestrator.errors import WorkerDiedError

DEAD = ray.exceptions.RayActorError()


@pytest.mark.parametrize(
    ("outcomes", "restarts", "lives", "error"),
    [
        ([None], True, [1], None),
        ([DEAD, DEAD, None], True, [1, 2, 3], None),
        ([DEAD], False, [1], WorkerDiedError),
        ([DEAD, ValueError("another")], True, [1, 2], ValueError),
    ],
)
def test_controllers(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], restarts: bool, lives: list[int], error: type | None
) -> None:
    made: list[int] = []
    reported: list[str] = []
    left = list(outcomes)

    def fit() -> None:
        if (outcome := left.pop(0)) is not None:
            raise outcome

    def trainer(run: Any, job: Any, *, tokenizes: bool, life: int = 1, warm: object = None) -> Any:
        made.append(life)
        return SimpleNamespace(fit=fit)

    def restart(cause: str, reason: str) -> bool:
        reported.append(cause)
        return restarts

    monkeypatch.setattr(module, "worker_group_trainer", trainer)
    monkeypatch.setattr(module, "joins_cluster", lambda: False)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monitor = SimpleNamespace(restart_after_failure=SimpleNamespace(remote=restart))
    run: Any = SimpleNamespace(config=SimpleNamespace(run="night"))
    job: Any = SimpleNamespace(monitor=monitor, attempt=1)
    thread = TrainerThread(run, job, tokenizes=False)
    thread.start()
    thread.join()
    assert (made, left, thread.has_ended) == (lives, [], True)
    assert reported == ["crash"] * outcomes.count(DEAD)
    assert thread.error is None if error is None else isinstance(thread.error, error)
