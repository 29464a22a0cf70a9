"""The pool of training workers, in the controller's process: workers outlive the groups that they are members of.

Starting a worker means starting a Python process that imports torch, seconds of a core. So workers whose peer died, or
whose group is resized, leave their group and join the next one, and joining workers start while the others train.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ray

from cluster.demand import resource_options
from cluster.ray_nodes import on_node
from orchestrator.policy.scaling import Observation
from orchestrator.workers.worker import TrainingWorker

LEAVE_S = 5.0
"""Seconds a worker may take to end its training thread; starting another in its place takes no longer."""

ANSWER_S = 2.0
"""Seconds within which a worker that does not hang answers a call."""

DEATHS = (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError)
"""Errors of a worker whose process died, or whose node was lost before it started."""

_logger = logging.getLogger(__name__)


class StartAction(NamedTuple):
    """What the pool should do while no worker runs.

    Attributes:
        workers: workers to start.
        timeout_s: seconds after which the start counts as hung.
    """

    workers: int
    timeout_s: float


class PoolAction(NamedTuple):
    """What the pool should do with the running workers.

    Attributes:
        hung: why they count as hung and are to be killed; "" where they do not.
        warm_spares: workers to keep ready to join.
        wanted: workers to request nodes for, as far as there are too few; None: leave the requests as they are.
    """

    hung: str = ""
    warm_spares: int = 0
    wanted: int | None = None


class GroupSize(Protocol):
    """Decides how many workers there are; called in the controller's process. Picklable."""

    def when_idle(self, seen: Observation) -> StartAction | None:
        """Decides while no worker runs; `seen.warm_spares` of the slots have a live worker. None: start none yet."""

    def when_running(self, seen: Observation) -> PoolAction:
        """Decides while workers run."""

    def report_start_phase(self, phase: str) -> None:
        """Reports the end of a phase of a start: "teardown", "placement", "processes" or "process_group"."""


class WorkersHung(Exception):
    """Workers were killed because they hung."""


class StartTimeoutError(Exception):
    """Workers did not start in time: something else occupies their slots."""


@dataclass(eq=False)
class PooledWorker:
    """A worker's process.

    Attributes:
        metadata: reference to the worker's metadata, available once its process is up.
        ready: reference that is available once the worker is warm.
    """

    actor: Any
    node_id: str
    metadata: ray.ObjectRef[Any]
    ready: ray.ObjectRef[None]

    def is_ready(self) -> bool:
        """Whether the worker is up and warm, or has failed to become so."""
        return bool(ray.wait([self.ready], timeout=0)[0])

    def has_died(self) -> bool:
        """Whether the worker died while it started."""
        if not self.is_ready():
            return False
        try:
            ray.get(self.ready)
            return False
        except DEATHS:
            return True


