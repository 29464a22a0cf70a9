"""Spot machines, played: a node of a cluster on this machine is given notice, and later has its power cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from cluster.local.processes import children, command_line, of_session
from cluster.local.ray_command import run_ray


def notice(gcs_address: str, node_id: str, grace_s: float, environment: Mapping[str, str]) -> None:
    """Have the cluster told that a node will be reclaimed in `grace_s` seconds, as a cloud would.

    Args:
        environment: Ray's variables with which the cluster is reached.

    Raises:
        ClusterError: the cluster refuses, or does not answer.
    """
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"]
    deadline = f"--deadline-remaining-seconds={grace_s:.0f}"
    run_ray(["drain-node", f"--address={gcs_address}", "--node-id", node_id, *reason, deadline], environment)


def power_off(session: int, node_id: str) -> None:
    """SIGKILL to a node's raylet and all that it started; nothing where it is gone already.

    Args:
        session: of the cluster's processes.
    """
    pending = [pid for pid in of_session(session) if f"--node_id={node_id}" in command_line(pid)]
    while pending:
        pid = pending.pop()
        pending += children(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
