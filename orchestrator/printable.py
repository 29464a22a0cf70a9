"""Text from outside, as it may go to a terminal: data must not move the cursor, hide lines or set a title there, and
secrets must not be read there.
"""

from __future__ import annotations

import re

from cluster.known_secrets import struck

# Control characters but for tab and line break (C0, DEL, C1), marks that change the direction of text, line and
# paragraph separators, and halves of surrogate pairs, which no encoding can write.
_UNSAFE = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"

_COLOUR = r"\x1b\[[0-9;]*m"

_ANY = re.compile(_UNSAFE)

_BUT_COLOURS = re.compile(rf"({_COLOUR}|\r\n)|{_UNSAFE}")


def printable(text: str) -> str:
    """The text without known secrets, and with what a terminal would obey written as in Python, such as `\\x1b`."""
    return _ANY.sub(lambda match: _escaped(match[0]), struck(text))


def printable_log(text: str) -> str:
    """Like `printable`, for logs of processes: sequences that set a colour stay."""
    return _BUT_COLOURS.sub(lambda match: match[1] or _escaped(match[0]), struck(text))


def _escaped(char: str) -> str:
    return ascii(char)[1:-1]
