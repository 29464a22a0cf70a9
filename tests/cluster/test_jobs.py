"""What a job prints is shown once and whole, whatever becomes of the connections it comes through."""

from __future__ import annotations

import time
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

CUT = None
"""In a script: the connection is lost here."""


class ScriptedClient:
    """Stands for Ray's client: the log's text grows with every look at the status, and connections end by script."""

    def __init__(self, pieces: list[str], cuts: set[int]) -> None:
        self.pieces, self.cuts, self.looks = pieces, cuts, 0

    def get_job_info(self, job_id: str) -> Any:
        self.looks += 1
        if self.looks in self.cuts:
            raise requests.ConnectionError("gone")
        ended = self.looks > len(self.pieces) + len(self.cuts)
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
    for name in ("STATUS_EVERY_S", "RETRY_S"):
        monkeypatch.setattr(jobs_module, name, 0.001)


def jobs_of(client: Any, monkeypatch: pytest.MonkeyPatch, told: list[str] | None = None) -> Jobs:
    monkeypatch.setattr(jobs_module, "_client", lambda address: client)
    return Jobs("http://cluster:8265", (told if told is not None else []).append)


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


def test_a_network_that_is_gone_is_told_of_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    jobs_of(ScriptedClient(["a"], {1, 2}), monkeypatch, told).follow("one", lambda text: None)
    assert "does not answer; trying again" in told[0] and "answers again" in told[-1]


def test_a_cluster_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "FIRST_PATIENCE_S", 0.0)

    def nobody(address: str) -> Any:
        time.sleep(0.001)
        raise ConnectionError("Connection refused")

    monkeypatch.setattr(jobs_module, "_client", nobody)
    with pytest.raises(ClusterError, match=r"No Ray cluster answers at http://nowhere:1 \(Connection refused\)"):
        Jobs("http://nowhere:1")


def test_an_acknowledgement_that_was_lost_is_no_second_job(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_refusal_is_told_with_its_reason_and_a_token_that_is_missing_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client:
        def list_jobs(self) -> None:
            raise AuthenticationError("Unauthorized: token missing")

        def get_job_info(self, job_id: str) -> None:
            raise RuntimeError("Request failed with status code 404: Job one does not exist")

    jobs = jobs_of(Client(), monkeypatch)
    with pytest.raises(ClusterError, match="asks for a token"):
        jobs.list()
    with pytest.raises(ClusterError, match="refuses: Request failed with status code 404"):
        jobs.find("one")


def test_a_gateway_with_nothing_behind_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        answers = 0

        def list_jobs(self) -> list[Any]:
            self.answers += 1
            if self.answers < 3:
                raise RuntimeError("Request failed with status code 503: upstream is down")
            return [info("mine-1", "RUNNING")]

    assert [job.id for job in jobs_of(Client(), monkeypatch).list()] == ["mine-1"]


def test_what_is_used_of_rays_client_and_is_not_public() -> None:
    import inspect

    from ray.dashboard.modules.dashboard_sdk import SubmissionClient
    from ray.dashboard.utils import get_address_for_submission_client

    assert "**kwargs" in inspect.getsource(SubmissionClient._do_request)
    assert "RAY_API_SERVER_ADDRESS" in inspect.getsource(get_address_for_submission_client)
