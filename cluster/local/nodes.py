"""A Ray cluster of several nodes on this machine: real raylets, each with workers of its own, that come, go and die.

Every node is a `ray start --block` of its own, as on a machine of its own: SIGTERM drains it as it does a pod or a spot
machine, and SIGKILL to its processes is a machine that is gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import ClusterError
from cluster.local.processes import RAYLET, children, command_line, is_alive
from cluster.local.ray_command import RAY, path_with_commands, without_ray
from cluster.local.spot import notice
from cluster.node_environment import HEALTH_CHECK

START_TIMEOUT_S = 60.0
"""Seconds a node may take to start: two interpreters and a raylet, on a machine that is busy with others."""

POLL_INTERVAL_S = 0.1

STORE_BYTES = 100 << 20
"""Shared memory of a node's object store."""

_METRICS = "RAY_enable_metrics_collection"

_TUNED = {"RAY_prestart_worker_first_driver": "0", _METRICS: "0", **HEALTH_CHECK}


class LocalNode:
    """One node. `name` tells it from the others for a person.

    Raises:
        ClusterError: it does not come up; the message has the end of its output.
    """

    def __init__(self, name: str, options: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name, self._output = name, folder / f"{name}.out"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*RAY, "start", "--block", "--disable-usage-stats", *options],
                env=without_ray(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._raylet: int | None = None

    def await_raylet(self) -> None:
        """Wait until its raylet has been started and has taken its sockets, whose names are found by looking."""
        self._await(lambda: bool(self._raylets()))
        [self._raylet] = self._raylets()
        self._await(lambda: Path(self._argument("raylet_socket_name")).exists())

    def await_ready(self) -> None:
        """Wait until it has joined its cluster."""
        self._await(lambda: "Ray runtime started" in self._output.read_text(errors="replace"))

    def _argument(self, name: str) -> str:
        """What its raylet was started with."""
        parts = command_line(self._raylet or -1).split("\0")
        return next((part.removeprefix(f"--{name}=") for part in parts if part.startswith(f"--{name}=")), "")

    def _raylets(self) -> list[int]:
        return [pid for pid in children(self._process.pid) if RAYLET in command_line(pid).partition("\0")[0]]

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = " ".join(self._output.read_text(errors="replace").splitlines()[-5:])
                self.kill()
                raise ClusterError(f"Node {self.name} did not start: {end}")
            time.sleep(POLL_INTERVAL_S)

    @property
    def node_id(self) -> str:
        """Its id in the cluster, as Ray's tools take it."""
        return self._argument("node_id")

    def workers(self, title: str = "") -> list[int]:
        """Pids of its Ray workers whose title contains `title`."""
        return [pid for pid in children(self._raylet or -1) if title in command_line(pid)]

    @property
    def session(self) -> int:
        """Id of the session its processes are in."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """That of its `ray start`; None while it runs."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether the node is there."""
        return self._process.poll() is None and is_alive(self._raylet or -1)

    def kill(self) -> None:
        """End it as if its power were cut: SIGKILL to all of its processes."""
        while pids := list(self._all()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, as a pod that is deleted gets it: the node drains, and ends when it is idle or its grace is over."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def drain(self, address: str, grace_s: float, environment: Mapping[str, str]) -> float:
        """Have the cluster told that the node will be reclaimed in `grace_s` seconds; it is not ended here.

        Returns:
            when the cluster knew, seconds since the epoch.
        """
        notice(address, self.node_id, grace_s, environment)
        return time.time()

    def _all(self) -> Iterator[int]:
        pending = [self._process.pid] if is_alive(self._process.pid) else []
        pending += [self._raylet] if self._raylet and is_alive(self._raylet) else []
        seen: set[int] = set()
        while pending:
            pid = pending.pop()
            if pid not in seen and is_alive(pid):
                seen.add(pid)
                yield pid
                pending += children(pid)


class LocalNodes:
    """A head without CPUs, for the driver and its actors, and the nodes that are added. A context manager.

    Args:
        folder: where Ray and the nodes put their files.
        grace_s: seconds a node has to drain after SIGTERM.
        environment: variables of its processes besides this one's own.
        stock: leave Ray's settings as they come; else a node that is gone is noticed within two seconds.
        with_dashboard: also what submitted jobs need: Ray's dashboard.
        metrics: have Ray collect metrics, as it does where nothing says otherwise; every node serves its own.
    """

    def __init__(
        self,
        folder: Path,
        grace_s: float = 30.0,
        environment: Mapping[str, str] | None = None,
        *,
        stock: bool = False,
        with_dashboard: bool = False,
        metrics: bool = False,
    ) -> None:
        self.folder, self._with_dashboard = folder, with_dashboard
        self.address = self.dashboard = ""
        self.nodes: list[LocalNode] = []
        self._head: LocalNode | None = None
        self._started = 0
        # A token of this cluster's own: nobody else on this machine can join it, and no file with one is looked for.
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{grace_s:g}",
            "PATH": path_with_commands(),
            **({} if stock else _TUNED),
            **({_METRICS: "1"} if metrics else {}),
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        port = free_port()
        self.dashboard, dashboard = dashboard_of(wanted=self._with_dashboard)
        options = ["--head", f"--port={port}", "--num-cpus=0", *dashboard, f"--temp-dir={self.folder}"]
        self._head = self._node("head", options)
        self._head.await_raylet()
        self._head.await_ready()
        self.address = f"127.0.0.1:{port}"
        self.environment["RAY_ADDRESS"] = self.address
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in (*self.nodes, *([self._head] if self._head else [])):
            node.kill()

    def add(self, count: int = 1, num_cpus: int = 1) -> list[LocalNode]:
        """Start so many nodes; they have joined when this returns.

        Raises:
            ClusterError: one does not come up.
        """
        options = [f"--address={self.address}", f"--num-cpus={num_cpus}", "--dashboard-agent-listen-port=0"]
        new = []
        for _ in range(count):
            self._started += 1
            new.append(self._node(f"node-{self._started}", options))
            self.nodes.append(new[-1])
            new[-1].await_raylet()  # two at once would take the same names
        for node in new:
            node.await_ready()
        return new

    def living(self) -> list[LocalNode]:
        """Nodes that are there; those that have ended are forgotten."""
        self.nodes = [node for node in self.nodes if node.is_alive()]
        return self.nodes

    def _node(self, name: str, options: list[str]) -> LocalNode:
        options = [*options, f"--object-store-memory={STORE_BYTES}"]
        return LocalNode(name, options, self.environment, self.folder)


def dashboard_of(*, wanted: bool) -> tuple[str, list[str]]:
    """Address of the dashboard that a head is to have, "" for none, and the options of `ray start` for it."""
    if not wanted:
        return "", ["--include-dashboard=false"]
    port, agent = free_port(), free_port()
    options = ["--include-dashboard=true", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}"]
    return f"http://127.0.0.1:{port}", options


def free_port() -> int:
    """A port nobody listens on at this moment."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
