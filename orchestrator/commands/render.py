"""`manta cluster render`: turns a cluster spec, and the recipe of a run, into files for KubeRay or `ray up`.

Problems that would make a pod fail after minutes are refused here, all at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from cluster.known_secrets import form_of_key, held_in
from cluster.machines import room_warnings
from cluster.render import kuberay, vm
from cluster.render.kuberay_comments import COMMENTS
from cluster.render.yaml import dump, dump_all
from cluster.spec import ClusterSpec
from cluster.strict_yaml import override
from data.errors import InputError
from orchestrator.config.cluster_spec import load_cluster
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import image_needs, keys_in, local_files, local_server_problems
from orchestrator.config.problems import listed
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import RecipeError
from orchestrator.printable import printable

Target = Literal["kuberay", "vm"]

_MOST_RECIPE_BYTES = 900_000
"""Limit on a recipe that goes into a ConfigMap, which Kubernetes limits to 1 MiB."""

_NO_KEY = (
    "a key must not be in a manifest; remove it, and name the secret that has it (secrets) or an identity that needs "
    "no key (service_account) in the cluster's spec"
)


def render(
    path: Path,
    to: str = "kuberay",
    kind: str | None = None,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> str:
    """Renders the spec as manifests for `kubectl apply`, or as YAML for `ray up`.

    Args:
        path: the spec's file.
        to: "kuberay" or "vm".
        kind: "rayjob" (the default) or "raycluster"; kuberay only.
        recipe: the recipe of a RayJob's run.
        overrides: `dotted.name=value` for fields of the spec.
        warn: receives what can be rendered but is unlikely to work.

    Raises:
        RecipeError: spec or recipe cannot be rendered; all problems of the first one that has any are in the message.
        InputError: the options contradict each other.
    """
    if to not in get_args(Target):
        raise InputError(f"--to {to}: there are {', '.join(get_args(Target))}.")
    if kind is not None and (to != "kuberay" or kind not in get_args(kuberay.Kind)):
        raise InputError(f"--kind {kind}: there are {', '.join(get_args(kuberay.Kind))}, for --to kuberay.")
    if recipe is not None and (to, kind or "rayjob") != ("kuberay", "rayjob"):
        raise InputError(f"--recipe {recipe}: only a RayJob runs a recipe. To run it elsewhere: manta submit {recipe}")
    spec = load_cluster(path, overrides)
    if to == "vm":
        text = _of_vms(path, spec, overrides)
    else:
        for warning in room_warnings(spec):
            warn(f"{path}: {warning}")
        text = _of_kuberay(path, spec, kind, recipe, overrides)
    _refuse(path, [f"the result would contain the value of {name}: {_NO_KEY}" for name in held_in(text)])
    return text


def _of_vms(path: Path, spec: ClusterSpec, overrides: Sequence[str]) -> str:
    _refuse(path, vm.spec_problems(spec))
    return _heading(path, overrides, "--to", "vm") + dump(vm.ray_config(spec), vm.COMMENTS)


def _of_kuberay(path: Path, spec: ClusterSpec, kind: str | None, recipe: Path | None, overrides: Sequence[str]) -> str:
    _refuse(path, kuberay.spec_problems(spec))
    if kind == "raycluster":
        return _heading(path, overrides, "--kind", "raycluster") + dump(kuberay.ray_cluster(spec), COMMENTS)
    if recipe is None:
        raise InputError(
            "A RayJob runs one recipe: give --recipe RECIPE. For a cluster that jobs are submitted to, give "
            "--kind raycluster."
        )
    config, text = _checked(recipe, spec)
    objects = kuberay.manifests(spec, config.run, text, spec.store.url)
    needs = "".join(f"# The image must contain {need}.\n" for need in image_needs(config))
    return _heading(path, overrides, "--recipe", str(recipe)) + needs + dump_all(objects, COMMENTS)


def _heading(path: Path, overrides: Sequence[str], *options: str) -> str:
    """The command, as a comment."""
    sets = (word for each in overrides for word in ("--set", each))
    command = shlex.join(["manta", "cluster", "render", str(path), *options, *sets])
    return "".join(f"# {line}\n" for line in printable(command).split("\n"))


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError(listed(str(path), problems))


def _checked(recipe: Path, spec: ClusterSpec) -> tuple[RunConfig, str]:
    """Reads the recipe and its text, and checks that a job on the cluster can run it.

    Raises:
        RecipeError: it is not a valid recipe, contains keys, or needs files of this machine.
    """
    config = load_recipe(recipe, [override("storage", spec.store.url)] if spec.store.url is not None else [])
    _refuse(recipe, [f"{name}: {_NO_KEY}" for name in keys_in(config)])
    text = recipe.read_text(encoding="utf-8")
    if (kind := form_of_key(text)) is not None:
        _refuse(recipe, [f"the file contains {kind}: {_NO_KEY}"])
    problems = list(_local_resource_problems(config))
    if len(text.encode()) > _MOST_RECIPE_BYTES:
        problems.append(f"the file has {len(text):,} characters, and Kubernetes limits a ConfigMap to 1 MiB")
    _refuse(recipe, problems)
    return config, text


def _local_resource_problems(config: RunConfig) -> Iterator[str]:
    """Yields a problem for each file or server of this machine that the recipe needs, since pods do not have it."""
    yield from local_server_problems(config)
    if "storage" in dict(local_files(config)):
        yield (
            f"storage = {config.storage!r}: pods share no folder; name a bucket here, or as store.url in the cluster's "
            "spec, which replaces it"
        )
    for name, path in local_files(config):
        if name != "storage":
            yield f"{name} = {path!r}: pods do not have the files of this machine; copy them to the bucket"
