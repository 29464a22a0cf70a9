"""Jobs of a Ray cluster over HTTP, through networks that drop: Ray's own client, with limits and second tries.

A job's state is what its status says. The end of its log says nothing: Ray may stop sending it, or end the request as
if all had gone well, while the job still runs (ray#51601, ray#60665).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import ClusterError

REQUEST_TIMEOUT_S = 15.0
"""Seconds a request may take; one that carries the project may take as long again for every ten megabytes."""

PATIENCE_S = 600.0
"""Seconds without an answer after which a cluster is given up; a job goes on without whoever follows it."""

FIRST_PATIENCE_S = 10.0
"""The same for the first request, where the address may be wrong."""

STATUS_EVERY_S, RETRY_S = 1.0, 2.0

QUIET_S = 60.0
"""Seconds without a word of the log after which it is asked for anew: a connection can be gone without a sign."""

_PASSING = re.compile(r"status code (502|503|504)\b")
"""What stands in front of a cluster says so while there is nothing behind it."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: what it was submitted as.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_status: of its command; None while it runs, and where it was killed or never started.
        started_at, ended_at: seconds since the epoch; None before that.
    """

    id: str
    status: str
    entrypoint: str
    metadata: Mapping[str, str]
    message: str
    exit_status: int | None
    started_at: float | None
    ended_at: float | None

    @property
    def has_ended(self) -> bool:
        """Whether it will not run any more."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobExistsError(ClusterError):
    """There is a job of this id already."""


