"""The result of a check, and the running of programs and functions that may hang."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: ok, warn or fail.
        found: what was found.
        remedy: what to do about it; "" where nothing is to be done.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The fields, for JSON."""
        return asdict(self)


def bounded(name: str, limit_s: float, check: Callable[[], Check]) -> Check:
    """The result of `check`; a failed check if it raises or takes longer than `limit_s`."""
    results: list[Check] = []

    def attempt() -> None:
        try:
            results.append(check())
        except Exception as error:  # whatever it is, the other checks still run
            results.append(Check(name, "fail", f"{type(error).__name__}: {short(error)}", ""))

    # A daemon, because a thread cannot be killed: one that hangs must not keep the process alive.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else Check(name, "fail", f"no answer within {limit_s:.0f} s", "")


def run_python(program: str, timeout_s: float) -> dict[str, Any]:
    """Runs a Python program in a process of its own, and returns the JSON of the last line it prints.

    Raises:
        RuntimeError: the program failed; the message is the last line of its error output.
        TimeoutExpired: it took longer than `timeout_s` and was killed. Processes of Ray die with it.
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def short(error: object) -> str:
    """The error's message, at most 300 characters."""
    return str(error).strip()[:300]
