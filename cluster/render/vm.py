"""A cluster's spec as YAML for `ray up`, Ray's cluster launcher: virtual machines that its autoscaler starts and ends.

Values of secrets never come by. A machine reaches the bucket by its identity (an instance profile); where that cannot
be, a file with keys is named, which `ray up` copies from the machine it is called on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from cluster.errors import ClusterError
from cluster.node_environment import head_variables, node_variables, shared_memory
from cluster.spec import HEAD, MARKET_LABEL, ClusterSpec, GroupSpec, Machine

CREDENTIALS = "/home/ray/.aws/credentials"
"""Where the AWS libraries look for keys in a container of the image."""

_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})

COMMENTS = {
    "max_workers": "Of all node types together, the head not counted.",
    "upscaling_speed": "New nodes at once, relative to those there are; Manta asks for no more than it can use.",
    "provider.availability_zone": "Tried in this order.",
    "cache_stopped_nodes": "Nodes that are let go are deleted, not stopped: nothing costs anything afterwards.",
    "docker": "Everything runs in the image, which holds Manta; nothing is installed on the machines.",
    "run_options": "Variables of all nodes. Secrets are not among them: they would be seen in many places.",
    "head_run_options": "The head notices a node that is gone within seconds, and gives a job that is stopped time to "
    "save. --shm-size: Ray's object store and Manta's snapshots.",
    "file_mounts": "Keys to the bucket, copied from the machine `ray up` is called on: a file in the form of "
    "~/.aws/credentials, whose keys may do what docs/kubernetes.md lists and no more.",
    "head.resources": "No CPUs for work: the driver and its actors run here, and nothing that could starve them.",
    "IamInstanceProfile": "The identity by which the bucket is reached, without keys; the head's also starts and ends "
    "the other machines.",
    "MetadataOptions": "The identity's keys only for requests with a session token, from the machine itself.",
    "InstanceMarketOptions": "May be reclaimed at two minutes' notice; Manta goes on with the nodes that are left.",
    "preemptible": "May be reclaimed at half a minute's notice; Manta goes on with the nodes that are left.",
    "setup_commands": "Empty on purpose: Ray's defaults would install another Ray.",
    "head_start_ray_commands": "The dashboard listens on the head alone: reach it by `ray dashboard`, through ssh.",
}
"""What is said above fields whose effect is not obvious."""


def lacking(spec: ClusterSpec) -> list[str]:
    """What has to be added to the spec, or taken out, before YAML can be made of it."""
    problems = []
    if spec.image is None:
        problems.append("image: missing; the container image with Manta in it, built from the Dockerfile")
    for name, machine in _machines(spec).items():
        if machine.instance_type is None:
            where = "head" if name == HEAD else f"groups.{[group.name for group in spec.groups].index(name)}"
            problems.append(f"{where}.instance_type: missing; the type of virtual machine, such as m5.xlarge")
    if spec.vm.provider == "gcp" and len(spec.vm.zones) != 1:
        problems.append(
            f"vm.zones = {list(spec.vm.zones)}: Ray's provider for gcp takes exactly one, such as us-west1-a"
        )
    if spec.vm.provider == "gcp" and spec.vm.project is None:
        problems.append("vm.project: missing; the id of the project that the machines belong to")
    for name in sorted(spec.secrets.keys() - _KEYS):
        problems.append(
            f"secrets.{name}: virtual machines have no secrets to refer to, only an identity (service_account) and "
            "keys to the bucket; leave it out here"
        )
    if spec.service_account is None and not spec.secrets and (spec.store.url or "").startswith("s3://"):
        problems.append(
            f"service_account: missing; the instance profile that may read and write {spec.store.url}, see "
            "docs/virtual-machines.md"
        )
    return problems


def ray_config(spec: ClusterSpec) -> dict[str, Any]:
    """What `ray up` takes, as a dictionary.

    Raises:
        ClusterError: the spec lacks something, see `lacking`.
    """
    if problems := lacking(spec):
        raise ClusterError("\n".join(problems))
    head = {"resources": {"CPU": 0}, "labels": {MARKET_LABEL: "on-demand"}}
    head["node_config"] = _node_config(spec, spec.head, spot=False, identity=spec.vm.head_service_account)
    own = {
        name: value
        for name, value in head_variables(spec, gpus_stood_in_for=False).items()
        if name not in node_variables(spec)
    }
    return {
        "cluster_name": spec.cluster,
        "max_workers": sum(group.max for group in spec.groups),
        "upscaling_speed": 100,
        "idle_timeout_minutes": round(spec.idle_timeout_s / 60, 3),
        "provider": _provider(spec),
        "auth": {"ssh_user": spec.vm.ssh_user},
        "docker": {
            "image": spec.image,
            "container_name": "manta",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536", *_options(node_variables(spec))],
            "head_run_options": [_shm_size(spec.head), *_options(own)],
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: head} | {group.name: _node_type(spec, group) for group in spec.groups},
        **({"file_mounts": {CREDENTIALS: f"~/.manta/{spec.cluster}.credentials"}} if _needs_keys(spec) else {}),
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": _HEAD_SETUP[spec.vm.provider],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --head --port=6379 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379"],
    }


_HEAD_SETUP = {
    "aws": [],  # boto3, with which machines are started, is Manta's own
    "gcp": ["python -c 'import googleapiclient' || pip install google-api-python-client"],
}


def _machines(spec: ClusterSpec) -> dict[str, Machine]:
    return {HEAD: spec.head} | {group.name: group for group in spec.groups}


def _needs_keys(spec: ClusterSpec) -> bool:
    """Whether the bucket cannot be reached by an AWS identity of the machines."""
    by_identity = spec.service_account is not None and spec.vm.provider == "aws" and spec.store.endpoint_url is None
    return bool(spec.secrets) and not by_identity


def _provider(spec: ClusterSpec) -> dict[str, Any]:
    provider: dict[str, Any] = {"type": spec.vm.provider, "region": spec.vm.region}
    if spec.vm.zones:
        provider["availability_zone"] = ",".join(spec.vm.zones)
    if spec.vm.provider == "gcp":
        return provider | {"project_id": spec.vm.project}
    return provider | {"cache_stopped_nodes": False}


def _node_type(spec: ClusterSpec, group: GroupSpec) -> dict[str, Any]:
    counted = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    return {
        "min_workers": group.min,
        "max_workers": group.max,
        "resources": counted | {name: int(amount) for name, amount in group.resources.items()},
        "labels": group.all_labels,
        "docker": {"worker_run_options": [_shm_size(group)]},
        "node_config": _node_config(spec, group, spot=group.spot, gpus=group.gpus),
    }


def _node_config(
    spec: ClusterSpec, machine: Machine, *, spot: bool, gpus: int = 0, identity: str | None = None
) -> dict[str, Any]:
    """What the cloud is asked for, in its own words."""
    identity = identity or spec.service_account
    if spec.vm.provider == "gcp":
        return _gcp_machine(spec, machine, identity, spot=spot, gpus=gpus)
    return _aws_machine(spec, machine, identity, spot=spot)


def _aws_machine(spec: ClusterSpec, machine: Machine, identity: str | None, *, spot: bool) -> dict[str, Any]:
    disk = {"VolumeSize": spec.vm.disk_gb, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    config: dict[str, Any] = {"InstanceType": machine.instance_type}
    if spec.vm.image_id is not None:
        config["ImageId"] = spec.vm.image_id
    if identity is not None:
        config["IamInstanceProfile"] = {"Arn" if identity.startswith("arn:") else "Name": identity}
    config["BlockDeviceMappings"] = [{"DeviceName": "/dev/sda1", "Ebs": disk}]
    config["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    if spot:
        once = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        config["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": once}
    return config


_GCP_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"


def _gcp_machine(spec: ClusterSpec, machine: Machine, identity: str | None, *, spot: bool, gpus: int) -> dict[str, Any]:
    image = {"diskSizeGb": spec.vm.disk_gb, "sourceImage": spec.vm.image_id or _GCP_IMAGE}
    config: dict[str, Any] = {
        "machineType": machine.instance_type,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": image}],
    }
    if identity is not None:
        scopes = ["https://www.googleapis.com/auth/cloud-platform"]
        config["serviceAccounts"] = [{"email": identity, "scopes": scopes}]
    scheduling: list[dict[str, Any]] = [{"preemptible": True}] if spot else []
    if gpus:  # such machines cannot be moved to another host
        scheduling.append({"onHostMaintenance": "TERMINATE"})
    return config | ({"scheduling": scheduling} if scheduling else {})


def _options(variables: Mapping[str, str]) -> list[str]:
    """Options of `docker run` that set variables; Ray hands them to a shell."""
    return [f"--env {shlex.quote(f'{name}={value}')}" for name, value in variables.items()]


def _shm_size(machine: Machine) -> str:
    return f"--shm-size={shared_memory(machine).removesuffix('i').lower()}"
