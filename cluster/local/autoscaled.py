"""A Ray cluster on this machine whose nodes Ray's own autoscaler starts on demand and removes when they are idle.

It uses autoscaler v2, like KubeRay, with the provider of "fake" nodes from Ray's own tests; these nodes are real
raylets with their own workers. docs/ray-autoscaler.md explains the settings, and
`tests/cluster/local/test_autoscaled.py` checks every name of Ray that is used.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.errors import ClusterError
from cluster.local.nodes import START_TIMEOUT_S, STORE_BYTES, dashboard_options, free_port
from cluster.local.processes import ROOT
from cluster.local.ray_command import RAY, path_with_commands, without_ray
from cluster.local.session import START as START_IN_SESSION
from cluster.node_environment import groups_variable, head_variables
from cluster.spec import GPU_STAND_IN, ClusterSpec, GroupSpec

HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Ray's id of the head in a cluster of fake nodes, and the id of the "machine" that it runs on."""

PROVIDER = "cluster.local.fake_provider.LocalNodeProvider"

AUTOSCALER_READY = "Using Autoscaling Config"
"""Log line of the autoscaler after it has accepted the configuration; if it rejects it, the head ends."""

HEAD_TYPE = "ray.head.default"

MAX_FOLDER_LENGTH = 33
"""Maximum characters in the path of its folder: a socket's path has at most 107, and Ray appends 67 and a number."""

_POLL_INTERVAL_S = 0.1


