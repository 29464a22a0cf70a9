"""What a cluster is, said once: `ClusterSpec`, from which local raylets, KubeRay manifests and VM YAML are made.

Secrets are named here and never held: where a value comes from, not the value.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
"""Names that Kubernetes takes for objects: RFC 1035 labels."""

QUANTITY = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)$"
"""An amount of memory or disk as Kubernetes writes it, unit included."""

_UNITS: dict[str, int] = {unit + "i": 1024**power for power, unit in enumerate("KMGT", 1)} | {
    unit: 1000**power for power, unit in enumerate("kMGT", 1)
}

GPU = "nvidia.com/gpu"

GPU_STAND_IN = "gpu-stand-in"
"""Resource that a node of a GPU group has in its place where there are no GPUs, on this machine."""

HEAD = "head"

MARKET_LABEL, GROUP_LABEL = "ray.io/market-type", "ray.io/node-group"
"""Labels that Ray keeps for whether a node may be reclaimed, and for the group it is of."""

COUNTED = ("CPU", "GPU", "TPU", "memory", "object_store_memory", "node:")
"""How names of resources begin that Ray counts by itself."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def bytes_of(quantity: str) -> int:
    """Bytes of an amount of the form `QUANTITY`."""
    digits = quantity.rstrip("".join(_UNITS))
    return int(digits) * _UNITS[quantity.removeprefix(digits)]


class _Part(BaseModel):
    """A part of the spec: immutable, and a name it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretRef(_Part):
    """Where the value of an environment variable comes from: a key of a secret that exists already."""

    name: str = Field(pattern=NAME, description="Name of the Kubernetes secret.")
    key: str = Field(min_length=1, description="Key in it.")


class Toleration(_Part):
    """A taint of nodes that pods of a group put up with, as Kubernetes has it."""

    key: str = Field(min_length=1, description="Key of the taint.")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="Whether its value counts.")
    value: str | None = Field(None, description="Its value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        "NoSchedule", description="Its effect; null: any."
    )


class Machine(_Part):
    """What the nodes of a group, or the head, are made of."""

    cpus: int = Field(2, ge=1, description="CPU cores of a node.")
    memory: str = Field("4Gi", pattern=QUANTITY, description="Memory of a node, as 16Gi.")
    instance_type: str | None = Field(None, description="Type of the virtual machine, as m5.xlarge; VMs only.")
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a Kubernetes node must have to take a pod."
    )
    tolerations: tuple[Toleration, ...] = Field((), description="Taints that its pods tolerate.")


class HeadSpec(Machine):
    """The head: the driver and its actors run on it, and no work. It is never a spot node."""


class GroupSpec(Machine):
    """Nodes that are alike, and how many of them there may be."""

    name: str = Field(pattern=NAME, max_length=40, description="Name of the group.")
    min: int = Field(0, ge=0, description="Nodes that are there always.")
    max: int = Field(ge=1, description="Most nodes.")
    gpus: int = Field(0, ge=0, description="GPUs of a node: groups with GPUs train, groups without tokenize.")
    gpu_resource: str = Field(GPU, description="What Kubernetes calls the GPU.")
    spot: bool = Field(False, description="Whether nodes may be reclaimed: cheaper, and Manta is made for it.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="Ray's custom resources of a node, besides CPUs, GPUs and memory."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Ray's labels of a node.")

    @property
    def all_labels(self) -> dict[str, str]:
        """`labels`, and those by which Ray tells the group and whether a node of it may be reclaimed."""
        return {**self.labels, GROUP_LABEL: self.name, MARKET_LABEL: "spot" if self.spot else "on-demand"}


class StoreSpec(_Part):
    """The object store that the cluster's runs use."""

    url: str | None = Field(
        None, description="Where runs are kept, as s3://bucket/manta; takes the place of a recipe's `storage`."
    )
    endpoint_url: str | None = Field(None, description="URL of the S3 endpoint; null: AWS.")
    region: str | None = Field(None, description="Region of the bucket.")


class KubernetesSpec(_Part):
    """What only KubeRay needs to know."""

    namespace: str = Field("default", pattern=NAME, description="Namespace of all objects.")
    queue: str | None = Field(None, pattern=NAME, description="Kueue's local queue to wait in; null: none.")
    image_pull_secrets: tuple[str, ...] = Field((), description="Secrets with which the image is pulled.")
    retries: int = Field(
        3, ge=0, description="Times a job is tried again, each in a new cluster; its run goes on where it was."
    )
    clean_up_after_s: int = Field(300, ge=0, description="Seconds after the job's end until its cluster is deleted.")
    deadline_s: int | None = Field(None, ge=60, description="Seconds a job may take in all; null: as long as it takes.")


