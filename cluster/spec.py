"""The description of a cluster: `ClusterSpec`, from which local raylets, KubeRay manifests and VM YAML are derived.

A spec refers to secrets by name and does not contain their values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.known_secrets import form_of_key, looks_secret
from cluster.kubernetes_syntax import (
    HTTP_URL,
    IMAGE,
    KEY,
    NAME,
    QUANTITY,
    RULES,
    SUBDOMAIN,
    USER,
    WORD,
    bytes_of,
    is_label_key,
    label_problems,
)

MOST_MEMORY = "64Ti"
"""More than any machine has."""

MOST_NODES = 10_000
"""Twice the nodes that Kubernetes supports in one cluster (kubernetes.io: Considerations for large clusters)."""

_MOST_OF_A_RESOURCE = 10**9

_MOST_RETRIES, _MOST_SECONDS = 10_000, 10 * 366 * 24 * 3600

GPU = "nvidia.com/gpu"

GPU_STAND_IN = "gpu-stand-in"
"""Resource that replaces the GPUs of a group's nodes on this machine, which need not have any."""

HEAD = "head"

MARKET_LABEL, GROUP_LABEL = "ray.io/market-type", "ray.io/node-group"
"""Ray's own labels of a node: whether it may be reclaimed, and its group."""

COUNTED_BY_RAY = ("CPU", "GPU", "TPU", "memory", "object_store_memory", "node:")
"""Prefixes of the names of resources that Ray counts by itself."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Part(BaseModel):
    """A part of the spec: immutable; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SecretRef(_Part):
    """Source of an environment variable's value: a key of an existing secret."""

    name: str = Field(pattern=SUBDOMAIN, max_length=253, description="Name of the Kubernetes secret.")
    key: str = Field(pattern=KEY, max_length=253, description="Key in the secret.")


class Toleration(_Part):
    """A taint of nodes that pods of a group tolerate, as in Kubernetes."""

    key: str = Field(min_length=1, description="Key of the taint.")
    operator: Literal["Exists", "Equal"] | None = Field(
        None, description="Whether the taint's value must be equal; null: Equal if there is a value, else Exists."
    )
    value: str | None = Field(None, description="Value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        "NoSchedule", description="Effect of the taint; null: any."
    )

    @property
    def in_kubernetes(self) -> dict[str, str]:
        """The toleration as Kubernetes reads it."""
        operator = self.operator or ("Exists" if self.value is None else "Equal")
        return {**self.model_dump(exclude_none=True), "operator": operator}


class Machine(_Part):
    """Hardware and placement of the head, or of the nodes of a group."""

    cpus: int = Field(2, ge=1, le=4096, description="CPU cores of a node, from 1 to 4096.")
    memory: str = Field("4Gi", pattern=QUANTITY, description="Memory of a node, as 16Gi.")
    instance_type: str | None = Field(
        None, pattern=WORD, description="Type of the virtual machine, as m5.xlarge; VMs only."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a Kubernetes node must have to run a pod."
    )
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that its pods tolerate.")


class HeadSpec(Machine):
    """The head, on which the driver and its actors run, and no workers. It is never a spot node."""