class AutoscaledCluster:
    """A head without CPUs, and the groups of nodes of `spec`, which are started and removed. A context manager.

    Commands join it with `environment`, this process with `joined()`. Demand consists of tasks and actors that wait for
    resources, and of pending placement groups, see `cluster.demand`. A node is removed once nothing has run on it and
    no object has been stored on it for `idle_timeout_s`; the autoscaler drains it first.

    However this process ends, all processes of the cluster end with it.

    Args:
        spec: groups with their CPUs, resources and labels, idle timeout and grace are used, the rest is ignored. A GPU
            is represented by the resource `GPU_STAND_IN`.
        folder: for Ray's files, a short path; by default a folder in /tmp that is removed at the end.
        with_dashboard: whether to start Ray's dashboard and its agents, which submitted jobs and metrics need.
        environment: variables of the cluster's processes besides this process's own and the spec's.

    Raises:
        ClusterError: on entering, if the folder's path is too long, or the head does not start; then the message has
            the end of its logs and their folder.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        *,
        folder: Path | None = None,
        with_dashboard: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.spec, self._with_dashboard = spec, with_dashboard
        self.address = self.dashboard = ""
        self.session = -1
        self._own_folder = folder is None
        self._given = folder
        self._agent: subprocess.Popen[str] | None = None
        self.environment = {
            "RAY_AUTH_MODE": "token",  # so that other users of this machine cannot join it
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            **groups_variable(spec, with_gpu_stand_ins=True),
            **spec.variables,
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        if self._given and len(path := str(self._given.absolute())) > MAX_FOLDER_LENGTH:
            raise ClusterError(
                f"The folder of a local cluster, {path}, has {len(path)} characters; {MAX_FOLDER_LENGTH} are allowed, "
                "because of the limit on paths of sockets. Use a shorter one."
            )
        # In /tmp regardless of TMPDIR, for the same reason.
        self.folder = self._given or Path(tempfile.mkdtemp(prefix="manta-as-", dir="/tmp"))
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._config_file.write_text(json.dumps(self._config(), indent=1))
        with self._output.open("wb") as output:
            self._agent = subprocess.Popen(
                [*START_IN_SESSION, *RAY, "start", "--block", *self._options(port)],
                env=self._head_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,  # Ctrl-C must reach the command only, which saves before it ends this
            )
        try:
            assert self._agent.stdout is not None
            self.session = int(self._agent.stdout.readline() or -1)
            self._await_head()
        except BaseException:
            self._end()
            raise
        self.environment["RAY_ADDRESS"] = self.address
        return self

    def has_ended(self) -> bool:
        """Whether its head has ended."""
        return self._agent is None or self._agent.poll() is not None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Inside the block, Ray in this process and its children joins this cluster; at the end Ray is shut down.

        Raises:
            ClusterError: ray was imported before without a token; it reads that setting only once.
        """
        if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != self.environment["RAY_AUTH_MODE"]:
            raise ClusterError(
                "Ray was imported before this process joined the autoscaled cluster, which would refuse it without a "
                "token. Import it inside joined(), or start a process with the cluster's `environment`."
            )
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            if "ray" in sys.modules:
                import ray

                ray.shutdown()  # a driver notices a lost cluster after a minute, and then ends its process
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def autoscaler_log(self, lines: int = 15) -> str:
        """The last lines of the autoscaler's log, with its decisions."""
        return _end_of(self._ray_folder / "session_latest" / "logs" / "monitor.log", lines)

    @property
    def _ray_folder(self) -> Path:
        """A folder inside `folder`: Ray makes its own accessible to everyone, and the one above it stays private."""
        return self.folder / "r"

    @property
    def _config_file(self) -> Path:
        return self.folder / "autoscaling.json"

    @property
    def _output(self) -> Path:
        return self.folder / "head.out"

    def _options(self, port: int) -> list[str]:
        self.dashboard, dashboard = dashboard_options(wanted=self._with_dashboard)
        return [
            "--head",
            "--disable-usage-stats",
            f"--port={port}",
            f"--ray-client-server-port={free_port()}",  # another cluster may use the default, 10001
            "--num-cpus=0",
            *dashboard,
            f"--object-store-memory={STORE_BYTES}",
            f"--temp-dir={self._ray_folder}",
            f"--autoscaling-config={self._config_file}",
        ]

    def _config(self) -> dict[str, Any]:
        """The autoscaler's configuration, which is written as JSON, a subset of YAML."""
        return {
            "cluster_name": self.spec.cluster,
            "max_workers": sum(group.max for group in self.spec.groups),
            "idle_timeout_minutes": self.spec.idle_timeout_s / 60,
            "provider": {
                # Not by type: Ray would look for defaults in a file that its wheel does not contain.
                "type": "external",
                "module": PROVIDER,
                "gcs_address": self.address,
                "head_node_id": HEAD_NODE_ID,
                "launch_multiple": True,  # as many nodes as requested; else one per call
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            **{f"{kind}_commands": [] for kind in ("setup", "head_setup", "worker_setup", "initialization")},
            "cluster_synced_files": [],
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **{group.name: _node_type(group) for group in self.spec.groups},
            },
        }

    def _head_environment(self) -> dict[str, str]:
        return {
            **without_ray({}),
            "PATH": path_with_commands(),
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_metrics_collection": str(int(self._with_dashboard)),
            **head_variables(self.spec, with_gpu_stand_ins=True),
            **self.environment,
            "RAY_enable_autoscaler_v2": "1",
            "RAY_FAKE_CLUSTER": "1",
            # Identifies the head in the provider's records: v2 starts no node until it knows that the head runs.
            "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),  # for PROVIDER
        }

    def _await_head(self) -> None:
        """Returns when the head runs and its autoscaler has accepted the configuration."""
        assert self._agent is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in self._output.read_text(
            errors="replace"
        ) or AUTOSCALER_READY not in self.autoscaler_log(1000):
            ended = self._agent.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended while starting" if ended else f"did not start within {START_TIMEOUT_S:.0f} s"
                raise ClusterError(
                    f"The head of the local autoscaled cluster {what}. The end of its output:\n"
                    f"{_end_of(self._output)}\nThe end of its autoscaler's log:\n{self.autoscaler_log()}\n"
                    f"The logs are in {self.folder}."
                )
            time.sleep(_POLL_INTERVAL_S)

    def _end(self) -> None:
        """Ends the cluster's processes; returns when none is left."""
        if self._agent is not None:
            assert self._agent.stdin is not None and self._agent.stdout is not None
            self._agent.stdin.close()
            self._agent.wait()
            self._agent.stdout.close()
            self._agent = None


def _node_type(group: GroupSpec) -> dict[str, Any]:
    """A group in the autoscaler's configuration."""
    gpus = {GPU_STAND_IN: group.gpus} if group.gpus else {}
    return {
        "resources": {"CPU": group.cpus, "object_store_memory": STORE_BYTES, **gpus, **group.resources},
        "labels": group.all_labels,
        "node_config": {},
        "min_workers": group.min,
        "max_workers": group.max,
    }


def _end_of(file: Path, lines: int = 15) -> str:
    try:
        text = file.read_bytes()[-50_000:].decode(errors="replace")
    except OSError:
        return ""
    return "\n".join("  " + line[:300] for line in text.splitlines()[-lines:])
