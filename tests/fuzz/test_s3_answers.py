"""Answers of services that are no S3, or a broken one: a right result or one message; never a traceback or a hang."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import MantaError
from data.stores.config import StoreConfig
from data.stores.s3 import S3Store
from data.stores.shard_file import ShardFile
from data.stores.store import prove
from tests.data.stores.fake_s3 import Answer, fake_s3
from tests.fuzz.mutations import DRAWN, damaged, within_bounds

LIST = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>bucket</Name><Prefix>runs/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>"
    b"<IsTruncated>false</IsTruncated><Contents><Key>runs/a</Key><Size>3</Size><ETag>&quot;1&quot;</ETag>"
    b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents><Contents><Key>runs/b</Key><Size>4</Size>"
    b"<ETag>&quot;2&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
)
ERROR = b"<Error><Code>NoSuchKey</Code><Message>none</Message><Key>runs/a</Key><RequestId>1</RequestId></Error>"
BODIES = (LIST, ERROR, b"", b"<html><body>Log in</body></html>", b'{"error": "no"}', b"\x00\xff" * 20, b"<a>" * 500)
STATUSES = (200, 200, 200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 405, 409, 411, 412, 416, 418)
HEADERS: tuple[dict[str, str], ...] = (
    {},
    {"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
    {"ETag": "no quotes", "Last-Modified": "yesterday", "Date": "never"},
    {"Content-Type": "text/html", "Location": "/login"},
    {"Content-Range": "bytes 0-2/3", "x-amz-request-id": "a\x7fb"},
    {"Content-Encoding": "gzip"},
)

pytestmark = pytest.mark.slow


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """An answer to any request."""
    body = draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        body = draw(damaged(body))
    return draw(st.sampled_from(STATUSES)), draw(st.sampled_from(HEADERS)), body


class Service:
    """Answers every request with what was drawn last."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [(404, {}, b"")]

    def __call__(self, number: int, path: str) -> Answer:
        return self.answers[number % len(self.answers)]


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Service, StoreConfig]]:
    answering = Service()
    with fake_s3(answering) as config:
        yield answering, config


CALLS: dict[str, Callable[[S3Store, Path], Any]] = {
    "get": lambda store, folder: store.get("a"),
    "head": lambda store, folder: store.head("a"),
    "age_s": lambda store, folder: store.age_s("a"),
    "list": lambda store, folder: list(store.list()),
    "put": lambda store, folder: store.put("a", b"content"),
    "put_if_absent": lambda store, folder: store.put_if_absent("a", b"content"),
    "put_if_match": lambda store, folder: store.put_if_match("a", b"content", "1"),
    "get_file": lambda store, folder: store.get_file("a", folder / "a"),
    "delete": lambda store, folder: store.delete("a"),
    "delete_prefix": lambda store, folder: store.delete_prefix("a"),
    "unfinished": lambda store, folder: store.unfinished(),
    "check": lambda store, folder: store.check(),
    "prove": lambda store, folder: prove(store),
    "shard": lambda store, folder: ShardFile("s3://bucket/runs/a", store.config).read(),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets of transfers that fail
@pytest.mark.parametrize("call", CALLS)
@DRAWN
@given(data=st.data())
def test_any_answer(
    call: str, service: tuple[Service, StoreConfig], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    answering, config = service
    answering.answers = data.draw(st.lists(answers(), min_size=1, max_size=3))
    folder = tmp_path_factory.mktemp("fuzz")
    with within_bounds():
        try:
            result = CALLS[call](S3Store("bucket", "runs", config), folder)
            if call == "get":
                assert result in [body for status, _, body in answering.answers if status < 300]
            if call == "head" and result is not None:
                assert result.size in [len(body) for status, _, body in answering.answers if status < 300]
        except MantaError as error:
            assert 0 < len(str(error)) < 5000
