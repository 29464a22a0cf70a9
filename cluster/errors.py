"""The root of every error Manta raises on purpose, and the one of what it starts on a machine.

    MantaError                      has an exit status and, where it can, a remedy in its message
    └── ClusterError                a server or cluster did not start, answer or stop; exit status 1

The root stands here because `cluster` imports no other package of the project, and `data` and `orchestrator` import it.
Both survive pickling: one positional message and nothing else.
"""

from __future__ import annotations


class MantaError(Exception):
    """An error with a message for a person; the command line prints it without a traceback."""

    exit_status = 1


class ClusterError(MantaError):
    """Something Manta starts did not come up or did not answer; the message ends with what to do."""
