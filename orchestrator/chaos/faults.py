"""Injects faults into a run: signals, node drains, full memory, and a faulty proxy in front of the object store."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNode, LocalNodes
from data.stores.store import Store
from orchestrator.chaos.plan import FULL_S, KINDS
from orchestrator.chaos.process import Command
from orchestrator.chaos.skewed_clock import skewed
from orchestrator.chaos.small_memory import fill
from orchestrator.run.checkpoint import MODEL, list_checkpoints

WORKER, STOCK_WORKER = "ray::TrainingWorker", "ray::RayTrainWorker"
"""Process titles that Ray gives to training workers: Manta's, and those of stock Ray Train."""

GRACE_S = 10
"""Seconds from the drain notice to the end of the node."""

STORE_TROUBLE_S, STORE_FAILING = 8.0, 0.3
"""Duration of store faults in seconds, and share of requests that fail."""

STORE_DELAYS_S, STORE_AWAY_S = (0.5, 3.0, 10.0), (5.0, 60.0)
"""Delays of answers of a slow store in seconds, one of which is drawn, and limits of the time that a store is away."""

SLOW_S, SLOW_SLICE_S = 10.0, 0.05
"""Seconds that a node is slow, and length of the slices in which its workers run and stop in turn."""

_Target = TypeVar("_Target")

FROZEN_S = 20.0
"""Seconds that a node is frozen: the head counts it as lost after half of them, see `FAILOVER`."""

SKEW_S = (-600, 600)
"""Seconds that a wrong clock is ahead, one of which is drawn."""


class _NoTargetError(Exception):
    pass


@dataclass
class Injected:
    """An injected fault: its kind, when it was injected (seconds since the epoch), and its target."""

    kind: str
    at: float
    target: str

    @property
    def over_at(self) -> float:
        """When a command that it ended can go on, seconds since the epoch."""
        return self.at + KINDS[self.kind].lasts_s


