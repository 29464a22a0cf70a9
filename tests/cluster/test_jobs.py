"""A job's output is shown completely and once, and requests are retried, whatever happens to connections."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import AuthenticationError

from cluster import jobs as jobs_module
from cluster.errors import ClusterError
from cluster.jobs import JobExistsError, Jobs


class ScriptedClient:
    """Replaces Ray's client: the log grows with every request for the status, and connections end at `cuts`."""

    def __init__(self, pieces: list[str], cuts: set[int]) -> None:
        self.pieces, self.cuts, self.requests = pieces, cuts, 0

    def get_job_info(self, job_id: str) -> Any:
        self.requests += 1
        if self.requests in self.cuts:
            raise requests.ConnectionError("gone")
        ended = self.requests > len(self.pieces) + len(self.cuts)
        return info(job_id, "SUCCEEDED" if ended else "RUNNING", exit_code=0 if ended else None)

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.pieces)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for index, piece in enumerate(self.pieces):
            if index + 1 in self.cuts:
                self.cuts = self.cuts - {index + 1}
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece


def info(job_id: str, status: str, *, exit_code: int | None = None, metadata: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(
        submission_id=job_id,
        status=SimpleNamespace(value=status),
        entrypoint="manta train",
        metadata=metadata or {},
        message="",
        driver_exit_code=exit_code,
        start_time=1000,
        end_time=None,
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_INTERVAL_S", "RETRY_S"):
        monkeypatch.setattr(jobs_module, name, 0.001)


def jobs_of(client: Any, monkeypatch: pytest.MonkeyPatch, log: list[str] | None = None) -> Jobs:
    monkeypatch.setattr(jobs_module, "_client", lambda address: client)
    return Jobs("http://cluster:8265", (log if log is not None else []).append)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6),
    st.sets(st.integers(min_value=1, max_value=6)),
)
def test_every_character_is_shown_once(pieces: list[str], cuts: set[int]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shown: list[str] = []
        job = jobs_of(ScriptedClient(pieces, cuts), monkeypatch).follow("one", shown.append)
    assert "".join(shown) == "".join(pieces)
    assert (job.status, job.exit_status) == ("SUCCEEDED", 0)


def test_a_lost_network_is_logged_and_requests_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    jobs_of(ScriptedClient(["a"], {1, 2}), monkeypatch, log).follow("one", lambda text: None)
    assert "does not answer; trying again" in log[0] and "answers again" in log[-1]


def test_an_address_that_does_not_answer_is_named_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    monkeypatch.setattr(jobs_module, "CONNECT_TOLD_S", 0.0)
    monkeypatch.setattr(jobs_module, "_client", lambda address: told.wait(30))
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        told.set()

    Jobs("http://cluster:8265", log)
    assert lines == ["waiting for an answer of http://cluster:8265"]


def test_the_first_request_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "CONNECT_TIMEOUT_S", -1.0)

    def refuse(address: str) -> Any:
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(jobs_module, "_client", refuse)
    with pytest.raises(ClusterError, match=r"No Ray cluster answers at http://nowhere:1 \(Connection refused\)"):
        Jobs("http://nowhere:1")


def test_a_lost_acknowledgement_causes_no_second_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        there: dict[str, Any] | None = None

        def submit_job(self, submission_id: str, metadata: dict[str, str], **_: Any) -> None:
            if self.there is None:
                self.there = metadata
                raise requests.ConnectionError("the answer was lost")
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")

        def get_job_info(self, job_id: str) -> Any:
            return info(job_id, "RUNNING", metadata=self.there)

    jobs = jobs_of(Client(), monkeypatch)
    jobs.submit("manta train", "mine-1", {}, {"manta_submission": "a"})
    with pytest.raises(JobExistsError):
        jobs.submit("manta train", "mine-1", {}, {"manta_submission": "b"})


def test_a_refusal_has_its_reason_and_a_missing_token_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client:
        def list_jobs(self) -> None:
            raise AuthenticationError("Unauthorized: token missing")

        def get_job_info(self, job_id: str) -> None:
            raise RuntimeError("Request failed with status code 404: Job one does not exist")

    jobs = jobs_of(Client(), monkeypatch)
    with pytest.raises(ClusterError, match="requires a token"):
        jobs.list()
    with pytest.raises(ClusterError, match="refused the request: Request failed with status code 404"):
        jobs.find("one")


def test_a_gateway_without_a_cluster_behind_it_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        answers = 0

        def list_jobs(self) -> list[Any]:
            self.answers += 1
            if self.answers < 3:
                raise RuntimeError("Request failed with status code 503: upstream is down")
            return [info("mine-1", "RUNNING")]

    assert [job.id for job in jobs_of(Client(), monkeypatch).list()] == ["mine-1"]


def test_rays_client_has_the_private_names_that_are_used() -> None:
    import inspect

    from ray.dashboard.modules.dashboard_sdk import SubmissionClient
    from ray.dashboard.utils import get_address_for_submission_client

    assert "**kwargs" in inspect.getsource(SubmissionClient._do_request)
    assert "RAY_API_SERVER_ADDRESS" in inspect.getsource(get_address_for_submission_client)
