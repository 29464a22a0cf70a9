"""What of a recipe is not to be had on a cluster: files of one machine, and keys that would travel with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.cleaning.config import FunctionStep
from data.config import SECRET
from data.stores.store import split_url
from orchestrator.config.problems import listed
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import RecipeError

_OF_LIBRARIES = ("near_dedup", "language", "stop_words", "lemmatize", "segment")
"""Steps that need the extra `text`."""


def keys_in(config: RunConfig) -> list[str]:
    """Dotted names of the keys to the object store that the recipe holds."""
    return [f"store.{name}" for name in SECRET if getattr(config.store, name) is not None]


def local_places(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Dotted names of fields that name a file or folder of a machine, and what they say; `store.serve` is another."""
    for name, place in _places(config).items():
        if place is not None and split_url(place)[0] == "file":
            yield name, place


def _places(config: RunConfig) -> dict[str, str | None]:
    places = {
        "storage": config.storage,
        "train.init_from": config.train.init_from,
        "data.tokenizer.path": config.data.tokenizer.path,
    }
    for index, source in enumerate(config.data.sources):
        places |= {f"data.sources.{index}.path": source.path, f"data.sources.{index}.input_path": source.input_path}
    return places


def own_servers(config: RunConfig) -> list[str]:
    """What is to be said of an object store that the recipe has served on this machine."""
    if config.store.serve is None:
        return []
    return [
        f"store.serve = {config.store.serve!r}: a server on one machine is none for a cluster; take it out, and name a "
        "bucket"
    ]


def image_needs(config: RunConfig) -> list[str]:
    """What an image must hold for the recipe, beside what Manta's has where nothing is said, each in a line."""
    wanted = {
        "text": any(step.step in _OF_LIBRARIES for step in config.data.cleaning),
        "gs": any(split_url(place)[0] == "gs" for place in _places(config).values() if place is not None),
        "mlflow": config.observe.mlflow.tracking_uri is not None,
        "wandb": config.observe.wandb.project is not None,
    }
    extras = ",".join(name for name, is_wanted in wanted.items() if is_wanted)
    lines = [f"the extras {extras}: docker build --build-arg EXTRAS={extras}"] if extras else []
    own = {step.path.rpartition(".")[0] for step in config.data.cleaning if isinstance(step, FunctionStep)}
    return [
        *lines,
        *(f"the module {module}, which data.cleaning names: only the recipe travels" for module in sorted(own)),
    ]


def refuse_keys(config: RunConfig, recipe: Path) -> None:
    """Raises RecipeError if the recipe holds keys: it is kept in the cluster's memory, and on its nodes' disks."""
    problems = [
        f"{name}: a key does not belong on a cluster's disks; take it out, and let the nodes have AWS_ACCESS_KEY_ID "
        "and AWS_SECRET_ACCESS_KEY in their environment, or an identity that needs none"
        for name in keys_in(config)
    ]
    if problems:
        raise RecipeError(listed(str(recipe), problems))


def local_paths(config: RunConfig, recipe: Path, *, this_machine: bool) -> list[str]:
    """Overrides that make folders of the recipe absolute, where the cluster is on this machine.

    Raises:
        RecipeError: the cluster is elsewhere, and a place is named relative to this machine's folder; an absolute one
            may be that of a file system which all nodes have.
    """
    relative = [(name, place) for name, place in local_places(config) if not place.startswith(("/", "file://"))]
    if this_machine:
        served = [("store.serve", config.store.serve)] if config.store.serve is not None else []
        return [f"{name}={split_url(place)[1]}" for name, place in [*relative, *served]]
    problems = [
        f"{name} = {place!r}: the cluster does not have the files of this machine; name a bucket, or an absolute path "
        "of a file system that all nodes have"
        for name, place in relative
    ]
    problems += own_servers(config)
    if problems:
        raise RecipeError(listed(str(recipe), problems))
    return []
