"""Cluster specs of every kind, for properties that must hold for all of them."""

from __future__ import annotations

from hypothesis import strategies as st

from cluster.known_secrets import looks_secret
from cluster.spec import ClusterSpec

_names = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_group_names = _names.filter(lambda name: name != "head")
_quantities = st.builds("{}{}".format, st.integers(1, 900), st.sampled_from(["Gi", "G", "000Mi", "000M"]))
_values = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?", fullmatch=True)
_variables = st.from_regex(r"[A-Z][A-Z_]{0,5}", fullmatch=True).filter(lambda name: not looks_secret(name))
_texts = st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="@"), max_size=30)
_tolerations = st.fixed_dictionaries(
    {"key": _values},
    optional={"operator": st.sampled_from(["Exists", None]), "effect": st.sampled_from(["NoExecute", None])},
) | st.fixed_dictionaries({"key": _values, "value": _values}, optional={"operator": st.sampled_from(["Equal", None])})
_machines = {
    "cpus": st.integers(1, 96),
    "memory": _quantities,
    "instance_type": st.sampled_from(["m5.large", "g5.2xlarge"]),
    "node_selector": st.dictionaries(_values, _values, max_size=2),
    "tolerations": st.lists(_tolerations, max_size=2),
}
_resource_names = st.from_regex(r"[a-z][a-z_]{2,8}", fullmatch=True).filter(
    lambda name: not name.endswith("gpu") and not name.startswith(("memory", "node", "object"))
)


def _groups(names: list[str]) -> st.SearchStrategy[list[dict[str, object]]]:
    return st.tuples(*(_group(name) for name in names)).map(list)


def _group(name: str) -> st.SearchStrategy[dict[str, object]]:
    bounds = st.tuples(st.integers(0, 5), st.integers(1, 20)).map(lambda pair: (min(pair), max(pair)))
    rest = st.fixed_dictionaries(
        {
            **_machines,
            "gpus": st.integers(0, 8),
            "gpu_resource": st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.5gb"]),
            "spot": st.booleans(),
            "resources": st.dictionaries(_resource_names, st.integers(1, 9), max_size=2),
            "labels": st.dictionaries(st.one_of(_values, _values.map("example.com/{}".format)), _values, max_size=2),
        }
    )
    return st.builds(lambda b, r: {"name": name, "min": b[0], "max": b[1], **r}, bounds, rest)


def _secrets() -> st.SearchStrategy[dict[str, object]]:
    reference = st.fixed_dictionaries({"name": _names, "key": _values})
    return st.dictionaries(st.sampled_from(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]), reference)


def cluster_specs() -> st.SearchStrategy[ClusterSpec]:
    """Specs that both manifests and YAML for virtual machines can be made of."""
    fields = st.fixed_dictionaries(
        {
            "cluster": _names,
            "image": st.just("registry.example.com/manta:1"),
            "head": st.fixed_dictionaries(_machines),
            "groups": st.lists(_group_names, min_size=1, max_size=3, unique=True).flatmap(_groups),
            "idle_timeout_s": st.floats(1, 600),
            "grace_s": st.floats(5, 600),
            "store": st.fixed_dictionaries({}, optional={"url": st.just("s3://bucket/manta"), "region": _values}),
            "service_account": _names,
            "environment": st.dictionaries(_variables, _texts, max_size=3),
            "secrets": _secrets(),
            "kubernetes": st.fixed_dictionaries(
                {"namespace": _names, "retries": st.integers(0, 5)},
                optional={
                    "queue": _names,
                    "deadline_s": st.integers(60, 9999),
                    "image_pull_secrets": st.just(["pull"]),
                },
            ),
        }
    )
    return fields.map(ClusterSpec.model_validate)