class VmSpec(_Part):
    """What only virtual machines need to know."""

    provider: Literal["aws", "gcp"] = Field("aws", description="Whose machines.")
    region: str = Field("us-east-1", min_length=1, description="Region they are in.")
    zones: tuple[str, ...] = Field((), description="Zones to try, in this order; none: those of the region.")
    project: str | None = Field(None, description="Project they belong to; gcp only.")
    image_id: str | None = Field(None, description="Machine image; null: Ray's default for the region.")
    head_service_account: str | None = Field(
        None, description="Identity of the head, which starts and ends the other machines; null: service_account."
    )
    ssh_user: str = Field("ubuntu", min_length=1, description="User to log in as.")
    disk_gb: int = Field(100, ge=30, description="Disk of a node.")


class ClusterSpec(_Part):
    """A cluster, whole."""

    cluster: str = Field(pattern=NAME, max_length=40, description="Name of the cluster.")
    image: str | None = Field(None, description="Container image with Manta in it; see the Dockerfile.")
    head: HeadSpec = Field(default_factory=HeadSpec, description="The head.")
    groups: tuple[GroupSpec, ...] = Field(min_length=1, description="Groups of nodes besides the head.")
    idle_timeout_s: float = Field(60.0, ge=1, description="Seconds without work after which a node goes.")
    grace_s: float = Field(
        60.0, ge=5, description="Seconds from the notice that a node will be reclaimed to its end; saving takes few."
    )
    store: StoreSpec = Field(default_factory=StoreSpec, description="The object store.")
    service_account: str | None = Field(
        None, description="Identity of all nodes: a Kubernetes service account, or an instance profile of VMs."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of all nodes. Not for secrets: they are shown in many places."
    )
    secrets: dict[str, SecretRef] = Field(
        default_factory=dict, description="Variables of all nodes whose values are in secrets, by reference."
    )
    kubernetes: KubernetesSpec = Field(default_factory=KubernetesSpec, description="What only KubeRay needs to know.")
    vm: VmSpec = Field(default_factory=VmSpec, description="What only virtual machines need to know.")

    def group(self, name: str) -> GroupSpec | None:
        """The group of that name, if there is one."""
        return next((group for group in self.groups if group.name == name), None)

    @property
    def variables(self) -> dict[str, str]:
        """`environment`, and what the object store's address comes to in it."""
        reach = {"AWS_ENDPOINT_URL": self.store.endpoint_url, "AWS_DEFAULT_REGION": self.store.region}
        return {**{name: value for name, value in reach.items() if value is not None}, **self.environment}

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


_IN_URL = re.compile(r"://[^/@\s]+@")
"""A name or password in a URL."""

_SECRET_WORDS = frozenset(
    ["SECRET", "PASSWORD", "PASSWD", "PASS", "PWD", "TOKEN", "PAT", "KEY", "CREDENTIAL", "CREDENTIALS"]
)


def looks_secret(name: str) -> bool:
    """Whether a variable of this name would hold what is not to be seen, by its words; a file's name may be seen."""
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
                problems.append(f"{section}.{name}: not a name of a variable, which has letters, digits and _")
    for name, value in spec.environment.items():
        if looks_secret(name) or _IN_URL.search(value):
            problems.append(
                f"environment.{name}: a secret does not belong here, where everybody sees it; name where it is kept "
                f"instead: secrets: {{{name}: {{name: SECRET, key: KEY}}}}"
            )
    for name, url in {"store.url": spec.store.url, "store.endpoint_url": spec.store.endpoint_url}.items():
        if url is not None and _IN_URL.search(url):
            problems.append(f"{name}: there is a name or password in it, which everybody would see; leave them out")
    for name in sorted(spec.environment.keys() & spec.secrets.keys()):
        problems.append(f"secrets.{name}: it is in environment, too; keep one")
    if spec.vm.provider == "gcp" and spec.vm.project is None and "vm" in spec.model_fields_set:
        problems.append("vm.project: missing; the id of the project that the machines belong to")
    return problems


def _of_group(index: int, group: GroupSpec) -> list[str]:
    """What Ray, its autoscaler or Kubernetes would refuse in one group, or read as something else."""
    problems = []
    for name, amount in group.resources.items():
        where = f"groups.{index}.resources.{name} = {amount:g}"
        if name.startswith(COUNTED) or name.lower().endswith("gpu"):
            problems.append(f"{where}: Ray counts this one by itself; set cpus, gpus or memory of the group")
        elif amount < 1 or amount != int(amount):
            problems.append(f"{where}: Ray's autoscaler counts in whole numbers from 1 on")
    for key, value in group.labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            problems.append(f"groups.{index}.labels.{key}: not a key of a label, such as tier or example.com/tier")
        if value and not _LABEL.fullmatch(value):
            problems.append(
                f"groups.{index}.labels.{key} = {value!r}: not a value of a label: at most 63 letters, digits, - _ ."
            )
    return problems
