"""`manta submit`: a run as a job of a Ray cluster."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.jobs import Job, JobExistsError, Jobs
from cluster.spec import GPU_STAND_IN, ClusterSpec
from data.errors import InputError
from orchestrator.commands.jobs import (
    LEFT,
    RUN,
    STOP_GRACE_S,
    STORAGE,
    SUBMISSION,
    ago,
    at_address,
    exit_status,
    follow_job,
    in_one_form,
    reach,
)
from orchestrator.config.portability import local_paths, refuse_keys
from orchestrator.config.recipe import RunConfig
from orchestrator.console import Console
from orchestrator.errors import RunInUseError
from orchestrator.run.fence import PRESUMED_DEAD_S

EXCLUDED = (
    *(".git", ".venv", "venv", ".manta", "__pycache__", "*_cache", "*.egg-info"),
    *(".env", ".env.*", ".aws", ".ssh", ".netrc", "*.pem", "*.key", "*.credentials"),
)
"""What of the project's folder is not shipped, besides what its .gitignore names: what is made anew, and keys."""

PATIENCE_S = PRESUMED_DEAD_S + 15
"""Seconds that a job waits for an attempt that seems alive: one of a cluster that is gone falls silent meanwhile."""

SUBMIT_TRIES = 5

_PACKAGE_GONE = "Failed to download runtime_env file package"

_ROOT = Path(__file__).resolve().parents[1]

_PACKAGES = ("orchestrator", "model", "data", "cluster")


def submit(
    config: RunConfig,
    recipe: Path,
    overrides: Sequence[str],
    address: str | None,
    *,
    folder: Path,
    wait: bool,
    takeover: bool = False,
) -> int:
    """Submit the recipe's run as a job, and follow it if asked to; returns its exit status, 0 if it is not followed.

    Args:
        address: of the cluster, see `reach`.
        folder: what is shipped: the project, the recipe in it.

    Raises:
        InputError: what the recipe names is not to be had on a cluster.
        RunInUseError: the run is live on the cluster.
        ClusterError: the cluster does not answer, or refuses the job.
    """
    kept, address = reach(address)
    if kept is not None:
        config, changes = at_home(config, kept.spec)
        overrides = [*overrides, *changes]
    refuse_keys(config, recipe)
    shipped = shipped_as(recipe, folder)
    moved = local_paths(config, recipe, this_machine=kept is not None)
    console = Console()
    jobs = Jobs(address, console.line)
    command = [
        *("python", "-m", "orchestrator.cli.main", "train", str(shipped), "--patience", f"{PATIENCE_S:.0f}s"),
        *(word for override in (*overrides, *moved) for word in ("--set", override)),
        *(["--takeover"] if takeover else []),
    ]
    for is_again in (False, True):
        metadata = {RUN: config.run, STORAGE: in_one_form(config.storage), SUBMISSION: secrets.token_hex(8)}
        job_id = _submit(jobs, shlex.join(command), runtime_env(folder), metadata)
        console.line(f"job {job_id} submitted to {address}")
        if not wait:
            where = at_address(jobs)
            console.line(
                f"follow it with `manta logs {config.run} --follow{where}`; stop it with `manta stop "
                f"{config.run}{where}`"
            )
            return 0
        job = follow_job(jobs, job_id, config.run)
        if is_again or job is None or not was_lost(job):
            break
        console.line(f"job {job_id}: what it ships was gone before it began; submitting it again")
    return LEFT if job is None else exit_status(job)


def was_lost(job: Job) -> bool:
    """Whether the job never began because Ray no longer had what was shipped for it; seen once, and not understood."""
    return job.status == "FAILED" and "runtime_env setup failed" in job.message and _PACKAGE_GONE in job.message


def at_home(config: RunConfig, spec: ClusterSpec) -> tuple[RunConfig, list[str]]:
    """The recipe as it runs on a cluster of this machine, and the overrides that say so: the spec's store, if it has
    one, and in place of GPUs what stands in for them."""
    overrides = []
    if spec.store.url is not None:
        config = config.model_copy(update={"storage": spec.store.url})
        overrides.append(f"storage={spec.store.url}")
    if config.scaling.on_gpu:
        scaling = config.scaling.model_copy(update={"gpu_resource": GPU_STAND_IN})
        config = config.model_copy(update={"scaling": scaling})
        overrides.append(f"scaling.gpu_resource={GPU_STAND_IN}")
    return config, overrides


def shipped_as(recipe: Path, folder: Path) -> Path:
    """The recipe's path in the folder that is shipped.

    Raises:
        InputError: it is not in it, or the folder is no project but a home, or a whole disk.
    """
    folder = folder.resolve()
    if folder in (Path("/"), Path.home()):
        raise InputError(f"{folder} would be shipped, all of it. Go to the project's folder, or --working-dir FOLDER.")
    try:
        return recipe.resolve().relative_to(folder)
    except ValueError:
        raise InputError(
            f"{recipe} is not in the folder that is shipped, {folder}. Name one that has it in it: "
            f"--working-dir {recipe.resolve().parent}"
        ) from None


def runtime_env(folder: Path | None) -> dict[str, Any]:
    """What a job brings along: the project's folder, if any, and Manta itself where that is not in it."""
    is_manta = folder is not None and all((folder / package / "__init__.py").exists() for package in _PACKAGES)
    project = {} if folder is None else {"working_dir": str(folder.resolve()), "excludes": list(EXCLUDED)}
    modules = {} if is_manta else {"py_modules": [str(_ROOT / package) for package in _PACKAGES]}
    return {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)}, **project, **modules}


def _submit(jobs: Jobs, entrypoint: str, environment: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Submit under the run's next free name, which nobody else can take at the same time."""
    run = metadata[RUN]
    for _ in range(SUBMIT_TRIES):
        there = jobs.list()
        same = [job for job in there if all(job.metadata.get(name) == metadata[name] for name in (RUN, STORAGE))]
        live = [job for job in same if not job.has_ended]
        if live:
            raise RunInUseError(
                f"Run {run!r} is live on {jobs.address} as job {live[0].id}, {live[0].status.lower()} since "
                f"{ago(live[0].started_at)}. Follow it with `manta logs {run} --follow{at_address(jobs)}`, or stop it, which "
                f"saves, with `manta stop {run}{at_address(jobs)}`; the same command then continues it."
            )
        job_id = next_id(run, [job.id for job in there])
        try:
            jobs.submit(entrypoint, job_id, environment, metadata)
            return job_id
        except JobExistsError:
            continue
    raise ClusterError(f"Run {run!r} could not be submitted: others submit jobs of this name all the time.")


def next_id(run: str, taken: Sequence[str]) -> str:
    """RUN-N, N one more than the largest there is: jobs that were deleted leave gaps."""
    numbers = [int(each.removeprefix(f"{run}-")) for each in taken if re.fullmatch(re.escape(run) + r"-\d+", each)]
    return f"{run}-{max(numbers, default=0) + 1}"
