"""The pool of training workers, in the controller's process: workers outlive the groups that they are members of.

Starting a worker means starting a Python process that imports torch, seconds of a core. So workers whose peer died, or
whose group is resized, leave their group and join the next one, and joining workers start while the others train.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from cluster.answers import ANSWER_S, is_true, later_than
from cluster.demand import resource_options
from cluster.ray_nodes import has_process, on_node
from orchestrator.policy.hang import BEAT_S, Beat, Hang
from orchestrator.workers.beacon import SendBeat
from orchestrator.workers.worker import TrainingWorker

LEAVE_S = 5.0
"""Seconds a worker may take to end its training thread; starting another in its place takes no longer."""

DEATHS = (ray.exceptions.RayActorError, ray.exceptions.ActorUnschedulableError)
"""Errors of a worker whose process died, or whose node was lost before it started."""

_logger = logging.getLogger(__name__)


class WorkersHung(Exception):
    """Workers were killed because they hung."""


class StartTimeoutError(Exception):
    """Workers did not start in time: something else occupies their slots."""


@dataclass(eq=False)
class PooledWorker:
    """A worker's process.

    Attributes:
        name: of the worker, under which it sends beats.
        up: reference that is available once the process is up.
        metadata: reference to the worker's metadata, available once it is warm.
        ready: reference that is available once the worker is warm.
        is_killed: whether it was killed as a member of a group; its process may live for a moment longer.
        is_told_of: whether its beats are watched; see `WorkerPool.tell_of_processes`.
    """

    name: str
    actor: Any
    node_id: str
    up: ray.ObjectRef[Any]
    metadata: ray.ObjectRef[Any]
    ready: ray.ObjectRef[None]
    is_killed: bool = False
    is_told_of: bool = False

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
        send: sends the beats of a worker; picklable.
        most_workers: largest number of workers.

    Attributes:
        failed_on: nodes on which workers of the newest group hung or did not start.
    """

    def __init__(
        self, resources: Mapping[str, float], prepare: Callable[[], None], send: SendBeat, most_workers: int
    ) -> None:
        self._resources, self._prepare = dict(resources), prepare
        self._send, self._most_workers = send, most_workers
        self._members: list[PooledWorker] = []
        self._hung: str = ""
        self.group_size = 0
        self.failed_on: set[str] = set()

    def adopt(self, prepare: Callable[[], None], send: SendBeat, most_workers: int) -> None:
        """Takes the workers over for another run; they prepare for it at once. The arguments are those of the class."""
        self._prepare, self._send, self._most_workers = prepare, send, most_workers
        self._hung, self.failed_on = "", set()
        for member in self._members:
            member.is_told_of = False
            member.ready = member.actor.adopt.remote(prepare, send, most_workers)

    def nodes(self) -> Counter[str]:
        """Workers by node."""
        return Counter(member.node_id for member in self._members)

    def group_nodes(self) -> Counter[str]:
        """Members of the group by node."""
        return Counter(member.node_id for member in self._members[: self.group_size])

    def names(self, workers: int | None = None) -> tuple[str, ...]:
        """Names of the first `workers` workers, by default of the group's members. Can be called from any thread."""
        return tuple(member.name for member in self._members[: self.group_size if workers is None else workers])

    def tell_of_processes(self) -> None:
        """Sends a beat on behalf of each worker that has got a process, which is missed if none of its own follows."""
        for member in list(self._members):
            if not member.is_told_of and has_process(member.actor):
                self._send(Beat(member.name, member.node_id, None, 0, "created", 0, 0.0, BEAT_S))
                member.is_told_of = True

    def nodes_of(self, ranks: Iterable[int]) -> set[str]:
        """Nodes of these ranks of the group."""
        return {self._members[rank].node_id for rank in ranks if rank < self.group_size}

    def warm_spares(self, nodes: Container[str]) -> list[PooledWorker]:
        """Workers outside the group, ready or not, after removing dead ones and those that are on none of `nodes`."""
        others = self._members[self.group_size :]
        self._remove(member for member in others if member.node_id not in nodes or member.has_died())
        return self._members[self.group_size :]

    def start_worker(self, node_id: str) -> None:
        """Starts a worker on a node, outside the group."""
        worker: Any = ray.remote(TrainingWorker)
        name = uuid.uuid4().hex[:12]
        options = {**resource_options(self._resources), **on_node(node_id)}
        actor = worker.options(**options).remote(name, self._send, self._most_workers)
        up, ready = actor.execute.remote(int), actor.warm_up.remote(self._prepare)
        self._members.append(PooledWorker(name, actor, node_id, up, actor.get_metadata.remote(), ready))

    def leave_group(self) -> Counter[str]:
        """Takes all members out of their group; returns the number of workers lost in this, by node.

        A worker that does not answer, or whose training thread does not end, is of no use to the next group, and is
        killed.
        """
        killed = [member for member in self._members if member.is_killed]
        self._remove(killed)
        asked = [member for member in self._members if member.is_ready()]
        answers = [(member.actor.execute.remote(int), member.actor.leave.remote(LEAVE_S)) for member in asked]
        silent = later_than(ANSWER_S, [answer for answer, _ in answers])
        late = later_than(LEAVE_S + ANSWER_S, [left for answer, left in answers if answer not in silent])
        lost = [
            member
            for member, (answer, left) in zip(asked, answers, strict=True)
            if answer in silent or left in late or not is_true(left)
        ]
        self._remove(lost)
        self.group_size = 0
        return Counter(member.node_id for member in (*killed, *lost))

    def keep(self, nodes: Container[str]) -> None:
        """Kills the workers that are on none of `nodes`."""
        self._remove(member for member in self._members if member.node_id not in nodes)

    def ready(self) -> int:
        """Number of workers that are up and warm; moves them to the front."""
        self._members.sort(key=lambda member: not member.is_ready())
        return sum(member.is_ready() for member in self._members)

    def fill(self, workers: int, slots: Mapping[str, int], avoid: Container[str] = ()) -> None:
        """Makes the pool `workers` workers large, starting missing ones on as few nodes as possible.

        Surplus workers are killed, unless they are still starting: they may be of use when they are ready.

        Args:
            slots: slots by node, including those of the workers there.
            avoid: nodes that get workers only where no other node has room.
        """
        self._remove(member for member in self._members[workers:] if member.is_ready())
        have = self.nodes()
        for node_id in sorted(slots, key=lambda each: (each in avoid, have[each] - slots[each])):
            for _ in range(slots[node_id] - have[node_id]):
                if len(self._members) < workers:
                    self.start_worker(node_id)

    def form_group(self, workers: int, timeout_s: float) -> list[PooledWorker]:
        """Waits until the first `workers` workers are ready, and makes them the group.

        Args:
            timeout_s: seconds in which their processes must be up. What these take after that has no limit here.

        Raises:
            StartTimeoutError: not all processes were up in time; those that were not are killed.
            DEATHS: a worker died; it is removed.
        """
        members = self._members[:workers]
        _, late = ray.wait([member.up for member in members], num_returns=len(members), timeout=timeout_s)
        self._remove([member for member in members if member.up in late])
        if late:
            raise StartTimeoutError(f"{len(late)} workers did not start within {timeout_s:.0f} s")
        ray.wait([member.ready for member in members], num_returns=len(members))
        died = [member for member in members if member.has_died()]
        self.failed_on = {member.node_id for member in died}
        self._remove(died)
        for member in died:
            ray.get(member.ready)
        self.group_size = workers
        return members

    def rank_by(self, actors: Sequence[Any]) -> None:
        """Sorts the group's members by rank, which is their position in `actors`."""
        rank_of = {id(actor): rank for rank, actor in enumerate(actors)}
        self._members.sort(key=lambda member: rank_of.get(id(member.actor), len(rank_of)))

    def kill(self, hang: Hang) -> str:
        """Kills the workers that hang, which `leave_group` then removes; "" where there are none of them any more.

        Can be called from any thread, to end a start that hangs in another.

        Returns:
            what was done and why, which is also the next answer of `pop_hung`.
        """
        members = list(self._members)
        hung = [member for member in members if member.name in hang.workers]
        if not hung:
            return ""
        self._hung = f"{hang.why}; killed {len(hung)} of {len(members)} workers"
        self.failed_on = {member.node_id for member in hung} if len(hung) < len(members) else set()
        self._kill(hung)
        return self._hung

    def pop_hung(self) -> str:
        """Why workers were killed since the last call; "" where none were."""
        hung, self._hung = self._hung, ""
        return hung

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Context in which the members join a process group; ends rank 0 if that fails, which makes all others fail.

        Rank 0 has the store at which they meet. As long as it lives, they would wait there for the one that is missing.
        """
        try:
            yield
        except BaseException:
            self._kill(self._members[:1])
            raise

    def _kill(self, members: Iterable[PooledWorker]) -> None:
        """Kills members of the group; `leave_group` removes them."""
        for member in members:
            member.is_killed = True
            ray.kill(member.actor)

    def end(self) -> None:
        """Kills all workers."""
        for member in list(self._members):
            ray.kill(member.actor)

    def _remove(self, members: Iterable[PooledWorker]) -> None:
        """Kills workers and removes them from the pool."""
        for member in list(members):
            if member in self._members:
                self.group_size -= self._members.index(member) < self.group_size
                self._members.remove(member)
            ray.kill(member.actor)
