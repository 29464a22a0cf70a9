"""The training workers there are, in the controller's process: they outlive the worker groups they are members of.

Starting a worker is starting a Python process that imports torch, seconds of a core. So workers whose peer died, or
that are to be more or fewer, leave their group and join the next one, and joining_workers start while the others train.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ray

from cluster.demand import place_of
from cluster.ray_nodes import on_node
from orchestrator.workers.worker import TrainingWorker

LEAVE_S = 5.0
"""Seconds a worker may take to end its training thread; starting another in its place takes no longer."""

ANSWER_S = 2.0
"""Seconds within which a worker that does not hang answers a call."""

DEATHS = (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError)
"""A worker's process, or the node it was to start on, is gone."""

_logger = logging.getLogger(__name__)


class PoolAction(NamedTuple):
    """What is to be done about workers that run.

    Attributes:
        hung: why they are taken to hang; "" where they are not.
        warm_spares: workers to have standing by, ready to join.
        wanted: workers for which nodes should come, as far as there are none; None: as before.
    """

    hung: str = ""
    warm_spares: int = 0
    wanted: int | None = None


class GroupSize(Protocol):
    """Decides how many workers there are; asked in the controller's process."""

    def when_idle(self, free: int, total: int, ready: int, reserved_slots: int) -> tuple[int, float] | None:
        """No worker runs; `free` of `total` places are free, and on `ready` of them a worker lives already.

        `reserved_slots` of the free ones are for no worker, see `Observation`. Returns how many to start, and seconds after
        which a start is taken to hang; None: none yet.
        """

    def when_running(
        self, workers: int, slots: int, on_draining: int, warm_spares: int, reserved_slots: int
    ) -> PoolAction:
        """`workers` run, `on_draining` of them on nodes about to go; `slots` are on the others, theirs included.

        `warm_spares` more are ready to join, and `reserved_slots` of the slots are for no worker, see `Observation`.
        """

    def reached(self, phase: str) -> None:
        """A start has come so far: "teardown", "placement", "processes" and "process_group", each when it is over."""


class WorkersHung(Exception):
    """Workers were killed because they hung."""


class StartTimeoutError(Exception):
    """Workers did not start in time: somebody else has their places."""


@dataclass(eq=False)
class PooledWorker:
    """A worker's process. `metadata` and `ready` are references that are there once it is up, and warm."""

    actor: Any
    node_id: str
    metadata: ray.ObjectRef[Any]
    ready: ray.ObjectRef[None]

    def is_ready(self) -> bool:
        """Whether it is up and warm, or has failed to be."""
        return bool(ray.wait([self.ready], timeout=0)[0])


