"""Changes one byte of an object that was stored, and asks commands that read it: they answer the same, or name it."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

Answer = tuple[int, str]
"""Exit status of a command and all that it said."""


def in_turn(keys: Iterable[str], draw: random.Random, times: int) -> Iterator[str]:
    """Yields `times` keys, of every kind of object as often as each other; numbers and digests make no kind."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kinds.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "N", key), []).append(key)
    assert len(kinds) > 5
    for kind in itertools.islice(itertools.cycle(draw.sample(list(kinds.values()), len(kinds))), times):
        yield draw.choice(kind)


def with_a_byte_changed(content: bytes, draw: random.Random) -> bytes:
    """The content with one bit of one byte flipped; an empty one as it is."""
    at = draw.randrange(max(len(content), 1))
    return content[:at] + bytes([byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1]]) + content[at + 1 :]


def wrong_answers(
    key: str, ask: Callable[[tuple[str, ...]], Answer], sound: Mapping[tuple[str, ...], Answer]
) -> list[tuple[str, str, int, str]]:
    """The commands of `sound` that gave another answer and did not name the object that was changed.

    Args:
        ask: runs a command, after the changed object was put back in its place: the command before may have mended it.
        sound: answers by command before the change.
    """
    wrong = []
    for command, expected in sound.items():
        status, said = ask(command)
        names_it = status in (0, 2) and any(part in said for part in (key, key.rpartition("/")[2]))
        if "Traceback" in said or not (names_it or (status, said) == expected):
            wrong.append((command[0], key, status, said[-300:]))
    return wrong
