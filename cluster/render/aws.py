"""Machines of AWS (EC2) in the YAML for `ray up`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cluster.render.cloud import Cloud
from cluster.spec import ClusterSpec, Machine


class Aws(Cloud):
    """AWS: an identity is an instance profile, by name or ARN. boto3, which starts machines, is in the image."""

    comments: ClassVar[Mapping[str, str]] = {
        "cache_stopped_nodes": "Idle nodes are deleted, not stopped, so that they cost nothing afterwards.",
        "IamInstanceProfile": "The identity that gives access to the bucket, without keys; the head's identity also "
        "starts and ends the other machines.",
        "MetadataOptions": "The identity's keys are given only to requests with a session token, from the machine "
        "itself.",
        "InstanceMarketOptions": "The machine may be reclaimed at two minutes' notice; Manta continues with the "
        "remaining nodes.",
    }
    has_aws_identity = True

    def problems(self, spec: ClusterSpec) -> Iterator[str]:
        """See `Cloud.problems`."""
        for index, group in enumerate(spec.groups):
            if group.accelerator is not None:
                yield f"groups.{index}.accelerator: AWS has no GPUs to attach; choose an instance_type that has them"

    def provider_fields(self, spec: ClusterSpec) -> dict[str, Any]:
        """See `Cloud.provider_fields`."""
        return {"cache_stopped_nodes": False}

    def node_config(
        self, spec: ClusterSpec, machine: Machine, identity: str | None, *, spot: bool, gpus: int
    ) -> dict[str, Any]:
        """Parameters of EC2's RunInstances."""
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
