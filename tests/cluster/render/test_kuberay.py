"""Rendered manifests against KubeRay's CRDs and Ray's autoscaler, and properties that hold for every spec."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.kubernetes_syntax import bytes_of
from cluster.node_environment import FAILOVER
from cluster.render.kuberay import RAY_VERSION, manifests, object_name, ray_cluster, ray_job
from cluster.render.kuberay_comments import COMMENTS
from cluster.render.kuberay_pods import SPOT
from cluster.render.yaml import dump_all
from cluster.spec import GROUP_LABEL, MARKET_LABEL, ClusterSpec
from tests.cluster.render.kuberay_schema import SCHEMA, schema_of, trimmed_schemas
from tests.cluster.specs import cluster_specs

ROOT = Path(__file__).parents[3]
CRDS = ROOT.parent / "shared" / "kuberay" / "crds"
RECIPE = "run: first\nstorage: s3://bucket/manta\n"

some = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(some, max_examples=3)


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Checks an object against the CRD of its kind; fields that the CRD does not have are errors."""
    return jsonschema.Draft202012Validator(schema_of(kind))


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The `spec` of the head's pod and of each group's pods."""
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def variables(pod: dict[str, Any]) -> dict[str, Any]:
    """Environment variables of its container as Kubernetes expands them; a dictionary for a reference to a secret."""
    given = {each["name"]: each.get("value", each.get("valueFrom")) for each in pod["containers"][0]["env"]}

    def meant(match: re.Match[str]) -> str:
        return match[1] or str(given.get(match[2], match[0]))

    return {name: re.sub(r"\$(?:(\$)|\((.*?)\))", meant, v) if isinstance(v, str) else v for name, v in given.items()}


def spec_of(**fields: Any) -> ClusterSpec:
    usual = {"cluster": "night", "image": "registry/manta:1", "groups": [{"name": "train", "max": 3}]}
    return ClusterSpec.model_validate(usual | fields)


class TestCrds:
    def test_the_schema_is_that_of_the_crds(self) -> None:
        """Compares with KubeRay's CRDs if they are present; without them the committed schema is used as it is."""
        expected = trimmed_schemas(CRDS) if CRDS.is_dir() else json.loads(SCHEMA.read_text())
        assert json.loads(SCHEMA.read_text()) == expected, "write it again, see kuberay_schema.py"

    @some
    @given(cluster_specs())
    def test_a_cluster_of_any_spec_conforms_to_the_crd(self, spec: ClusterSpec) -> None:
        validator("RayCluster").validate(ray_cluster(spec))

    @some
    @given(cluster_specs())
    def test_a_job_of_any_spec_conforms_to_the_crd(self, spec: ClusterSpec) -> None:
        validator("RayJob").validate(ray_job(spec, "mine", spec.store.url))

    @pytest.mark.parametrize(
        "path", [("terminationGracePeriodSecond",), ("containers", 0, "imag"), ("volumes", 0, "emptyDir", "size")]
    )
    def test_an_unknown_field_is_refused(self, path: tuple[str | int, ...]) -> None:
        manifest = ray_cluster(spec_of())
        place: Any = pods(manifest)[1]
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "1"
        with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
            validator("RayCluster").validate(manifest)

    def test_a_value_outside_an_enum_is_refused(self) -> None:
        manifest = ray_cluster(spec_of())
        manifest["spec"]["autoscalerOptions"]["version"] = "v3"
        with pytest.raises(jsonschema.ValidationError, match="'v3' is not one of"):
            validator("RayCluster").validate(manifest)


