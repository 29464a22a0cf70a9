"""The `manta` command as a process of its own, which tests may interrupt and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.local.processes import command_line, of_session

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 180.0
POLL_INTERVAL_S = 0.25
"""Conditions ask a store or a cluster, which two cores should rather use for the run."""


class MantaProcess:
    """`manta ARGUMENTS` in a session of its own; leaving the block ends whatever of it still runs.

    Ray's processes put themselves into groups of their own and outlive their parents, but never leave the session.
    """

    def __init__(self, *arguments: str, folder: Path, environment: Mapping[str, str]) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "COLUMNS"))
        }
        self._output = folder / f"output-{time.monotonic_ns()}.txt"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "manta_start", *arguments],
                cwd=folder,
                env={**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The command's own process, which also gives its session and its process group their ids."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far, on either stream."""
        return self._output.read_text()

    def has_ended(self) -> bool:
        """Whether the command itself has."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float = COMMAND_TIMEOUT_S) -> int:
        """Its exit status, once it has ended."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.output}") from None

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; the command must live until then."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while not condition():
            assert not self.has_ended(), f"ended with {self._process.returncode} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{what}: not within {COMMAND_TIMEOUT_S:.0f} s:\n{self.output}"
            time.sleep(POLL_INTERVAL_S)

    def interrupt(self) -> None:
        """SIGINT to the command alone."""
        self._process.send_signal(signal.SIGINT)

    def interrupt_group(self) -> None:
        """SIGINT to its process group, as a terminal does on Ctrl-C."""
        os.killpg(self.pid, signal.SIGINT)

    def pids_of(self, title: str) -> list[int]:
        """Its living processes whose command line contains `title`, the oldest first."""
        return [pid for pid in sorted(of_session(self.pid)) if title in command_line(pid)]

    def kill_everything(self) -> None:
        """SIGKILL to the command and all that it started, its descendants' descendants included."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while pids := of_session(self.pid):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{pids} do not die"
            self._process.poll()  # takes the exit status, without which its process would stay
            time.sleep(POLL_INTERVAL_S)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill_everything()
