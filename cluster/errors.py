"""Errors of what Manta starts on a machine.

    ClusterError            a server or cluster did not start, answer or stop; exit status 1

Survives pickling: one positional message and nothing else.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Something Manta starts did not come up or did not answer; the message ends with what to do."""

    exit_status = 1
