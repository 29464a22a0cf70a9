"""A cluster's spec refuses what contradicts itself, and what would show a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.spec import ClusterSpec
from orchestrator.cluster_file import load_cluster
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
def test_specs_of_the_project_are_right(path: Path) -> None:
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
        ("vm={provider: gcp}", "vm.project: missing"),
    ],
)
def test_says_what_is_wrong_and_shows_no_value_that_may_be_a_secret(spec: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_cluster(spec, [override])
    assert says in str(raised.value)


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
