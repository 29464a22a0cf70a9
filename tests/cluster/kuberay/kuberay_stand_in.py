"""The part of KubeRay that Ray's autoscaler relies on, on one machine: every pod is a real raylet.

`Operator` creates a RayCluster's pods and deletes those listed for deletion, like KubeRay's; `Pod` runs a pod, like a
kubelet; `KubeRayCluster` combines them with a head and with Ray's own autoscaler, started by KubeRay's command.
docs/kuberay-autoscaler.md explains which parts are real.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from cluster.errors import ClusterError
from cluster.local.nodes import STORE_BYTES, LocalNode, free_port
from cluster.local.processes import end_session, of_session
from tests.cluster.kuberay.kubernetes_stand_in import KubernetesApi, Object
from tests.waiting import wait_until

CLUSTER, GROUP, NODE_TYPE = "ray.io/cluster", "ray.io/group", "ray.io/node-type"
HEAD_GROUP = "headgroup"

DEFAULT_GRACE_S = 30
"""Kubernetes' own `terminationGracePeriodSeconds`."""

POLL_INTERVAL_S = 0.05

STRAGGLERS_S = 5.0
"""Seconds after the end of `ray start` after which remaining processes of it count as left behind."""

_ONE_MACHINE = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "node-ip-address")
"""Parameters of `ray start` that pods of one machine cannot share, because they share a network."""

_FRUGAL = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_metrics_collection": "0"}
"""Several nodes share the cores of one machine."""


class Pod(threading.Thread):
    """Runs a pod: Pending until it has a machine, then Running, then Succeeded, Failed or deleted."""

    def __init__(self, cluster: KubeRayCluster, name: str, group: str, options: list[str], env: dict[str, str]) -> None:
        super().__init__(name=name, daemon=True)
        self.group = group
        self.node: LocalNode | None = None
        self.has_machine = self.was_killed = False
        self.left_behind: list[int] = []
        self._cluster, self._options, self._env = cluster, options, env
        self._spec = cluster.api.get("pods", name)["spec"]

    @property
    def is_deleted(self) -> bool:
        """Whether its deletion has been requested."""
        return "deletionTimestamp" in self._cluster.api.get("pods", self.name)["metadata"]

    def run(self) -> None:
        """Runs the pod to its end."""
        api = self._cluster.api
        while not self.is_deleted and not self._cluster.find_machine(self):
            api.set_status(self.name, _status("Pending"))
            with api.changed:
                api.changed.wait(1)
        if self.has_machine:
            self._run_container()
            self.has_machine = False
        while not self.is_deleted:
            time.sleep(POLL_INTERVAL_S)
        api.remove_pod(self.name)

    def _run_container(self) -> None:
        with self._cluster.starting:  # two at once would take the same names
            self.node = node = LocalNode(self.name, self._options, self._env, self._cluster.folder)
            self._cluster.api.set_status(self.name, _status("Running", {"running": {}}))
            with suppress(ClusterError):  # then it has ended, and its status says so
                node.await_raylet()
        while node.exit_status is None and not self.is_deleted:
            time.sleep(POLL_INTERVAL_S)
        if node.exit_status is None:
            node.terminate()
            deadline = time.monotonic() + self._spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
            while node.exit_status is None and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL_S)
            self.was_killed = node.exit_status is None
            node.kill()
        deadline = time.monotonic() + STRAGGLERS_S
        while (left := of_session(node.session)) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        self.left_behind = left
        end_session(node.session)  # with the first process of a container end the others
        status = node.exit_status
        assert status is not None
        phase = "Failed" if status else "Succeeded"
        self._cluster.api.set_status(self.name, _status(phase, {"terminated": {"exitCode": status}}))


class Operator(threading.Thread):
    """Makes a cluster's pods be what its RayCluster says, whenever either changes."""

    def __init__(self, cluster: KubeRayCluster) -> None:
        super().__init__(name="operator", daemon=True)
        self._cluster = cluster
        self._stopped = False

    def run(self) -> None:
        """Work until it is stopped."""
        api = self._cluster.api
        with api.changed:
            while not self._stopped:
                self._reconcile()
                api.changed.wait(1)

    def stop(self) -> None:
        """Have it make and delete no more."""
        with self._cluster.api.changed:
            self._stopped = True
            self._cluster.api.changed.notify_all()
        self.join()

    def _reconcile(self) -> None:
        spec = self._cluster.api.get("rayclusters", self._cluster.name)["spec"]
        if not self._pods_of(HEAD_GROUP):
            self._cluster.create_pod(HEAD_GROUP, spec["headGroupSpec"])
        for group in spec["workerGroupSpecs"]:
            self._reconcile_group(group)

    def _reconcile_group(self, group: Object) -> None:
        pods = self._pods_of(group["groupName"])
        ended = [pod for pod in pods if pod["status"]["phase"] in ("Failed", "Succeeded")]
        for pod in ended:
            self._cluster.api.delete_pod(pod["metadata"]["name"])
        if ended:
            return  # replaced after their end
        unwanted = group.get("scaleStrategy", {}).get("workersToDelete") or []
        names = {pod["metadata"]["name"] for pod in pods}
        for name in names & set(unwanted):
            self._cluster.api.delete_pod(name)
        # A pod that others have deleted counts until its end.
        there = len(names - set(unwanted))
        wanted = min(max(group["replicas"], group["minReplicas"]), group["maxReplicas"])
        for _ in range(wanted - there):
            self._cluster.create_pod(group["groupName"], group)

    def _pods_of(self, group: str) -> list[Object]:
        return self._cluster.api.list_pods({CLUSTER: self._cluster.name, GROUP: group})["items"]


