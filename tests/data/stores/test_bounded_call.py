"""Calls to a store end, and are told of first: services that drip, that list without end, that never answer."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from data.errors import StoreAccessError, TransientStoreError
from data.stores import bounded_call, s3
from data.stores.bounded_call import Transfer, bounded
from data.stores.config import StoreConfig
from data.stores.s3 import S3Store
from data.stores.shard_file import ShardFile

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


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


def test_a_transfer_that_moves_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = threading.Event()

    def call(transfer: Transfer) -> str:
        transfer.add(10 * bounded_call.LEAST_BYTES_PER_S)  # ten more seconds
        moved.wait(2.0)
        return "done"

    assert bounded(call, "move") == "done"


def test_a_call_that_was_given_up_sends_nothing_more() -> None:
    may_go_on, refused = threading.Event(), threading.Event()

    def call(transfer: Transfer) -> None:
        may_go_on.wait(10)
        try:
            bounded_call.refuse_abandoned()
        except TransientStoreError:
            refused.set()

    with pytest.raises(TransientStoreError):
        bounded(call, "write")
    may_go_on.set()
    assert refused.wait(10)
    bounded_call.refuse_abandoned()  # of other threads, nothing is refused


def test_errors_are_those_of_the_call() -> None:
    def call(transfer: Transfer) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        bounded(call, "read")
