"""Runs a command in a session of its own, and ends every process of that session when whoever started it is gone.

`ray start` leaves raylets and workers whose parents change and which outlive it. They stay in its session, though, so
that is what is ended; and it is ended by a process that waits for the end of a pipe, which comes also when the other
end's process is killed and can do nothing any more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from cluster.local.processes import calling, end_session

START = calling("cluster.local.session", "main")
"""Command line of a agent; the command to run follows. It prints the session's id, and ends when its input does."""


def main() -> None:
    """Run the command in `sys.argv[1:]`, whose output goes to standard error, until it ends or standard input does."""
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