class KubeRayCluster:
    """A RayCluster on this machine. A context manager, inside which the head and the autoscaler run.

    Args:
        ray_cluster: the manifest.
        folder: for files of Ray and of the pods, a short path.
    """

    def __init__(self, ray_cluster: Object, folder: Path) -> None:
        metadata = ray_cluster["metadata"]
        self.name, self.namespace = metadata["name"], metadata["namespace"]
        self.folder = folder
        self.api = KubernetesApi(folder, self.namespace)
        self.starting = threading.Lock()
        self.capacity: dict[str, int] = {}
        self.pods: dict[str, Pod] = {}
        self._ray_cluster = ray_cluster
        self._port = free_port()
        # A token of its own, so that other users of this machine cannot join.
        self._token = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.environment = {**self._token, "RAY_ADDRESS": f"127.0.0.1:{self._port}"}
        self._autoscaler: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.api.__enter__()
        self.api.create("rayclusters", self._ray_cluster)
        self._operator = Operator(self)
        self._operator.start()
        try:
            wait_until(lambda: "runtime started" in self._head_output(), "the head's start")
            self._autoscaler = self._start_autoscaler()
            wait_until(lambda: "Using Autoscaling Config" in self.autoscaler_log(), "the autoscaler's start")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._autoscaler:
            self._autoscaler.kill()
            self._autoscaler.wait()
        self._operator.stop()
        for pod in reversed(self.pods.values()):
            if pod.is_alive():
                with suppress(Exception):
                    self.api.delete_pod(pod.name)
                if pod.node:
                    pod.node.kill()
                pod.join()
        self.api.__exit__(None, None, None)

    def find_machine(self, pod: Pod) -> bool:
        """Give the pod a machine, of `capacity` of its group, if one is free; without a number there always is."""
        with self.api.changed:
            taken = [each for each in self.pods.values() if each.group == pod.group and each.has_machine]
            pod.has_machine = len(taken) < self.capacity.get(pod.group, sys.maxsize)
            return pod.has_machine

    def pods_of(self, group: str, phase: str | None = None) -> list[str]:
        """Names of the group's pods that are not deleted, optionally of one phase."""
        pods = self.api.list_pods({GROUP: group})["items"]
        pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return [pod["metadata"]["name"] for pod in pods if phase in (None, pod["status"]["phase"])]

    def group(self, name: str) -> Object:
        """What the RayCluster says of a group at this moment."""
        groups = self.api.get("rayclusters", self.name)["spec"]["workerGroupSpecs"]
        return next(group for group in groups if group["groupName"] == name)

    def path_of(self, group: str, field: str) -> str:
        """Where a field of a group is in the RayCluster, as JSON patches name it."""
        groups = [each["groupName"] for each in self._ray_cluster["spec"]["workerGroupSpecs"]]
        return f"/spec/workerGroupSpecs/{groups.index(group)}/{field}"

    def set_field(self, group: str, field: str, value: object) -> None:
        """Change a field of a group, as `kubectl edit` does."""
        operation = {"op": "replace", "path": self.path_of(group, field), "value": value}
        self.api.patch("rayclusters", self.name, [operation])

    def delete_pod(self, name: str) -> None:
        """What `kubectl delete pod` asks, and what deletes the pods of a machine that is reclaimed."""
        own = self.api.environment
        url = f"https://{own['KUBERNETES_SERVICE_HOST']}:{own['KUBERNETES_SERVICE_PORT_HTTPS']}"
        identity = (own["RAY_KUBERAY_CLIENT_CERT_PATH"], own["RAY_KUBERAY_CLIENT_KEY_PATH"])
        path = f"{url}/api/v1/namespaces/{self.namespace}/pods/{name}"
        requests.delete(path, cert=identity, verify=own["RAY_KUBERAY_CA_CERT_PATH"], timeout=10).raise_for_status()

    def autoscaler_log(self) -> str:
        """What the autoscaler has written of its decisions."""
        log = self.folder / "session_latest/logs/monitor.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def create_pod(self, group: str, spec: Object) -> None:
        """A pod of a group, as the operator makes one of the group's spec."""
        is_head = group == HEAD_GROUP
        kind = "head" if is_head else "worker"
        name = f"{self.name}-{'head' if is_head else f'{group}-worker'}-{len(self.pods):05}"
        labels = {CLUSTER: self.name, GROUP: group, NODE_TYPE: kind}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": spec["template"]["spec"],
            "status": _status("Pending"),
        }
        self.api.create("pods", pod)
        variables = {
            each["name"]: each["value"]
            for each in spec["template"]["spec"]["containers"][0].get("env", [])
            if "value" in each
        }
        environment = {
            **_FRUGAL,
            **variables,
            **self.environment,
            "RAY_CLUSTER_NAME": self.name,
            "RAY_CLUSTER_NAMESPACE": self.namespace,
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": group,
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
            **({"RAY_enable_autoscaler_v2": "true"} if is_head else {}),
        }
        self.pods[name] = Pod(self, name, group, self._options(spec, is_head), environment)
        self.pods[name].start()

    @property
    def _head(self) -> Pod:
        return next(iter(self.pods.values()))

    def _head_output(self) -> str:
        files = self.folder.glob(f"{self.name}-head-*.out")
        return "".join(file.read_text(errors="replace") for file in files)

    def _options(self, spec: Object, is_head: bool) -> list[str]:
        own = {"object-store-memory": str(STORE_BYTES)}
        if is_head:
            own |= {
                "port": str(self._port),
                "ray-client-server-port": str(free_port()),
                "temp-dir": str(self.folder),
                "include-dashboard": "false",
                "no-monitor": "true",
            }
        else:
            own |= {"address": self.environment["RAY_ADDRESS"]}
        return [*(["--head"] if is_head else []), *ray_start_options({**start_parameters(spec), **own})]

    def _start_autoscaler(self) -> subprocess.Popen[bytes]:
        own = self._ray_cluster["spec"].get("autoscalerOptions", {}).get("env", [])
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **self._token,
            **self.api.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it runs `ray health-check`
            "RAY_CLUSTER_NAME": self.name,
            "RAY_CLUSTER_NAMESPACE": self.namespace,
            "RAY_HEAD_POD_NAME": self._head.name,
            "KUBERAY_CRD_VER": "v1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            **{each["name"]: each["value"] for each in own},
        }
        options = ["--cluster-name", self.name, "--cluster-namespace", self.namespace]
        with (self.folder / "autoscaler.out").open("wb") as output:
            return subprocess.Popen(
                ["ray", "kuberay-autoscaler", *options, "--gcs-address", self.environment["RAY_ADDRESS"]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def start_parameters(spec: Object) -> dict[str, str]:
    """A group's `rayStartParams`, and what KubeRay makes of its resources, its labels and its container's limits."""
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    limits = spec["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    by_limit, by_group = (
        {name: str(int(parse_quantity(amount))) for name, amount in each.items()}
        for each in (limits, spec.get("resources", {}))
    )
    labels = ",".join(f"{name}={value}" for name, value in spec.get("labels", {}).items())
    custom = {name: int(amount) for name, amount in by_group.items() if _parameter_of(name) is None}
    return {
        **{own: amount for name, amount in by_limit.items() if (own := _parameter_of(name))},
        **{name: value for name, value in spec.get("rayStartParams", {}).items() if name not in _ONE_MACHINE},
        **{own: amount for name, amount in by_group.items() if (own := _parameter_of(name))},
        **({"resources": f"'{json.dumps(custom)}'"} if custom else {}),
        **(
            {"labels": ",".join(f"{name}={value}" for name, value in labels.items())}
            if (labels := spec.get("labels"))
            else {}
        ),
    }


def _parameter_of(resource: str) -> str | None:
    if resource.lower().endswith("gpu"):
        return "num-gpus"
    return {"cpu": "num-cpus", "memory": "memory"}.get(resource.lower())


def ray_start_options(parameters: dict[str, str]) -> list[str]:
    """Parameters as a shell hands them to `ray start`: KubeRay writes a line of them, quotes and all."""
    return shlex.split(" ".join(_option(name, value) for name, value in sorted(parameters.items())))


def _option(name: str, value: str) -> str:
    if value in ("true", "false") and name != "include-dashboard":
        return f"--{name}" if value == "true" else ""
    return f"--{name}={value}"


def _status(phase: str, state: Object | None = None) -> Object:
    containers = [] if state is None else [{"name": "ray", "state": state}]
    return {"phase": phase, "containerStatuses": containers}
