"""Submits, follows and stops jobs of a Ray cluster over HTTP: Ray's own client, with timeouts and retries.

A job's state is read from its status only. The end of its log does not mean the job's end: Ray may stop sending the
log, or end the request without an error, while the job still runs (ray#51601, ray#60665).
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
"""Timeout of a request in seconds; a request that uploads the project has as much again for every ten megabytes."""

RETRY_TIMEOUT_S = 600.0
"""Seconds without an answer after which requests are no longer retried. A job continues without its followers."""

CONNECT_TIMEOUT_S = 10.0
"""The same for the first request, whose address may be wrong."""

CONNECT_TOLD_S = 2.0
"""Seconds after which a line says that the first request has no answer yet."""

POLL_INTERVAL_S, RETRY_S = 1.0, 2.0
"""Seconds between two requests for a job's status, and from a failed request to the next try."""

LOG_STALL_S = 60.0
"""Seconds without log output after which the log is requested again: a connection may be lost without an error."""

_TRANSIENT = re.compile(r"status code (502|503|504)\b")
"""Answers of a gateway while the cluster behind it is not available."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: its submission id.
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        entrypoint: its command.
        metadata: as submitted.
        message: Ray's explanation of the status.
        exit_status: of its command; None while it runs, and if it was killed or never started.
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
        """Whether it has finished, in whatever way."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class JobExistsError(ClusterError):
    """A job with this id exists already."""


class OutOfReachError(ClusterError):
    """The cluster does not answer; its jobs continue. Exit status 3: the job's own is not known."""

    exit_status = 3


