"""Renders a cluster's spec as manifests of KubeRay v1.7, as dictionaries:

    ConfigMap   the recipe, mounted into the head at /etc/manta
    RayJob      one run: its own cluster, the command, the retries, and the clean-up afterwards
    RayCluster  the same cluster without a run, for jobs that are submitted to it

Pod templates are in `cluster.render.kuberay_pods`, comments on the fields in `cluster.render.kuberay_comments`. These
functions do no I/O. Secrets are referred to by name; their values do not occur here.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from typing import Any, Literal

from cluster.errors import ClusterError
from cluster.kubernetes_syntax import RULES, SUBDOMAIN, bytes_of
from cluster.render.kuberay_pods import (
    RECIPE_FILE,
    RECIPE_FOLDER,
    container_security,
    equal_requests_and_limits,
    grace_period_s,
    head_pod,
    worker_pod,
)
from cluster.spec import MARKET_LABEL, ClusterSpec, GroupSpec
from cluster.strict_yaml import override

RAY_VERSION = "2.60.0"
"""Ray version of the image, pinned in pyproject.toml. KubeRay chooses probes and refuses options by it."""

MAX_NAME_LENGTH = 40
"""Maximum length of a RayJob's name: KubeRay allows 47 characters, and appends to it for the objects that it owns."""

LEAST_MEMORY = "512Mi"
"""Memory of a pod in which Ray starts."""

PRESUMED_DEAD_MARGIN_S = 60
"""Twice the seconds for which a run still presumes an attempt alive that has ended without notice."""

Kind = Literal["rayjob", "raycluster"]


def spec_problems(spec: ClusterSpec) -> list[str]:
    """What must be added to the spec, or changed in it, before it can be rendered; one line per field."""
    problems = []
    if spec.image is None:
        problems.append("image: missing; the container image with Manta in it, built from the Dockerfile")
    machines = {"head": spec.head} | {f"groups.{index}": group for index, group in enumerate(spec.groups)}
    for where, machine in machines.items():
        if bytes_of(machine.memory) < bytes_of(LEAST_MEMORY):
            problems.append(f"{where}.memory = {machine.memory}: Ray alone needs {LEAST_MEMORY}")
    account = spec.service_account
    if account is not None and not re.fullmatch(SUBDOMAIN, account):
        problems.append(
            f"service_account = {account!r}: not a Kubernetes service account; its name is {RULES[SUBDOMAIN]}"
        )
    return problems


def manifests(spec: ClusterSpec, run: str, recipe: str, storage: str | None = None) -> list[dict[str, Any]]:
    """The objects of a run in the order to apply them in: the recipe's ConfigMap, then the RayJob.

    Args:
        spec: of the cluster.
        run: name of the run.
        recipe: text of the recipe.
        storage: replaces the recipe's `storage`.

    Raises:
        ClusterError: the spec cannot be rendered, see `spec_problems`.
    """
    return [_recipe_map(spec, run, recipe), ray_job(spec, run, storage)]


def ray_cluster(spec: ClusterSpec) -> dict[str, Any]:
    """The RayCluster, without a run.

    Raises:
        ClusterError: the spec cannot be rendered, see `spec_problems`.
    """
    return _object(spec, "ray.io/v1", "RayCluster", spec.cluster) | {"spec": _cluster(spec)}


def ray_job(spec: ClusterSpec, run: str, storage: str | None = None) -> dict[str, Any]:
    """The RayJob that trains the recipe in the run's ConfigMap.

    Raises:
        ClusterError: the spec cannot be rendered, see `spec_problems`.
    """
    kubernetes = spec.kubernetes
    job: dict[str, Any] = {
        "entrypoint": entrypoint(spec, storage),
        "submissionMode": "HTTPMode",
        "backoffLimit": kubernetes.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.clean_up_after_s,
    }
    if kubernetes.deadline_s is not None:
        job["activeDeadlineSeconds"] = kubernetes.deadline_s
    if kubernetes.queue is not None:
        job["suspend"] = True
    job["rayClusterSpec"] = _cluster(spec, _recipe_name(run))
    return _object(spec, "ray.io/v1", "RayJob", object_name(run)) | {"spec": job}


def object_name(run: str) -> str:
    """Name of a run's objects: the run's own if Kubernetes accepts it, else one derived from it.

    Not the cluster's name: two recipes for one spec are two jobs, each with its own recipe.
    """
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if name == run and name[0].isalpha() and len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(run.encode()).hexdigest()[:6]
    return f"run-{name}"[: MAX_NAME_LENGTH - 7].strip("-") + f"-{digest}"


def entrypoint(spec: ClusterSpec, storage: str | None) -> str:
    """The job's command.

    After a lost head, or when a job is retried, the previous attempt's heartbeat may still be fresh, or the attempt may
    live on for its pod's grace period. The command waits for that long, and then refuses as it always does.
    """
    arguments = [
        "manta",
        "train",
        f"{RECIPE_FOLDER}/{RECIPE_FILE}",
        "--patience",
        f"{grace_period_s(spec) + PRESUMED_DEAD_MARGIN_S}s",
    ]
    if storage is not None:
        arguments += ["--set", override("storage", storage)]
    return shlex.join(arguments)


def _object(spec: ClusterSpec, version: str, kind: str, name: str) -> dict[str, Any]:
    """An object without its content."""
    labels = {"app.kubernetes.io/name": "manta", "app.kubernetes.io/instance": spec.cluster}
    metadata: dict[str, Any] = {"name": name, "namespace": spec.kubernetes.namespace, "labels": labels}
    if spec.kubernetes.queue is not None and kind != "ConfigMap":
        labels["kueue.x-k8s.io/queue-name"] = spec.kubernetes.queue
        metadata["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _recipe_map(spec: ClusterSpec, run: str, recipe: str) -> dict[str, Any]:
    return _object(spec, "v1", "ConfigMap", _recipe_name(run)) | {"immutable": True, "data": {RECIPE_FILE: recipe}}


def _recipe_name(run: str) -> str:
    return f"{object_name(run)}-recipe"


def _cluster(spec: ClusterSpec, recipe_map: str | None = None) -> dict[str, Any]:
    """The `spec` of a RayCluster."""
    if problems := spec_problems(spec):
        raise ClusterError("\n".join(problems))
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": math.ceil(spec.idle_timeout_s),
            "upscalingMode": "Default",
            "env": [
                {"name": "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S", "value": f"{math.ceil(spec.idle_timeout_s)}"}
            ],
            "resources": equal_requests_and_limits({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": container_security(),
        },
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "labels": {MARKET_LABEL: "on-demand"},
            "template": head_pod(spec, recipe_map),
        },
        "workerGroupSpecs": [_worker_group(spec, group) for group in spec.groups],
    }


def _worker_group(spec: ClusterSpec, group: GroupSpec) -> dict[str, Any]:
    counted = {"CPU": str(group.cpus)} | ({"GPU": str(group.gpus)} if group.gpus else {})
    return {
        "groupName": group.name,
        "minReplicas": group.min,
        "maxReplicas": group.max,
        "replicas": group.min,
        "rayStartParams": {},
        "resources": counted | {name: str(int(amount)) for name, amount in group.resources.items()},
        "labels": group.all_labels,
        "template": worker_pod(spec, group),
    }