@dataclass
class Injector:
    """Injects faults into the run on `nodes`.

    Attributes:
        command: the command that trains.
        proxy: proxy between run and object store; None without one, and then without store faults.
        store: the run's folder, reached directly and not through the proxy.
        draw: draws the targets.
        title: process title of the training workers.
        memory: folder of the nodes' snapshots; None if it must not be filled.
    """

    nodes: LocalNodes
    command: Command
    proxy: FaultyProxy | None
    store: Store
    draw: random.Random
    title: str = WORKER
    memory: Path | None = None
    _later: list[threading.Thread] = field(default_factory=list)
    _frozen: list[LocalNode] = field(default_factory=list)

    def inject(self, kind: str) -> Injected | None:
        """Injects a fault of this kind; None if there is no target for it now."""
        inject: Callable[[], tuple[float, str]] = getattr(self, f"_{kind.replace('-', '_')}")
        try:
            at, target = inject()
        except (_NoTargetError, ProcessLookupError):  # the latter: it has gone since it was looked for
            return None
        return Injected(kind, at, target)

    def settle(self) -> None:
        """Waits for the end of faults that last: drains and store faults."""
        for timer in self._later:
            timer.join()

    def _with_workers(self) -> list[LocalNode]:
        return list(dict.fromkeys(node for node, _ in self._workers()))

    def _workers(self) -> list[tuple[LocalNode, int]]:
        awake = [node for node in self.nodes.living() if node not in self._frozen]
        return [(node, pid) for node in awake for pid in node.workers(self.title)]

    def _drawn(self, targets: Sequence[_Target]) -> _Target:
        if not targets:
            raise _NoTargetError
        return self.draw.choice(targets)

    def _kill_worker(self) -> tuple[float, str]:
        node, pid = self._drawn(self._workers())
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return at, f"process {pid} on {node.name}"

    def _hang_worker(self) -> tuple[float, str]:
        node, pid = self._drawn(self._workers())
        at = time.time()
        os.kill(pid, signal.SIGSTOP)
        return at, f"process {pid} on {node.name}"

    def _kill_node(self) -> tuple[float, str]:
        node = self._drawn(self._with_workers())
        at = time.time()
        node.kill()
        return at, node.name

    def _drain_node(self) -> tuple[float, str]:
        node = self._drawn(self._with_workers())
        at = node.drain(self.nodes.address, GRACE_S, self.nodes.environment)
        self._after(GRACE_S, node.kill)
        return at, node.name

    def _remove_node(self) -> tuple[float, str]:
        node = self._drawn(self._with_workers())
        at = time.time()
        node.terminate()
        return at, node.name

    def _add_node(self) -> tuple[float, str]:
        [node] = self.nodes.add()
        return time.time(), node.name

    def _clock_skew(self) -> tuple[float, str]:
        seconds = self.draw.choice(SKEW_S)
        environment = skewed(self.nodes.folder / f"clock{seconds:+d}", seconds)
        [node] = self.nodes.add(environment=environment)
        return time.time(), f"{node.name}, {seconds:+d} s"

    def _partition(self) -> tuple[float, str]:
        node = self._drawn(self._with_workers())
        at = time.time()
        node.freeze()
        self._frozen.append(node)
        self._after(FROZEN_S, node.thaw)
        return at, f"{node.name} for {FROZEN_S:g} s"

    def _kill_driver(self) -> tuple[float, str]:
        at = time.time()
        self.command.kill()
        return at, f"process {self.command.sessions[-1]}"

    def _kill_head(self) -> tuple[float, str]:
        nodes = [node.name for node in self.nodes.living()]
        at = time.time()
        self.command.kill()  # it runs on the head's machine
        self.nodes.restart()
        return at, f"head and {', '.join(nodes)}"

    def _full_shm(self) -> tuple[float, str]:
        assert self.memory is not None
        at = time.time()
        ballast = fill(self.memory)
        self._after(FULL_S, ballast.unlink)
        return at, f"for {FULL_S:g} s"

    def _full_disk(self) -> tuple[float, str]:
        assert self.proxy is not None
        at = time.time()
        self.proxy.full = True
        self._after(FULL_S, lambda: setattr(self.proxy, "full", False))
        return at, f"for {FULL_S:g} s"

    def _store_errors(self) -> tuple[float, str]:
        assert self.proxy is not None
        self.proxy.failing = STORE_FAILING
        self._after(STORE_TROUBLE_S, lambda: setattr(self.proxy, "failing", 0.0))
        return time.time(), f"{STORE_FAILING:.0%} of requests for {STORE_TROUBLE_S:g} s"

    def _store_slow(self) -> tuple[float, str]:
        assert self.proxy is not None
        self.proxy.delay_s = delay_s = self.draw.choice(STORE_DELAYS_S)
        self._after(STORE_TROUBLE_S, lambda: setattr(self.proxy, "delay_s", 0.0))
        return time.time(), f"{delay_s:g} s late for {STORE_TROUBLE_S:g} s"

    def _store_away(self) -> tuple[float, str]:
        assert self.proxy is not None
        away_s = self.draw.uniform(*STORE_AWAY_S)
        at = time.time()
        self.proxy.cut()
        self._after(away_s, self.proxy.mend)
        return at, f"for {away_s:.0f} s"

    def _kill_monitor(self) -> tuple[float, str]:
        return self._kill_actor("ray::Monitor", [self.nodes.head])

    def _kill_feeder(self) -> tuple[float, str]:
        return self._kill_actor("ray::Feeder", [self.nodes.head])

    def _kill_agent(self) -> tuple[float, str]:
        return self._kill_actor("ray::SnapshotAgent", self._with_workers())

    def _kill_actor(self, title: str, nodes: list[LocalNode]) -> tuple[float, str]:
        node, pid = self._drawn([(node, pid) for node in nodes for pid in node.workers(title)])
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return at, f"process {pid} on {node.name}"

    def _slow_node(self) -> tuple[float, str]:
        node = self._drawn(self._with_workers())
        at = time.time()
        slowing = threading.Thread(target=self._slow, args=(node,), daemon=True)
        self._later.append(slowing)
        slowing.start()
        return at, f"{node.name} for {SLOW_S:g} s"

    def _slow(self, node: LocalNode) -> None:
        until = time.monotonic() + SLOW_S
        while time.monotonic() < until:
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in node.workers(self.title):
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(SLOW_SLICE_S)

    def _corrupt_checkpoint(self) -> tuple[float, str]:
        checkpoints, killed = list_checkpoints(self.store), self._with_workers()
        if len(checkpoints) < 2 or not killed:  # the run needs one to fall back to
            raise _NoTargetError
        newest = checkpoints[-1]
        key = f"checkpoints/{newest}/{MODEL}"
        content = bytearray(self.store.get(key))
        content[len(content) // 2] ^= 1
        self.store.put(key, bytes(content))
        at = time.time()
        for node in killed:
            node.kill()
        self.nodes.living()
        self.nodes.add(len(killed))
        return at, f"{newest} and {', '.join(node.name for node in killed)}"

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        def act() -> None:
            with suppress(OSError):
                action()

        timer = threading.Timer(seconds, act)
        self._later.append(timer)
        timer.start()
