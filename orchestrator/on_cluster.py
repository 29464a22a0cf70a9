"""What of a recipe is not to be had on a cluster: folders of one machine, and keys that would travel with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.config import SECRET
from orchestrator.config import RunConfig
from orchestrator.errors import InputError


def refuse_keys(config: RunConfig, recipe: Path) -> None:
    """Raises InputError if the recipe holds keys: it is kept in the cluster's memory, and on the disks of its nodes."""
    given = [name for name in SECRET if getattr(config.store, name) is not None]
    if given:
        names = ", ".join(f"store.{name}" for name in given)
        raise InputError(
            f"{recipe} holds keys ({names}), and would be copied to the cluster with them. Take them out: nodes read "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from their environment, or have a role of their own."
        )


def local_paths(config: RunConfig, *, this_machine: bool) -> list[str]:
    """Overrides that make folders of the recipe absolute, where the cluster is on this machine.

    Raises:
        InputError: the cluster is elsewhere, and a folder is named relative to this one.
    """
    relative = [(name, path) for name, path in _paths(config) if "://" not in path and not Path(path).is_absolute()]
    if relative and not this_machine:
        named = "\n".join(f"  {name}: {path}" for name, path in relative)
        raise InputError(
            f"These are folders of this machine, which the cluster does not have:\n{named}\n"
            "Use an object store (s3://, gs://), or an absolute path of a file system that all nodes have: "
            "--set storage=s3://my-bucket/manta"
        )
    if config.store.serve is not None and not this_machine:
        raise InputError(
            "store.serve starts an object store on one machine for that machine alone; a cluster needs one that all "
            "nodes reach. Leave store.serve out, and name its endpoint in store.endpoint_url or AWS_ENDPOINT_URL."
        )
    return [f"{name}={Path(path).absolute()}" for name, path in relative]


def _paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Fields that name a file or folder, and what they say."""
    yield "storage", config.storage
    for index, source in enumerate(config.data.sources):
        yield f"data.sources.{index}.path", source.path
        if source.input_path:
            yield f"data.sources.{index}.input_path", source.input_path
    if config.train.init_from:
        yield "train.init_from", config.train.init_from
    if config.store.serve:
        yield "store.serve", config.store.serve
