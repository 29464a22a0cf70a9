"""Pod templates of KubeRay's manifests: the head's pod, and those of the groups of nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cluster.node_environment import head_variables, node_variables, shared_memory
from cluster.spec import ClusterSpec, GroupSpec, Machine

RECIPE_FOLDER, RECIPE_FILE = "/etc/manta", "recipe.yaml"

TEAR_DOWN_S = 30
"""Seconds between the end of a node's drain and the end of its pod, for Ray's processes to stop."""

SPOT = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""Labels by which Karpenter, EKS, GKE and AKS mark nodes that may be reclaimed; GKE's and AKS's are also taints."""

_AGENT_PORT = 52365

_USER, _GROUP = 1000, 100
"""Ids of the user `ray` in Ray's images."""


def grace_period_s(spec: ClusterSpec) -> int:
    """Whole seconds between the notice to a pod and its end: the node's drain, and the end of Ray's processes."""
    return math.ceil(spec.grace_s) + TEAR_DOWN_S


def head_pod(spec: ClusterSpec, recipe_map: str | None) -> dict[str, Any]:
    """Template of the head's pod.

    Args:
        spec: of the cluster.
        recipe_map: name of the ConfigMap to mount; None for a cluster without a run.
    """
    container = _container(spec, spec.head, "ray-head", head_variables(spec, with_gpu_stand_ins=False))
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "metrics", "containerPort": 8080},
    ]
    pod = _pod(spec, spec.head, container, is_spot=False)
    if recipe_map is not None:
        container["volumeMounts"].append({"name": "recipe", "mountPath": RECIPE_FOLDER, "readOnly": True})
        pod["volumes"].append({"name": "recipe", "configMap": {"name": recipe_map}})
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    return {"metadata": {"annotations": keep}, "spec": pod}


def worker_pod(spec: ClusterSpec, group: GroupSpec) -> dict[str, Any]:
    """Template of the pods of a group."""
    container = _container(spec, group, "ray-worker", node_variables(spec))
    tolerations = []
    if group.gpus:
        limits = {**container["resources"]["limits"], group.gpu_resource: str(group.gpus)}
        container["resources"] = equal_requests_and_limits(limits)
        vendor = group.gpu_resource.partition("/")[0]  # nodes with slices of a GPU have the same taint as others
        tolerations.append({"key": f"{vendor}/gpu", "operator": "Exists", "effect": "NoSchedule"})
    pod = _pod(spec, group, container, is_spot=group.spot, tolerations=tolerations)
    return {"spec": {"automountServiceAccountToken": False, **pod}}


def container_security() -> dict[str, Any]:
    """The `securityContext` of every container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def equal_requests_and_limits(resources: dict[str, str]) -> dict[str, Any]:
    """The `resources` of a container. Equal values reserve all that a pod uses, and make it the last to be evicted."""
    return {"requests": resources, "limits": resources}


def _pod(
    spec: ClusterSpec,
    machine: Machine,
    container: dict[str, Any],
    *,
    is_spot: bool,
    tolerations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The part of a pod's `spec` that head and workers have in common."""
    pod: dict[str, Any] = {}
    if spec.service_account is not None:
        pod["serviceAccountName"] = spec.service_account
    if spec.kubernetes.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.kubernetes.image_pull_secrets]
    pod["terminationGracePeriodSeconds"] = grace_period_s(spec)
    if machine.node_selector:
        pod["nodeSelector"] = dict(machine.node_selector)
    pod["affinity"] = {"nodeAffinity": _prefer_spot() if is_spot else _exclude_spot()}
    tolerated = [*(tolerations or []), *(_spot_tolerations() if is_spot else [])]
    tolerated += [taint.in_kubernetes for taint in machine.tolerations]
    if tolerated:
        pod["tolerations"] = tolerated
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


def _exclude_spot() -> dict[str, Any]:
    excluded = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT.items()]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": excluded}]}}


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
        "resources": equal_requests_and_limits({"cpu": str(machine.cpus), "memory": machine.memory}),
        "env": [
            # Kubernetes reads $(NAME) as another variable's value, and $$ as one dollar.
            *({"name": name, "value": value.replace("$", "$$")} for name, value in variables.items()),
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
                for name, secret in spec.secrets.items()
            ),
        ],
        "readinessProbe": {**probe, "initialDelaySeconds": 5, "failureThreshold": 10},
        "livenessProbe": {**probe, "initialDelaySeconds": 30, "failureThreshold": 60},
        "securityContext": container_security(),
        "volumeMounts": [{"name": "shared-mem", "mountPath": "/dev/shm"}],
    }
