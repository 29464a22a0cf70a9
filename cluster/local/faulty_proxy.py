"""A TCP proxy in front of a server: delays answers, fails requests, refuses writes, or cuts connections; for tests."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CHUNK = 64 << 10

_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 51\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message/></Error>     "
)

_FULL = (
    b"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: 51"
    b"\r\n\r\n<Error><Code>InsufficientStorage</Code></Error>    "
)


class FaultyProxy:
    """Forwards connections to an http:// endpoint. A context manager. Nothing is rewritten, so signatures stay valid.

    Attributes:
        failing: share of requests that fail: half of them with status 503, the others by a cut connection.
        delay_s: delay of every answer in seconds.
        full: whether writes are answered with status 507, as by a store without space; reads and deletions pass.
    """

    def __init__(self, endpoint_url: str, seed: int = 0) -> None:
        target = urlsplit(endpoint_url)
        self._target = target.hostname or "127.0.0.1", target.port or 80
        self.failing, self.delay_s, self.full = 0.0, 0.0, False
        self._place = socket.socket()  # keeps the port while nothing listens on it
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None] | None] = set()  # asyncio itself keeps weak references only
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._place.getsockname()[1]}"
        self.mend()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._place.close()

    def cut(self) -> None:
        """Cuts all connections, and refuses new ones until `mend`, as a machine does on which no store runs."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:  # a new connection may arrive meanwhile
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)

    def mend(self) -> None:
        """Forwards connections again."""

        async def begin() -> None:
            if self._server is None:
                self._server = await asyncio.start_server(self._serve, *self._place.getsockname(), reuse_port=True)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        ends, requests = [writer], None
        # Cancellation is suppressed: asyncio reports a cancelled handler as an error.
        with suppress(OSError, asyncio.CancelledError):
            answers, upstream = await asyncio.open_connection(*self._target)
            ends.append(upstream)
            requests = asyncio.create_task(self._requests(reader, upstream, writer))
            await self._answers(answers, writer)
        if requests is not None:
            requests.cancel()
        for end in ends:
            end.close()  # not awaited: a transport whose peer is gone may never report that it is closed
        self._serving.discard(asyncio.current_task())

    async def _requests(
        self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                refused = self.full and _is_write(chunk)
                if refused or (self.failing and self._draw.random() < self.failing):
                    if refused or self._draw.random() < 0.5:
                        client.write(_FULL if refused else _BUSY)
                        await client.drain()
                    client.close()
                    upstream.close()
                    return
                upstream.write(chunk)
                await upstream.drain()

    async def _answers(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while chunk := await answers.read(_CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            client.write(chunk)
            await client.drain()


def _is_write(request: bytes) -> bool:
    """Whether a request's beginning says that it writes; S3 deletes many objects by a POST to `?delete`."""
    line = request.partition(b"\r\n")[0]
    return line.startswith((b"PUT ", b"POST ")) and b"?delete" not in line
