"""What ended a worker group: a dead peer, a node that went, a hang or an error, told from Ray's wrapped exceptions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import ray

from cluster.ray_nodes import root_cause
from data.errors import MantaError
from orchestrator.errors import BadLossError, WorkerDiedError
from orchestrator.policy.failure import Cause
from orchestrator.run.progress import Progress
from orchestrator.workers.pool import WorkersHung
from orchestrator.workers.process_group import is_torn_connection

_NODE_GONE = re.compile(r"node has died|node was terminated|NODE_DIED")


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """What ended the worker group, and what is known of it in one line."""
    hung = root_cause(error, WorkersHung)
    if hung is not None:
        return "hang", str(hung)
    raised, death = raised_in(error), death_in(error)
    if raised is not None or death is None:  # what the code raised comes with its traceback, whose end says something
        return "error", single_line(raised or error)[-300:]
    return "node" if _NODE_GONE.search(str(death)) else "crash", describe_death(death)


def raised_in(error: BaseException) -> BaseException | None:
    """What one rank's code raised, among the others' complaints that it is gone; None where all only complain."""
    failures: Iterable[BaseException] = getattr(error, "worker_failures", {}).values()
    own = (each for each in failures if root_cause(each, ray.exceptions.RayActorError) is None)
    return next((each for each in own if not is_torn_connection(each)), None)


def death_in(error: BaseException) -> BaseException | None:
    """The worker's death among what Ray wrapped up, or None where nobody died."""
    death = root_cause(error, ray.exceptions.RayActorError)
    if death is not None:
        return death
    # A rank whose peer dies may say so, in Gloo's words, before Ray has noticed the death.
    torn = root_cause(error, RuntimeError)
    return torn if torn is not None and is_torn_connection(torn) else None


def describe_death(death: BaseException) -> str:
    """Which process died, and of what, out of Ray's paragraph about it."""
    text = single_line(death)
    if is_torn_connection(death):
        return "its connection to another was cut"
    process = re.search(r"pid: (\d+).*? ip: (\S+)", text)
    cause = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    where = f"process {process[1]} on {process[2]}" if process else ""
    what = "its node died" if _NODE_GONE.search(text) else cause[1] if cause else text[:300]
    return f"{where}: {what}" if where else what


def to_manta_error(error: BaseException, progress: Progress) -> BaseException:
    """What ended the run: our own error inside Ray's wrappers, that workers keep dying, or the error as it is."""
    why = f" Not tried again: {progress.gave_up}." if progress.gave_up else ""
    ours = root_cause(error, MantaError)
    if isinstance(ours, BadLossError):
        return BadLossError(f"{ours}{why}")
    if ours is not None:
        return ours
    death = death_in(error)
    if death is None:
        death = root_cause(error, WorkersHung)
    if death is None:
        return error
    return WorkerDiedError(
        f"Training ended at step {progress.row.get('step', 0)}: {describe_death(death)}{why} The same command "
        f"continues from the last checkpoint. A worker that keeps dying is often out of memory: lower "
        f"train.micro_batch_size."
    )


def single_line(error: BaseException) -> str:
    """An error's message for the middle of a line."""
    return " ".join(str(error).split()) or type(error).__name__
