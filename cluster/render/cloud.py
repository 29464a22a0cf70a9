"""Shared by the clouds that `cluster.render.vm` can render for: the base class `Cloud`.

A cloud is one file beside this one with a subclass of `Cloud`, one row of `CLOUDS` in `cluster.render.vm`, and its
name in `VmSpec.provider`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from cluster.spec import ClusterSpec, Machine


class Cloud(ABC):
    """What one cloud needs in the YAML for `ray up`.

    Attributes:
        comments: comments on its own fields, see `cluster.render.yaml.dump`.
        head_setup_commands: commands that the head runs before Ray starts.
        has_aws_identity: whether a machine's identity gives access to buckets of AWS.
    """

    comments: ClassVar[Mapping[str, str]]
    head_setup_commands: ClassVar[tuple[str, ...]] = ()
    has_aws_identity: ClassVar[bool] = False

    @abstractmethod
    def problems(self, spec: ClusterSpec) -> Iterator[str]:
        """What must be added to the spec, or changed in it, for this cloud; one line per field."""

    @abstractmethod
    def provider_fields(self, spec: ClusterSpec) -> dict[str, Any]:
        """Fields of `provider` besides type, region and zones."""

    @abstractmethod
    def node_config(
        self, spec: ClusterSpec, machine: Machine, identity: str | None, *, spot: bool, gpus: int
    ) -> dict[str, Any]:
        """The request for one machine, in the form of the cloud's API.

        Args:
            spec: of the cluster.
            machine: the head or a group.
            identity: the cloud's identity of the machine; None for no identity.
            spot: whether the machine may be reclaimed.
            gpus: GPUs of the machine.
        """
