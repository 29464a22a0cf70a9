"""A command on the cluster: its output is shown, and it can be started again after a fault has ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from orchestrator.console import Console

STOP_S = 60.0
"""Seconds for a command to stop in order after SIGINT."""

OUTPUT_S = 5.0
"""Seconds for the end of the output; a child of the command that is left over would keep it open."""

TRACEBACK = "Traceback (most recent call last)"

TRACEBACK_LINES, KEPT_LINES = 40, 5
"""Lines of a traceback that are kept, and newest lines of the output that are kept."""


class Command:
    """A command as a process in a session of its own. A context manager, which starts and ends it.

    Args:
        arguments: the command line.
        environment: replaces this process's; read at every start.

    Attributes:
        started_at: time of the newest start, seconds since the epoch.
        sessions: session ids of all starts.
        tracebacks: those in the output, each with the lines after it.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], console: Console) -> None:
        self._name, self._arguments, self._environment, self._console = name, arguments, environment, console
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.started_at = 0.0
        self.sessions: list[int] = []
        self.tracebacks: list[list[str]] = []
        self._newest: list[str] = []

    def start(self) -> None:
        """Starts the command; it must not run."""
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, **self._environment, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self.started_at = time.time()
        self._process = subprocess.Popen(self._arguments, env=environment, start_new_session=True, **streams)
        self.sessions.append(self._process.pid)
        self._console.line(f"{self._name}: starts{' again' if len(self.sessions) > 1 else ''}")
        self._reader = threading.Thread(target=self._show, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._running.poll()

    def kill(self) -> None:
        """Ends it suddenly, with SIGKILL to its own process."""
        self._running.kill()
        self._running.wait()

    def stop(self) -> int:
        """Stops it in order, with SIGINT; returns its exit status, that of SIGKILL if it does not stop."""
        if self.status is None:
            self._running.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._running.wait(STOP_S)
            self._running.kill()
        status = self._running.wait()
        self.last_lines()
        return status

    def last_lines(self) -> list[str]:
        """The newest lines of the output, once all of it has been read; the command must have ended."""
        if self._reader is not None:
            self._reader.join(OUTPUT_S)
        return self._newest

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "inside the block"
        return self._process

    def _show(self, output: Any) -> None:
        lines_left = 0
        with output:
            for line in map(str.rstrip, output):
                self._console.line(f"  {line}")
                self._newest = [*self._newest[1 - KEPT_LINES :], line]
                if TRACEBACK in line:
                    self.tracebacks.append([])
                    lines_left = TRACEBACK_LINES
                if lines_left:
                    self.tracebacks[-1].append(line)
                    lines_left -= 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
