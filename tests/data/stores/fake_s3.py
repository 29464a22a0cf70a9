"""An S3 service that answers what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data.stores.config import StoreConfig

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def fake_s3(answer: Callable[[int, str], Answer]) -> Iterator[StoreConfig]:
    """An HTTP server that answers every request with `answer(number of the request, path)`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", for which botocore otherwise waits a second

        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path)
            status, headers, body = answer(len(asked), self.path)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = reply

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield s3_config(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def s3_config(endpoint_url: str, timeout_s: float = 1.0) -> StoreConfig:
    return StoreConfig(endpoint_url=endpoint_url, access_key_id="key", secret_access_key="secret", timeout_s=timeout_s)
