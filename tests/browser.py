"""A real browser, headless: pages opened by path, looked at through the DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

ANSWER_S = 60.0
"""Seconds that an answer may take, the browser's start among them."""


def chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("there is no chromium on this machine; on Debian: apt-get install chromium")


class Tab:
    """One tab of a browser of its own; see `tab`.

    Attributes:
        events: what the browser has told, as DevTools has it: "method" and "params".
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something; returns its answer."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                answer: dict[str, Any] = told["result"]
                return answer
            self.events.append(told)

    def open(self, page: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Open a page by its path and wait until it has loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def told(self, *methods: str) -> list[dict[str, Any]]:
        """The events of these names since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def picture(self, to: Path, top: float = 0.0, height: float | None = None) -> None:
        """A picture of the page, all of it or so much from `top` on."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        taken = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        to.write_bytes(base64.b64decode(taken["data"]))

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_S
        while b"\0" not in self._rest:
            if not select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser has said nothing for {ANSWER_S:.0f} s")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise ConnectionError("the browser has ended")
            self._rest += read
        told, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(told)
        return message


@contextmanager
def tab() -> Iterator[Tab]:
    """A tab of a browser that is started for it, and ended with the block."""
    program = chromium()
    in_browser, to_browser = os.pipe()
    from_browser, out_browser = os.pipe()
    with tempfile.TemporaryDirectory(prefix="manta-browser-", ignore_cleanup_errors=True) as profile:
        # The browser reads from 3 and writes to 4.
        start = f'exec "$0" "$@" 3<&{in_browser} 4>&{out_browser}'
        process = subprocess.Popen(
            ["bash", "-c", start, program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(in_browser, out_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(in_browser)
        os.close(out_browser)
        try:
            yield Tab(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