class GroupSpec(Machine):
    """A group of equal nodes, and the limits of their number."""

    name: str = Field(pattern=NAME, max_length=40, description="Name of the group.")
    min: int = Field(0, ge=0, description="Minimum number of nodes, which run even without work.")
    max: int = Field(ge=1, le=MOST_NODES, description=f"Maximum number of nodes, from 1 to {MOST_NODES:,}.")
    gpus: int = Field(
        0, ge=0, le=128, description="GPUs of a node: groups with GPUs train, groups without GPUs tokenize."
    )
    gpu_resource: str = Field(GPU, description="Name of the GPU resource in Kubernetes.")
    accelerator: str | None = Field(
        None, pattern=WORD, description="Type of the GPUs to attach to machines of Google Cloud's N1 types; VMs only."
    )
    spot: bool = Field(False, description="Whether nodes may be reclaimed at any time; they are cheaper.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources of a node, in addition to CPUs, GPUs and memory."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Ray's labels of a node.")

    @property
    def all_labels(self) -> dict[str, str]:
        """`labels`, and Ray's labels for the group and for whether its nodes may be reclaimed."""
        return {**self.labels, GROUP_LABEL: self.name, MARKET_LABEL: "spot" if self.spot else "on-demand"}


class StoreSpec(_Part):
    """The object store of the cluster's runs."""

    url: str | None = Field(
        None,
        min_length=1,
        description="Storage of runs, as s3://bucket/manta; replaces a recipe's `storage`.",
    )
    endpoint_url: str | None = Field(None, pattern=HTTP_URL, description="http(s) URL of the S3 endpoint; null: AWS.")
    region: str | None = Field(None, pattern=WORD, description="Region of the bucket, as us-east-1.")


class KubernetesSpec(_Part):
    """Settings for KubeRay only."""

    namespace: str = Field("default", pattern=NAME, description="Namespace of all objects.")
    queue: str | None = Field(None, pattern=NAME, description="Local queue of Kueue that jobs wait in; null: none.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets for pulling the image.")
    retries: int = Field(
        3,
        ge=0,
        le=_MOST_RETRIES,
        description="Retries of a job, each in a new cluster; its run continues where it stopped.",
    )
    clean_up_after_s: int = Field(
        300, ge=0, le=_MOST_SECONDS, description="Seconds after the job's end until its cluster is deleted."
    )
    deadline_s: int | None = Field(
        None, ge=60, le=_MOST_SECONDS, description="Maximum seconds of a job, including retries; null: no limit."
    )


class VmSpec(_Part):
    """Settings for virtual machines only."""

    provider: Literal["aws", "gcp"] = Field("aws", description="Cloud provider of the machines.")
    region: str = Field("us-east-1", pattern=WORD, description="Region of the machines, as us-east-1.")
    zones: tuple[str, ...] = Field((), description="Zones to try, in this order; none: all zones of the region.")
    project: str | None = Field(None, pattern=WORD, description="Project that the machines belong to; gcp only.")
    image_id: str | None = Field(
        None, pattern=WORD, description="Machine image; null: Ray's default for the region, or Google Cloud's."
    )
    head_service_account: str | None = Field(
        None,
        pattern=WORD,
        description="Identity of the head, which starts and ends the other machines; null: service_account.",
    )
    ssh_user: str = Field("ubuntu", pattern=USER, description="User for ssh, as ubuntu.")
    disk_gb: int = Field(100, ge=30, le=65_536, description="Disk size of a node in GB, from 30 to 65,536.")


class ClusterSpec(_Part):
    """A cluster: its head, its groups of nodes, and their environment."""

    cluster: str = Field(pattern=NAME, max_length=40, description="Name of the cluster.")
    image: str | None = Field(
        None,
        pattern=IMAGE,
        max_length=500,
        description="Container image with Manta in it, as registry.example.com/manta:1; see the Dockerfile.",
    )
    head: HeadSpec = Field(default_factory=HeadSpec, description="The head.")
    groups: tuple[GroupSpec, ...] = Field(min_length=1, description="Groups of nodes besides the head.")
    idle_timeout_s: float = Field(
        60.0, ge=1, le=_MOST_SECONDS, description="Seconds without work after which a node is removed."
    )
    grace_s: float = Field(
        60.0,
        ge=5,
        le=86_400,
        description="Seconds between the notice that a node will be reclaimed and its end; saving takes only a few.",
    )
    store: StoreSpec = Field(default_factory=StoreSpec, description="The object store.")
    service_account: str | None = Field(
        None,
        pattern=WORD,
        description="Identity of all nodes: a Kubernetes service account, or an instance profile of VMs.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables of all nodes. Not for secrets: they are visible in many places.",
    )
    secrets: dict[str, SecretRef] = Field(
        default_factory=dict,
        description="Environment variables of all nodes whose values are in secrets, by reference.",
    )
    kubernetes: KubernetesSpec = Field(default_factory=KubernetesSpec, description="Settings for KubeRay only.")
    vm: VmSpec = Field(default_factory=VmSpec, description="Settings for virtual machines only.")

    def group(self, name: str) -> GroupSpec | None:
        """The group with that name, or None."""
        return next((group for group in self.groups if group.name == name), None)

    @property
    def variables(self) -> dict[str, str]:
        """`environment`, and the variables for the object store's address."""
        store = {"AWS_ENDPOINT_URL": self.store.endpoint_url, "AWS_DEFAULT_REGION": self.store.region}
        return {**{name: value for name, value in store.items() if value is not None}, **self.environment}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


_USER_IN_URL = re.compile(r"://[^/@\s]+@")


def _contradictions(spec: ClusterSpec) -> Iterator[str]:
    names = [group.name for group in spec.groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"groups: {name} is the name of two groups"
    if HEAD in names:
        yield f"groups: {HEAD} is the name of the head; call the group something else"
    yield from _of_machine("head", spec.head)
    for index, group in enumerate(spec.groups):
        if group.min > group.max:
            yield f"groups.{index}.min = {group.min}: more than max, which is {group.max}"
        yield from _of_machine(f"groups.{index}", group)
        yield from _of_group(f"groups.{index}", group)
    yield from _of_variables(spec)
    for name in spec.kubernetes.image_pull_secrets:
        if not re.fullmatch(SUBDOMAIN, name):
            yield f"kubernetes.image_pull_secrets: {name!r} is not a valid name: {RULES[SUBDOMAIN]}"
    if spec.vm.provider == "gcp" and spec.vm.project is None and "vm" in spec.model_fields_set:
        yield "vm.project: missing; the id of the project that the machines belong to"


def _of_variables(spec: ClusterSpec) -> Iterator[str]:
    for section in ("environment", "secrets"):
        for name in getattr(spec, section):
            if not _VARIABLE.fullmatch(name):
                yield f"{section}.{name}: not a valid name of a variable: letters, digits and _"
    for name, value in spec.environment.items():
        if looks_secret(name) or _USER_IN_URL.search(value) or form_of_key(value):
            yield (
                f"environment.{name}: a secret does not belong here, where it is visible; refer to a Kubernetes secret "
                f"instead: secrets: {{{name}: {{name: SECRET, key: KEY}}}}"
            )
        elif "\x00" in value:
            yield f"environment.{name}: it contains a NUL, which no variable can"
    scheme, separator, _ = (spec.store.url or "").partition("://")
    if separator and scheme not in ("s3", "file"):
        yield f"store.url = {spec.store.url}: {scheme}:// cannot hold runs; write s3://bucket/prefix, or a shared path"
    for name, url in {"store.url": spec.store.url, "store.endpoint_url": spec.store.endpoint_url}.items():
        if url is not None and _USER_IN_URL.search(url):
            yield f"{name}: it contains a name or password, which would be visible; remove them"
    for name in sorted(spec.environment.keys() & spec.secrets.keys()):
        yield f"secrets.{name}: it is in environment, too; remove one of them"


def _of_machine(where: str, machine: Machine) -> Iterator[str]:
    """Settings of the head or a group that Kubernetes would refuse, or misread."""
    if bytes_of(machine.memory) > bytes_of(MOST_MEMORY):
        yield f"{where}.memory = {machine.memory}: at most {MOST_MEMORY}"
    yield from label_problems(f"{where}.node_selector", machine.node_selector)
    for index, taint in enumerate(machine.tolerations):
        here = f"{where}.tolerations.{index}"
        yield from label_problems(f"{here}: taint", {taint.key: taint.value or ""})
        if taint.operator == "Exists" and taint.value is not None:
            yield f"{here}: operator Exists takes no value; remove the value, or set operator: Equal"
        if taint.operator == "Equal" and taint.value is None:
            yield f"{here}: operator Equal takes a value; add it, or set operator: Exists"


def _of_group(where: str, group: GroupSpec) -> Iterator[str]:
    """Settings of one group that Ray, its autoscaler or Kubernetes would refuse, or misread."""
    for name, amount in group.resources.items():
        here = f"{where}.resources.{name} = {amount:g}"
        if name.startswith(COUNTED_BY_RAY) or name.lower().endswith("gpu"):
            yield f"{here}: Ray counts this resource by itself; set cpus, gpus or memory of the group"
        elif not 1 <= amount <= _MOST_OF_A_RESOURCE or amount != int(amount):
            yield f"{here}: Ray's autoscaler requires a whole number from 1 to {_MOST_OF_A_RESOURCE:,}"
    yield from label_problems(f"{where}.labels", group.labels)
    if "/" not in group.gpu_resource or not is_label_key(group.gpu_resource):
        yield f"{where}.gpu_resource = {group.gpu_resource!r}: not a name of a GPU resource, such as {GPU}"