class TestRaysAutoscaler:
    @some
    @given(cluster_specs())
    def test_it_derives_the_node_types_of_the_spec(self, spec: ClusterSpec) -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        config = _derive_autoscaling_config_from_ray_cr(ray_cluster(spec))
        types = config["available_node_types"]
        assert list(types) == ["headgroup", *(group.name for group in spec.groups)]
        assert types["headgroup"]["resources"]["CPU"] == 0 and "GPU" not in types["headgroup"]["resources"]
        assert config["max_workers"] == sum(group.max for group in spec.groups)
        assert spec.idle_timeout_s <= config["idle_timeout_minutes"] * 60 <= spec.idle_timeout_s + 1
        for group in spec.groups:
            found = types[group.name]
            assert (found["min_workers"], found["max_workers"]) == (group.min, group.max)
            expected = {"CPU": group.cpus, "memory": bytes_of(group.memory), **group.resources}
            assert found["resources"] == expected | ({"GPU": group.gpus} if group.gpus else {})
            market = "spot" if group.spot else "on-demand"
            assert found["labels"] == {**group.labels, GROUP_LABEL: group.name, MARKET_LABEL: market}

    def test_version_2_accepts_what_it_derives(self) -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
        from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

        spec = spec_of(groups=[{"name": "train", "max": 3, "min": 1, "gpus": 2, "resources": {"fast_disk": 1}}])
        derived = _derive_autoscaling_config_from_ray_cr(ray_cluster(spec))
        types = AutoscalingConfig(derived, skip_content_hash=True).get_node_type_configs()
        assert types["train"].resources == {"CPU": 2, "GPU": 2, "memory": 4 << 30, "fast_disk": 1}
        assert (types["train"].min_worker_nodes, types["train"].max_worker_nodes) == (1, 3)


