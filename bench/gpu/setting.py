"""Shared by all stages: the device, the size of the shapes, and a clock that waits for the device."""

from __future__ import annotations

import gc
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Setting:
    """Where and how large to measure.

    Attributes:
        device: what is measured.
        tiny: shapes that a CPU computes in seconds, to see that the check itself works.
    """

    device: torch.device
    tiny: bool

    @classmethod
    def of(cls, kind: str, *, tiny: bool) -> Self:
        """The setting for the first device of a kind: cuda or cpu."""
        return cls(torch.device(kind, 0) if kind == "cuda" else torch.device(kind), tiny)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def collectives(self) -> str:
        """The backend that workers on this device have."""
        return "nccl" if self.on_gpu else "gloo"

    def synchronize(self) -> None:
        """Waits until the device has finished all work."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def release(self) -> None:
        """Frees unused memory, so that the next stage has the memory of a new process."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, body: Callable[[], object]) -> float:
        """Seconds until the device has finished the work of `body`."""
        self.synchronize()
        began = time.perf_counter()
        body()
        self.synchronize()
        return time.perf_counter() - began

    def milliseconds(self, body: Callable[[], object]) -> float:
        """Median time of `body`, by the device's own clock if it has one."""
        measure = self._event_milliseconds if self.on_gpu else lambda each: 1e3 * self.seconds(each)
        warmup, repeats = (1, 2) if self.tiny else (3, 10)
        taken = [measure(body) for _ in range(warmup + repeats)]
        return round(statistics.median(taken[warmup:]), 4)

    def _event_milliseconds(self, body: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        body()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
