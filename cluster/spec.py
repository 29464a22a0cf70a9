"""The description of a cluster: `ClusterSpec`, from which local raylets, KubeRay manifests and VM YAML are derived.

A spec refers to secrets by name and does not contain their values.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
"""Names that Kubernetes accepts for objects: RFC 1035 labels."""

QUANTITY = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)$"
"""An amount of memory or disk in the format of Kubernetes, with a unit."""

_UNITS: dict[str, int] = {unit + "i": 1024**power for power, unit in enumerate("KMGT", 1)} | {
    unit: 1000**power for power, unit in enumerate("kMGT", 1)
}

GPU = "nvidia.com/gpu"

GPU_STAND_IN = "gpu-stand-in"
"""Resource that replaces the GPUs of a group's nodes on this machine, which need not have any."""

HEAD = "head"

MARKET_LABEL, GROUP_LABEL = "ray.io/market-type", "ray.io/node-group"
"""Ray's own labels of a node: whether it may be reclaimed, and its group."""

COUNTED_BY_RAY = ("CPU", "GPU", "TPU", "memory", "object_store_memory", "node:")
"""Prefixes of the names of resources that Ray counts by itself."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def bytes_of(quantity: str) -> int:
    """Number of bytes of an amount in the format `QUANTITY`."""
    digits = quantity.rstrip("".join(_UNITS))
    return int(digits) * _UNITS[quantity.removeprefix(digits)]


class _Part(BaseModel):
    """A part of the spec: immutable; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SecretRef(_Part):
    """Source of an environment variable's value: a key of an existing secret."""

    name: str = Field(pattern=NAME, description="Name of the Kubernetes secret.")
    key: str = Field(min_length=1, description="Key in the secret.")


class Toleration(_Part):
    """A taint of nodes that pods of a group tolerate, as in Kubernetes."""

    key: str = Field(min_length=1, description="Key of the taint.")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Whether the taint's value must be equal.")
    value: str | None = Field(None, description="Value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        "NoSchedule", description="Effect of the taint; null: any."
    )


class Machine(_Part):
    """Hardware and placement of the head, or of the nodes of a group."""

    cpus: int = Field(2, ge=1, description="CPU cores of a node.")
    memory: str = Field("4Gi", pattern=QUANTITY, description="Memory of a node, as 16Gi.")
    instance_type: str | None = Field(None, description="Type of the virtual machine, as m5.xlarge; VMs only.")
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
    max: int = Field(ge=1, description="Maximum number of nodes.")
    gpus: int = Field(0, ge=0, description="GPUs of a node: groups with GPUs train, groups without GPUs tokenize.")
    gpu_resource: str = Field(GPU, description="Name of the GPU resource in Kubernetes.")
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

    url: str | None = Field(None, description="Storage of runs, as s3://bucket/manta; replaces a recipe's `storage`.")
    endpoint_url: str | None = Field(None, description="URL of the S3 endpoint; null: AWS.")
    region: str | None = Field(None, description="Region of the bucket.")


class KubernetesSpec(_Part):
    """Settings for KubeRay only."""

    namespace: str = Field("default", pattern=NAME, description="Namespace of all objects.")
    queue: str | None = Field(None, pattern=NAME, description="Local queue of Kueue that jobs wait in; null: none.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets for pulling the image.")
    retries: int = Field(
        3, ge=0, description="Retries of a job, each in a new cluster; its run continues where it stopped."
    )
    clean_up_after_s: int = Field(300, ge=0, description="Seconds after the job's end until its cluster is deleted.")
    deadline_s: int | None = Field(
        None, ge=60, description="Maximum seconds of a job, including retries; null: no limit."
    )


class VmSpec(_Part):
    """Settings for virtual machines only."""

    provider: Literal["aws", "gcp"] = Field("aws", description="Cloud provider of the machines.")
    region: str = Field("us-east-1", min_length=1, description="Region of the machines.")
    zones: tuple[str, ...] = Field((), description="Zones to try, in this order; none: all zones of the region.")
    project: str | None = Field(None, description="Project that the machines belong to; gcp only.")
    image_id: str | None = Field(None, description="Machine image; null: Ray's default for the region.")
    head_service_account: str | None = Field(
        None, description="Identity of the head, which starts and ends the other machines; null: service_account."
    )
    ssh_user: str = Field("ubuntu", min_length=1, description="User for ssh.")
    disk_gb: int = Field(100, ge=30, description="Disk size of a node in GB.")


