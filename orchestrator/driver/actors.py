"""Starts the actors of an attempt. Those on the driver's node are started again by Ray when they die."""

from __future__ import annotations

import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.host import Hosted
from cluster.private_folder import private_folder
from cluster.ray_nodes import driver_node_id, on_node
from data.feed.feeder import Feeder
from data.feed.spec import FeedSpec
from data.prepared import PreparedData
from data.stores.patience import Outage
from orchestrator.driver.background_evaluation import BackgroundEvaluation, can_evaluate_in_background
from orchestrator.driver.shared_hosts import SharedHosts, drop_agent, place_agent
from orchestrator.monitor.kept_state import FOREVER, count_start
from orchestrator.monitor.monitor import Monitor
from orchestrator.policy.scaling import scaling_policy
from orchestrator.run.job import Owner, TrainJob
from orchestrator.run.run import Run, feed_spec
from orchestrator.snapshots.agent import AGENT_THREADS, SnapshotAgent
from orchestrator.snapshots.store import usable_roots

AGENT_RESTARTS = {"max_restarts": -1, "max_task_retries": 1}
"""Ray's options of a snapshot agent. A call fails with the second agent that dies in it: it may be what they die of."""

READING = "reading shards and tokens"
"""What the feeder needs the store for, as it is told in outages."""


def start_actors(
    run: Run, data: PreparedData, owner: Owner, until: int, hosts: SharedHosts | None = None
) -> tuple[Any, Any]:
    """Starts feeder and monitor, on the driver's own node, which is the last to be reclaimed.

    What outlives their processes is beside the attempt's snapshots, and is deleted with them.

    Args:
        hosts: processes to place them in, in place of their own.
    """
    if hosts is not None:
        monitor_of_trial = partial(Monitor, scaling_policy(run.config), until, place_agent, end_agent=drop_agent)
        return hosts.place(run.config.run, owner, monitor_of_trial, partial(hosted_feeder, feed_spec(run, data)))
    folder = private_folder(usable_roots(owner.run_url)[0]) / owner.folder / "actors"
    folder.mkdir(parents=True, exist_ok=True)
    here = {"num_cpus": 0, **on_node(driver_node_id()), **FOREVER}
    config = run.config
    scaling = scaling_policy(config)
    start_evaluation = BackgroundEvaluation if can_evaluate_in_background(config) else None
    name, actor = f"monitor-{uuid.uuid4()}", ray.remote(Monitor)
    monitor: Any = actor.options(name=name, **here).remote(scaling, until, start_agent, start_evaluation, folder=folder)
    # By name: Ray warns, on the terminal, of actors that may restart and received the handle of another one.
    tell = partial(report_outage, name, READING)
    begin = partial(begin_feeder, name, folder / "feeder.starts")
    feeder: Any = ray.remote(Feeder)
    return feeder.options(**here).remote(feed_spec(run, data), tell, begin), monitor


def hosted_feeder(spec: FeedSpec, monitor: Hosted) -> Feeder:
    """A feeder in a host; called there."""
    return Feeder(spec, partial(report_outage, monitor, READING))


def end_actors(run: Run, owner: Owner, hosts: SharedHosts | None) -> None:
    """Ends an attempt's feeder, monitor and snapshot agents. Those that are actors end with the last handle."""
    if hosts is not None:
        with suppress(ray.exceptions.RayError):
            hosts.drop(run.config.run, owner)


def report_outage(monitor: str | Hosted, doing: str, outage: Outage | None) -> None:
    """Reports to a monitor, or to the one of that name, that a store fails, or answers again (None)."""
    with suppress(ValueError, ray.exceptions.RayError):  # the monitor is gone, and with it the attempt
        (ray.get_actor(monitor) if isinstance(monitor, str) else monitor).report_outage.remote(doing, outage)


def begin_feeder(monitor: str, starts: Path) -> None:
    """Called first in the feeder's process. A feeder that is started again has the same spec, and makes the same steps.

    Args:
        monitor: name of the monitor.
        starts: see `count_start`.
    """
    if count_start(starts) > 1:
        with suppress(ValueError):
            ray.get_actor(monitor).log.remote("the feeder died, and has been started again")
        report_outage(monitor, READING, None)  # of the process that died


def start_agent(node_id: str, job: TrainJob) -> Any:
    """Starts the snapshot agent of a node; called by the monitor, with whose process the agent ends."""
    here = {"num_cpus": 0, **on_node(node_id), **AGENT_RESTARTS, "max_concurrency": AGENT_THREADS}
    return ray.remote(SnapshotAgent).options(**here).remote(job, node_id)
