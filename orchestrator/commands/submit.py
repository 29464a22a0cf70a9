"""`manta submit`: runs `manta train`, or `manta tune` for the recipe of a sweep, as a job on a Ray cluster."""

from __future__ import annotations

import re
import secrets
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.jobs import Job, JobExistsError, Jobs
from cluster.spec import GPU_STAND_IN, ClusterSpec
from cluster.strict_yaml import override
from data.cleaning.config import FunctionStep
from data.errors import InputError
from manta_start import PACKAGES, has_packages
from orchestrator.commands.jobs import (
    RUN,
    STILL_RUNNING,
    STOP_GRACE_S,
    STORAGE,
    SUBMISSION,
    ago,
    at_address,
    exit_status,
    follow_job,
    normalized,
    reach,
)
from orchestrator.commands.shipped import Shipment, shipment
from orchestrator.config.load import load_recipe
from orchestrator.config.portability import local_paths, refuse_keys
from orchestrator.config.recipe import RunConfig
from orchestrator.config.recipe_file import read_recipe
from orchestrator.console import Console
from orchestrator.errors import RunInUseError
from orchestrator.printable import printable
from orchestrator.run.fence import PRESUMED_DEAD_S

PATIENCE_S = PRESUMED_DEAD_S + 15
"""Seconds that a job waits for an attempt that seems alive; the heartbeat of a dead one becomes stale meanwhile."""

SUBMIT_TRIES = 5
"""Tries to find a job id that nobody else takes at the same time."""

_PACKAGE_GONE = "Failed to download runtime_env file package"
"""Part of Ray's message when the cluster no longer has the shipped folder."""

_ROOT = Path(__file__).resolve().parents[2]


def submit(
    recipe: Path,
    overrides: Sequence[str],
    address: str | None,
    *,
    folder: Path,
    wait: bool,
    takeover: bool = False,
    dry: bool = False,
) -> int:
    """Submits the recipe's run or sweep as a job; returns its exit status if it is followed, else 0.

    Args:
        recipe: the file of a run, or of a sweep.
        overrides: `dotted.name=value` each.
        address: address or name of the cluster, see `reach`.
        folder: the folder that is shipped; the recipe is in it.
        wait: whether to follow the job to its end.
        takeover: whether the job takes the run from an attempt that seems alive.
        dry: only list what would be shipped.

    Raises:
        InputError: the recipe is not valid, needs files of this machine, or contains keys.
        RunInUseError: a job of the run is running or waiting on the cluster.
        ClusterError: the cluster does not answer, or refuses the job.
    """
    command, config, recipes = what_runs(recipe, overrides)
    shipped = [path_in_shipped(each, folder) for each in recipes]
    ships = shipment(folder, needed_files(config, shipped, folder))
    if dry:
        print(printable("\n".join(ships.report())))
        return 0
    local, address = reach(address)
    if local is not None:
        config, changes = adapt_to_local_cluster(config, local.spec)
        overrides = [*overrides, *changes]
    refuse_keys(config, recipe)
    absolute = local_paths(config, recipe, this_machine=local is not None)
    console = Console()
    jobs = Jobs(address, console.line)
    line = [
        *("python", "-m", "manta_start", command, str(shipped[0]), "--patience", f"{PATIENCE_S:.0f}s"),
        *(word for override in (*overrides, *absolute) for word in ("--set", override)),
        *(["--takeover"] if takeover else []),
    ]
    console.line(
        f"shipping {len(ships.files):,} files of {folder.resolve()}, {ships.bytes / 1e6:,.1f} MB; "
        f"{len(ships.excluded):,} left out, see manta submit --dry-run"
    )
    return _run(jobs, config, line, ships, console, wait=wait)


def what_runs(recipe: Path, overrides: Sequence[str]) -> tuple[str, RunConfig, list[Path]]:
    """The command for a recipe, the config of its run, and the files that it needs, the recipe first.

    The config of a sweep's run has the sweep's name. A run's recipe with an absolute path may be on a file system that
    all nodes share.

    Raises:
        RecipeError: the recipe has problems.
    """
    if "sweep" not in read_recipe(recipe):
        return "train", load_recipe(recipe, overrides), [recipe]
    from orchestrator.sweep.load import load_sweep

    sweep = load_sweep(recipe, overrides, tries_points=True)
    of_run = sweep.spec.recipe
    is_relative = isinstance(of_run, str) and not Path(of_run).is_absolute()
    return "tune", sweep.base, [recipe, *([recipe.parent / str(of_run)] if is_relative else [])]


