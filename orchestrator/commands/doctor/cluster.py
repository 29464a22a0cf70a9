"""`manta doctor --cluster`: checks that a cluster answers, and runs the doctor's checks on its head by a job."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.jobs import Job, Jobs
from data.errors import MantaError
from orchestrator.commands.doctor.check import Check
from orchestrator.commands.jobs import reach
from orchestrator.commands.shipped import shipment
from orchestrator.commands.submit import adapt_to_local_cluster, packed, path_in_shipped
from orchestrator.config.portability import local_paths, refuse_keys
from orchestrator.config.recipe import RunConfig

HEAD_TIMEOUT_S = 240.0
"""Seconds that the checks on the head may take; one of them may wait for a node to start."""


def examine_cluster(
    address: str | None, config: RunConfig | None, recipe: Path | None, overrides: Sequence[str], folder: Path
) -> list[Check]:
    """Connects to the cluster, and runs the checks on its head by a job.

    Args:
        address: see `orchestrator.commands.jobs.reach`.
        config, recipe, overrides: the recipe whose object storage is tried from the head; None: no storage is.
        folder: the folder that a job of the recipe would ship.
    """
    try:
        local, address = reach(address)
        jobs = Jobs(address)
        live = [job for job in jobs.list() if not job.has_ended]
    except ClusterError as error:
        return [Check("cluster", "fail", str(error), "Give the cluster's dashboard: --address http://HOST:8265")]
    checks = [Check("cluster", "ok", f"{address} answers; {len(live)} jobs running or waiting")]
    arguments, ships = ["doctor", "--json"], None
    if config is not None and recipe is not None:
        try:
            if local is not None:
                config, changes = adapt_to_local_cluster(config, local.spec)
                overrides = [*overrides, *changes]
            refuse_keys(config, recipe)
            shipped = path_in_shipped(recipe, folder)
            ships = shipment(folder, [shipped.as_posix()])
            absolute = local_paths(config, recipe, this_machine=local is not None)
        except MantaError as error:
            return [*checks, Check("recipe", "fail", str(error), "Fix what the message names.")]
        sets = [word for override in (*overrides, *absolute) for word in ("--set", override)]
        arguments = ["doctor", str(shipped), "--json", *sets]
    try:
        job_id = f"doctor-{secrets.token_hex(4)}"
        with packed(ships) as environment:
            jobs.submit(shlex.join(["python", "-m", "manta_start", *arguments]), job_id, environment, {})
        checks += head_checks(_wait_for_end(jobs, job_id), jobs.logs(job_id))
    except ClusterError as error:
        checks.append(Check("head", "fail", str(error), "Jobs fail on the cluster: see the logs on its dashboard."))
    return checks


def head_checks(job: Job, log: str) -> list[Check]:
    """Reads the checks of the job on the head from its log."""
    try:
        found, _ = json.JSONDecoder().raw_decode(log, log.index("\n[\n") + 1)
    except ValueError:
        end = " ".join((log or job.message).split())[-300:]
        return [
            Check("head", "fail", f"the job printed no checks: {end}", "Does the image have Manta and its packages?")
        ]
    return [Check(f"head: {each['name']}", each["status"], each["found"], each["remedy"]) for each in found]


def _wait_for_end(jobs: Jobs, job_id: str) -> Job:
    job = jobs.wait(job_id, HEAD_TIMEOUT_S)
    if not job.has_ended:
        jobs.stop(job_id)
        raise ClusterError(f"The checks on the head have not ended within {HEAD_TIMEOUT_S:.0f} s.")
    return job
