"""AttemptRecord prints every line of the monitor once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.driver.attempt_record import AttemptRecord
from orchestrator.run.progress import Progress
from tests.orchestrator.run.builders import record_of


def test_every_line_is_printed_once_whatever_a_message_repeats() -> None:
    printed: list[str] = []
    heartbeat: Any = SimpleNamespace(fence=SimpleNamespace(record=record_of(0)), write=lambda fields, at_once: None)
    console: Any = SimpleNamespace(line=printed.append, progress=lambda progress, steps: None)
    run: Any = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(steps=9)))
    observer: Any = SimpleNamespace(follow=lambda attempts, progress: None)
    record = AttemptRecord(heartbeat, console, run, observer, SimpleNamespace(value=None))  # type: ignore[arg-type]

    whole = Progress(log_lines=["a", "b"], logged=2)
    for progress in (
        Progress(log_lines=["a"], logged=1),
        whole,
        whole,  # the monitor has not answered
        Progress(log_lines=["c"], logged=3),
        Progress(log_lines=[], logged=3),
        Progress(log_lines=["f", "g"], logged=7),  # d and e were not kept
    ):
        record.follow(progress)
        assert record.logged == progress.logged
    assert printed == ["a", "b", "c", "f", "g"]
