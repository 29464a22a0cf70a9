"""The spec refuses contradictions, visible secrets, and settings that Ray or Kubernetes would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.kubernetes_syntax import bytes_of
from cluster.spec import ClusterSpec, Toleration
from orchestrator.config.cluster_spec import load_cluster
from orchestrator.errors import RecipeError

SPECS = sorted((Path(__file__).parents[2] / "recipes" / "clusters").glob("*.yaml"))

GOOD = "cluster: demo\ngroups:\n  - {name: train, cpus: 2, max: 4}\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A file that describes a cluster."""
    path = tmp_path / "cluster.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_specs_of_the_project_are_valid(path: Path) -> None:
    assert load_cluster(path).groups


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("groups.0.min=5", "groups.0.min = 5: more than max, which is 4"),
        ("groups.0.mx=5", "groups.0.mx: there is no such field; did you mean groups.0.max?"),
        ("groups.1={name: train, max: 1}", "groups: train is the name of two groups"),
        ("groups.0.name=head", "groups: head is the name of the head"),
        ("groups.0.memory=lots", 'groups.0.memory = "lots": Memory of a node, as 16Gi.'),
        ("cluster=My Cluster", 'cluster = "My Cluster": Name of the cluster.'),
        ("environment.AWS_SECRET_ACCESS_KEY=x", "environment.AWS_SECRET_ACCESS_KEY: a secret does not belong here"),
        ("environment.WANDB_API_KEY=x", "environment.WANDB_API_KEY: a secret does not belong here"),
        ("environment.DB_PASSWD=x", "environment.DB_PASSWD: a secret does not belong here"),
        ("environment.GITHUB_PAT=x", "environment.GITHUB_PAT: a secret does not belong here"),
        ("environment.PROXY=http://me:hush@proxy", "environment.PROXY: a secret does not belong here"),
        ("store.endpoint_url=https://me:hush@minio", "store.endpoint_url: it contains a name or password"),
        ("vm={provider: gcp}", "vm.project: missing"),
    ],
)
def test_errors_name_the_field_and_show_no_possible_secret(spec: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_cluster(spec, [override])
    assert says in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "MONKEY", "AWS_SHARED_CREDENTIALS_FILE", "COMPASS"])
def test_variables_without_secrets_are_accepted(spec: Path, name: str) -> None:
    assert load_cluster(spec, [f"environment.{name}=/there"]).environment == {name: "/there"}


def test_all_problems_at_once(spec: Path) -> None:
    with pytest.raises(RecipeError, match="2 problems"):
        load_cluster(spec, ["groups.0.min=5", "environment.MY_PASSWORD=hunter2"])
    with pytest.raises(RecipeError) as raised:
        load_cluster(spec, ["environment.MY_PASSWORD=hunter2"])
    assert "hunter2" not in str(raised.value)
    with pytest.raises(RecipeError, match="not shown") as raised:
        load_cluster(spec, ["environment.MY_PASSWORD=12345"])
    assert "12345" not in str(raised.value)


def test_a_variable_in_two_places_is_refused(spec: Path) -> None:
    with pytest.raises(RecipeError, match="it is in environment, too"):
        load_cluster(spec, ["environment.REGION=a", "secrets.REGION={name: store, key: region}"])


def test_the_stores_address_is_among_the_variables(spec: Path) -> None:
    read = load_cluster(spec, ["store.endpoint_url=http://minio:9000", "environment.A='1'"])
    assert read.variables == {"AWS_ENDPOINT_URL": "http://minio:9000", "A": "1"}


def test_a_spec_survives_json() -> None:
    for path in SPECS:
        spec = load_cluster(path)
        assert ClusterSpec.model_validate_json(spec.model_dump_json()) == spec


def refused(**group: Any) -> str:
    fields = {"cluster": "night", "groups": [{"name": "train", "max": 1, **group}]}
    with pytest.raises(ValidationError) as error:
        ClusterSpec.model_validate(fields)
    return str(error.value)


@pytest.mark.parametrize(
    ("quantity", "expected"), [("1Ki", 1024), ("2k", 2000), ("3Mi", 3 << 20), ("4Gi", 4 << 30), ("5T", 5 * 10**12)]
)
def test_amounts_have_the_format_of_kubernetes(quantity: str, expected: int) -> None:
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    assert bytes_of(quantity) == expected == int(parse_quantity(quantity))


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory", "object_store_memory", "node:1", "example.com/gpu"])
def test_resources_that_ray_counts_are_no_custom_resources(name: str) -> None:
    assert "Ray counts this resource by itself" in refused(resources={name: 1})


@pytest.mark.parametrize("amount", [0.5, 1.5, 0, -1])
def test_resources_are_whole_numbers(amount: float) -> None:
    assert f"resources.disk = {amount:g}: Ray's autoscaler requires a whole number" in refused(
        resources={"disk": amount}
    )


