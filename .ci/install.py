"""Runs pip for the Makefile with one line of progress: `install.py PIP STEP...`.

A step is what `pip install` is given. What pip itself says goes to install.log in the environment, whose last lines
are shown where pip fails. Only the standard library is used, as nothing else is there yet.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

TAIL = 20
"""Lines of the log that are shown where pip fails."""

PLAIN_EVERY_S = 30.0
"""Time between two lines where lines cannot be rewritten, in a file or a CI log, while nothing else changes."""

PATIENCE_S = 10.0
"""How long pip may clean up after Ctrl-C."""

_COLLECTED = re.compile(r"^(?:Collecting|Processing|Obtaining) ", re.MULTILINE)
_INSTALLING = re.compile(r"^Installing collected packages: (.+)$", re.MULTILINE)


class Progress:
    """How far an environment is, in one line that is rewritten on a terminal."""

    def __init__(self, venv: Path) -> None:
        self.venv, self.begun = venv, time.monotonic()
        self.before = self._packages()
        self.rewrites = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._doing, self._shown_at = "", 0.0
        self._megabytes, self._measure_at = 0.0, 0.0

    def show(self, doing: str, count: str, last: bool = False) -> None:
        """On a terminal at once; elsewhere where something new is done, and now and then while it is not."""
        now = time.monotonic()
        if not (self.rewrites or last or doing != self._doing or now - self._shown_at > PLAIN_EVERY_S):
            return
        if last or now >= self._measure_at:
            self._megabytes = _megabytes(self.venv)
            self._measure_at = now + 10 * (time.monotonic() - now)  # of tens of thousands of files: pip needs the core
        line = f"{doing}: {count} packages, {self._megabytes:,.0f} MB, {now - self.begun:.0f} s"
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap, and the next one not cover it
            line = "\r" + line[:width].ljust(width)
        print(line, end="" if self.rewrites and not last else "\n", flush=True)
        self._doing, self._shown_at = doing, now

    def installed(self) -> int:
        """Packages that are new, or new in this version or build, since the beginning."""
        return len(self._packages() - self.before)

    def _packages(self) -> set[tuple[str, int]]:
        found = self.venv.glob("lib/python3*/site-packages/*.dist-info")
        return {(each.name, each.stat().st_mtime_ns) for each in found if each.exists()}


def _megabytes(folder: Path) -> float:
    """Size of all files; those that vanish meanwhile count nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total / 1e6


def _run(pip: Path, step: str, part: str, log: Path, progress: Progress) -> int:
    """pip's exit status. pip is ended with everything that it started if this is interrupted."""
    # What is downloaded waits beside where it goes: /tmp is a part of the memory on many machines, too small for torch.
    waiting = progress.venv / "tmp"
    waiting.mkdir(exist_ok=True)
    log_begin, installed_before = log.stat().st_size, progress.installed()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [pip, "install", *shlex.split(step)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(waiting.absolute())},
            start_new_session=True,  # a group of its own, which can be ended as one
        )
    try:
        while True:
            said = log.read_bytes()[log_begin:].decode(errors="replace")
            if names := _INSTALLING.search(said):
                count = f"{progress.installed() - installed_before} of {len(names[1].split(','))}"
                progress.show(f"installing{part}", count)
            else:
                progress.show(f"collecting{part}", str(len(_COLLECTED.findall(said))))
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            _end(process)
        shutil.rmtree(waiting, ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not leave pip alive
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)
    with contextlib.suppress(ProcessLookupError):  # pip is gone; what it started to build with may not be
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(pip: Path, steps: list[str]) -> int:
    """The exit status: pip's where it fails, 130 where it was interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, _interrupt)
    progress = Progress(pip.parent.parent)
    log = progress.venv / "install.log"
    log.write_bytes(b"")
    try:
        for number, step in enumerate(steps, start=1):
            part = f" (part {number} of {len(steps)})" if len(steps) > 1 else ""
            if status := _run(pip, step, part, log, progress):
                lines = deque(log.read_text(errors="replace").splitlines(), TAIL)
                print(("\n" if progress.rewrites else "") + f"error: pip failed; the end of {log}:", file=sys.stderr)
                print(*lines, sep="\n", file=sys.stderr)
                print(f"error: pip install {step}: status {status}; all it said is in {log}", file=sys.stderr)
                return status if status > 0 else 1
    except KeyboardInterrupt:
        print(f"\nstopped; run again, it begins where {progress.venv} is now", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}; remove {progress.venv} and run again", file=sys.stderr)
        return 1
    progress.show("installed", str(progress.installed()), last=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
