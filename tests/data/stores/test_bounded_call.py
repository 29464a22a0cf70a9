"""Calls to a store end, and are told of first: services that drip, that list without end, that never answer."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.errors import StoreAccessError, TransientStoreError
from data.stores import bounded_call, s3
from data.stores.bounded_call import Transfer, bounded, refuse_abandoned
from data.stores.config import StoreConfig
from data.stores.s3 import PARTS_AT_ONCE, S3Store
from data.stores.shard_file import ShardFile
from tests.data.stores.fake_s3 import Answer, fake_s3
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_call, "TOLD_AFTER_S", 0.2)
    monkeypatch.setattr(bounded_call, "LONGEST_S", 1.5)


def config(url: str) -> StoreConfig:
    return StoreConfig(endpoint_url=url, access_key_id="key", secret_access_key="secret", timeout_s=5.0)


@contextmanager
def answering(head: bytes, drip: bytes) -> Iterator[str]:
    """The URL of a service that answers every request with `head`, and then a byte of `drip` at a time, for ever."""
    stopped = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(head)
            while drip and not stopped.wait(0.05):
                try:
                    connection.sendall(drip)
                except OSError:
                    return
            stopped.wait()

    def accept(listener: socket.socket) -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stopped.set()
        listener.shutdown(socket.SHUT_RDWR)


DRIPS = {
    "body": (b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: "a"\r\n\r\n', b"x"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-More: a\r\n"[:1]),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_a_service_that_drips_is_told_of_and_given_up(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with answering(*DRIPS[kind]) as url:
        store = S3Store("bucket", "runs", config(url))
        with caplog.at_level(logging.WARNING), pytest.raises(TransientStoreError) as raised:
            store.get("key")
    assert "Could not read s3://bucket/runs/key: given up after" in str(raised.value)
    assert "Waiting for the store since" in caplog.text and "read s3://bucket/runs/key" in caplog.text


def test_a_shard_that_drips_is_given_up() -> None:
    with answering(*DRIPS["headers"]) as url, pytest.raises(TransientStoreError, match="given up after"):
        ShardFile("s3://bucket/shard.txt", config(url))


def test_a_list_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST_LISTED", 50)
    entry = b"<Contents><Key>runs/%d</Key><Size>1</Size><ETag>a</ETag></Contents>"
    entries = b"".join(entry % number for number in range(20))
    body = (
        b"<ListBucketResult><Name>bucket</Name><IsTruncated>true</IsTruncated><KeyCount>20</KeyCount>"
        b"<NextContinuationToken>%d</NextContinuationToken>" + entries + b"</ListBucketResult>"
    )
    pages = iter(range(10**9))
    with paged(lambda: body % next(pages)) as url, pytest.raises(StoreAccessError, match="more than 50 objects"):
        list(S3Store("bucket", "runs", config(url)).list())


@contextmanager
def paged(body: object) -> Iterator[str]:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = body()  # type: ignore[operator]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_transfer_that_moves_may_take_longer() -> None:
    def call(transfer: Transfer) -> str:
        for _ in range(8):
            transfer.add(bounded_call.LEAST_BYTES_PER_S)
            time.sleep(0.5)
        return "done"

    assert bounded(call, "move") == "done"


CALLS: dict[str, Callable[[S3Store, Path], object]] = {
    "put": lambda store, file: store.put("key", b"content"),
    "put_file": lambda store, file: store.put_file("key", file),
    "get_file": lambda store, file: store.get_file("key", file.with_name("fetched")),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_was_given_up_sends_nothing_more(call: str, tmp_path: Path) -> None:
    """Neither a retry nor the parts that are left; and an interrupted command does not wait for them."""
    file = tmp_path / "file"
    file.write_bytes(bytes(40 << 20))
    may_answer, asked = threading.Event(), list[str]()

    def answer(number: int, path: str) -> Answer:
        asked.append(path)
        if "uploads" in path:
            body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            return 200, {}, body
        if call == "get_file" and number == 1:
            return 200, {"ETag": '"a"', "Content-Length": str(40 << 20)}, b""
        may_answer.wait(20)
        return 500, {}, b"<Error><Code>InternalError</Code></Error>"

    with fake_s3(answer) as config:
        with pytest.raises(TransientStoreError, match="given up after"):
            CALLS[call](S3Store("bucket", "runs", config.model_copy(update={"timeout_s": 5.0})), file)
        before = len(asked)
        assert before >= 1
        may_answer.set()
        wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("store-")], "their end")
        assert len(asked) <= before + PARTS_AT_ONCE and not (tmp_path / "fetched").exists()
        assert not any("uploadId=1" in path and "partNumber" not in path for path in asked[before:]), "not completed"
    refuse_abandoned()  # of other threads, nothing is refused


def test_a_transfer_that_came_far_and_stalls_is_given_up() -> None:
    def call(transfer: Transfer) -> None:
        transfer.add(10**12)
        threading.Event().wait(30)

    with pytest.raises(TransientStoreError, match="given up after"):
        bounded(call, "read")


def test_errors_are_those_of_the_call() -> None:
    def call(transfer: Transfer) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bounded(call, "read")