def _run(
    jobs: Jobs, config: RunConfig, command: Sequence[str], ships: Shipment, console: Console, *, wait: bool
) -> int:
    """Submits the job, once more if the cluster lost what was shipped; returns its exit status if it is followed."""
    for is_again in (False, True):
        metadata = {RUN: config.run, STORAGE: normalized(config.storage), SUBMISSION: secrets.token_hex(8)}
        with packed(ships) as environment:
            job_id = _submit(jobs, shlex.join(command), environment, metadata)
        console.line(f"job {job_id} submitted to {jobs.address}")
        if not wait:
            where = at_address(jobs)
            console.line(
                f"to follow it: manta logs {config.run} --follow{where}; to save and stop it: manta stop "
                f"{config.run}{where}"
            )
            return 0
        job = follow_job(jobs, job_id, config.run)
        if is_again or job is None or not was_lost(job):
            break
        console.line(f"job {job_id}: the cluster lost the shipped files before the job started; submitting it again")
    return STILL_RUNNING if job is None else exit_status(job)


def was_lost(job: Job) -> bool:
    """Whether the job never started because Ray had lost the shipped files. Seen once; the cause is not known."""
    return job.status == "FAILED" and "runtime_env setup failed" in job.message and _PACKAGE_GONE in job.message


def adapt_to_local_cluster(config: RunConfig, spec: ClusterSpec) -> tuple[RunConfig, list[str]]:
    """Adapts a config to a local cluster: the storage of its spec, and the stand-in for GPUs.

    Returns:
        The changed config, and the overrides that make the same changes in the job.
    """
    overrides = []
    if spec.store.url is not None:
        config = config.model_copy(update={"storage": spec.store.url})
        overrides.append(override("storage", spec.store.url))
    if config.scaling.on_gpu:
        scaling = config.scaling.model_copy(update={"gpu_resource": GPU_STAND_IN})
        config = config.model_copy(update={"scaling": scaling})
        overrides.append(override("scaling.gpu_resource", GPU_STAND_IN))
    return config, overrides


def path_in_shipped(recipe: Path, folder: Path) -> Path:
    """The recipe's path relative to the shipped folder.

    Raises:
        InputError: the recipe is not in the folder, or the folder is a home directory or the root of the disk.
    """
    folder = folder.resolve()
    if folder in (Path("/"), Path.home()):
        raise InputError(f"{folder} would be shipped as a whole. Change to the project's folder, or use --working-dir.")
    try:
        return recipe.resolve().relative_to(folder)
    except ValueError:
        raise InputError(
            f"{recipe} is not in the shipped folder, {folder}. Give a folder that contains it: "
            f"--working-dir {recipe.resolve().parent}"
        ) from None


def needed_files(config: RunConfig, recipes: Sequence[Path], folder: Path) -> list[str]:
    """Paths in the folder that the job cannot do without: recipes, and the modules of the user's functions."""
    needed = [each.as_posix() for each in recipes]
    for step in config.data.cleaning:
        if isinstance(step, FunctionStep):
            module = step.path.rpartition(".")[0].replace(".", "/")
            needed += [name for name in (f"{module}.py", f"{module}/__init__.py") if (folder / name).is_file()]
    return needed


@contextmanager
def packed(ships: Shipment | None) -> Iterator[dict[str, Any]]:
    """The runtime environment of a job, with a package that exists in the block.

    It ships the project's files, if any, and Manta if it is not in their folder.
    """
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)}}
    if ships is None or not has_packages(ships.folder):
        environment["py_modules"] = [str(_ROOT / name) for name in ("manta_start", *PACKAGES)]
    with tempfile.TemporaryDirectory(prefix="manta-submit-") as scratch:
        if ships is not None:
            package = Path(scratch) / "project.zip"
            ships.write(package)
            environment["working_dir"] = str(package)
        yield environment


def _submit(jobs: Jobs, entrypoint: str, environment: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Submits the job under the run's next free id; returns the id."""
    run = metadata[RUN]
    for _ in range(SUBMIT_TRIES):
        there = jobs.list()
        same = [job for job in there if all(job.metadata.get(name) == metadata[name] for name in (RUN, STORAGE))]
        live = [job for job in same if not job.has_ended]
        if live:
            raise RunInUseError(
                f"Run {run!r} is already on {jobs.address} as job {live[0].id}, {live[0].status.lower()}, started "
                f"{ago(live[0].started_at)}. To follow it: manta logs {run} --follow{at_address(jobs)}. To save and "
                f"stop it: manta stop {run}{at_address(jobs)}; the same manta submit then continues it."
            )
        job_id = next_id(run, [job.id for job in there])
        try:
            jobs.submit(entrypoint, job_id, environment, metadata)
            return job_id
        except JobExistsError:
            continue
    raise ClusterError(f"Run {run!r} could not be submitted: other jobs of this name are submitted at the same time.")


def next_id(run: str, taken: Sequence[str]) -> str:
    """The next id, RUN-N, with N one above the largest; deleted jobs leave gaps."""
    numbers = [int(each.removeprefix(f"{run}-")) for each in taken if re.fullmatch(re.escape(run) + r"-\d+", each)]
    return f"{run}-{max(numbers, default=0) + 1}"
