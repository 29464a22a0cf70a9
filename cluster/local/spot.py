"""Simulates the loss of a spot machine: notice to a node of a cluster on this machine, and later its sudden end."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress

from cluster.local.processes import children, command_line, of_session
from cluster.local.ray_command import run_ray


def notice(gcs_address: str, node_id: str, grace_s: float, environment: Mapping[str, str]) -> None:
    """Notifies the cluster that a node will be reclaimed in `grace_s` seconds, as a cloud does.

    Args:
        gcs_address: of the cluster.
        node_id: Ray's id of the node.
        grace_s: seconds until its end.
        environment: Ray's variables for access to the cluster.

    Raises:
        ClusterError: the cluster refuses, or does not answer.
    """
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed"]
    deadline = f"--deadline-remaining-seconds={grace_s:.0f}"
    run_ray(["drain-node", f"--address={gcs_address}", "--node-id", node_id, *reason, deadline], environment)


def power_off(session: int, node_id: str) -> None:
    """Sends SIGKILL to a node's raylet and all its descendants. Does nothing if the node has ended.

    Args:
        session: session id of the cluster's processes.
        node_id: Ray's id of the node.
    """
    pending = [pid for pid in of_session(session) if f"--node_id={node_id}" in command_line(pid)]
    while pending:
        pid = pending.pop()
        pending += children(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
