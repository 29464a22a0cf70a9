"""What a soak reports besides the cost of its faults: how often each kind came, and what is left of the run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.local.nodes import LocalNodes
from cluster.local.processes import calling, command_line, of_session
from data.stores.store import Store
from orchestrator.chaos.process import Command
from orchestrator.snapshots.store import snapshot_roots

REST_S = 30.0
"""Seconds for actors to end after their run, and for processes after their cluster."""

POLL_INTERVAL_S = 0.5

OF_CLUSTER = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")
"""Titles of processes that Ray starts for its nodes, or for all runs of a cluster."""

BUDGET = "within an hour; the limit is"
"""What a run says that ends because it had too many failures in an hour, which a soak compresses into minutes."""


def counted(faults: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each kind: how often it came, and the mean and the longest time without a new step in seconds.

    Args:
        faults: see `costs`; None in `lost_s`: no new step before the end, which is not in the mean.
    """
    rows = {}
    for kind in sorted({each["kind"] for each in faults}):
        lost = [each["lost_s"] for each in faults if each["kind"] == kind]
        known = [each for each in lost if each is not None]
        mean, most = (sum(known) / len(known), max(known)) if known else (None, None)
        rows[kind] = {"count": len(lost), "mean_lost_s": mean, "max_lost_s": most}
    return rows


def is_clean(report: Mapping[str, Any]) -> bool:
    """Whether a soak lost nothing, left nothing, and ended only where faults or its compressed time explain it."""
    samples = report["samples"]
    explained = all(end["by"] or any(BUDGET in line for line in end["said"]) for end in report["ends"])
    return bool(
        samples
        and samples["duplicated"] == samples["missing"] == 0
        and samples["in_order"]
        and not report["tracebacks"]
        and not any(report["left"].values())
        and explained
        and report["exit_status"] == 130
    )


def left_over(nodes: LocalNodes, store: Store) -> dict[str, list[str]]:
    """What a stopped run has left while its cluster still runs.

    Returns:
        `processes`: actors on the nodes; `placement_groups`; `shm`: folders of snapshots;
        `uploads`: keys of unfinished uploads.
    """
    deadline = time.monotonic() + REST_S
    while (actors := _actors(nodes)) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    return {
        "processes": actors,
        "placement_groups": _placement_groups(nodes),
        "shm": [str(root) for root in snapshot_roots(store.url_of("")) if root.exists()],
        "uploads": list(store.unfinished()),
    }


def still_running(nodes: LocalNodes, command: Command) -> list[str]:
    """Processes of the command and of all nodes that run although the cluster has ended."""

    def found() -> list[int]:
        return [*nodes.processes(), *(pid for session in command.sessions for pid in of_session(session))]

    deadline = time.monotonic() + REST_S
    while (pids := found()) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    return [f"{pid} {_title(pid)}" for pid in pids]


def _actors(nodes: LocalNodes) -> list[str]:
    """Ray's workers that are not idle, without those that belong to the cluster."""
    found = [(node, pid) for node in (nodes.head, *nodes.living()) for pid in node.workers("ray::")]
    return [f"{node.name} {_title(pid)}" for node, pid in found if not command_line(pid).startswith(OF_CLUSTER)]


def _title(pid: int) -> str:
    return command_line(pid).replace("\0", " ").strip()[:100]


def _placement_groups(nodes: LocalNodes) -> list[str]:
    program = calling("orchestrator.chaos.soak", "main")
    done = subprocess.run(program, env={**os.environ, **nodes.environment}, capture_output=True, text=True)
    if done.returncode:
        return [f"not known: {' '.join(done.stderr.splitlines()[-2:])}"]
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the names of the cluster's placement groups as JSON."""
    import ray
    from ray.util import placement_group_table

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    groups = placement_group_table().values()
    sys.stdout.write(json.dumps([each["name"] or "?" for each in groups if each["state"] != "REMOVED"]) + "\n")
