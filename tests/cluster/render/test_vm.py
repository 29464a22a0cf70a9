"""YAML for `ray up` against Ray's own schema and checks, and properties that hold for every spec."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from cluster.errors import ClusterError
from cluster.render.vm import CLOUDS, COMMENTS, CREDENTIALS, ray_config
from cluster.render.yaml import dump
from cluster.spec import GROUP_LABEL, MARKET_LABEL, ClusterSpec, VmSpec
from tests.cluster.specs import cluster_specs

some = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KEYS = {
    "AWS_ACCESS_KEY_ID": {"name": "store", "key": "id"},
    "AWS_SECRET_ACCESS_KEY": {"name": "store", "key": "secret"},
}


def spec_of(**fields: Any) -> ClusterSpec:
    usual = {
        "cluster": "night",
        "image": "registry/manta:1",
        "head": {"instance_type": "m5.large"},
        "groups": [{"name": "train", "max": 3, "instance_type": "g5.2xlarge", "gpus": 1, "spot": True}],
        "service_account": "manta",
    }
    return ClusterSpec.model_validate(usual | fields)


def gcp(group: dict[str, Any] | None = None, **fields: Any) -> ClusterSpec:
    vm = {
        "provider": "gcp",
        "region": "us-west1",
        "zones": ["us-west1-a"],
        "project": "mine",
        "image_id": "x",
        **fields,
    }
    train = {"name": "train", "max": 3, "instance_type": "g2-standard-8", "gpus": 1, "spot": True}
    return spec_of(vm=vm, groups=[{**train, **(group or {})}], service_account="manta@mine.iam.gserviceaccount.com")


def by_ray(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults, after all checks that Ray makes before it calls a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@some
@given(cluster_specs())
def test_any_spec_conforms_to_rays_schema(spec: ClusterSpec) -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = ray_config(spec)
    jsonschema.validate(config, schema)
    assert yaml.safe_load(dump(config, COMMENTS)) == config


@some
@given(cluster_specs())
def test_ray_reads_the_node_types_of_the_spec(spec: ClusterSpec) -> None:
    prepared = by_ray(ray_config(spec))
    types = prepared["available_node_types"]
    assert list(types) == ["head", *(group.name for group in spec.groups)]
    assert types[prepared["head_node_type"]]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for group in spec.groups:
        found = types[group.name]
        assert (found["min_workers"], found["max_workers"]) == (group.min, group.max)
        assert found["resources"] == {"CPU": group.cpus, **group.resources} | (
            {"GPU": group.gpus} if group.gpus else {}
        )
        market = "spot" if group.spot else "on-demand"
        assert found["labels"] == {**group.labels, GROUP_LABEL: group.name, MARKET_LABEL: market}
        assert found["node_config"]["InstanceType"] == group.instance_type
        assert ("InstanceMarketOptions" in found["node_config"]) == group.spot
    assert prepared["max_workers"] == sum(group.max for group in spec.groups)
    assert prepared["idle_timeout_minutes"] * 60 == pytest.approx(spec.idle_timeout_s, abs=0.05)


def test_none_of_rays_default_setup_commands_run() -> None:
    prepared = by_ray(ray_config(spec_of()))
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []
    assert not any("pip" in command for command in prepared["initialization_commands"])


def test_variables_pass_a_shell_unchanged() -> None:
    import shlex

    config = ray_config(spec_of(environment={"GREETING": "don't $HOME"}, store={"endpoint_url": "http://minio:9000"}))
    given_ = shlex.split(" ".join(config["docker"]["run_options"]))
    assert "GREETING=don't $HOME" in given_ and "AWS_ENDPOINT_URL=http://minio:9000" in given_
    head = shlex.split(" ".join(config["docker"]["head_run_options"]))
    assert "RAY_health_check_period_ms=500" in head and "RAY_JOB_STOP_WAIT_TIME_S=60" in head


def test_gcp_has_its_own_fields() -> None:
    prepared = by_ray(ray_config(gcp()))
    assert prepared["provider"] | {"availability_zone": "us-west1-a", "project_id": "mine"} == prepared["provider"]
    train = prepared["available_node_types"]["train"]["node_config"]
    assert train["machineType"] == "g2-standard-8"
    assert train["scheduling"] == [{"preemptible": True}, {"onHostMaintenance": "TERMINATE"}]
    assert train["serviceAccounts"][0]["email"] == "manta@mine.iam.gserviceaccount.com"
    assert "scheduling" not in prepared["available_node_types"]["head"]["node_config"]


class TestIdentity:
    def test_it_is_an_instance_profile_by_name_or_arn(self) -> None:
        arn = "arn:aws:iam::1:instance-profile/manta"
        for given_, expected in (("manta", {"Name": "manta"}), (arn, {"Arn": arn})):
            types = ray_config(spec_of(service_account=given_))["available_node_types"]
            assert all(each["node_config"]["IamInstanceProfile"] == expected for each in types.values())

    def test_the_head_may_have_its_own(self) -> None:
        types = ray_config(spec_of(vm={"head_service_account": "manta-head"}))["available_node_types"]
        assert types["head"]["node_config"]["IamInstanceProfile"] == {"Name": "manta-head"}
        assert types["train"]["node_config"]["IamInstanceProfile"] == {"Name": "manta"}

    def test_keys_are_a_file_of_the_user_where_no_identity_gives_access(self) -> None:
        assert "file_mounts" not in ray_config(spec_of(secrets=KEYS))
        for spec in (
            spec_of(secrets=KEYS, service_account=None),
            spec_of(secrets=KEYS, store={"endpoint_url": "http://minio:9000"}),
            gcp().model_copy(update={"secrets": spec_of(secrets=KEYS).secrets}),
        ):
            assert ray_config(spec)["file_mounts"] == {CREDENTIALS: "~/.manta/night.credentials"}

    @some
    @given(cluster_specs())
    def test_no_secret_of_this_machine_is_rendered(self, spec: ClusterSpec) -> None:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patched.setenv(name, "the-secret-itself")
            assert "the-secret-itself" not in dump(ray_config(spec), COMMENTS)


class TestRefusals:
    def test_all_missing_fields_are_listed_at_once(self) -> None:
        spec = ClusterSpec.model_validate(
            {
                "cluster": "night",
                "groups": [{"name": "train", "max": 1}],
                "store": {"url": "s3://bucket/manta"},
            }
        )
        with pytest.raises(ClusterError) as refused:
            ray_config(spec)
        for part in ("image: missing", "head.instance_type", "groups.0.instance_type", "service_account: missing"):
            assert part in str(refused.value)

    def test_other_secrets_than_keys_are_refused(self) -> None:
        with pytest.raises(ClusterError, match=r"secrets.WANDB_API_KEY: virtual machines have no secrets"):
            ray_config(spec_of(secrets={"WANDB_API_KEY": {"name": "wandb", "key": "key"}}))

    @pytest.mark.parametrize(
        ("group", "vm", "says"),
        [
            ({}, {"image_id": None}, "vm.image_id: missing; groups with GPUs need an image with NVIDIA's driver"),
            (
                {"instance_type": "n1-standard-8"},
                {},
                "accelerator: missing; the type of the 1 GPUs to attach to n1-",
            ),
            ({"accelerator": "nvidia-l4"}, {}, "accelerator = nvidia-l4: g2-standard-8 comes with its GPUs; remove it"),
            (
                {"gpus": 0, "instance_type": "n1-standard-8", "accelerator": "nvidia-tesla-t4"},
                {},
                "accelerator = nvidia-tesla-t4: gpus is 0; set it, too",
            ),
        ],
    )
    def test_gcp_says_what_machines_with_gpus_need(self, group: dict[str, Any], vm: dict[str, Any], says: str) -> None:
        with pytest.raises(ClusterError) as raised:
            ray_config(gcp(group, **vm))
        assert says in str(raised.value)

    def test_aws_attaches_no_gpus(self) -> None:
        group = {"name": "train", "max": 1, "instance_type": "m5.large", "gpus": 1, "accelerator": "nvidia-l4"}
        with pytest.raises(ClusterError, match="accelerator: AWS has no GPUs to attach"):
            ray_config(spec_of(groups=[group]))

    def test_gpus_are_attached_where_a_machine_type_has_none(self) -> None:
        config = ray_config(gcp({"instance_type": "n1-standard-8", "gpus": 2, "accelerator": "nvidia-tesla-t4"}))
        node = config["available_node_types"]["train"]["node_config"]
        assert node["guestAccelerators"] == [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 2}]
        assert "guestAccelerators" not in ray_config(gcp())["available_node_types"]["train"]["node_config"]

    def test_gcp_takes_one_zone(self) -> None:
        with pytest.raises(ClusterError, match=r"vm.zones = \[\]: Ray's provider for gcp takes exactly one"):
            ray_config(gcp(zones=[]))


def test_every_comment_has_a_field() -> None:
    texts = [dump(ray_config(spec), COMMENTS) for spec in (spec_of(vm={"zones": ["a"]}), gcp())]
    texts.append(dump(ray_config(spec_of(service_account=None, secrets=KEYS)), COMMENTS))
    rendered = " ".join(" ".join(texts).replace("# ", "").split())
    assert [end for end, comment in COMMENTS.items() if " ".join(comment.split()) not in rendered] == []


def test_every_provider_of_the_spec_has_a_cloud() -> None:
    assert tuple(CLOUDS) == get_args(VmSpec.model_fields["provider"].annotation)
