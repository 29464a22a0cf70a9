"""Commands that faults end are started again once the fault is over; others are not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from data.errors import MantaError
from orchestrator.chaos.faults import Injected
from orchestrator.chaos.process import Command
from orchestrator.chaos.runs import Disturber
from orchestrator.console import Console
from tests.waiting import wait_until

FIRST_FAILS = """
import pathlib, sys
starts = pathlib.Path(sys.argv[1])
before = starts.read_text() if starts.exists() else ""
starts.write_text(before + "x")
print("told", flush=True)
if len(before) < int(sys.argv[2]):
    raise OSError("No space left")
"""


def command(folder: Path, fails: int) -> Command:
    """A command that fails as often as told, and then ends in order."""
    return Command("run", [sys.executable, "-c", FIRST_FAILS, str(folder / "starts"), str(fails)], {}, Console())


@pytest.mark.parametrize(
    ("kind", "fails", "starts"),
    [("kill-driver", 1, 2), ("kill-driver", 2, 2), ("full-disk", 1, 2), ("kill-worker", 1, 1), (None, 1, 1)],
)
def test_a_command_goes_on_once_after_each_fault_that_may_end_it(
    tmp_path: Path, kind: str | None, fails: int, starts: int
) -> None:
    with command(tmp_path, fails) as running:
        at = time.time() - 15 if kind == "full-disk" else time.time()  # it is over then
        running.started_at = at - 1
        faults = [] if kind is None else [Injected(kind, at, "x")]
        disturber = Disturber(running, None, faults=faults)
        if starts > fails:
            disturber.await_end("run")
        else:
            with pytest.raises(MantaError, match="run ended with status 1"):
                disturber.await_end("run")
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert disturber.ends[0]["by"] == (kind if starts > 1 else None)
    assert disturber.ends[0]["said"][-1] == "OSError: No space left"


def test_a_soak_starts_the_command_again_whatever_ended_it_but_not_for_ever(tmp_path: Path) -> None:
    with command(tmp_path, fails=9) as running:
        disturber = Disturber(running, None, always_again=True, faults=[Injected("kill-worker", time.time(), "x")])
        with pytest.raises(MantaError):
            disturber.await_end("run")
        assert not disturber.runs()
    assert [end["by"] for end in disturber.ends] == [None, None]


def test_tracebacks_in_the_output_are_kept(tmp_path: Path) -> None:
    with command(tmp_path, fails=1) as running:
        wait_until(lambda: running.status is not None, "its end")
    [traceback] = running.tracebacks
    assert traceback[0].startswith("Traceback") and traceback[-1] == "OSError: No space left"


def test_a_killed_command_has_the_status_of_the_signal(tmp_path: Path) -> None:
    sleeping = Command("run", [sys.executable, "-c", "import time; time.sleep(1e6)"], {}, Console())
    with sleeping as running:
        assert running.status is None
        running.kill()
        assert running.status == -9
        running.start()
        assert running.status is None and len(set(running.sessions)) == 2
