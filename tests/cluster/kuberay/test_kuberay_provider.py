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
MAX_PODS = 2
SPEC = ClusterSpec(
    cluster="small",
    image="manta",
    head=HeadSpec(cpus=1, memory="1Gi"),
    groups=(
        GroupSpec(name="tokenize", cpus=1, memory="1Gi", max=MAX_PODS, spot=True, resources={"shelf": 1}),
        GroupSpec(name="train", cpus=1, memory="1Gi", gpus=1, max=1, labels={"zone": "a"}),
    ),
    idle_timeout_s=2,
    grace_s=5,
)
RAY_CLUSTER = ray_cluster(SPEC)
# Updates every second instead of every five, which only makes the tests faster.
RAY_CLUSTER["spec"]["autoscalerOptions"]["env"] += [{"name": "AUTOSCALER_UPDATE_INTERVAL_S", "value": "1"}]

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeRayCluster]:
    """A cluster that begins with a head only."""
    with tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as folder:
        with KubeRayCluster(RAY_CLUSTER, Path(folder)) as running:
            yield running
        assert [pid for pod in running.pods.values() if pod.node for pid in of_session(pod.node.session)] == []


@pytest.fixture
def driver(cluster: KubeRayCluster) -> Iterator[Driver]:
    """A driver in a cluster without workers."""
    with Driver(cluster.environment) as driver:
        await_pods(cluster, tokenize=0, train=0)
        cluster.api.patches.clear()
        yield driver
    cluster.capacity.clear()


def await_pods(cluster: KubeRayCluster, **counts: int) -> None:
    """Waits until groups have so many pods, and no change is pending."""

    def settled() -> bool:
        return all(
            len(cluster.pods_of(group, "Running")) == len(cluster.pods_of(group)) == count
            and cluster.group(group)["replicas"] == count
            for group, count in counts.items()
        )

    wait_until(settled, f"pods: {counts}", WAIT_S)


def patched(cluster: KubeRayCluster, group: str, field: str) -> list[Any]:
    """Values that a field of a group has been set to, in order."""
    path = cluster.path_of(group, field)
    return [each["value"] for patch in cluster.api.patches for each in patch if each["path"] == path]


def removed_pods(cluster: KubeRayCluster, group: str) -> list[str]:
    """Pods of a group that the autoscaler has deleted, in order."""
    return [name for strategy in patched(cluster, group, "scaleStrategy") for name in strategy["workersToDelete"]]


def test_pending_work_starts_the_suitable_group_and_idle_nodes_are_removed(
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
    wait_until(lambda: cluster.group("tokenize")["replicas"] == 1, "an idle node is removed", WAIT_S)
    assert removed_pods(cluster, "tokenize") == [pods[1]]
    wait_until(lambda: not cluster.pods[pods[1]].is_alive(), "its pod's end", WAIT_S)
    assert driver.placed() == [pods[0], pods[2]]

    driver.drop(pods[0])
    driver.drop(pods[2])
    await_pods(cluster, tokenize=0, train=0)
    for name in pods:
        pod = cluster.pods[name]
        wait_until(lambda pod=pod: not pod.is_alive(), f"{name}: its end", WAIT_S)
        assert not pod.was_killed and pod.left_behind == []
    drained = {
        reason: count - before.get(reason, 0)
        for reason, count in driver.ended().items()
        if count > before.get(reason, 0)
    }
    assert drained == {"AUTOSCALER_DRAIN_IDLE": 3}


@pytest.mark.soak
def test_nodes_stay_while_the_rest_of_their_group_is_pending(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["train"] = 0
    driver.request({"shelf": 1}, {"shelf": 1}, {"GPU": 1})
    wait_until(
        lambda: len(idle := driver.idle_s("tokenize")) == 2 and min(idle) > 2 * SPEC.idle_timeout_s,
        "two nodes outlive the idle timeout",
        WAIT_S,
    )
    assert removed_pods(cluster, "tokenize") == [] and len(cluster.pods_of("train", "Pending")) == 1


@pytest.mark.soak
def test_a_reclaimed_pod_in_use_is_replaced(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(2, CPU=1)
    wait_until(lambda: len(driver.placed()) == 2, "actors placed", WAIT_S)
    lost, kept = driver.placed()
    cluster.delete_pod(lost)
    wait_until(lambda: len(now := driver.placed()) == 2 and lost not in now, "the actor is elsewhere", WAIT_S)
    assert kept in driver.placed()
    wait_until(lambda: not cluster.pods[lost].is_alive(), "the pod's end", WAIT_S)
    assert not cluster.pods[lost].was_killed
    assert removed_pods(cluster, "tokenize") == []


@pytest.mark.soak
def test_a_failed_pod_is_replaced(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(1, GPU=1)
    wait_until(lambda: len(driver.placed()) == 1, "an actor placed", WAIT_S)
    [failed] = driver.placed()
    node = cluster.pods[failed].node
    assert node is not None
    node.kill()
    wait_until(lambda: len(now := driver.placed()) == 1 and failed not in now, "the actor is elsewhere", WAIT_S)


@pytest.mark.soak
def test_no_more_pods_than_max_replicas(cluster: KubeRayCluster, driver: Driver) -> None:
    driver.hold(MAX_PODS + 1, shelf=1)
    wait_until(lambda: len(driver.placed()) == MAX_PODS, "actors placed", WAIT_S)
    driver.drop(driver.placed()[0])
    wait_until(lambda: len(driver.placed()) == MAX_PODS, "the pending actor is placed", WAIT_S)
    assert max(patched(cluster, "tokenize", "replicas")) == MAX_PODS == len(cluster.pods_of("tokenize"))


@pytest.mark.soak
def test_no_fewer_pods_than_min_replicas(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.set_field("tokenize", "minReplicas", 1)
    try:
        wait_until(
            lambda: len(idle := driver.idle_s("tokenize")) == 1 and idle[0] > 2 * SPEC.idle_timeout_s,
            "a node outlives the idle timeout",
            WAIT_S,
        )
    finally:
        cluster.set_field("tokenize", "minReplicas", 0)
    await_pods(cluster, tokenize=0)


@pytest.mark.soak
def test_a_pod_without_a_machine_waits_for_one(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["tokenize"] = 1
    driver.request({"shelf": 1}, {"shelf": 1})
    wait_until(lambda: driver.alive().get("tokenize") == 1 and len(cluster.pods_of("tokenize")) == 2, "a node", WAIT_S)
    assert len(cluster.pods_of("tokenize", "Pending")) == 1
    cluster.capacity["tokenize"] = 2
    wait_until(lambda: driver.alive().get("tokenize") == 2, "the other", WAIT_S)


def test_a_pending_pod_is_deleted_when_its_request_is_withdrawn(cluster: KubeRayCluster, driver: Driver) -> None:
    cluster.capacity["tokenize"] = 0
    driver.request({"shelf": 1})
    wait_until(lambda: cluster.pods_of("tokenize", "Pending"), "a pending pod", WAIT_S)
    [waiting] = cluster.pods_of("tokenize")
    driver.request()
    await_pods(cluster, tokenize=0)
    assert removed_pods(cluster, "tokenize") == [waiting] and cluster.pods[waiting].node is None
