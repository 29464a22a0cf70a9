"""The processes that the runs of a sweep share: one for monitors, one for feeders, one a node for snapshot agents."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import ray

from cluster.host import ConcurrentHost, Host, Hosted, host_named, is_there, start_host
from cluster.ray_nodes import on_node
from orchestrator.monitor.kept_state import FOREVER
from orchestrator.run.job import Owner, TrainJob
from orchestrator.snapshots.agent import AGENT_THREADS, SnapshotAgent
from orchestrator.workers.warm import IDLE_S, WarmWorkers

PLACE_S = 60.0
"""Seconds in which a host has to answer; it may be starting."""


@dataclass(frozen=True)
class SharedHosts:
    """Names of the hosts of a sweep.

    Objects of a host that dies are gone, and their runs continue from their checkpoints; Ray starts the host again.
    """

    monitors: str
    feeders: str

    @classmethod
    def start(cls, **options: Any) -> tuple[SharedHosts, list[Any]]:
        """Starts them; they live as long as the handles that are returned, too. `options` are Ray's."""
        names = [f"{kind}-{uuid.uuid4()}" for kind in ("monitors", "feeders")]
        bodies = (Host, ConcurrentHost)
        handles = [start_host(body, name, **options, **FOREVER) for body, name in zip(bodies, names, strict=True)]
        return cls(*names), handles

    def place(
        self, run: str, owner: Owner, monitor: Callable[[], Any], feeder: Callable[[Hosted], Any]
    ) -> tuple[Hosted, Hosted]:
        """Places a run's feeder and monitor, and drops those of its earlier attempts, which may have died unheard.

        Args:
            monitor: makes the monitor.
            feeder: makes the feeder, given the monitor.

        Raises:
            RayError: a host is gone, or does not answer within PLACE_S.
        """
        self._drop(f"{run}/")
        placed = Hosted(self.monitors, f"{run}/{owner.folder}/monitor")
        feeding = Hosted(self.feeders, f"{run}/{owner.folder}/feeder")
        placing = [
            host_named(self.monitors).place.remote(placed.key, monitor),
            host_named(self.feeders).place.remote(feeding.key, partial(feeder, placed)),
        ]
        ray.get(placing, timeout=PLACE_S)
        return feeding, placed

    def drop(self, run: str, owner: Owner) -> None:
        """Drops feeder and monitor of a run's attempt, and with it its snapshot agents."""
        self._drop(f"{run}/{owner.folder}/")

    def forget(self, run: str) -> None:
        """Drops what is left of a run whose process has died; does not wait."""
        with suppress(ray.exceptions.RayError):
            self._dropping(f"{run}/")

    def _drop(self, prefix: str) -> None:
        ray.get(self._dropping(prefix), timeout=PLACE_S)

    def _dropping(self, prefix: str) -> list[Any]:
        return [host_named(host).drop.remote(prefix) for host in (self.feeders, self.monitors)]


class SharedProcesses(NamedTuple):
    """What a trial's run does not start for itself.

    Attributes:
        workers: waiting in the trial's process.
    """

    hosts: SharedHosts
    workers: WarmWorkers


@dataclass
class _AgentHost:
    name: str
    handle: Any
    keys: set[str] = field(default_factory=set)
    end: threading.Timer | None = None


class AgentHosts:
    """The hosts of snapshot agents, in the process of the monitors, with which they end. An empty one ends, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, _AgentHost] = {}
        self._placed = 0

    def place(self, node_id: str, job: TrainJob) -> Hosted:
        """Places an agent of a run on a node, in a new host if the one before has died."""
        with self._lock:
            self._placed += 1
            key = f"{job.config.run}/{job.owner.folder}/agent-{self._placed}"
            host = self._hosts.get(node_id)
            if host is None or not is_there(host.name):
                name = f"agents-{uuid.uuid4()}"
                host = self._hosts[node_id] = _AgentHost(name, start_host(ConcurrentHost, name, **on_node(node_id)))
            if host.end is not None:
                host.end.cancel()
            host.keys.add(key)
            host.handle.place.remote(key, partial(SnapshotAgent, job, node_id), AGENT_THREADS)
        return Hosted(host.name, key)

    def drop(self, node_id: str, agent: Hosted) -> None:
        """Ends an agent. Its host ends after IDLE_S without any: an autoscaler removes a node that runs nothing."""
        with self._lock:
            host = self._hosts.get(node_id)
            if host is None or host.name != agent.host:
                return  # it died, and its successor has no such agent
            host.keys.discard(agent.key)
            host.handle.drop.remote(agent.key)
            if not host.keys:
                host.end = threading.Timer(IDLE_S, self._end_if_empty, [node_id, host])
                host.end.daemon = True
                host.end.start()

    def _end_if_empty(self, node_id: str, host: _AgentHost) -> None:
        with self._lock:
            if not host.keys and self._hosts.get(node_id) is host:
                del self._hosts[node_id]  # the last handle ends the process


AGENT_HOSTS = AgentHosts()
"""Those of this process."""


def place_agent(node_id: str, job: TrainJob) -> Hosted:
    """See `AgentHosts.place`; a function, since the monitor's process has an `AGENT_HOSTS` of its own."""
    return AGENT_HOSTS.place(node_id, job)


def drop_agent(node_id: str, agent: Hosted) -> None:
    """See `AgentHosts.drop`."""
    AGENT_HOSTS.drop(node_id, agent)
