"""A cluster's spec as manifests of KubeRay v1.7: dictionaries as Kubernetes has them, and what to say of their fields.

    ConfigMap   the recipe, mounted into the head at /etc/manta
    RayJob      one run: a cluster of its own, the command, what to try again, and the clean-up after it
    RayCluster  the same cluster without a run, for jobs that are submitted to it

Nothing is read or asked here. Values of secrets never come by: they are referred to.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from cluster.errors import ClusterError
from cluster.node_environment import head_variables, node_variables, shared_memory
from cluster.spec import MARKET_LABEL, ClusterSpec, GroupSpec, Machine

RAY_VERSION = "2.60.0"
"""What the image has; pyproject.toml pins it. KubeRay writes probes and refuses options by it."""

RECIPE_FOLDER, RECIPE_FILE = "/etc/manta", "recipe.yaml"

TEAR_DOWN_S = 30
"""Seconds between the end of a node's drain and the end of its pod, for Ray's processes to stop."""

LONGEST_NAME = 40
"""Characters of a RayJob's name: KubeRay makes longer ones of it for what belongs to it, and takes 47."""

FALLS_SILENT_S = 60
"""Seconds after a pod's end in which its attempt of a run may still be taken for alive, and as many again."""

SPOT = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""How Karpenter, EKS, GKE and AKS label nodes that may be reclaimed; GKE and AKS taint them by the same names."""

_AGENT_PORT = 52365

_USER, _GROUP = 1000, 100
"""Ids of the user `ray` in Ray's images."""

Kind = Literal["rayjob", "raycluster"]


def lacking(spec: ClusterSpec) -> list[str]:
    """What has to be added to the spec before manifests can be made of it."""
    if spec.image is None:
        return ["image: missing; the container image with Manta in it, built from the Dockerfile"]
    return []


def manifests(spec: ClusterSpec, run: str, recipe: str, storage: str | None = None) -> list[dict[str, Any]]:
    """A run's objects, in the order to apply them in: the recipe's ConfigMap, and the RayJob.

    Args:
        run: its name.
        recipe: its text.
        storage: what takes the place of the recipe's `storage`.

    Raises:
        ClusterError: the spec lacks something, see `lacking`.
    """
    return [_recipe_map(spec, run, recipe), ray_job(spec, run, storage)]


def ray_cluster(spec: ClusterSpec) -> dict[str, Any]:
    """The RayCluster, without a run.

    Raises:
        ClusterError: the spec lacks something, see `lacking`.
    """
    return _object(spec, "ray.io/v1", "RayCluster", spec.cluster) | {"spec": _cluster(spec)}


