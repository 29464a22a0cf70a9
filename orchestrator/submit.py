"""`manta submit`, `jobs`, `logs` and `stop`: runs as jobs of a Ray cluster."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.errors import ClusterError
from cluster.jobs import Job, JobExistsError, Jobs
from cluster.kept_cluster import KeptCluster, find_kept, kept_clusters
from cluster.spec import GPU_STAND_IN, ClusterSpec
from data.store import split_url
from orchestrator.config import RunConfig
from orchestrator.console import Console
from orchestrator.errors import InputError, RunInUseError
from orchestrator.on_cluster import local_paths, refuse_keys
from orchestrator.run_record import PRESUMED_DEAD_S

RUN, STORAGE, SUBMISSION = "manta_run", "manta_storage", "manta_submission"
"""Metadata of a job: which run it is, where that is kept, and a word that tells one submission from another."""

EXCLUDED = (
    *(".git", ".venv", "venv", ".manta", "__pycache__", "*_cache", "*.egg-info"),
    *(".env", ".env.*", ".aws", ".ssh", ".netrc", "*.pem", "*.key", "*.credentials"),
)
"""What of the project's folder is not shipped, besides what its .gitignore names: what is made anew, and keys."""

STOP_GRACE_S = 120
"""Seconds a job has for saving when it is stopped; Ray's own 3 are few for a large model."""

STOPPED, LEFT = 130, 3
"""Exit status of a run that was stopped, as `manta train` has it, and of a command that has left a job running."""

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
        *("python", "-m", "orchestrator.cli", "train", str(shipped), "--patience", f"{PATIENCE_S:.0f}s"),
        *(word for override in (*overrides, *moved) for word in ("--set", override)),
        *(["--takeover"] if takeover else []),
    ]
    for is_again in (False, True):
        metadata = {RUN: config.run, STORAGE: _in_one_form(config.storage), SUBMISSION: secrets.token_hex(8)}
        job_id = _submit(jobs, shlex.join(command), runtime_env(folder), metadata)
        console.line(f"job {job_id} submitted to {address}")
        if not wait:
            where = _at(jobs)
            console.line(
                f"follow it with `manta logs {config.run} --follow{where}`; stop it with `manta stop "
                f"{config.run}{where}`"
            )
            return 0
        job = _followed(jobs, job_id, config.run)
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
                f"{_ago(live[0].started_at)}. Follow it with `manta logs {run} --follow{_at(jobs)}`, or stop it, which "
                f"saves, with `manta stop {run}{_at(jobs)}`; the same command then continues it."
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


def _followed(jobs: Jobs, job_id: str, run: str) -> Job | None:
    """Show what a job prints until it has ended; returns it then. Ctrl-C leaves it running: None."""
    try:
        return jobs.follow(job_id, _show)
    except KeyboardInterrupt:
        Console().line(f"job {job_id} goes on; stop it, which saves, with `manta stop {run}{_at(jobs)}`")
        return None


def exit_status(job: Job) -> int:
    """The job's own, where its command ended by itself; says what happened where it did not."""
    if job.status == "STOPPED":
        Console().line(f"job {job.id} was stopped; `manta submit` continues the run")
        return STOPPED
    if job.exit_status is None:
        raise ClusterError(
            f"Job {job.id} {job.status.lower()}: {job.message.strip() or 'the cluster does not say why'}"
        )
    # A command that a signal ended has a negative one, which a shell tells as 128 and more.
    return job.exit_status if job.exit_status >= 0 else 128 - job.exit_status


def show_jobs(address: str | None, as_json: bool) -> None:
    """Print the cluster's jobs."""
    _, address = reach(address)
    jobs = Jobs(address).list()
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(job) for job in jobs], indent=2))
        return
    table = Table("job", "run", "status", "started", "took", "what", title=f"jobs of {address}", title_justify="left")
    for job in jobs:
        took = (job.ended_at or time.time()) - job.started_at if job.started_at else 0.0
        code = f" ({job.exit_status})" if job.exit_status else ""
        what = job.metadata.get(STORAGE) or job.entrypoint
        table.add_row(
            job.id, job.metadata.get(RUN, ""), job.status.lower() + code, _ago(job.started_at), f"{took:,.0f} s", what
        )
    Console().rich.print(table)


def show_logs(run: str, address: str | None, *, follows: bool) -> int:
    """Print what the newest job of a run has printed; returns its exit status where it is followed to its end."""
    _, address = reach(address)
    jobs = Jobs(address, Console().line)
    job = newest_job(jobs, run)
    if follows:
        ended = _followed(jobs, job.id, run)
        return LEFT if ended is None else exit_status(ended)
    _show(jobs.logs(job.id))
    return 0


def stop(run: str, address: str | None, *, wait: bool) -> None:
    """Have the newest job of a run save and end."""
    _, address = reach(address)
    console = Console()
    jobs = Jobs(address, console.line)
    job = newest_job(jobs, run)
    if job.has_ended:
        console.line(f"job {job.id} has ended already: {job.status.lower()}")
        return
    jobs.stop(job.id)
    console.line(f"job {job.id}: asked to save and stop")
    if wait:
        job = jobs.wait(job.id)
        last = [line for line in jobs.logs(job.id).splitlines() if "checkpoint saved" in line or "saved from" in line]
        told = last[-1].split("] ", 1)[-1] if last else "its log tells of no save: see `manta show`"
        console.line(f"job {job.id}: {job.status.lower()}; {told}")


def newest_job(jobs: Jobs, run: str) -> Job:
    """The newest job of a run, or the job of that id.

    Raises:
        InputError: there is neither.
    """
    found = jobs.list()
    mine = [job for job in found if job.metadata.get(RUN) == run] or [job for job in found if job.id == run]
    if mine:
        return mine[-1]
    known = sorted({job.metadata.get(RUN) or job.id for job in found})
    raise InputError(f"There is no job of a run {run!r} at {jobs.address}. There are: {', '.join(known) or 'none'}.")


def reach(address: str | None) -> tuple[KeptCluster | None, str]:
    """The cluster meant by an address, or by the name of a cluster of this machine; that, and its dashboard's address.

    Without one: what RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, else the cluster of this machine that is up. Puts the
    cluster's token into the environment, where Ray looks for it.

    Raises:
        ClusterError: there is no such cluster.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _http(os.environ.get("RAY_ADDRESS"))
    if given and given.startswith(("http://", "https://")):
        given = given.rstrip("/").replace("//localhost:", "//127.0.0.1:")
        kept = next((each for each in kept_clusters() if each.dashboard == given), None)
        if kept is not None:
            kept.join()
        return kept, given
    if given and (":" in given or "/" in given):
        raise ClusterError(
            f"{given} is no address that jobs can be submitted to: it is the dashboard's, as http://HOST:8265."
        )
    kept = find_kept(given)
    kept.join()
    return kept, kept.dashboard


def _http(address: str | None) -> str | None:
    return address if address and address.startswith("http") else None


def _at(jobs: Jobs) -> str:
    """What the other commands have to be told to find the same cluster."""
    return f" --address {jobs.address}"


def _in_one_form(storage: str) -> str:
    """A run's storage, however it was written."""
    scheme, rest = split_url(storage)
    return f"{scheme}://{rest.rstrip('/')}"


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _ago(moment: float | None) -> str:
    return "not yet" if moment is None else f"{max(0.0, time.time() - moment):,.0f} s ago"
