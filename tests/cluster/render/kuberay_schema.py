"""Trims KubeRay's CRDs to a JSON schema of the fields that Manta's manifests use, `kuberay.schema.json`.

The CRDs of both kinds have 43,000 lines, most of them descriptions and fields of pods that are not used here. The
schema keeps names, types, enums, required fields, bounds and patterns, and refuses all other fields: Kubernetes would
drop them silently. A field that is new in the manifests is refused, too, until the schema has been written again:

    python -m tests.cluster.render.kuberay_schema FOLDER

FOLDER is a copy of `helm-chart/kuberay-operator/crds` of KubeRay v1.7 (github.com/ray-project/kuberay, Apache License
2.0).
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from cluster.render.kuberay import ray_cluster, ray_job
from cluster.spec import ClusterSpec

SCHEMA = Path(__file__).with_name("kuberay.schema.json")

_KEPT = ("type", "enum", "required", "format", "minimum", "maximum", "minLength", "maxLength", "pattern", "anyOf")

_GROUP = {"name": "train", "max": 2, "gpus": 1, "node_selector": {"a": "b"}, "resources": {"fast_disk": 1}}

_EVERYTHING: dict[str, Any] = {
    "cluster": "everything",
    "image": "registry/manta:1",
    "head": {"tolerations": [{"key": "a", "operator": "Equal", "value": "b"}], "node_selector": {"a": "b"}},
    "groups": [_GROUP | {"labels": {"tier": "a"}}, _GROUP | {"name": "spot", "spot": True}],
    "service_account": "manta",
    "environment": {"NAME": "value"},
    "secrets": {"WANDB_API_KEY": {"name": "wandb", "key": "key"}},
    "kubernetes": {"queue": "gpus", "deadline_s": 60, "image_pull_secrets": ["pull"]},
}
"""A spec that sets every field with a counterpart in the manifests."""

Used = dict[str, "Used"]
"""Names of fields in use, nested; items of a list are merged."""


def used_fields(value: Any) -> Used:
    """The fields that occur in a manifest."""
    if isinstance(value, dict):
        return {name: used_fields(each) for name, each in value.items()}
    return _merged(*map(used_fields, value)) if isinstance(value, list) else {}


def _merged(*trees: Used) -> Used:
    names = dict.fromkeys(name for tree in trees for name in tree)
    return {name: _merged(*(tree[name] for tree in trees if name in tree)) for name in names}


def trim(schema: dict[str, Any], used: Used) -> dict[str, Any]:
    """The schema without descriptions and without optional fields that are not used; unknown fields are refused."""
    kept: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "items" in schema:
        kept["items"] = trim(schema["items"], used)
    elif isinstance(schema.get("additionalProperties"), dict):  # a map from any name
        kept["additionalProperties"] = trim(schema["additionalProperties"], _merged(*used.values()))
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        names = {*used, *schema.get("required", [])}
        properties = {name: each for name, each in schema.get("properties", {}).items() if name in names}
        kept["properties"] = {name: trim(each, used.get(name, {})) for name, each in properties.items()}
        kept["additionalProperties"] = False
    return kept


def trimmed_schemas(crds: Path) -> dict[str, Any]:
    """One JSON schema with the definition of each kind, from the folder with KubeRay's CRDs."""
    spec = ClusterSpec.model_validate(_EVERYTHING)
    used = used_fields(ray_job(spec, "everything", "s3://bucket/manta"))
    cluster = _merged(used["spec"].pop("rayClusterSpec"), used_fields(ray_cluster(spec))["spec"])
    pod = _merged(cluster["headGroupSpec"].pop("template"), cluster["workerGroupSpecs"].pop("template"))
    definitions = {
        "RayCluster": trim(_of_crd(crds, "RayCluster"), _TOP),
        "RayJob": trim(_of_crd(crds, "RayJob"), used),
        "cluster": trim(_of_crd(crds, "RayCluster", "spec"), cluster),
        "pod": trim(_of_crd(crds, "RayCluster", "spec", "headGroupSpec", "template"), pod),
    }
    definitions["RayCluster"]["properties"]["spec"] = _reference("cluster")
    definitions["RayJob"]["properties"]["spec"]["properties"]["rayClusterSpec"] = _reference("cluster")
    groups = definitions["cluster"]["properties"]
    for group in (groups["headGroupSpec"], groups["workerGroupSpecs"]["items"]):
        group["properties"]["template"] = _reference("pod")
    for kind in ("RayCluster", "RayJob"):
        # Kubernetes defines the metadata of every object; a CRD says nothing about it.
        definitions[kind]["properties"]["metadata"] = {"type": "object"}
    return {"$defs": definitions}


_TOP: Used = {"apiVersion": {}, "kind": {}, "metadata": {}}


def _of_crd(crds: Path, kind: str, *path: str) -> dict[str, Any]:
    """The schema of a field of a kind."""
    schema: dict[str, Any] = _crd(crds / f"ray.io_{kind.lower()}s.yaml")
    for name in path:
        schema = schema["properties"][name]
    return schema


@functools.cache
def _crd(file: Path) -> dict[str, Any]:
    crd = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    [version] = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def schema_of(kind: str) -> dict[str, Any]:
    """The schema of a RayCluster or a RayJob, from `kuberay.schema.json`."""
    return {**json.loads(SCHEMA.read_text()), **_reference(kind)}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(trimmed_schemas(Path(sys.argv[1])), indent=1, sort_keys=True) + "\n")
