"""Machines of Google Cloud (Compute Engine) in the YAML for `ray up`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cluster.render.cloud import Cloud
from cluster.spec import ClusterSpec, Machine

DEFAULT_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"


class Gcp(Cloud):
    """Google Cloud: an identity is the address of a service account; machines are in exactly one zone."""

    comments: ClassVar[Mapping[str, str]] = {
        "preemptible": "The machine may be reclaimed at half a minute's notice; Manta continues with the remaining "
        "nodes.",
    }
    # The image does not have the client with which Ray starts machines.
    head_setup_commands = ("python -c 'import googleapiclient' || pip install google-api-python-client",)

    def problems(self, spec: ClusterSpec) -> Iterator[str]:
        """See `Cloud.problems`."""
        if len(spec.vm.zones) != 1:
            yield f"vm.zones = {list(spec.vm.zones)}: Ray's provider for gcp takes exactly one, such as us-west1-a"
        if spec.vm.project is None:
            yield "vm.project: missing; the id of the project that the machines belong to"

    def provider_fields(self, spec: ClusterSpec) -> dict[str, Any]:
        """See `Cloud.provider_fields`."""
        return {"project_id": spec.vm.project}

    def node_config(
        self, spec: ClusterSpec, machine: Machine, identity: str | None, *, spot: bool, gpus: int
    ) -> dict[str, Any]:
        """Body of Compute Engine's instances.insert."""
        image = {"diskSizeGb": spec.vm.disk_gb, "sourceImage": spec.vm.image_id or DEFAULT_IMAGE}
        config: dict[str, Any] = {
            "machineType": machine.instance_type,
            "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": image}],
        }
        if identity is not None:
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            config["serviceAccounts"] = [{"email": identity, "scopes": scopes}]
        scheduling: list[dict[str, Any]] = [{"preemptible": True}] if spot else []
        if gpus:  # machines with GPUs cannot be moved to another host
            scheduling.append({"onHostMaintenance": "TERMINATE"})
        return config | ({"scheduling": scheduling} if scheduling else {})
