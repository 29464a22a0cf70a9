"""Finds what prevents a recipe from running on a cluster: files of this machine, and secret keys in the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.local.ray import joins_cluster
from cluster.strict_yaml import override
from data.cleaning.config import FunctionStep
from data.config import SECRET
from data.stores.store import split_url
from orchestrator.config.problems import listed
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import RecipeError

_NEED_EXTRA_TEXT = ("near_dedup", "language", "stop_words", "lemmatize", "segment")
"""Cleaning steps that need the packages of the extra `text`."""


def keys_in(config: RunConfig) -> list[str]:
    """Dotted names of the object store's keys that the recipe contains."""
    return [f"store.{name}" for name in SECRET if getattr(config.store, name) is not None]


def local_files(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Dotted name and value of the fields that name a file or folder of this machine, apart from `store.serve`."""
    for name, location in _locations(config).items():
        if location is not None and split_url(location)[0] == "file":
            yield name, location


def _locations(config: RunConfig) -> dict[str, str | None]:
    locations: dict[str, str | None] = {
        "storage": config.storage,
        "train.init_from": config.train.init_from,
        "data.tokenizer.path": config.data.tokenizer.path,
    }
    for index, source in enumerate(config.data.sources):
        locations |= {f"data.sources.{index}.path": source.path, f"data.sources.{index}.input_path": source.input_path}
    return locations


def local_server_problems(config: RunConfig) -> list[str]:
    """The problem of `store.serve`, which starts an object store on one machine; empty where it is not set."""
    if config.store.serve is None:
        return []
    return [
        f"store.serve = {config.store.serve!r}: starts a server on one machine, which a cluster cannot use; remove it, "
        "and name a bucket"
    ]


def image_needs(config: RunConfig) -> list[str]:
    """What the container image must contain for the recipe, besides the default image of Manta; a line each."""
    wanted = {
        "text": any(step.step in _NEED_EXTRA_TEXT for step in config.data.cleaning),
        "gs": any(split_url(each)[0] == "gs" for each in _locations(config).values() if each is not None),
        "mlflow": config.observe.mlflow.tracking_uri is not None,
        "wandb": config.observe.wandb.project is not None,
    }
    extras = ",".join(name for name, is_wanted in wanted.items() if is_wanted)
    lines = [f"the extras {extras}: docker build --build-arg EXTRAS={extras}"] if extras else []
    modules = {step.path.rpartition(".")[0] for step in config.data.cleaning if isinstance(step, FunctionStep)}
    return [
        *lines,
        *(f"the module {module}, which data.cleaning names: only the recipe is shipped" for module in sorted(modules)),
    ]


def refuse_keys(config: RunConfig, recipe: Path) -> None:
    """Raises RecipeError if the recipe contains keys, since it is stored in the cluster's memory and on its disks."""
    problems = [
        f"{name}: a key must not be stored on a cluster's disks; remove it, and set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY in the environment of the nodes, or give them an identity that needs no key"
        for name in keys_in(config)
    ]
    if problems:
        raise RecipeError(listed(str(recipe), problems))


def refuse_keys_for_nodes(config: RunConfig) -> None:
    """Raises RecipeError if a cluster is joined and the recipe contains keys, which its nodes would not have."""
    if joins_cluster() and (names := keys_in(config)):
        raise RecipeError(
            f"{', '.join(names)}: the nodes of the cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} would not have "
            "these keys. Remove them from the recipe (--set store.access_key_id=null --set "
            "store.secret_access_key=null), and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY here and in the "
            "environment of the nodes, or give them an identity that needs no key."
        )


def local_paths(config: RunConfig, recipe: Path, *, this_machine: bool) -> list[str]:
    """Overrides that make the recipe's paths absolute, for a cluster on this machine.

    Raises:
        RecipeError: the cluster is elsewhere, and a path is relative. An absolute path is accepted, since it may be
            on a file system that all nodes share.
    """
    relative = [(name, path) for name, path in local_files(config) if not path.startswith(("/", "file://"))]
    if this_machine:
        served = [("store.serve", config.store.serve)] if config.store.serve is not None else []
        return [override(name, split_url(path)[1]) for name, path in [*relative, *served]]
    problems = [
        f"{name} = {path!r}: the cluster does not have the files of this machine; name a bucket, or an absolute path "
        "on a file system that all nodes share"
        for name, path in relative
    ]
    problems += local_server_problems(config)
    if problems:
        raise RecipeError(listed(str(recipe), problems))
    return []