class OutOfReachError(ClusterError):
    """The cluster does not answer; whatever runs there goes on. Exit status 3: that of a job is not known."""

    exit_status = 3


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`, http://HOST:8265.

    Args:
        tell: told when the network is gone, and when it is back.

    Raises:
        ClusterError: nobody answers there, or not as a Ray cluster of this version does.
    """

    def __init__(self, address: str, tell: Callable[[str], None] = lambda line: None) -> None:
        self.address, self._tell = address, tell
        self._client = self._patiently(lambda: _client(address), FIRST_PATIENCE_S)

    def submit(self, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Submit a job; one whose acknowledgement was lost on the way is not submitted twice.

        Args:
            metadata: tells this submission from any other.

        Raises:
            JobExistsError: somebody else has submitted one of this id.
            ClusterError: the cluster refuses it, or does not answer.
        """

        def attempt() -> None:
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
            except OSError as error:
                if error.filename is None:  # the network's
                    raise
                raise ClusterError(
                    f"{error.filename} cannot be shipped: {error.strerror}. Name it in .gitignore or .rayignore, or "
                    "ship a folder without it: --working-dir FOLDER"
                ) from None
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                if self.find(job_id).metadata != metadata:
                    raise JobExistsError(f"There is a job {job_id} already.") from None

        self._patiently(attempt)

    def find(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            ClusterError: there is none, or the cluster does not answer.
        """
        return _job(self._patiently(lambda: self._client.get_job_info(job_id)))

    def list(self) -> list[Job]:
        """All submitted jobs, the oldest first."""
        found = self._patiently(lambda: self._client.list_jobs())
        return sorted((_job(each) for each in found if each.submission_id), key=lambda job: job.started_at or 0.0)

    def logs(self, job_id: str) -> str:
        """All that the job has printed."""
        text: str = self._patiently(lambda: self._client.get_job_logs(job_id))
        return text

    def stop(self, job_id: str) -> None:
        """Ask the job to stop: SIGTERM, and SIGKILL when the time it is given for saving is over."""
        self._patiently(lambda: self._client.stop_job(job_id))

    def wait(self, job_id: str, timeout_s: float = math.inf) -> Job:
        """Return when the job has ended, or as it is after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not (job := self.find(job_id)).has_ended and time.monotonic() < deadline:
            time.sleep(STATUS_EVERY_S)
        return job

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Pass on what the job prints, every character once, until it has ended."""
        log = _Log(self._client, job_id, show)
        while not (job := self.find(job_id)).has_ended:
            log.keep_coming()
            time.sleep(STATUS_EVERY_S)
        log.complete(self.logs(job_id))
        return job

    def _patiently(self, request: Callable[[], Answer], patience_s: float = PATIENCE_S) -> Answer:
        """Make a request until the network lets it through.

        Raises:
            ClusterError: it did not for `patience_s`, or what came back is a refusal.
        """
        import requests
        from ray.exceptions import AuthenticationError

        began, lost = time.monotonic(), False
        while True:
            try:
                answer = request()
                if lost:
                    self._tell(f"{self.address} answers again.")
                return answer
            except (ConnectionError, requests.RequestException, TimeoutError) as error:
                if time.monotonic() - began > patience_s:
                    raise OutOfReachError(
                        f"No Ray cluster answers at {self.address} ({_first_line(error)}). Is it the dashboard's "
                        "address, as http://HOST:8265, and can it be reached from here? Jobs that run go on."
                    ) from None
                if not lost and patience_s > FIRST_PATIENCE_S:
                    self._tell(f"{self.address} does not answer; trying again. The job goes on.")
                lost = True
                time.sleep(RETRY_S)
            except AuthenticationError:
                raise ClusterError(
                    f"The cluster at {self.address} asks for a token, and has not got the right one: set "
                    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. For a cluster of this machine: "
                    'eval "$(manta cluster env)"'
                ) from None
            except RuntimeError as error:
                if not _PASSING.search(str(error)) or time.monotonic() - began > patience_s:
                    raise ClusterError(f"The cluster at {self.address} refuses: {_first_line(error)}") from None
                time.sleep(RETRY_S)


class _Log:
    """A job's log as it comes in, asked for anew where the connection is lost."""

    def __init__(self, client: Any, job_id: str, show: Callable[[str], None]) -> None:
        self._client, self._job_id, self._show = client, job_id, show
        self._shown = 0
        self._last_report_at = 0.0
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def keep_coming(self) -> None:
        """Ask for it if nobody does, or if the last request has had nothing to say for long."""
        silent = time.monotonic() - self._last_report_at > QUIET_S
        if self._reader is None or silent or not self._reader.is_alive():
            self._last_report_at = time.monotonic()
            # A daemon: a connection that hangs is not to keep the command from ending.
            self._reader = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)
            self._reader.start()

    def complete(self, whole: str) -> None:
        """The job has ended and this is all: show what is missing."""
        with self._lock:
            self._reader = None
            self._show(whole[self._shown :])
            self._shown = len(whole)

    async def _read(self) -> None:
        seen = 0  # a log comes from its beginning; what has been shown is left out
        with contextlib.suppress(Exception):  # whatever it is, the job's status tells whether to ask again
            async for text in self._client.tail_job_logs(self._job_id):
                with self._lock:
                    if threading.current_thread() is not self._reader:
                        return
                    self._last_report_at = time.monotonic()
                    self._show(text[max(0, self._shown - seen) :])
                    seen += len(text)
                    self._shown = max(self._shown, seen)


def _client(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets its variables override what it is told
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # else they name every package that they upload

    class Client(JobSubmissionClient):
        """With a limit to every request: without one, a network that swallows packets is waited for forever."""

        def _do_request(self, *args: Any, data: bytes | None = None, **kwargs: Any) -> Any:
            size_s = len(data or b"") / 1e7 * REQUEST_TIMEOUT_S
            limits = {"timeout": REQUEST_TIMEOUT_S + size_s} | kwargs
            return super()._do_request(*args, data=data, **limits)

    return Client(address)


def _job(info: Any) -> Job:
    return Job(
        id=info.submission_id,
        status=info.status.value,
        entrypoint=info.entrypoint,
        metadata=info.metadata or {},
        message=info.message or "",
        exit_status=info.driver_exit_code,
        started_at=info.start_time / 1000 if info.start_time else None,
        ended_at=info.end_time / 1000 if info.end_time else None,
    )


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in str(error) else lines[0])[:300] if lines else type(error).__name__
