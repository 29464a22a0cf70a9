"""Machines of Google Cloud (Compute Engine) in the YAML for `ray up`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cluster.render.cloud import Cloud
from cluster.spec import ClusterSpec, GroupSpec, Machine

DEFAULT_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cpu"
"""For machines without GPUs: it has Docker, and no driver. Images with one change their names with its version."""

WITH_GPUS = ("a2-", "a3-", "a4-", "a4x-", "g2-", "g4-")
"""Families of machine types that come with their GPUs; to others (N1) they are attached."""


class Gcp(Cloud):
    """Google Cloud: an identity is the address of a service account; machines are in exactly one zone."""

    comments: ClassVar[Mapping[str, str]] = {
        "preemptible": "The machine may be reclaimed at half a minute's notice; Manta continues with the remaining "
        "nodes.",
        "metadata": "Images of Google Cloud that lack the driver install it at the first start.",
    }
    # The image does not have the client with which Ray starts machines.
    head_setup_commands = ("python -c 'import googleapiclient' || pip install google-api-python-client",)

    def problems(self, spec: ClusterSpec) -> Iterator[str]:
        """See `Cloud.problems`."""
        if len(spec.vm.zones) != 1:
            yield f"vm.zones = {list(spec.vm.zones)}: Ray's provider for gcp takes exactly one, such as us-west1-a"
        if spec.vm.project is None:
            yield "vm.project: missing; the id of the project that the machines belong to"
        if spec.vm.image_id is None and any(group.gpus for group in spec.groups):
            yield (
                "vm.image_id: missing; groups with GPUs need an image with NVIDIA's driver and Docker's nvidia "
                "runtime: projects/deeplearning-platform-release/global/images/family/FAMILY, with a FAMILY that "
                "`gcloud compute images list --project deeplearning-platform-release --filter family~common-cu` prints"
            )
        for index, group in enumerate(spec.groups):
            where = f"groups.{index}.accelerator"
            brings_gpus = (group.instance_type or "").startswith(WITH_GPUS)
            if group.gpus and group.instance_type and not brings_gpus and group.accelerator is None:
                yield (
                    f"{where}: missing; the type of the {group.gpus} GPUs to attach to {group.instance_type}, such as "
                    "nvidia-tesla-t4, or an instance_type that has them, such as g2-standard-8"
                )
            if group.accelerator is not None and (brings_gpus or not group.gpus):
                yield f"{where} = {group.accelerator}: " + (
                    f"{group.instance_type} comes with its GPUs; remove it" if brings_gpus else "gpus is 0; set it, too"
                )

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
        if gpus:
            config["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
            if isinstance(machine, GroupSpec) and machine.accelerator is not None:
                attached = {"acceleratorType": machine.accelerator, "acceleratorCount": gpus}
                config["guestAccelerators"] = [attached]
        scheduling: list[dict[str, Any]] = [{"preemptible": True}] if spot else []
        if gpus:  # machines with GPUs cannot be moved to another host
            scheduling.append({"onHostMaintenance": "TERMINATE"})
        return config | ({"scheduling": scheduling} if scheduling else {})
