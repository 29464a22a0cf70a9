"""The spec refuses what Ray, its autoscaler or Kubernetes would refuse, or read as something else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.spec import ClusterSpec, bytes_of


def refused(**group: Any) -> str:
    fields = {"cluster": "night", "groups": [{"name": "train", "max": 1, **group}]}
    with pytest.raises(ValidationError) as error:
        ClusterSpec.model_validate(fields)
    return str(error.value)


@pytest.mark.parametrize(
    ("quantity", "expected"), [("1Ki", 1024), ("2k", 2000), ("3Mi", 3 << 20), ("4Gi", 4 << 30), ("5T", 5 * 10**12)]
)
def test_amounts_are_as_kubernetes_writes_them(quantity: str, expected: int) -> None:
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    assert bytes_of(quantity) == expected == int(parse_quantity(quantity))


@pytest.mark.parametrize("name", ["CPU", "GPU", "memory", "object_store_memory", "node:1", "example.com/gpu"])
def test_what_ray_counts_by_itself_is_no_resource_of_ones_own(name: str) -> None:
    assert "Ray counts this one by itself" in refused(resources={name: 1})


@pytest.mark.parametrize("amount", [0.5, 1.5, 0, -1])
def test_resources_are_whole(amount: float) -> None:
    assert f"resources.disk = {amount:g}: Ray's autoscaler counts in whole numbers" in refused(
        resources={"disk": amount}
    )


@pytest.mark.parametrize("text", ["a b", "-a", "a" * 64])
def test_labels_have_the_syntax_of_kubernetes(text: str) -> None:
    from ray._private.label_utils import validate_node_label_syntax

    assert f"labels.{text}: not a key of a label" in refused(labels={text: "a"})
    assert f"labels.a = {text!r}: not a value of a label" in refused(labels={"a": text})
    for labels in ({text: "a"}, {"a": text}):
        with pytest.raises(ValueError, match="Invalid label"):
            validate_node_label_syntax(labels)


@pytest.mark.parametrize("key", ["Example.com/a", "/a", "", "a/b/c"])
def test_a_label_may_have_a_domain_before_it(key: str) -> None:
    assert f"labels.{key}: not a key of a label" in refused(labels={key: "a"})


def test_variables_have_names() -> None:
    with pytest.raises(ValidationError, match=r"environment.a-b: not a name of a variable"):
        ClusterSpec.model_validate(
            {"cluster": "night", "groups": [{"name": "train", "max": 1}], "environment": {"a-b": "1"}}
        )
