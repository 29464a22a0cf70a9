"""Specs that ask for a whole machine are warned about; what the project ships and advises fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.machines import SIZES, TYPE_LABEL, room, room_warnings
from cluster.spec import ClusterSpec
from orchestrator.config.cluster_spec import load_cluster

SPECS = sorted((Path(__file__).parents[2] / "recipes" / "clusters").glob("*.yaml"))


def spec_of(machine: str, cpus: int, memory: str, gpus: int) -> ClusterSpec:
    group = {"name": "train", "max": 1, "cpus": cpus, "memory": memory, "gpus": gpus}
    return ClusterSpec.model_validate({"cluster": "a", "groups": [{**group, "node_selector": {TYPE_LABEL: machine}}]})


@pytest.mark.parametrize("machine", SIZES)
def test_all_of_a_machine_is_too_much_and_the_advice_fits(machine: str) -> None:
    size = SIZES[machine]
    [warning] = room_warnings(spec_of(machine, size.cpus, f"{size.memory}Gi", size.gpus + 1))
    assert warning.startswith("groups.0 (train): a node of type ")
    advised = re.search(r"cpus: (\d+), gpus: (\d+), memory: (\d+)Gi", warning)
    assert advised is not None
    cpus, gpus, memory = map(int, advised.groups())
    assert not list(room_warnings(spec_of(machine, cpus, f"{memory}Gi", gpus)))
    assert 0.7 * size.cpus < cpus < size.cpus and 0.7 * size.memory < memory < size.memory and gpus == size.gpus


def test_the_estimate_is_below_what_a_vendor_publishes() -> None:
    # 8 cores and 32 GiB on GKE: 7.91 CPUs and 28.4 GiB, of which each node's own pods take a part.
    cpus, memory = room(SIZES["g2-standard-8"])
    assert (cpus, memory) == (7, 27)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_specs_of_the_project_leave_room(path: Path) -> None:
    assert not list(room_warnings(load_cluster(path)))