class WorkerPool:
    """Live workers. The first `group_size` of them are the members of the running worker group.

    Args:
        resources: of one worker, by Ray's names.
        prepare: what a worker does before it joins a group, such as imports; picklable.
    """

    def __init__(self, resources: Mapping[str, float], prepare: Callable[[], None]) -> None:
        self._resources, self._prepare = dict(resources), prepare
        self._members: list[PooledWorker] = []
        self.group_size = 0

    def nodes(self) -> Counter[str]:
        """Workers by node."""
        return Counter(member.node_id for member in self._members)

    def group_nodes(self) -> Counter[str]:
        """Members of the group by node."""
        return Counter(member.node_id for member in self._members[: self.group_size])

    def warm_spares(self, nodes: Container[str]) -> list[PooledWorker]:
        """Workers outside the group, ready or not, after removing dead ones and those that are on none of `nodes`."""
        others = self._members[self.group_size :]
        self._remove(member for member in others if member.node_id not in nodes or member.has_died())
        return self._members[self.group_size :]

    def start_worker(self, node_id: str) -> None:
        """Starts a worker on a node, outside the group."""
        worker: Any = ray.remote(TrainingWorker)
        actor = worker.options(**resource_options(self._resources), **on_node(node_id)).remote()
        ready = actor.warm_up.remote(self._prepare)
        self._members.append(PooledWorker(actor, node_id, actor.get_metadata.remote(), ready))

    def leave_group(self) -> Counter[str]:
        """Takes all members out of their group; returns the number of workers lost in this, by node.

        A worker whose training thread does not end is of no use to the next group, and is killed.
        """
        leaving = {member.actor.leave.remote(LEAVE_S): member for member in self._members if member.is_ready()}
        if not leaving:
            return Counter()
        done, late = ray.wait(list(leaving), num_returns=len(leaving), timeout=LEAVE_S + ANSWER_S)
        lost = [leaving[answer] for answer in (*late, *(answer for answer in done if not is_true(answer)))]
        self._remove(lost)
        self.group_size = 0
        return Counter(member.node_id for member in lost)

    def keep(self, nodes: Container[str]) -> None:
        """Kills the workers that are on none of `nodes`."""
        self._remove(member for member in self._members if member.node_id not in nodes)

    def ready(self) -> int:
        """Number of workers that are up and warm; moves them to the front."""
        self._members.sort(key=lambda member: not member.is_ready())
        return sum(member.is_ready() for member in self._members)

    def fill(self, workers: int, slots: Mapping[str, int]) -> None:
        """Makes the pool `workers` workers large, starting missing ones on as few nodes as possible.

        Surplus workers are killed, unless they are still starting: they may be of use when they are ready.

        Args:
            slots: slots by node, including those of the workers there.
        """
        self._remove(member for member in self._members[workers:] if member.is_ready())
        have = self.nodes()
        for node_id in sorted(slots, key=lambda each: have[each] - slots[each]):
            for _ in range(slots[node_id] - have[node_id]):
                if len(self._members) < workers:
                    self.start_worker(node_id)

    def form_group(self, workers: int, timeout_s: float) -> list[PooledWorker]:
        """Waits until the first `workers` workers are ready, and makes them the group.

        Raises:
            StartTimeoutError: not all were ready within `timeout_s`; those that were not are killed.
            DEATHS: one died; it is removed.
        """
        waiting = {member.ready: member for member in self._members[:workers]}
        done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
        self._remove(waiting[answer] for answer in late)
        if late:
            raise StartTimeoutError(f"{len(late)} workers did not start within {timeout_s:.0f} s")
        died = [waiting[answer] for answer in done if waiting[answer].has_died()]
        self._remove(died)
        for member in died:
            ray.get(member.ready)
        self.group_size = workers
        return self._members[:workers]

    def rank_by(self, actors: Sequence[Any]) -> None:
        """Sorts the group's members by rank, which is their position in `actors`."""
        rank_of = {id(actor): rank for rank, actor in enumerate(actors)}
        self._members.sort(key=lambda member: rank_of.get(id(member.actor), len(rank_of)))

    def kill_silent(self) -> list[tuple[int, str]]:
        """Kills the group's members that do not answer, or all if all answer; returns their ranks and nodes."""
        group = dict(enumerate(self._members[: self.group_size]))
        calls = {member.actor.execute.remote(int): rank for rank, member in group.items()}
        answered, silent = ray.wait(list(calls), num_returns=len(calls), timeout=ANSWER_S)
        ranks = sorted(calls[answer] for answer in (silent or answered))
        killed = [(rank, group[rank].node_id) for rank in ranks]
        self._remove([group[rank] for rank in ranks])
        return killed

    def end(self, why: str = "") -> None:
        """Kills all workers.

        Can be called from any thread, to end a start that hangs in another; that one then removes them from the pool.
        """
        if why:
            _logger.warning("Killing the workers. %s.", why)
        for member in list(self._members):
            ray.kill(member.actor)

    def _remove(self, members: Iterable[PooledWorker]) -> None:
        """Kills workers and removes them from the pool."""
        for member in list(members):
            if member in self._members:
                self.group_size -= self._members.index(member) < self.group_size
                self._members.remove(member)
            ray.kill(member.actor)


def is_true(answer: ray.ObjectRef[bool]) -> bool:
    """The value of an actor's answer; False if the call failed."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return False