class WorkerPool:
    """Living workers; `in_group` of them, the first ones, are in the worker group that runs.

    Args:
        resources: of one worker, by Ray's names.
        prepare: what a worker does before it has a group, such as imports; picklable.
    """

    def __init__(self, resources: Mapping[str, float], prepare: Callable[[], None]) -> None:
        self._resources, self._prepare = dict(resources), prepare
        self._members: list[PooledWorker] = []
        self.in_group = 0

    def nodes(self) -> Counter[str]:
        """Workers by node."""
        return Counter(member.node_id for member in self._members)

    def group_nodes(self) -> Counter[str]:
        """Members of the group by node."""
        return Counter(member.node_id for member in self._members[: self.in_group])

    def warm_spares(self, nodes: Container[str]) -> list[PooledWorker]:
        """Workers that are not in the group, ready or not; let go of those that died or are on other nodes."""
        others = self._members[self.in_group :]
        self._forget(member for member in others if member.node_id not in nodes or self._has_died(member))
        return self._members[self.in_group :]

    def begin(self, node_id: str) -> None:
        """Start a worker on a node; it stands by."""
        worker: Any = ray.remote(TrainingWorker)
        actor = worker.options(**place_of(self._resources), **on_node(node_id)).remote()
        ready = actor.warm_up.remote(self._prepare)
        self._members.append(PooledWorker(actor, node_id, actor.get_metadata.remote(), ready))

    def leave_group(self) -> Counter[str]:
        """Have every member leave its group; returns how many did not live to, by node.

        One whose training thread does not end is no good to the next group, and is killed.
        """
        leaving = {member.actor.leave.remote(LEAVE_S): member for member in self._members if member.is_ready()}
        if not leaving:
            return Counter()
        done, late = ray.wait(list(leaving), num_returns=len(leaving), timeout=LEAVE_S + ANSWER_S)
        lost = [leaving[answer] for answer in (*late, *(answer for answer in done if not _is_true(answer)))]
        self._forget(lost)
        self.in_group = 0
        return Counter(member.node_id for member in lost)

    def keep(self, nodes: Container[str]) -> None:
        """Let go of the workers that are on other nodes."""
        self._forget(member for member in self._members if member.node_id not in nodes)

    def ready(self) -> int:
        """Workers that are up and warm; they come before the others from then on."""
        self._members.sort(key=lambda member: not member.is_ready())
        return sum(member.is_ready() for member in self._members)

    def fill(self, workers: int, slots: Mapping[str, int]) -> None:
        """Make it `workers` workers, new ones on nodes that still have slots, as few nodes as that takes.

        Those above that number are let go, unless they are still starting: they may be wanted when they are ready.

        Args:
            slots: places by node, those that workers have there already included.
        """
        self._forget(member for member in self._members[workers:] if member.is_ready())
        have = self.nodes()
        for node_id in sorted(slots, key=lambda each: have[each] - slots[each]):
            for _ in range(slots[node_id] - have[node_id]):
                if len(self._members) < workers:
                    self.begin(node_id)

    def enlist(self, workers: int, timeout_s: float) -> list[PooledWorker]:
        """The first `workers` workers, once they are ready; they are the group from then on.

        Raises:
            StartTimeoutError: not all were ready within `timeout_s`; those that were not are killed.
            DEATHS: one died; it is forgotten.
        """
        waiting = {member.ready: member for member in self._members[:workers]}
        done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
        self._forget(waiting[answer] for answer in late)
        if late:
            raise StartTimeoutError(f"{len(late)} workers did not start within {timeout_s:.0f} s")
        died = [waiting[answer] for answer in done if self._has_died(waiting[answer])]
        self._forget(died)
        for member in died:
            ray.get(member.ready)
        self.in_group = workers
        return self._members[:workers]

    def rank_by(self, actors: Sequence[Any]) -> None:
        """Note the order of the group's members: that of their ranks."""
        place = {id(actor): rank for rank, actor in enumerate(actors)}
        self._members.sort(key=lambda member: place.get(id(member.actor), len(place)))

    def kill_silent(self) -> list[tuple[int, str]]:
        """Kill the group's members that do not answer, or all where all do; returns their ranks and nodes."""
        group = dict(enumerate(self._members[: self.in_group]))
        asked = {member.actor.execute.remote(int): rank for rank, member in group.items()}
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        ranks = sorted(asked[answer] for answer in (silent or answered))
        killed = [(rank, group[rank].node_id) for rank in ranks]
        self._forget([group[rank] for rank in ranks])
        return killed

    def end(self, why: str = "") -> None:
        """Kill all, from any thread: a start that hangs is ended from another. Who waits for them forgets them."""
        if why:
            _logger.warning("The workers are killed. %s.", why)
        for member in list(self._members):
            ray.kill(member.actor)

    def _forget(self, members: Iterable[PooledWorker]) -> None:
        for member in list(members):
            if member in self._members:
                self.in_group -= self._members.index(member) < self.in_group
                self._members.remove(member)
            ray.kill(member.actor)

    @staticmethod
    def _has_died(member: PooledWorker) -> bool:
        if not member.is_ready():
            return False
        try:
            ray.get(member.ready)
            return False
        except DEATHS:
            return True


def _is_true(answer: ray.ObjectRef[bool]) -> bool:
    try:
        return ray.get(answer)
    except ray.exceptions.RayError:
        return False
