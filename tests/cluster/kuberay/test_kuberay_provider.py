"""Ray's own KubeRay provider, autoscaler and entry point, against an API whose pods are raylets on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local.processes import of_session
from cluster.render.kuberay import ray_cluster
from cluster.spec import ClusterSpec, GroupSpec, HeadSpec
from tests.cluster.kuberay.kuberay_driver import Driver
from tests.cluster.kuberay.kuberay_stand_in import KubeRayCluster
from tests.waiting import wait_until

WAIT_S = 120.0
MOST = 2
SPEC = ClusterSpec(
    cluster="small",
    image="manta",
    head=HeadSpec(cpus=1, memory="1Gi"),
    groups=(
        GroupSpec(name="tokenize", cpus=1, memory="1Gi", max=MOST, spot=True, resources={"shelf": 1}),
        GroupSpec(name="train", cpus=1, memory="1Gi", gpus=1, max=1, labels={"zone": "a"}),
    ),
    idle_timeout_s=4,
    grace_s=5,
)
RAY_CLUSTER = ray_cluster(SPEC)
# It looks every second in place of every five: what it does is the same, and is over sooner.
RAY_CLUSTER["spec"]["autoscalerOptions"]["env"] += [{"name": "AUTOSCALER_UPDATE_INTERVAL_S", "value": "1"}]

pytestmark = [pytest.mark.sweep]


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeRayCluster]:
    """A cluster that begins with a head and nothing else."""
    with tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as folder:
        with KubeRayCluster(RAY_CLUSTER, Path(folder)) as running:
            yield running
        assert [pid for pod in running.pods.values() if pod.node for pid in of_session(pod.node.session)] == []


@pytest.fixture
def driver(cluster: KubeRayCluster) -> Iterator[Driver]:
    """Somebody to want things, in a cluster without workers."""
    with Driver(cluster.environment) as driver:
        await_pods(cluster, tokenize=0, train=0)
        cluster.api.patches.clear()
        yield driver
    cluster.capacity.clear()


def await_pods(cluster: KubeRayCluster, **counts: int) -> None:
    """Wait until groups have so many pods, and nothing is about to change."""

    def settled() -> bool:
        return all(
            len(cluster.pods_of(group, "Running")) == len(cluster.pods_of(group)) == count
            and cluster.group(group)["replicas"] == count
            for group, count in counts.items()
        )

    wait_until(settled, f"pods: {counts}", WAIT_S)


def patched(cluster: KubeRayCluster, group: str, field: str) -> list[Any]:
    """What a field of a group has been set to, in order."""
    path = cluster.path_of(group, field)
    return [each["value"] for patch in cluster.api.patches for each in patch if each["path"] == path]


def given_back(cluster: KubeRayCluster, group: str) -> list[str]:
    """The pods of a group that the autoscaler wanted deleted, in order."""
    return [name for strategy in patched(cluster, group, "scaleStrategy") for name in strategy["workersToDelete"]]


def test_work_that_waits_brings_up_the_group_that_can_do_it_and_idle_nodes_go(
    cluster: KubeRayCluster, driver: Driver
) -> None:
    before = driver.ended()
    driver.hold(1, GPU=1, CPU=1)
    wait_until(driver.placed, "an actor placed", WAIT_S)
    driver.hold(2, CPU=1)
    wait_until(lambda: len(driver.placed()) == 3, "all placed", WAIT_S)
    pods = driver.placed()
    assert pods[:1] == cluster.pods_of("train") and set(pods[1:]) == set(cluster.pods_of("tokenize"))
    assert patched(cluster, "tokenize", "replicas")[-1] == 2 and patched(cluster, "train", "replicas") == [1]
    assert driver.alive() == {"headgroup": 1, "tokenize": 2, "train": 1}

    driver.drop(pods[1])
    wait_until(lambda: cluster.group("tokenize")["replicas"] == 1, "an idle node is given back", WAIT_S)
    assert given_back(cluster, "tokenize") == [pods[1]]
    wait_until(lambda: not cluster.pods[pods[1]].is_alive(), "its pod's end", WAIT_S)
    assert driver.placed() == [pods[0], pods[2]]

    driver.drop(pods[0])
    driver.drop(pods[2])
    await_pods(cluster, tokenize=0, train=0)
    for name in pods:
        pod = cluster.pods[name]
        wait_until(lambda pod=pod: not pod.is_alive(), f"{name}: its end", WAIT_S)
        assert not pod.was_killed and pod.left_behind == []
    drained = {why: count - before.get(why, 0) for why, count in driver.ended().items() if count > before.get(why, 0)}
    assert drained == {"AUTOSCALER_DRAIN_IDLE": 3}


def test_nodes_that_wait_for_others_of_their_gang_stay(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["train"] = 0
    driver.request({"shelf": 1}, {"shelf": 1}, {"GPU": 1})
    wait_until(
        lambda: len(idle := driver.idle_s("tokenize")) == 2 and min(idle) > 2 * SPEC.idle_timeout_s,
        "two nodes are there for longer than idle ones are kept",
        WAIT_S,
    )
    assert given_back(cluster, "tokenize") == [] and len(cluster.pods_of("train", "Pending")) == 1


def test_a_pod_that_is_reclaimed_in_use_is_replaced(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(2, CPU=1)
    wait_until(lambda: len(driver.placed()) == 2, "actors placed", WAIT_S)
    lost, kept = driver.placed()
    cluster.delete_pod(lost)
    wait_until(lambda: len(now := driver.placed()) == 2 and lost not in now, "the actor is elsewhere", WAIT_S)
    assert kept in driver.placed()
    wait_until(lambda: not cluster.pods[lost].is_alive(), "the pod's end", WAIT_S)
    assert not cluster.pods[lost].was_killed
    assert given_back(cluster, "tokenize") == []


def test_a_pod_that_fails_is_replaced(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(1, GPU=1)
    wait_until(lambda: len(driver.placed()) == 1, "an actor placed", WAIT_S)
    [failed] = driver.placed()
    node = cluster.pods[failed].node
    assert node is not None
    node.kill()
    wait_until(lambda: len(now := driver.placed()) == 1 and failed not in now, "the actor is elsewhere", WAIT_S)


def test_no_more_pods_than_max_replicas(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(MOST + 1, shelf=1)
    wait_until(lambda: len(driver.placed()) == MOST, "actors placed", WAIT_S)
    driver.drop(driver.placed()[0])
    wait_until(lambda: len(driver.placed()) == MOST, "the one that waited is placed", WAIT_S)
    assert max(patched(cluster, "tokenize", "replicas")) == MOST == len(cluster.pods_of("tokenize"))


def test_no_fewer_pods_than_min_replicas(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.set_field("tokenize", "minReplicas", 1)
    try:
        wait_until(
            lambda: len(idle := driver.idle_s("tokenize")) == 1 and idle[0] > 2 * SPEC.idle_timeout_s,
            "a node is there for longer than idle ones are kept",
            WAIT_S,
        )
    finally:
        cluster.set_field("tokenize", "minReplicas", 0)
    await_pods(cluster, tokenize=0)


def test_a_pod_without_a_machine_waits_for_one(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["tokenize"] = 1
    driver.request({"shelf": 1}, {"shelf": 1})
    wait_until(lambda: driver.alive().get("tokenize") == 1 and len(cluster.pods_of("tokenize")) == 2, "a node", WAIT_S)
    assert len(cluster.pods_of("tokenize", "Pending")) == 1
    cluster.capacity["tokenize"] = 2
    wait_until(lambda: driver.alive().get("tokenize") == 2, "the other", WAIT_S)


def test_a_pod_that_waits_in_vain_is_given_up_when_nobody_wants_it(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["tokenize"] = 0
    driver.request({"shelf": 1})
    wait_until(lambda: cluster.pods_of("tokenize", "Pending"), "a pod that waits", WAIT_S)
    [waiting] = cluster.pods_of("tokenize")
    driver.request()
    await_pods(cluster, tokenize=0)
    assert given_back(cluster, "tokenize") == [waiting] and cluster.pods[waiting].node is None