class Jobs:
    """The jobs of the cluster whose dashboard is at `address`, http://HOST:8265.

    Args:
        address: of the dashboard.
        log: receives a line when the first answer takes long, when the connection is lost, and when it is back.

    Raises:
        ClusterError: nothing answers there, or not like a Ray cluster of this version.
    """

    def __init__(self, address: str, log: Callable[[str], None] = lambda line: None) -> None:
        self.address, self._log = address, log
        waits = threading.Timer(CONNECT_TOLD_S, log, [f"waiting for an answer of {address}"])
        waits.start()
        try:
            self._client = self._with_retries(lambda: _client(address), CONNECT_TIMEOUT_S)
        finally:
            waits.cancel()

    def submit(self, entrypoint: str, job_id: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Submits a job. A job whose acknowledgement was lost is not submitted twice.

        Args:
            entrypoint: its command.
            job_id: its submission id.
            runtime_env: Ray's runtime environment.
            metadata: identifies this submission; must differ from that of every other.

        Raises:
            JobExistsError: another submission has used this id.
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
                if error.filename is None:  # an error of the network
                    raise
                raise ClusterError(
                    f"{error.filename} cannot be uploaded: {error.strerror}. List it in .gitignore or .rayignore, "
                    "or upload a folder without it: --working-dir FOLDER"
                ) from None
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                if self.find(job_id).metadata != metadata:
                    raise JobExistsError(f"There is a job {job_id} already.") from None

        self._with_retries(attempt)

    def find(self, job_id: str) -> Job:
        """The job with that id.

        Raises:
            ClusterError: there is none, or the cluster does not answer.
        """
        return _job(self._with_retries(lambda: self._client.get_job_info(job_id)))

    def list(self) -> list[Job]:
        """All submitted jobs, the oldest first."""
        found = self._with_retries(lambda: self._client.list_jobs())
        return sorted((_job(each) for each in found if each.submission_id), key=lambda job: job.started_at or 0.0)

    def logs(self, job_id: str) -> str:
        """All output of the job so far."""
        text: str = self._with_retries(lambda: self._client.get_job_logs(job_id))
        return text

    def stop(self, job_id: str) -> None:
        """Stops the job: SIGTERM, and SIGKILL after the time that it has for saving. Does not wait."""
        self._with_retries(lambda: self._client.stop_job(job_id))

    def wait(self, job_id: str, timeout_s: float = math.inf) -> Job:
        """Waits until the job has ended, for at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not (job := self.find(job_id)).has_ended and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        return job

    def follow(self, job_id: str, show: Callable[[str], None]) -> Job:
        """Shows the job's output, every character once, until it has ended."""
        log = _Log(self._client, job_id, show)
        while not (job := self.find(job_id)).has_ended:
            log.request_if_stalled()
            time.sleep(POLL_INTERVAL_S)
        log.complete(self.logs(job_id))
        return job

    def _with_retries(self, request: Callable[[], Answer], timeout_s: float = RETRY_TIMEOUT_S) -> Answer:
        """Sends a request, again and again while the network fails.

        Raises:
            ClusterError: it failed for `timeout_s`, or the cluster refused it.
        """
        import requests
        from ray.exceptions import AuthenticationError

        began, lost = time.monotonic(), False
        while True:
            try:
                answer = request()
                if lost:
                    self._log(f"{self.address} answers again.")
                return answer
            except (ConnectionError, requests.RequestException, TimeoutError) as error:
                if time.monotonic() - began > timeout_s:
                    raise OutOfReachError(
                        f"No Ray cluster answers at {self.address} ({_first_line(error)}). Check that this is the "
                        "dashboard's address, such as http://HOST:8265, and reachable from here. Running jobs continue."
                    ) from None
                if not lost and timeout_s > CONNECT_TIMEOUT_S:
                    self._log(f"{self.address} does not answer; trying again. The job continues.")
                lost = True
                time.sleep(RETRY_S)
            except AuthenticationError:
                raise ClusterError(
                    f"The cluster at {self.address} requires a token, and RAY_AUTH_TOKEN is missing or wrong: set "
                    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. For a cluster on this machine: "
                    'eval "$(manta cluster env)"'
                ) from None
            except RuntimeError as error:
                if not _TRANSIENT.search(str(error)) or time.monotonic() - began > timeout_s:
                    raise ClusterError(
                        f"The cluster at {self.address} refused the request: {_first_line(error)}"
                    ) from None
                time.sleep(RETRY_S)


class _Log:
    """Streams a job's log, and requests it again when the connection is lost."""

    def __init__(self, client: Any, job_id: str, show: Callable[[str], None]) -> None:
        self._client, self._job_id, self._show = client, job_id, show
        self._shown = 0
        self._last_output_at = 0.0
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None

    def request_if_stalled(self) -> None:
        """Requests the log unless a request is running that has had output in the last `LOG_STALL_S`."""
        silent = time.monotonic() - self._last_output_at > LOG_STALL_S
        if self._reader is None or silent or not self._reader.is_alive():
            self._last_output_at = time.monotonic()
            # A daemon, so that a connection that hangs does not prevent the command from ending.
            self._reader = threading.Thread(target=lambda: asyncio.run(self._read()), daemon=True)
            self._reader.start()

    def complete(self, whole: str) -> None:
        """Shows the rest of the whole log of a job that has ended."""
        with self._lock:
            self._reader = None
            self._show(whole[self._shown :])
            self._shown = len(whole)

    async def _read(self) -> None:
        seen = 0  # every request returns the log from its beginning; what has been shown is skipped
        with contextlib.suppress(Exception):  # whatever the error, the job's status decides whether to request it again
            async for text in self._client.tail_job_logs(self._job_id):
                with self._lock:
                    if threading.current_thread() is not self._reader:
                        return
                    self._last_output_at = time.monotonic()
                    self._show(text[max(0, self._shown - seen) :])
                    seen += len(text)
                    self._shown = max(self._shown, seen)


def _client(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # in Ray, this variable overrides the argument
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # else they log every package that they upload

    class Client(JobSubmissionClient):
        """Adds a timeout to every request: without one, a network that drops packets blocks it forever."""

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
