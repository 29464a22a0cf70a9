"""`manta doctor --cluster`: is a cluster fit for a run, as seen from here and from its own head."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ClusterError
from cluster.jobs import Job, Jobs
from data.errors import MantaError
from orchestrator.commands.doctor import Check
from orchestrator.commands.jobs import reach
from orchestrator.commands.submit import at_home, runtime_env, shipped_as
from orchestrator.config.portability import local_paths, refuse_keys
from orchestrator.config.recipe import RunConfig

HEAD_S = 240.0
"""Seconds that the head may take for its own checks, one of which may have to wait for a node to start."""


def examine_cluster(
    address: str | None, config: RunConfig | None, recipe: Path | None, overrides: Sequence[str], folder: Path
) -> list[Check]:
    """Reach the cluster, and have its head examine itself by a job, with the recipe's storage if there is one.

    Args:
        address: see `orchestrator.commands.submit.reach`.
        folder: what a job of the recipe's would ship.
    """
    try:
        kept, address = reach(address)
        jobs = Jobs(address)
        live = [job for job in jobs.list() if not job.has_ended]
    except ClusterError as error:
        return [Check("cluster", "fail", str(error), "Name its dashboard: --address http://HOST:8265")]
    checks = [Check("cluster", "ok", f"{address} answers; {len(live)} jobs live")]
    arguments = ["doctor", "--json"]
    if config is not None and recipe is not None:
        try:
            if kept is not None:
                config, changes = at_home(config, kept.spec)
                overrides = [*overrides, *changes]
            refuse_keys(config, recipe)
            shipped = shipped_as(recipe, folder)
            moved = local_paths(config, recipe, this_machine=kept is not None)
        except MantaError as error:
            return [*checks, Check("recipe", "fail", str(error), "Put right what is named.")]
        sets = [word for override in (*overrides, *moved) for word in ("--set", override)]
        arguments = ["doctor", str(shipped), "--json", *sets]
    try:
        job_id = f"doctor-{secrets.token_hex(4)}"
        environment = runtime_env(folder if recipe else None)
        jobs.submit(shlex.join(["python", "-m", "orchestrator.cli.main", *arguments]), job_id, environment, {})
        checks += head_checks(_ended(jobs, job_id), jobs.logs(job_id))
    except ClusterError as error:
        checks.append(Check("head", "fail", str(error), "Jobs do not run there: see the dashboard's logs."))
    return checks


def head_checks(job: Job, log: str) -> list[Check]:
    """What the job on the head has found, out of all that it has printed."""
    try:
        found, _ = json.JSONDecoder().raw_decode(log, log.index("\n[\n") + 1)
    except ValueError:
        end = " ".join((log or job.message).split())[-300:]
        return [Check("head", "fail", f"no checks came of it: {end}", "Does its image have Manta and what it needs?")]
    return [Check(f"head: {each['name']}", each["status"], each["found"], each["remedy"]) for each in found]


def _ended(jobs: Jobs, job_id: str) -> Job:
    job = jobs.wait(job_id, HEAD_S)
    if not job.has_ended:
        jobs.stop(job_id)
        raise ClusterError(f"The head's own checks have not ended within {HEAD_S:.0f} s.")
    return job
