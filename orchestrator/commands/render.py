"""`manta cluster render`: a spec, and for one run its recipe, as files that KubeRay or `ray up` take.

What would fail in a pod after ten minutes is refused here, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from cluster.render import kuberay, vm
from cluster.render.kuberay_comments import COMMENTS
from cluster.render.yaml import dump, dump_all
from cluster.spec import ClusterSpec
from data.errors import InputError
from orchestrator.config.cluster_spec import load_cluster
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import image_needs, keys_in, local_files, local_server_problems
from orchestrator.config.problems import listed
from orchestrator.config.recipe import RunConfig
from orchestrator.errors import RecipeError

Target = Literal["kuberay", "vm"]

_MOST_RECIPE_BYTES = 900_000
"""Kubernetes takes a ConfigMap of 1 MiB."""

_NO_KEY = (
    "a key does not belong into a manifest; take it out, and let the cluster's spec say where it is kept (secrets) or "
    "which identity needs none (service_account)"
)


def render(
    path: Path,
    to: str = "kuberay",
    kind: str | None = None,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """The spec in the form that `to` names: manifests for `kubectl apply`, or YAML for `ray up`.

    Args:
        kind: what a manifest is of, "rayjob" (the default) or "raycluster"; kuberay only.
        recipe: the run of a RayJob.
        overrides: `dotted.name=value` for fields of the spec.

    Raises:
        RecipeError: spec or recipe cannot be used for it; all problems of the one that is looked at are in the message.
        InputError: options do not go together.
    """
    if to not in get_args(Target):
        raise InputError(f"--to {to}: there are {', '.join(get_args(Target))}.")
    if kind is not None and (to != "kuberay" or kind not in get_args(kuberay.Kind)):
        raise InputError(f"--kind {kind}: there are {', '.join(get_args(kuberay.Kind))}, for --to kuberay.")
    if recipe is not None and (to, kind or "rayjob") != ("kuberay", "rayjob"):
        raise InputError(f"--recipe {recipe}: only a RayJob is of one run. Submit it: `manta submit {recipe}`.")
    spec = load_cluster(path, overrides)
    if to == "vm":
        _refuse(path, vm.spec_problems(spec))
        return _heading(path, overrides, "--to vm") + dump(vm.ray_config(spec), vm.COMMENTS)
    _refuse(path, kuberay.spec_problems(spec))
    if kind == "raycluster":
        return _heading(path, overrides, "--kind raycluster") + dump(kuberay.ray_cluster(spec), COMMENTS)
    if recipe is None:
        raise InputError(
            "A RayJob is of one run: name its recipe with --recipe RECIPE. For a cluster that jobs are submitted to, "
            "give --kind raycluster."
        )
    config, text = _checked(recipe, spec)
    objects = kuberay.manifests(spec, config.run, text, spec.store.url)
    needs = "".join(f"# Its image must hold {need}.\n" for need in image_needs(config))
    return _heading(path, overrides, f"--recipe {recipe}") + needs + dump_all(objects, COMMENTS)


def _heading(path: Path, overrides: Sequence[str], options: str) -> str:
    words = ["manta cluster render", str(path), options, *(f"--set {override}" for override in overrides)]
    return f"# {' '.join(words)}\n"


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError(listed(str(path), problems))


def _checked(recipe: Path, spec: ClusterSpec) -> tuple[RunConfig, str]:
    """The recipe and its text, if a job in a cluster of the spec can run it.

    Raises:
        RecipeError: it is no recipe, or holds keys, or needs what only this machine has.
    """
    config = load_recipe(recipe, [f"storage={spec.store.url}"] if spec.store.url is not None else [])
    _refuse(recipe, [f"{name}: {_NO_KEY}" for name in keys_in(config)])
    text = recipe.read_text(encoding="utf-8")
    problems = list(_of_this_machine(config))
    if len(text.encode()) > _MOST_RECIPE_BYTES:
        problems.append(f"the file has {len(text):,} characters, and Kubernetes takes 1 MiB in a ConfigMap")
    _refuse(recipe, problems)
    return config, text


def _of_this_machine(config: RunConfig) -> Iterator[str]:
    """What the recipe takes from this machine, and pods would look for in vain."""
    yield from local_server_problems(config)
    if "storage" in dict(local_files(config)):
        yield (
            f"storage = {config.storage!r}: pods share no folder; name a bucket here, or as store.url of the cluster's "
            "spec, which takes its place"
        )
    for name, place in local_files(config):
        if name != "storage":
            yield f"{name} = {place!r}: pods do not have the files of this machine; copy them to the bucket"