class TestContract:
    """Names in Ray that the manifests depend on. A failure names what an upgrade has changed."""

    def test_the_version_is_the_pinned_one(self) -> None:
        import ray

        assert ray.__version__ == RAY_VERSION
        assert f'"ray[data,train,tune,default]=={RAY_VERSION}"' in (ROOT / "pyproject.toml").read_text()

    def test_labels_are_those_of_ray(self) -> None:
        import ray

        assert ray._raylet.RAY_NODE_MARKET_TYPE_KEY == MARKET_LABEL
        assert ray._raylet.RAY_NODE_GROUP_KEY == GROUP_LABEL

    def test_probes_use_rays_health_check(self) -> None:
        import inspect

        from ray._private import ray_constants
        from ray.dashboard.modules.reporter import healthz_agent

        probe = pods(ray_cluster(spec_of()))[1]["containers"][0]["livenessProbe"]["httpGet"]
        assert probe["port"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
        assert f'"{probe["path"]}"' in inspect.getsource(healthz_agent)

    def test_ray_reads_the_variables(self) -> None:
        import inspect

        from ray import _config
        from ray._private import ray_constants
        from ray.dashboard.modules.job import job_supervisor

        for name in FAILOVER:
            assert hasattr(_config, name.removeprefix("RAY_")), name
        assert '"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"' in inspect.getsource(ray_constants)
        assert '"RAY_JOB_STOP_WAIT_TIME_S"' in inspect.getsource(job_supervisor)


@given(st.text("$()A ", max_size=12))
def test_a_variable_has_the_value_that_the_spec_gives_it(text: str) -> None:
    for pod in pods(ray_cluster(spec_of(environment={"A": "other", "GREETING": text}))):
        assert variables(pod)["GREETING"] == text


class TestOperator:
    """What KubeRay's operator refuses, or would set by itself, beyond its CRDs."""

    @some
    @given(cluster_specs())
    def test_no_setting_occurs_twice(self, spec: ClusterSpec) -> None:
        cluster = ray_cluster(spec)["spec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            counted = {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys()
            assert not (counted and group.get("resources")), "resources in rayStartParams and beside it"
            assert "labels" not in group["rayStartParams"]
            pod = group["template"]["spec"]
            assert "restartPolicy" not in pod, "the autoscaler's v2 takes Never, which the operator sets"
            names = [each["name"] for each in pod["containers"][0]["env"]]
            assert len(names) == len(set(names)) and "RAY_enable_autoscaler_v2" not in names

    def test_a_queued_job_is_suspended_and_cleaned_up(self) -> None:
        job = ray_job(spec_of(kubernetes={"queue": "gpus"}), "mine")
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert job["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
        assert job["spec"]["suspend"] is True and job["spec"]["shutdownAfterJobFinishes"] is True
        assert "suspend" not in ray_job(spec_of(), "mine")["spec"]


class TestReclaims:
    @some
    @given(cluster_specs())
    def test_a_pods_grace_exceeds_its_drain_and_a_retry_waits_longer_than_both(self, spec: ClusterSpec) -> None:
        job = ray_job(spec, "mine")
        graces = {pod["terminationGracePeriodSeconds"] for pod in pods(job)}
        [grace] = graces
        for pod in pods(job):
            assert float(variables(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) + 20 < grace
        assert int(variables(pods(job)[0])["RAY_JOB_STOP_WAIT_TIME_S"]) >= spec.grace_s
        words = shlex.split(job["spec"]["entrypoint"])
        from orchestrator.run.fence import PRESUMED_DEAD_S

        assert int(words[words.index("--patience") + 1].removesuffix("s")) > grace + PRESUMED_DEAD_S

    @some
    @given(cluster_specs())
    def test_heads_and_on_demand_groups_avoid_spot_nodes(self, spec: ClusterSpec) -> None:
        own = [{taint.key for taint in machine.tolerations} for machine in (spec.head, *spec.groups)]
        may = [False, *(group.spot for group in spec.groups)]
        for pod, is_spot, given_ in zip(pods(ray_cluster(spec)), may, own, strict=True):
            tolerated = {each["key"] for each in pod.get("tolerations", [])} - given_
            affinity = pod["affinity"]["nodeAffinity"]
            if is_spot:
                assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
                assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
            else:
                assert not tolerated & SPOT.keys()
                [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
                excluded = {
                    each["key"]: each["values"] for each in term["matchExpressions"] if each["operator"] == "NotIn"
                }
                assert excluded == {key: [value] for key, value in SPOT.items()}

    def test_the_head_notices_a_lost_node_and_takes_no_work(self) -> None:
        manifest = ray_cluster(spec_of())
        assert FAILOVER.items() <= variables(pods(manifest)[0]).items()
        assert manifest["spec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


class TestPods:
    @some
    @given(cluster_specs())
    def test_none_has_more_permissions_than_it_needs(self, spec: ClusterSpec) -> None:
        head, *workers = pods(ray_cluster(spec))
        assert "automountServiceAccountToken" not in head, "its autoscaler talks to Kubernetes"
        assert all(pod["automountServiceAccountToken"] is False for pod in workers)
        for pod in (head, *workers):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            container = pod["containers"][0]["securityContext"]
            assert container == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

    @some
    @given(cluster_specs())
    def test_they_have_what_the_spec_says(self, spec: ClusterSpec) -> None:
        for pod, machine in zip(pods(ray_cluster(spec)), (spec.head, *spec.groups), strict=True):
            resources = pod["containers"][0]["resources"]
            assert resources["requests"] == resources["limits"]
            assert (resources["limits"]["cpu"], resources["limits"]["memory"]) == (str(machine.cpus), machine.memory)
            shared = pod["volumes"][0]["emptyDir"]
            assert shared["medium"] == "Memory"
            if bytes_of(machine.memory) >= 2 << 20:
                memory, limit = bytes_of(machine.memory), bytes_of(shared["sizeLimit"])  # which is in whole MiB
                assert 0.3 * memory - (1 << 20) < limit <= memory / 2
            found = variables(pod)
            assert spec.variables.items() <= found.items()
            assert pod.get("nodeSelector", {}) == machine.node_selector
            assert len(pod.get("tolerations", [])) >= len(machine.tolerations)

    def test_gpus_are_limits_and_their_taint_is_tolerated(self) -> None:
        groups = [{"name": "train", "max": 1, "gpus": 2}, {"name": "slices", "max": 1, "gpus": 1}]
        groups[1]["gpu_resource"] = "nvidia.com/mig-1g.5gb"
        _, train, slices = pods(ray_cluster(spec_of(groups=groups)))
        assert train["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert slices["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.5gb"] == "1"
        taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        assert train["tolerations"] == slices["tolerations"] == [taint]


class TestSecrets:
    @few
    @given(cluster_specs())
    def test_they_are_references_and_nothing_of_this_machine_is_rendered(self, spec: ClusterSpec) -> None:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
                patched.setenv(name, "the-secret-itself")
            text = dump_all(manifests(spec, "mine", RECIPE, spec.store.url), COMMENTS)
        assert "the-secret-itself" not in text
        for pod in pods(ray_cluster(spec)):
            for name, secret in spec.secrets.items():
                assert variables(pod)[name] == {"secretKeyRef": {"name": secret.name, "key": secret.key}}

    def test_the_cluster_requires_a_token(self) -> None:
        assert ray_cluster(spec_of())["spec"]["authOptions"] == {"mode": "token"}


class TestJob:
    def test_the_recipe_is_mounted_where_the_command_reads_it(self) -> None:
        recipe_map, job = manifests(spec_of(store={"url": "s3://bucket/a b"}), "mine", RECIPE, "s3://bucket/a b")
        assert recipe_map["data"] == {"recipe.yaml": RECIPE}
        head = pods(job)[0]
        [volume] = [each for each in head["volumes"] if each["name"] == "recipe"]
        [mount] = [each for each in head["containers"][0]["volumeMounts"] if each["name"] == "recipe"]
        assert volume["configMap"]["name"] == recipe_map["metadata"]["name"]
        words = shlex.split(job["spec"]["entrypoint"])
        assert words[:3] == ["manta", "train", f"{mount['mountPath']}/recipe.yaml"]
        assert words[-2:] == ["--set", "storage=s3://bucket/a b"]
        assert "--set" not in ray_job(spec_of(), "mine")["spec"]["entrypoint"]

    def test_retries_deadline_and_clean_up_are_those_of_the_spec(self) -> None:
        given_ = {"retries": 5, "clean_up_after_s": 7, "deadline_s": 3600}
        job = ray_job(spec_of(kubernetes=given_), "mine")["spec"]
        assert (job["backoffLimit"], job["ttlSecondsAfterFinished"], job["activeDeadlineSeconds"]) == (5, 7, 3600)
        assert "activeDeadlineSeconds" not in ray_job(spec_of(), "mine")["spec"]

    def test_a_spec_without_an_image_is_refused(self) -> None:
        with pytest.raises(ClusterError, match="image: missing; the container image with Manta in it"):
            ray_cluster(spec_of(image=None))


@few
@given(cluster_specs(), st.text(st.characters(codec="utf-8", exclude_categories=("C",), include_characters="\n\t")))
def test_rendered_yaml_parses_to_the_manifests_and_is_deterministic(spec: ClusterSpec, recipe: str) -> None:
    objects = manifests(spec, "mine", recipe)
    text = dump_all(objects, COMMENTS)
    assert json.loads(json.dumps(list(yaml.safe_load_all(text)))) == objects
    assert text == dump_all(manifests(spec, "mine", recipe), COMMENTS)


def test_every_comment_has_a_field() -> None:
    spec = spec_of(
        groups=[{"name": "train", "max": 1, "spot": True}],
        kubernetes={"queue": "gpus", "deadline_s": 60},
        service_account="manta",
    )
    text = " ".join(dump_all(manifests(spec, "mine", RECIPE), COMMENTS).replace("# ", "").split())
    missing = [end for end, comment in COMMENTS.items() if " ".join(comment.split()) not in text]
    assert missing == []


@pytest.mark.parametrize("run", ["mine", "Mine", "1-a", "a.b_c", "x" * 100, "---", "A-"])
def test_objects_are_named_after_their_run_with_names_that_kubernetes_accepts(run: str) -> None:
    import re

    from cluster.spec import NAME

    name = object_name(run)
    assert re.match(NAME, name) and len(name) <= 40
    assert (name == run) == (run == "mine")
    assert len({object_name(each) for each in (run, f"{run}.", run.swapcase() + "_")}) == 3
