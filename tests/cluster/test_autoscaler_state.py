"""The parsed report of Ray's autoscaler, and the names in Ray that it is read by."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscaler_state import (
    HEAD_RESOURCE,
    AutoscalerState,
    NodeState,
    parse_status,
    why_waiting,
    workers_per_node,
)
from cluster.node_environment import GroupLimits, group_limits, groups_variable
from cluster.spec import GPU_STAND_IN, ClusterSpec, GroupSpec

NOW = 1000.0
WORKER = {"CPU": 2.0, "GPU": 1.0}
TRAIN, TOKENIZE = GroupLimits("train", {"CPU": 4, "GPU": 1}, 3), GroupLimits("tokenize", {"CPU": 8}, 2)


class TestRaysReport:
    def status(self) -> Any:
        from ray.autoscaler.v2 import schema

        usage = schema.NodeUsage(
            usage=[
                schema.ResourceUsage(resource_name="CPU", total=4.0, used=2.0),
                schema.ResourceUsage(resource_name="memory", total=1e9, used=0.0),
                schema.ResourceUsage(resource_name="node:10.0.0.1", total=1.0, used=0.0),
            ],
            idle_time_ms=2500,
        )
        head = schema.NodeUsage(
            usage=[schema.ResourceUsage(resource_name=HEAD_RESOURCE, total=1.0, used=0.0)], idle_time_ms=0
        )

        def node(name: str, node_id: str, usage: Any) -> Any:
            return schema.NodeInfo(
                instance_type_name="",
                ray_node_type_name=name,
                instance_id="i",
                ip_address="10.0.0.1",
                node_id=node_id,
                resource_usage=usage,
                node_activity=["Busy workers on node."],
                details="ALLOCATED",
            )

        launch = schema.LaunchRequest(
            instance_type_name="",
            ray_node_type_name="train",
            count=2,
            state=schema.LaunchRequest.Status.FAILED,
            request_ts_s=NOW - 60,
            details="InsufficientInstanceCapacity",
            failed_ts_s=NOW - 30,
        )
        bundle = schema.ResourceRequestByCount(bundle={"CPU": 1.0}, count=3)
        return schema.ClusterStatus(
            active_nodes=[node("node_abc", "abc", head)],
            idle_nodes=[node("train", "def", usage)],
            pending_nodes=[node("train", "", None)],
            failed_launches=[launch],
            resource_demands=schema.ResourceDemandSummary(
                ray_task_actor_demand=[schema.RayTaskActorDemand(bundles_by_count=[bundle])]
            ),
            stats=schema.Stats(autoscaler_version="2"),
        )

    def test_all_of_it_is_read(self) -> None:
        state = parse_status(self.status(), NOW)
        assert state.nodes_by_group() == {"head": 1, "train": 1}
        node = state.nodes[1]
        assert (node.state, node.idle_s, node.used, node.total) == ("idle", 2.5, {"CPU": 2.0}, {"CPU": 4.0})
        assert state.starting == {"train": ("ALLOCATED",)}
        assert state.failures == (("train", 30.0, "InsufficientInstanceCapacity"),)
        assert state.demands == (({"CPU": 1.0}, 3),)
        assert state.has_autoscaler

    def test_no_autoscaler_is_recognised_by_its_version(self) -> None:
        from ray.autoscaler.v2 import schema

        nobody = schema.ClusterStatus(stats=schema.Stats(autoscaler_version="0"))  # as GCS answers by itself
        assert (
            not parse_status(nobody, NOW).has_autoscaler
            and not parse_status(schema.ClusterStatus(), NOW).has_autoscaler
        )

    def test_the_function_of_ray_has_this_signature(self) -> None:
        from ray.autoscaler.v2.sdk import get_cluster_status

        assert list(inspect.signature(get_cluster_status).parameters) == ["gcs_address", "timeout"]


class TestWhyWaiting:
    def test_names_the_suitable_groups_and_their_progress(self) -> None:
        state = AutoscalerState(nodes=(node_of("train"),), starting={"train": ("", "")})
        assert why_waiting(state, [TRAIN, TOKENIZE], WORKER) == "group train: 1 of at most 3 nodes up, 2 starting"

    def test_counts_no_more_starting_nodes_than_the_maximum_allows(self) -> None:
        state = AutoscalerState(nodes=(node_of("train"), node_of("train")), starting={"train": ("", "")})
        assert why_waiting(state, [TRAIN], WORKER) == "group train: 2 of at most 3 nodes up, 1 starting"

    def test_says_why_a_start_failed(self) -> None:
        state = AutoscalerState(failures=(("train", 12.4, "InsufficientInstanceCapacity: no g5 in us-east-1a"),))
        reason = why_waiting(state, [TRAIN], WORKER)
        assert "a start failed 12 s ago: InsufficientInstanceCapacity: no g5 in us-east-1a" in reason

    def test_says_that_all_allowed_nodes_are_in_use(self) -> None:
        state = AutoscalerState(nodes=tuple(node_of("train") for _ in range(3)))
        assert why_waiting(state, [TRAIN], WORKER).endswith("3 of at most 3 nodes up, all of them in use")

    def test_says_that_no_group_is_suitable(self) -> None:
        reason = why_waiting(AutoscalerState(), [TRAIN, TOKENIZE], {"CPU": 16.0})
        assert reason == "no group has nodes large enough for a worker of 16 CPU: train 4 CPU, 1 GPU; tokenize 8 CPU"

    def test_says_that_there_is_no_autoscaler(self) -> None:
        assert "by hand" in why_waiting(AutoscalerState(has_autoscaler=False), [TRAIN], WORKER)

    def test_uses_the_observed_groups_where_the_spec_is_not_known(self) -> None:
        state = AutoscalerState(nodes=(node_of("head"),), starting={"small": ("Pending: no node has room",)})
        assert why_waiting(state, [], WORKER) == "group small: 0 nodes up, 1 starting (Pending: no node has room)"
        assert "has not started any node yet" in why_waiting(AutoscalerState(nodes=(node_of("head"),)), [], WORKER)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=4))
def test_nodes_know_the_groups_of_the_spec(sizes: list[tuple[int, int]]) -> None:
    groups = tuple(GroupSpec(name=f"g{n}", cpus=c, gpus=g, max=n + 1) for n, (c, g) in enumerate(sizes))
    spec = ClusterSpec(cluster="test", groups=groups)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in groups_variable(spec, with_gpu_stand_ins=True).items():
            monkeypatch.setenv(name, value)
        known = group_limits()
    assert [(each.name, each.max_nodes) for each in known] == [(group.name, group.max) for group in groups]
    found = [workers_per_node(each, {"CPU": 2, GPU_STAND_IN: 1}) for each in known]
    assert found == [min(cpus // 2, gpus) for cpus, gpus in sizes]
    assert not any(workers_per_node(each, {"CPU": 1, "GPU": 1}) for each in known)


def test_manifests_of_version_0_1_0_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_CLUSTER_GROUPS", '[{"name": "train", "resources": {"CPU": 4}, "most": 2}]')
    assert group_limits() == [GroupLimits("train", {"CPU": 4}, 2)]


def node_of(group: str) -> NodeState:
    return NodeState(node_id="id", group=group, state="busy", idle_s=0.0, address="10.0.0.1", used={}, total={})
