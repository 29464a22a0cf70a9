"""Renders a cluster's spec as YAML for `ray up`, Ray's cluster launcher, whose autoscaler starts and ends machines.

Fields that are specific to a cloud are in `cluster.render.aws` and `cluster.render.gcp`. The YAML contains no values of
secrets. A machine reaches the bucket by its identity (an instance profile); where it has none, the YAML names a file
with keys, which `ray up` copies from the machine it is called on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from cluster.errors import ClusterError
from cluster.node_environment import head_variables, node_variables, shared_memory
from cluster.render.aws import Aws
from cluster.render.cloud import Cloud
from cluster.render.gcp import Gcp
from cluster.spec import HEAD, MARKET_LABEL, ClusterSpec, GroupSpec, Machine

CLOUDS: dict[str, Cloud] = {"aws": Aws(), "gcp": Gcp()}
"""Clouds by their name in `VmSpec.provider`."""

CREDENTIALS = "/home/ray/.aws/credentials"
"""File in a container of the image from which the AWS libraries read keys."""

_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})

COMMENTS = {
    "max_workers": "Maximum over all node types, without the head.",
    "upscaling_speed": "New nodes at once, relative to the existing ones; Manta requests no more than it can use.",
    "provider.availability_zone": "Tried in this order.",
    "docker": "Everything runs in the image, which contains Manta; nothing is installed on the machines.",
    "run_options": "Variables of all nodes. Secrets are not among them: they would be visible in many places.",
    "head_run_options": "The head notices a lost node within seconds, and gives a stopped job time to save. "
    "--shm-size: Ray's object store and Manta's snapshots.",
    "file_mounts": "Keys to the bucket, copied from the machine that `ray up` is called on: a file in the format of "
    "~/.aws/credentials, whose keys have the permissions listed in docs/kubernetes.md and no others.",
    "head.resources": "No CPUs for work: only the driver and its actors run here, so that nothing starves them.",
    "setup_commands": "Empty on purpose: Ray's defaults would install another version of Ray.",
    "head_start_ray_commands": "The dashboard listens on the head only: reach it with `ray dashboard`, through ssh.",
    **{field: comment for cloud in CLOUDS.values() for field, comment in cloud.comments.items()},
}
"""Comments above fields whose effect is not obvious, by the dotted end of a field's path."""


def spec_problems(spec: ClusterSpec) -> list[str]:
    """What must be added to the spec, or removed from it, before it can be rendered; one line per field."""
    problems = []
    if spec.image is None:
        problems.append("image: missing; the container image with Manta in it, built from the Dockerfile")
    for name, machine in _machines(spec).items():
        if machine.instance_type is None:
            where = "head" if name == HEAD else f"groups.{[group.name for group in spec.groups].index(name)}"
            problems.append(f"{where}.instance_type: missing; the type of virtual machine, such as m5.xlarge")
    problems += CLOUDS[spec.vm.provider].problems(spec)
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
    """The configuration for `ray up`, as a dictionary.

    Raises:
        ClusterError: the spec cannot be rendered, see `spec_problems`.
    """
    if problems := spec_problems(spec):
        raise ClusterError("\n".join(problems))
    cloud, common = CLOUDS[spec.vm.provider], node_variables(spec)
    of_head = head_variables(spec, with_gpu_stand_ins=False)
    return {
        "cluster_name": spec.cluster,
        "max_workers": sum(group.max for group in spec.groups),
        "upscaling_speed": 100,
        "idle_timeout_minutes": round(spec.idle_timeout_s / 60, 3),
        "provider": _provider(spec, cloud),
        "auth": {"ssh_user": spec.vm.ssh_user},
        "docker": {
            "image": spec.image,
            "container_name": "manta",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536", *_options(common)],
            "head_run_options": [
                _shm_size(spec.head),
                *_options({name: value for name, value in of_head.items() if name not in common}),
            ],
        },
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: _head_type(spec, cloud),
            **{group.name: _node_type(spec, cloud, group) for group in spec.groups},
        },
        **({"file_mounts": {CREDENTIALS: f"~/.manta/{spec.cluster}.credentials"}} if _needs_keys(spec, cloud) else {}),
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": list(cloud.head_setup_commands),
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --head --port=6379 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", "ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379"],
    }


def _machines(spec: ClusterSpec) -> dict[str, Machine]:
    return {HEAD: spec.head} | {group.name: group for group in spec.groups}


def _needs_keys(spec: ClusterSpec, cloud: Cloud) -> bool:
    """Whether no identity of the machines gives access to the bucket."""
    by_identity = spec.service_account is not None and cloud.has_aws_identity and spec.store.endpoint_url is None
    return bool(spec.secrets) and not by_identity


def _provider(spec: ClusterSpec, cloud: Cloud) -> dict[str, Any]:
    provider: dict[str, Any] = {"type": spec.vm.provider, "region": spec.vm.region}
    if spec.vm.zones:
        provider["availability_zone"] = ",".join(spec.vm.zones)
    return provider | cloud.provider_fields(spec)


def _head_type(spec: ClusterSpec, cloud: Cloud) -> dict[str, Any]:
    identity = spec.vm.head_service_account or spec.service_account
    return {
        "resources": {"CPU": 0},
        "labels": {MARKET_LABEL: "on-demand"},
        "node_config": cloud.node_config(spec, spec.head, identity, spot=False, gpus=0),
    }


def _node_type(spec: ClusterSpec, cloud: Cloud, group: GroupSpec) -> dict[str, Any]:
    counted = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})
    return {
        "min_workers": group.min,
        "max_workers": group.max,
        "resources": counted | {name: int(amount) for name, amount in group.resources.items()},
        "labels": group.all_labels,
        "docker": {"worker_run_options": [_shm_size(group)]},
        "node_config": cloud.node_config(spec, group, spec.service_account, spot=group.spot, gpus=group.gpus),
    }


def _options(variables: Mapping[str, str]) -> list[str]:
    """Options of `docker run` that set variables, quoted because Ray passes them to a shell."""
    return [f"--env {shlex.quote(f'{name}={value}')}" for name, value in variables.items()]


def _shm_size(machine: Machine) -> str:
    return f"--shm-size={shared_memory(machine).removesuffix('i').lower()}"
