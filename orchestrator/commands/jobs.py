"""`manta jobs`, `logs` and `stop`: the runs that were submitted to a Ray cluster."""

from __future__ import annotations

import os
import sys
import time

from rich.table import Table

from cluster.errors import ClusterError
from cluster.jobs import Job, Jobs
from cluster.local.background import BackgroundCluster, find_cluster, running_clusters
from data.errors import InputError
from data.stores.store import split_url
from orchestrator.console import Console

RUN, STORAGE, SUBMISSION = "manta_run", "manta_storage", "manta_submission"
"""Metadata of a job: which run it is, where that is kept, and a word that tells one submission from another."""

STOP_GRACE_S = 120
"""Seconds a job has for saving when it is stopped; Ray's own 3 are few for a large model."""

STOPPED, LEFT = 130, 3
"""Exit status of a run that was stopped, as `manta train` has it, and of a command that has left a job running."""


def follow_job(jobs: Jobs, job_id: str, run: str) -> Job | None:
    """Show what a job prints until it has ended; returns it then. Ctrl-C leaves it running: None."""
    try:
        return jobs.follow(job_id, print_log)
    except KeyboardInterrupt:
        Console().line(f"job {job_id} goes on; stop it, which saves, with `manta stop {run}{at_address(jobs)}`")
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
            job.id, job.metadata.get(RUN, ""), job.status.lower() + code, ago(job.started_at), f"{took:,.0f} s", what
        )
    Console().rich.print(table)


def show_logs(run: str, address: str | None, *, follows: bool) -> int:
    """Print what the newest job of a run has printed; returns its exit status where it is followed to its end."""
    _, address = reach(address)
    jobs = Jobs(address, Console().line)
    job = newest_job(jobs, run)
    if follows:
        ended = follow_job(jobs, job.id, run)
        return LEFT if ended is None else exit_status(ended)
    print_log(jobs.logs(job.id))
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


def reach(address: str | None) -> tuple[BackgroundCluster | None, str]:
    """The cluster meant by an address, or by the name of a cluster of this machine; that, and its dashboard's address.

    Without one: what RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, else the cluster of this machine that is up. Puts the
    cluster's token into the environment, where Ray looks for it.

    Raises:
        ClusterError: there is no such cluster.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _http(os.environ.get("RAY_ADDRESS"))
    if given and given.startswith(("http://", "https://")):
        given = given.rstrip("/").replace("//localhost:", "//127.0.0.1:")
        kept = next((each for each in running_clusters() if each.dashboard == given), None)
        if kept is not None:
            kept.join()
        return kept, given
    if given and (":" in given or "/" in given):
        raise ClusterError(
            f"{given} is no address that jobs can be submitted to: it is the dashboard's, as http://HOST:8265."
        )
    kept = find_cluster(given)
    kept.join()
    return kept, kept.dashboard


def _http(address: str | None) -> str | None:
    return address if address and address.startswith("http") else None


def at_address(jobs: Jobs) -> str:
    """What the other commands have to be told to find the same cluster."""
    return f" --address {jobs.address}"


def in_one_form(storage: str) -> str:
    """A run's storage, however it was written."""
    scheme, rest = split_url(storage)
    return f"{scheme}://{rest.rstrip('/')}"


def print_log(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def ago(moment: float | None) -> str:
    return "not yet" if moment is None else f"{max(0.0, time.time() - moment):,.0f} s ago"