class ClusterSpec(_Part):
    """A cluster: its head, its groups of nodes, and their environment."""

    cluster: str = Field(pattern=NAME, max_length=40, description="Name of the cluster.")
    image: str | None = Field(None, description="Container image with Manta in it; see the Dockerfile.")
    head: HeadSpec = Field(default_factory=HeadSpec, description="The head.")
    groups: tuple[GroupSpec, ...] = Field(min_length=1, description="Groups of nodes besides the head.")
    idle_timeout_s: float = Field(60.0, ge=1, description="Seconds without work after which a node is removed.")
    grace_s: float = Field(
        60.0,
        ge=5,
        description="Seconds between the notice that a node will be reclaimed and its end; saving takes only a few.",
    )
    store: StoreSpec = Field(default_factory=StoreSpec, description="The object store.")
    service_account: str | None = Field(
        None, description="Identity of all nodes: a Kubernetes service account, or an instance profile of VMs."
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


_IN_URL = re.compile(r"://[^/@\s]+@")
"""A user name or password in a URL."""

_SECRET_WORDS = frozenset(
    ["SECRET", "PASSWORD", "PASSWD", "PASS", "PWD", "TOKEN", "PAT", "KEY", "CREDENTIAL", "CREDENTIALS"]
)


def looks_secret(name: str) -> bool:
    """Whether a variable's name suggests a secret value. Names of files are no secrets."""
    words = name.upper().split("_")
    return bool(_SECRET_WORDS.intersection(words)) and words[-1] not in ("FILE", "PATH", "DIR")


def _contradictions(spec: ClusterSpec) -> list[str]:
    problems = []
    names = [group.name for group in spec.groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"groups: {name} is the name of two groups")
    if HEAD in names:
        problems.append(f"groups: {HEAD} is the name of the head; call the group something else")
    for index, group in enumerate(spec.groups):
        if group.min > group.max:
            problems.append(f"groups.{index}.min = {group.min}: more than max, which is {group.max}")
        problems += _of_group(index, group)
    for section in ("environment", "secrets"):
        for name in getattr(spec, section):
            if not _VARIABLE.fullmatch(name):
                problems.append(f"{section}.{name}: not a valid name of a variable: letters, digits and _")
    for name, value in spec.environment.items():
        if looks_secret(name) or _IN_URL.search(value):
            problems.append(
                f"environment.{name}: a secret does not belong here, where it is visible; refer to a Kubernetes secret "
                f"instead: secrets: {{{name}: {{name: SECRET, key: KEY}}}}"
            )
    for name, url in {"store.url": spec.store.url, "store.endpoint_url": spec.store.endpoint_url}.items():
        if url is not None and _IN_URL.search(url):
            problems.append(f"{name}: it contains a name or password, which would be visible; remove them")
    for name in sorted(spec.environment.keys() & spec.secrets.keys()):
        problems.append(f"secrets.{name}: it is in environment, too; remove one of them")
    if spec.vm.provider == "gcp" and spec.vm.project is None and "vm" in spec.model_fields_set:
        problems.append("vm.project: missing; the id of the project that the machines belong to")
    return problems


def _of_group(index: int, group: GroupSpec) -> list[str]:
    """Settings of one group that Ray, its autoscaler or Kubernetes would refuse, or misread."""
    problems = []
    for name, amount in group.resources.items():
        where = f"groups.{index}.resources.{name} = {amount:g}"
        if name.startswith(COUNTED_BY_RAY) or name.lower().endswith("gpu"):
            problems.append(f"{where}: Ray counts this resource by itself; set cpus, gpus or memory of the group")
        elif amount < 1 or amount != int(amount):
            problems.append(f"{where}: Ray's autoscaler requires a whole number of at least 1")
    for key, value in group.labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            problems.append(
                f"groups.{index}.labels.{key}: not a valid key of a label, such as tier or example.com/tier"
            )
        if value and not _LABEL.fullmatch(value):
            problems.append(
                f"groups.{index}.labels.{key} = {value!r}: not a valid value of a label: at most 63 letters, digits, "
                "- _ ."
            )
    return problems
