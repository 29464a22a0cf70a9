"""`manta jobs`, `logs` and `stop`: list, follow and stop runs that were submitted to a Ray cluster."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from urllib.parse import urlsplit

from rich.table import Table

from cluster.errors import ClusterError
from cluster.jobs import Job, Jobs
from cluster.local.background import BackgroundCluster, find_cluster, running_clusters
from data.errors import InputError
from data.stores.store import split_url
from orchestrator.console import Console
from orchestrator.printable import printable_log

RUN, STORAGE, SUBMISSION = "manta_run", "manta_storage", "manta_submission"
"""Metadata keys of a job: its run, the run's storage, and a random id of the submission."""

STOP_GRACE_S = 120
"""Seconds that a stopped job has for saving; Ray's default of 3 is too short for a large model."""

STOPPED, STILL_RUNNING = 130, 3
"""Exit status of a stopped run, the same as that of `manta train`, and of a command that left the job running."""

_SAVED = ("checkpoint saved", "saved from", "the sweep is saved")
"""Parts of the lines in which a job tells that it has saved."""


def follow_job(jobs: Jobs, job_id: str, run: str) -> Job | None:
    """Prints the log of a job until the job ends, and returns the job; None after Ctrl-C, which leaves it running."""
    try:
        return jobs.follow(job_id, print_log)
    except KeyboardInterrupt:
        Console().line(f"job {job_id} is still running; to save and stop it: manta stop {run}{at_address(jobs)}")
        return None


def exit_status(job: Job) -> int:
    """The exit status of an ended job.

    Raises:
        ClusterError: the job failed without an exit status of its command; with the cluster's reason.
    """
    if job.status == "STOPPED":
        Console().line(f"job {job.id} was stopped; `manta submit` continues the run")
        return STOPPED
    if job.exit_status is None:
        raise ClusterError(f"Job {job.id} {job.status.lower()}: {job.message.strip() or 'the cluster gives no reason'}")
    # The status of a command that a signal ended is negative; a shell reports it as 128 + signal.
    return job.exit_status if job.exit_status >= 0 else 128 - job.exit_status


def show_jobs(address: str | None, as_json: bool) -> None:
    """Prints the cluster's jobs."""
    _, address = reach(address)
    jobs = (Jobs(address) if as_json else Jobs(address, Console().line)).list()
    if as_json:
        print(json.dumps([asdict(job) for job in jobs], indent=2))
        return
    table = Table(
        "job",
        "run",
        "status",
        "started",
        "duration",
        "storage or command",
        title=f"jobs of {address}",
        title_justify="left",
    )
    for job in jobs:
        took = (job.ended_at or time.time()) - job.started_at if job.started_at else 0.0
        code = f" ({job.exit_status})" if job.exit_status else ""
        what = job.metadata.get(STORAGE) or job.entrypoint
        table.add_row(
            job.id, job.metadata.get(RUN, ""), job.status.lower() + code, ago(job.started_at), f"{took:,.0f} s", what
        )
    Console().rich.print(table)


def show_logs(run: str, address: str | None, *, follows: bool) -> int:
    """Prints the log of a run's newest job; returns the job's exit status if it is followed to its end, else 0."""
    _, address = reach(address)
    jobs = Jobs(address, Console().line)
    job = newest_job(jobs, run)
    if follows:
        ended = follow_job(jobs, job.id, run)
        return STILL_RUNNING if ended is None else exit_status(ended)
    print_log(jobs.logs(job.id))
    return 0


def stop(run: str, address: str | None, *, wait: bool) -> None:
    """Requests that the newest job of a run saves and stops."""
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
        last = [line for line in jobs.logs(job.id).splitlines() if any(sign in line for sign in _SAVED)]
        saved = last[-1].split("] ", 1)[-1] if last else "its log has no line about a save: see manta show"
        console.line(f"job {job.id}: {job.status.lower()}; {saved}")


def newest_job(jobs: Jobs, run: str) -> Job:
    """The newest job of a run, or the job with this id.

    Raises:
        InputError: there is no such run and no such job.
    """
    found = jobs.list()
    matching = [job for job in found if job.metadata.get(RUN) == run] or [job for job in found if job.id == run]
    if matching:
        return matching[-1]
    known = sorted({job.metadata.get(RUN) or job.id for job in found})
    raise InputError(f"There is no job of a run {run!r} at {jobs.address}. There are: {', '.join(known) or 'none'}.")


def reach(address: str | None) -> tuple[BackgroundCluster | None, str]:
    """Finds a cluster by the address of its dashboard, or by the name of a local cluster.

    Puts the token of a local cluster into the environment, where Ray looks for it.

    Args:
        address: None: that of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else the running local cluster.

    Returns:
        The local cluster, None for any other; and the address of the dashboard.

    Raises:
        ClusterError: there is no such cluster.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _http(os.environ.get("RAY_ADDRESS"))
    if given and given.startswith(("http://", "https://")):
        given = given.rstrip("/").replace("//localhost:", "//127.0.0.1:")
        refuse_no_address(given)
        local = next((each for each in running_clusters() if each.dashboard == given), None)
        if local is not None:
            local.join()
        return local, given
    if given and (":" in given or "/" in given):
        raise ClusterError(
            f"Jobs cannot be submitted to {given}. Give the address of the dashboard, such as http://HOST:8265."
        )
    local = find_cluster(given)
    local.join()
    return local, local.dashboard


def refuse_no_address(url: str) -> None:
    """Raises ClusterError where a URL names no host, or a port that there is not."""
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address:
        raise ClusterError(f"{url} is no address of a dashboard, which is such as http://HOST:8265.")


def _http(address: str | None) -> str | None:
    return address if address and address.startswith("http") else None


def at_address(jobs: Jobs) -> str:
    """The option with which other commands find the same cluster, after a space."""
    return f" --address {jobs.address}"


def normalized(storage: str) -> str:
    """A run's storage as a URL without a slash at the end, so that spellings of one place are equal."""
    scheme, rest = split_url(storage)
    return f"{scheme}://{rest.rstrip('/')}"


def print_log(text: str) -> None:
    """Prints a part of a log at once."""
    sys.stdout.write(printable_log(text))
    sys.stdout.flush()


def ago(moment: float | None) -> str:
    """The time since `moment`, seconds since the epoch."""
    return "not yet" if moment is None else f"{max(0.0, time.time() - moment):,.0f} s ago"