def ray_job(spec: ClusterSpec, run: str, storage: str | None = None) -> dict[str, Any]:
    """The RayJob that trains the recipe of the ConfigMap beside it.

    Raises:
        ClusterError: the spec lacks something, see `lacking`.
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
    """What the objects of a run are called: its name where Kubernetes takes that, else one made of it.

    Not that of the cluster: two recipes for one spec are two jobs, each with a recipe of its own.
    """
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if name == run and name[0].isalpha() and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(run.encode()).hexdigest()[:6]
    return f"run-{name}"[: LONGEST_NAME - 7].strip("-") + f"-{digest}"


def entrypoint(spec: ClusterSpec, storage: str | None) -> str:
    """The command that the job is.

    A head that is lost, or a job that is tried again, may find the sign of life of the attempt before still fresh, or
    that attempt alive for its pod's grace: the command waits that long for it, and then refuses as it always does.
    """
    words = [
        "manta",
        "train",
        f"{RECIPE_FOLDER}/{RECIPE_FILE}",
        "--patience",
        f"{grace_period_s(spec) + FALLS_SILENT_S}s",
    ]
    if storage is not None:
        words += ["--set", f"storage={storage}"]
    return shlex.join(words)


def grace_period_s(spec: ClusterSpec) -> int:
    """Whole seconds that a pod has from the notice to its end: the node's drain, and Ray's own end."""
    return math.ceil(spec.grace_s) + TEAR_DOWN_S


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
    if problems := lacking(spec):
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
            "resources": _same({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": _container_security(),
        },
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "labels": {MARKET_LABEL: "on-demand"},
            "template": _head_pod(spec, recipe_map),
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
        "template": _worker_pod(spec, group),
    }


def _head_pod(spec: ClusterSpec, recipe_map: str | None) -> dict[str, Any]:
    container = _container(spec, spec.head, "ray-head", head_variables(spec, gpus_stood_in_for=False))
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "metrics", "containerPort": 8080},
    ]
    pod = _pod(spec, spec.head, container, may_be_reclaimed=False)
    if recipe_map is not None:
        container["volumeMounts"].append({"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True})
        pod["volumes"].append({"name": "recipe", "configMap": {"name": recipe_map}})
    stay = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    return {"metadata": {"annotations": stay}, "spec": pod}


def _worker_pod(spec: ClusterSpec, group: GroupSpec) -> dict[str, Any]:
    container = _container(spec, group, "ray-worker", node_variables(spec))
    tolerations = []
    if group.gpus:
        container["resources"] = _same({**container["resources"]["limits"], group.gpu_resource: str(group.gpus)})
        vendor = group.gpu_resource.partition("/")[0]  # nodes with slices of a GPU are tainted as those with whole ones
        tolerations.append({"key": f"{vendor}/gpu", "operator": "Exists", "effect": "NoSchedule"})
    pod = _pod(spec, group, container, may_be_reclaimed=group.spot, tolerations=tolerations)
    return {"spec": {"automountServiceAccountToken": False, **pod}}


def _pod(
    spec: ClusterSpec,
    machine: Machine,
    container: dict[str, Any],
    *,
    may_be_reclaimed: bool,
    tolerations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The `spec` of a pod, with what head and workers have in common."""
    pod: dict[str, Any] = {}
    if spec.service_account is not None:
        pod["serviceAccountName"] = spec.service_account
    if spec.kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.kubernetes.image_pull_secrets]
    pod["terminationGracePeriodSeconds"] = grace_period_s(spec)
    if machine.node_selector:
        pod["nodeSelector"] = dict(machine.node_selector)
    pod["affinity"] = {"nodeAffinity": _prefer_spot() if may_be_reclaimed else _keep_off_spot()}
    put_up_with = [*(tolerations or []), *(_spot_tolerations() if may_be_reclaimed else [])]
    put_up_with += [taint.model_dump(exclude_none=True) for taint in machine.tolerations]
    if put_up_with:
        pod["tolerations"] = put_up_with
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _GROUP,
        "fsGroup": _GROUP,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod["containers"] = [container]
    pod["volumes"] = [{"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory(machine)}}]
    return pod


def _keep_off_spot() -> dict[str, Any]:
    apart = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT.items()]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": apart}]}}


def _prefer_spot() -> dict[str, Any]:
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
            for key, value in SPOT.items()
        ]
    }


def _spot_tolerations() -> list[dict[str, Any]]:
    return [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in SPOT.items()
        if key.startswith(("cloud.google.com", "kubernetes.azure.com"))
    ]


def _container(spec: ClusterSpec, machine: Machine, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/api/healthz", "port": _AGENT_PORT}, "periodSeconds": 5, "timeoutSeconds": 5}
    return {
        "name": name,
        "image": spec.image,
        "resources": _same({"cpu": str(machine.cpus), "memory": machine.memory}),
        "env": [
            *({"name": name, "value": value} for name, value in variables.items()),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
                for name, secret in spec.secrets.items()
            ),
        ],
        "readinessProbe": {**probe, "initialDelaySeconds": 5, "failureThreshold": 10},
        "livenessProbe": {**probe, "initialDelaySeconds": 30, "failureThreshold": 60},
        "securityContext": _container_security(),
        "volumeMounts": [{"name": "shared-mem", "mountPath": "/dev/shm"}],
    }


def _container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _same(resources: dict[str, str]) -> dict[str, Any]:
    """Requests that are the limits: the pod gets what it counts on, and is the last to be evicted."""
    return {"requests": resources, "limits": resources}
