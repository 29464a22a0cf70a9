"""Common machines with GPUs, and how much of one Kubernetes leaves to pods.

Sizes: docs.aws.amazon.com (EC2, accelerated computing), docs.cloud.google.com (Compute Engine, GPU machine types),
learn.microsoft.com (Azure, N series); vCPUs, GiB of memory, GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cluster.kubernetes_syntax import bytes_of
from cluster.spec import ClusterSpec

TYPE_LABEL = "node.kubernetes.io/instance-type"
"""Label by which every cloud's nodes tell their machine type."""

_GIB = 1024**3


class Size(NamedTuple):
    """What a machine has: `memory` in GiB."""

    cpus: int
    memory: int
    gpus: int


def _sizes(prefix: str, rows: Mapping[str, tuple[int, int, int]], suffix: str = "") -> dict[str, Size]:
    return {f"{prefix}{name}{suffix}": Size(*row) for name, row in rows.items()}


_G5 = {
    **{"xlarge": (4, 16, 1), "2xlarge": (8, 32, 1), "4xlarge": (16, 64, 1), "8xlarge": (32, 128, 1)},
    **{"12xlarge": (48, 192, 4), "16xlarge": (64, 256, 1), "24xlarge": (96, 384, 4), "48xlarge": (192, 768, 8)},
}
_G4 = {name: row for name, row in _G5.items() if name not in ("24xlarge", "48xlarge")}

SIZES: dict[str, Size] = {
    **_sizes("g4dn.", {**_G4, "metal": (96, 384, 8)}),
    **_sizes("g5.", _G5),
    **_sizes("g6.", _G5),
    **_sizes(
        "g6e.",
        {name: (cpus, 2 * memory, gpus) for name, (cpus, memory, gpus) in _G5.items()},
    ),
    **_sizes("p3.", {"2xlarge": (8, 61, 1), "8xlarge": (32, 244, 4), "16xlarge": (64, 488, 8)}),
    **_sizes("p4d.", {"24xlarge": (96, 1152, 8)}),
    **_sizes("p4de.", {"24xlarge": (96, 1152, 8)}),
    **_sizes("p5.", {"4xlarge": (16, 256, 1), "48xlarge": (192, 2048, 8)}),
    **_sizes("p5e.", {"48xlarge": (192, 2048, 8)}),
    **_sizes("p5en.", {"48xlarge": (192, 2048, 8)}),
    **_sizes("g2-standard-", {"4": (4, 16, 1), "8": (8, 32, 1), "12": (12, 48, 1), "16": (16, 64, 1)}),
    **_sizes("g2-standard-", {"24": (24, 96, 2), "32": (32, 128, 1), "48": (48, 192, 4), "96": (96, 384, 8)}),
    **_sizes("a2-highgpu-", {f"{count}g": (12 * count, 85 * count, count) for count in (1, 2, 4, 8)}),
    **_sizes("a2-ultragpu-", {f"{count}g": (12 * count, 170 * count, count) for count in (1, 2, 4, 8)}),
    **_sizes("a3-highgpu-", {f"{count}g": (26 * count, 234 * count, count) for count in (1, 2, 4, 8)}),
    **_sizes("a3-megagpu-", {"8g": (208, 1872, 8)}),
    **_sizes("Standard_NC", {"4": (4, 28, 1), "8": (8, 56, 1), "16": (16, 110, 1), "64": (64, 440, 4)}, "as_T4_v3"),
    **_sizes("Standard_NC", {"24": (24, 220, 1), "48": (48, 440, 2), "96": (96, 880, 4)}, "ads_A100_v4"),
    **_sizes("Standard_", {"NC40ads": (40, 320, 1), "NC80adis": (80, 640, 2), "ND96isr": (96, 1900, 8)}, "_H100_v5"),
}

_CPU_STEPS = ((1, 0.06), (1, 0.01), (2, 0.005), (float("inf"), 0.0025))
_MEMORY_STEPS = ((4, 0.25), (4, 0.20), (8, 0.10), (112, 0.06), (float("inf"), 0.02))
"""What a node keeps to itself: GKE's shares of its cores and of its GiB, step by step (docs.cloud.google.com: Plan GKE
Standard node sizes). Other clouds keep about as much."""

_EVICTION_GIB = 0.1
"""Free memory below which a node evicts pods."""

_DAEMONS = (0.4, 0.5)
"""CPUs and GiB of the pods that every node has: network, proxy, storage, device plugin, metrics."""


def room(size: Size) -> tuple[int, int]:
    """Whole CPUs and GiB that a pod can have of a machine, by estimate."""
    cpus = size.cpus - _share(size.cpus, _CPU_STEPS) - _DAEMONS[0]
    memory = size.memory - _share(size.memory, _MEMORY_STEPS) - _EVICTION_GIB - _DAEMONS[1]
    return int(cpus), int(memory)


def _share(amount: float, steps: tuple[tuple[float, float], ...]) -> float:
    kept = 0.0
    for width, share in steps:
        kept += min(amount, width) * share
        amount -= min(amount, width)
    return kept


def room_warnings(spec: ClusterSpec) -> Iterator[str]:
    """Yields a warning for each group whose pods leave no room on their machine, and would stay pending.

    The machine is known if the group selects nodes by their type, and the type is in SIZES.
    """
    for index, group in enumerate(spec.groups):
        machine = group.node_selector.get(TYPE_LABEL, "")
        size = SIZES.get(machine)
        if size is None:
            continue
        cpus, memory = room(size)
        counts = (("cpus", group.cpus, cpus), ("gpus", group.gpus, size.gpus))
        wanted = [f"{name}: {fits}" for name, asked, fits in counts if asked > fits]
        if bytes_of(group.memory) > memory * _GIB:
            wanted.append(f"memory: {memory}Gi")
        if wanted:
            yield (
                f"groups.{index} ({group.name}): a node of type {machine} has {size.cpus} CPUs, {size.memory} GiB and "
                f"{size.gpus} GPUs, and keeps a part to itself and its system pods. Pods that ask for {group.cpus} "
                f"CPUs, {group.memory} and {group.gpus} GPUs are likely to stay pending; what fits: {', '.join(wanted)}"
            )
