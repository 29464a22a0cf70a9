"""A Ray cluster of several nodes on this machine, for tests of faults: real raylets, each with its own workers.

Every node is a separate `ray start --block`, as on a separate machine: SIGTERM drains it like a pod or a spot machine,
and SIGKILL to its processes simulates a lost machine.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import ClusterError
from cluster.local.processes import RAYLET, children, command_line, is_alive, of_session
from cluster.local.ray_command import RAY, path_with_commands, without_ray
from cluster.local.spot import notice
from cluster.node_environment import FAILOVER

START_TIMEOUT_S = 60.0
"""Seconds for a node to start: two interpreters and a raylet, on a machine that may be busy."""

POLL_INTERVAL_S = 0.1

STORE_BYTES = 100 << 20
"""Size of a node's object store, in shared memory."""

_METRICS = "RAY_enable_metrics_collection"

_TUNED = {"RAY_prestart_worker_first_driver": "0", _METRICS: "0", **FAILOVER}


class LocalNode:
    """One node.

    Args:
        name: shown in messages.
        options: of `ray start`.
        environment: replaces all variables of Ray.
        folder: for the node's output.
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
        """Waits until its raylet has created its sockets. Names of sockets are chosen by a search for free ones.

        Raises:
            ClusterError: it did not start; the message has the end of its output.
        """
        self._await(lambda: bool(self._raylets()))
        [self._raylet] = self._raylets()
        self._await(lambda: Path(self._argument("raylet_socket_name")).exists())

    def await_ready(self) -> None:
        """Waits until it has joined its cluster.

        Raises:
            ClusterError: it did not start; the message has the end of its output.
        """
        self._await(lambda: "Ray runtime started" in self._output.read_text(errors="replace"))

    def _argument(self, name: str) -> str:
        """Value of an option that its raylet was started with."""
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
        """Ray's id of the node."""
        return self._argument("node_id")

    def workers(self, title: str = "") -> list[int]:
        """Pids of its Ray workers whose title contains `title`."""
        return [pid for pid in children(self._raylet or -1) if title in command_line(pid)]

    @property
    def session(self) -> int:
        """Session id of its processes."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status of its `ray start`; None while it runs."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether the node runs."""
        return self._process.poll() is None and is_alive(self._raylet or -1)

    def kill(self) -> None:
        """Ends it suddenly, with SIGKILL to all of its processes."""
        while pids := list(self._all()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
        self._process.wait()

    def freeze(self) -> None:
        """Stops all of its processes: nothing comes from it any more, and its connections stay open."""
        for pid in self._all():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets all of its processes go on after `freeze`."""
        for pid in of_session(self.session):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Sends SIGTERM, like the deletion of a pod: the node drains, and ends when it is idle or its grace is over."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)

    def drain(self, address: str, grace_s: float, environment: Mapping[str, str]) -> float:
        """Notifies the cluster that the node will be reclaimed in `grace_s` seconds; does not end it.

        Returns:
            time of the notice, seconds since the epoch.
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
        folder: for files of Ray and of the nodes.
        grace_s: seconds for a node to drain after SIGTERM.
        environment: variables of its processes besides this process's own.
        stock: whether to keep Ray's default settings; else a lost node is noticed within two seconds.
        with_dashboard: whether to start Ray's dashboard, which submitted jobs need.
        metrics: whether Ray collects metrics, which is its default; every node serves its own.
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
        self._head_options: list[str] = []
        self._started = 0
        self._sessions: list[int] = []
        # A token of its own: other users of this machine cannot join, and Ray does not search for a file with a token.
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
        self.dashboard, dashboard = dashboard_options(wanted=self._with_dashboard)
        self._head_options = ["--head", f"--port={port}", "--num-cpus=0", *dashboard, f"--temp-dir={self.folder}"]
        self._start_head()
        self.address = f"127.0.0.1:{port}"
        self.environment["RAY_ADDRESS"] = self.address
        return self

    @property
    def head(self) -> LocalNode:
        """The head node."""
        assert self._head is not None, "inside the block"
        return self._head

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill_all()

    def restart(self) -> None:
        """Ends all nodes suddenly, and starts the head and as many nodes of one CPU again, under the same address.

        Without its head a cluster is of no use, and its nodes end too: Ray keeps its state in the head's memory.

        Raises:
            ClusterError: a node does not start.
        """
        count = len(self.living())
        self._kill_all()
        self.nodes = []
        self._start_head()
        self.add(count)

    def processes(self) -> list[int]:
        """All processes that nodes have started and that have not ended, those of nodes that are gone included."""
        return [pid for session in self._sessions for pid in of_session(session)]

    def add(self, count: int = 1, num_cpus: int = 1, environment: Mapping[str, str] | None = None) -> list[LocalNode]:
        """Starts `count` nodes; they have joined when this returns.

        Args:
            environment: variables of the nodes' processes besides those of all nodes.

        Raises:
            ClusterError: a node does not start.
        """
        options = [f"--address={self.address}", f"--num-cpus={num_cpus}", "--dashboard-agent-listen-port=0"]
        new = []
        for _ in range(count):
            self._started += 1
            new.append(self._node(f"node-{self._started}", options, environment))
            self.nodes.append(new[-1])
            new[-1].await_raylet()  # two at once would choose the same names
        for node in new:
            node.await_ready()
        return new

    def living(self) -> list[LocalNode]:
        """Nodes that run; those that have ended are removed from `nodes`."""
        living = [node for node in self.nodes if node.is_alive()]
        # Its `ray start` ends a moment after its raylet, and has to be waited for.
        self.nodes = [node for node in self.nodes if node.exit_status is None]
        return living

    def _start_head(self) -> None:
        self._head = self._node("head", self._head_options)
        self._head.await_raylet()
        self._head.await_ready()

    def _kill_all(self) -> None:
        for node in (*self.nodes, *([self._head] if self._head else [])):
            node.kill()

    def _node(self, name: str, options: list[str], environment: Mapping[str, str] | None = None) -> LocalNode:
        options = [*options, f"--object-store-memory={STORE_BYTES}"]
        node = LocalNode(name, options, {**self.environment, **(environment or {})}, self.folder)
        self._sessions.append(node.session)
        return node


def dashboard_options(*, wanted: bool) -> tuple[str, list[str]]:
    """URL of a head's dashboard, "" for none, and the options of `ray start` for it."""
    if not wanted:
        return "", ["--include-dashboard=false"]
    port, agent = free_port(), free_port()
    options = ["--include-dashboard=true", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}"]
    return f"http://127.0.0.1:{port}", options


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
