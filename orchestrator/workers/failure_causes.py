"""Finds out what ended a worker group (a crash, a lost node, a hang or an error) from the exceptions that Ray wraps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import ray

from cluster.known_secrets import struck
from cluster.ray_nodes import root_cause
from data.errors import MantaError
from orchestrator.errors import BadLossError, WorkerDiedError
from orchestrator.policy.failure import OUT_OF_MEMORY, Cause
from orchestrator.run.progress import Progress
from orchestrator.workers.pool import WorkersHung

_NODE_LOST = re.compile(r"node has died|node was terminated|NODE_DIED")

_OUT_OF_MEMORY = re.compile(r"OUT_OF_MEMORY|OutOfMemory|[Oo]ut of memory|OOM|running low on memory|exit code 137")

_TORN_CONNECTION = re.compile(r"gloo|Connection (closed|reset) by peer|NCCL", re.IGNORECASE)


def is_torn_connection(error: BaseException) -> bool:
    """Whether an error says that a collective failed because a rank is gone, in the wording of Gloo or NCCL."""
    return isinstance(error, RuntimeError) and _TORN_CONNECTION.search(str(error)) is not None


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """The cause of the worker group's end, and what is known about it in one line."""
    hung = root_cause(error, WorkersHung)
    if hung is not None:
        return "hang", str(hung)
    raised, death = raised_in(error), death_in(error)
    if raised is not None or death is None:  # its message is a traceback, which ends with the error
        return "error", single_line(raised or error)[-300:]
    return "node" if _NODE_LOST.search(str(death)) else "crash", describe_death(death)


def failed_ranks(error: BaseException) -> list[int]:
    """Ranks that died or raised an error by themselves, not because a peer was lost; [] where that is not known."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return [rank for rank, each in failures.items() if not is_torn_connection(each)]


def raised_in(error: BaseException) -> BaseException | None:
    """The error of one rank's code that is no mere effect of a lost peer; None if there is none."""
    failures: Iterable[BaseException] = getattr(error, "worker_failures", {}).values()
    own = (each for each in failures if root_cause(each, ray.exceptions.RayActorError) is None)
    return next((each for each in own if not is_torn_connection(each)), None)


def death_in(error: BaseException) -> BaseException | None:
    """The error of a worker's death inside Ray's wrappers; None if no worker died."""
    death = root_cause(error, ray.exceptions.RayActorError)
    if death is not None:
        return death
    # A rank whose peer died may fail, with an error of Gloo, before Ray notices the death.
    torn = root_cause(error, RuntimeError)
    return torn if torn is not None and is_torn_connection(torn) else None


def describe_death(death: BaseException) -> str:
    """Which process died, and why, in one line: the facts of Ray's long message."""
    text = single_line(death)
    if is_torn_connection(death):
        return "its connection to a peer broke"
    process = re.search(r"pid: (\d+).*? ip: (\S+)", text)
    cause = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
    where = f"process {process[1]} on {process[2]}" if process else ""
    what = "its node died" if _NODE_LOST.search(text) else cause[1] if cause else text[:300]
    # Ray names the killer of processes that are out of memory among the common causes of any death.
    if _OUT_OF_MEMORY.search(text.partition("Some common causes")[0]) and OUT_OF_MEMORY not in what:
        what = f"{OUT_OF_MEMORY}: {what}"
    return f"{where}: {what}" if where else what


def to_manta_error(error: BaseException, progress: Progress) -> BaseException:
    """The error that ends the run: our own error inside Ray's wrappers, a WorkerDiedError, or `error` itself.

    Args:
        progress: of the run; says why the failure policy gave up, if it did.
    """
    why = f" Not retried: {progress.gave_up}." if progress.gave_up else ""
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
        f"Training failed at step {progress.row.get('step', 0)}: {describe_death(death).rstrip('.')}.{why} "
        f"The same command continues from the last checkpoint. A worker that keeps dying is often out of memory: lower "
        f"train.micro_batch_size."
    )


def single_line(error: BaseException) -> str:
    """An error's message as one line and without secrets, for use within another, and in records."""
    return " ".join(struck(str(error)).split()) or type(error).__name__
