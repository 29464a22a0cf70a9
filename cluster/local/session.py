"""Runs a command in its own session, and ends all processes of the session when the process that started it ends.

`ray start` leaves raylets and workers that change their parent and outlive it, but stay in its session. The process
that runs this module waits for the end of its standard input, which comes even if the other end's process is killed.

A module of its own, because it is the main program of that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from cluster.local.processes import calling, end_session

START = calling("cluster.local.session", "main")
"""Command line of this process; the command to run follows. It prints the session's id, and ends with its input."""


def main() -> None:
    """Runs the command in `sys.argv[1:]`, with its output on standard error, until it or standard input ends."""
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True)
    print(process.pid, flush=True)
    threading.Thread(target=_end_with_input, args=(process.pid,), daemon=True).start()
    status = process.wait()
    end_session(process.pid)
    sys.exit(status if status >= 0 else 128 - status)


def _end_with_input(session: int) -> None:
    # Not sys.stdin: its lock would still be held when the interpreter ends.
    while os.read(0, 1024):
        pass
    end_session(session)