@pytest.mark.parametrize("text", ["a b", "-a", "a" * 64])
def test_labels_have_the_syntax_of_kubernetes(text: str) -> None:
    from ray._private.label_utils import validate_node_label_syntax

    assert f"labels.{text}: not a valid key of a label" in refused(labels={text: "a"})
    assert f"labels.a = {text!r}: not a valid value of a label" in refused(labels={"a": text})
    for labels in ({text: "a"}, {"a": text}):
        with pytest.raises(ValueError, match="Invalid label"):
            validate_node_label_syntax(labels)


@pytest.mark.parametrize("key", ["Example.com/a", "/a", "", "a/b/c"])
def test_a_label_may_have_a_domain_as_prefix(key: str) -> None:
    assert f"labels.{key}: not a valid key of a label" in refused(labels={key: "a"})


def test_names_of_variables_are_checked() -> None:
    with pytest.raises(ValidationError, match=r"environment.a-b: not a valid name of a variable"):
        ClusterSpec.model_validate(
            {"cluster": "night", "groups": [{"name": "train", "max": 1}], "environment": {"a-b": "1"}}
        )


@pytest.mark.parametrize(
    ("taint", "expected"),
    [
        ({"key": "team", "value": "a"}, {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}),
        ({"key": "team"}, {"key": "team", "operator": "Exists", "effect": "NoSchedule"}),
        ({"key": "team", "effect": None}, {"key": "team", "operator": "Exists"}),
        (
            {"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"},
            {"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"},
        ),
    ],
)
def test_a_tolerations_operator_follows_from_its_value(taint: dict[str, Any], expected: dict[str, str]) -> None:
    assert Toleration.model_validate(taint).in_kubernetes == expected


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({"max": 99999999999}, "max"),
        ({"cpus": 10**9}, "cpus"),
        ({"gpus": 10**6}, "gpus"),
        ({"memory": "99999999Ti"}, "groups.0.memory = 99999999Ti: at most 64Ti"),
        ({"name": "a" * 41}, "name"),
        ({"instance_type": ""}, "instance_type"),
        ({"instance_type": "g5 2xlarge"}, "instance_type"),
        ({"node_selector": {"a b": "c"}}, "groups.0.node_selector.a b: not a valid key of a label"),
        ({"node_selector": {"a": "-"}}, "groups.0.node_selector.a = '-': not a valid value of a label"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "operator Exists takes no value"),
        ({"tolerations": [{"key": "a", "operator": "Equal"}]}, "operator Equal takes a value"),
        ({"tolerations": [{"key": "a b"}]}, "groups.0.tolerations.0: taint.a b: not a valid key"),
        ({"gpu_resource": "gpu"}, "groups.0.gpu_resource = 'gpu': not a name of a GPU resource"),
        ({"gpu_resource": "nvidia.com/g pu"}, "not a name of a GPU resource"),
        (
            {"resources": {"disk": 1e300}},
            "requires a whole number from 1 to 1,000,000,000",
        ),
    ],
)
def test_what_kubernetes_or_a_cloud_would_refuse_is_refused(group: dict[str, Any], says: str) -> None:
    assert says in refused(**group)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("image=''", "image = "),
        ("image='a b'", "It is registry/path:tag"),
        ("image=Registry.example.com/Manta:1", "the path in lower case"),
        ("cluster=Night", "It is lower-case letters, digits and -, a letter first"),
        ("cluster=2024-01-01", "It is lower-case letters"),
        (f"kubernetes.namespace={'a' * 64}", "at most 63 characters"),
        ("kubernetes.queue=a_b", "kubernetes.queue"),
        ("kubernetes.image_pull_secrets=[A]", "kubernetes.image_pull_secrets: 'A' is not a valid name"),
        ("kubernetes.retries=99999999999", "kubernetes.retries"),
        ("secrets={A_KEY: {name: A_B, key: x}}", "It is lower-case letters, digits, . and -"),
        ("secrets={A_KEY: {name: a, key: 'x y'}}", "It is letters, digits, . _ and -"),
        ("image=Manta:1", "the path in lower case"),
        ("service_account='a b'", "service_account"),
        ("store.url=gs://bucket/manta", "store.url = gs://bucket/manta: gs:// cannot hold runs; write s3://"),
        ("store.endpoint_url=minio:9000", "It is http:// or https:// and a host"),
        ("vm.ssh_user='a b'", "User for ssh, as ubuntu. It is letters, digits"),
        ("vm.region=''", "Region of the machines"),
        ("vm.disk_gb=99999999999", "vm.disk_gb"),
        ('environment={A: "a\\0b"}', "environment.A: it contains a NUL"),
    ],
)
def test_names_and_amounts_are_refused_with_their_rule(spec: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_cluster(spec, [override])
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "image",
    [
        "manta",
        "manta:0.2.0",
        "my_team/manta:1",
        "manta_dev:latest",
        "registry.example.com/team/manta:0.2.0",
        "localhost:5000/manta",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/manta:1_a",
        f"ghcr.io/team/manta@sha256:{'a' * 64}",
    ],
)
def test_references_of_images_are_accepted(spec: Path, image: str) -> None:
    assert load_cluster(spec, [f"image={image}"]).image == image
