"""Damaged and hostile inputs, drawn from sound ones; and the bounds within which a call must answer."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

DRAWN = settings(max_examples=int(os.environ.get("MANTA_EXAMPLES", "10")))
"""Few by default; `make fuzz` draws as many as one likes."""

MOST_S = 15
"""Seconds for one call."""

MOST_BYTES = 1 << 30
"""Memory that one call may add."""

SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, 0.5, -0.0, float("inf"), float("nan")),
    *("", " ", "no", "on", "null", "~", "0x_", "010", "1:30", "1e3", "2024-01-01", "$HOME/x", "../../etc", "a\x00b"),
    *("\x1b[31mred", "[INST] a [/INST]", "a: b", "a #b", "{a", "é\ud800".encode("utf-8", "replace").decode(), "s3:b"),
    *([], {}, [[]], {"": None}, {"a": {"a": {}}}, ["a"] * 100, "x" * 10_000),
)
"""Values that somebody has once written where another was meant."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with one to three changes: bits turned, parts cut, doubled, moved, zeroed, or other ones put in."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        width = draw(st.sampled_from((1, 2, 8, 64, 1000)))
        part = content[at : at + width]
        other = draw(
            st.sampled_from(
                (
                    bytes([part[0] ^ (1 << draw(st.integers(0, 7)))]) + part[1:] if part else b"\x00",
                    b"",
                    part + part,
                    bytes(len(part)),
                    b"\xff" * len(part),
                    part[::-1],
                )
            )
        )
        content = content[:at] + other + content[at + width :]
        if draw(st.integers(0, 9)) == 0:
            content = content[:at]
    return content


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three of its values replaced, removed, renamed, doubled or buried."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(st.sampled_from(SCALARS))
        holder, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "bury", "swap")))
        if what == "remove":
            del holder[key]
        elif what == "rename" and isinstance(holder, dict):
            holder[f"{key}{draw(st.sampled_from(('s', '_', '.', ' ')))}"] = holder.pop(key)
        elif what == "bury":
            holder[key] = [{"a": holder[key]}]
        elif what == "swap":
            other, its = draw(st.sampled_from(places))
            if its in other if isinstance(other, dict) else its < len(other):
                holder[key] = copy.deepcopy(other[its])
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(SCALARS)))
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = range(len(document)) if isinstance(document, list) else list(document) if isinstance(document, dict) else ()
    for key in keys:
        yield document, key
        yield from _places(document[key])


class NoAnswerError(BaseException):
    """A call took longer than MOST_S. Nothing that handles errors of the call may take it for one."""


@contextmanager
def within_bounds() -> Iterator[None]:
    """Fails if the block takes longer than MOST_S, or adds more than MOST_BYTES of memory.

    Raises:
        NoAnswerError, AssertionError: it did.
    """

    def expired(number: int, frame: FrameType | None) -> None:
        raise NoAnswerError

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak_bytes()
    handler: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGALRM, expired)
    signal.alarm(MOST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert _peak_bytes() - before < MOST_BYTES


def _peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
