"""Programs under measurement: a scratch folder for their files, and each in a session of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.local.processes import of_session
from cluster.local.s3 import LocalS3

COMMAND_TIMEOUT_S = 1200.0

POLL_INTERVAL_S = 0.5
"""Seconds between two calls of the function that observes a running command."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for all files of the benchmark, Ray's included; removed afterwards, and its S3 server stopped."""
    folder = Path(tempfile.mkdtemp(prefix="manta-bench-"))
    os.environ["RAY_TMPDIR"] = str(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `timeout` and `kill` clean up, too
    try:
        yield folder
    finally:
        server = LocalS3(folder / "s3")
        if server.is_running():  # a killed command has left it
            with server:
                pass
        shutil.rmtree(folder, ignore_errors=True)


class Command:
    """A program in its own session; leaving the block ends all of its processes.

    Attributes:
        lines: its output so far, each line with its time in seconds since the start.
    """

    def __init__(self, *arguments: str, folder: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        own = {"RAY_TMPDIR": os.environ["RAY_TMPDIR"], "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        self.lines: list[tuple[float, str]] = []
        self._arguments = arguments
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**inherited, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Pid of the program, which is its session's id, too."""
        return self._process.pid

    def wait(self, observe: Callable[[], object] = lambda: None) -> float:
        """Waits for its end, calling `observe` every POLL_INTERVAL_S; returns its duration in seconds.

        Raises:
            SystemExit: it failed or took too long; the message has its output.
        """
        while self._process.poll() is None:
            observe()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_INTERVAL_S)
            if time.monotonic() - self._began > COMMAND_TIMEOUT_S:
                self._fail(f"still running after {COMMAND_TIMEOUT_S:.0f} s")
        took_s = time.monotonic() - self._began
        self._reader.join(5)
        if self._process.returncode != 0:
            self._fail(f"ended with status {self._process.returncode}")
        return took_s

    def processes(self) -> dict[int, str]:
        """Title of every living process of the session by its pid (Linux)."""
        return {pid: _title(pid) for pid in of_session(self.pid)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ray's processes create process groups and outlive their parents, but never leave the session.
        while pids := of_session(self.pid):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((round(time.monotonic() - self._began, 3), line.rstrip()))

    def _fail(self, what: str) -> None:
        output = "\n".join(line for _, line in self.lines[-40:])
        raise SystemExit(f"{' '.join(self._arguments)} {what}:\n{output}")


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def manta(*arguments: str) -> list[str]:
    """Command line of the installed `manta`."""
    return [str(Path(sys.executable).with_name("manta")), *arguments]
