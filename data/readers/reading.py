"""What every reader shares: where a piece of text stands, and how text is checked against the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.config import DataConfig
from data.errors import BadShardError

SHORTENED = 60  # characters of a bad value that a message shows

SPLIT_REMEDY = "Split it, or raise the limit."

_UTF8_REMEDY = "Write the shard again as UTF-8, or set data.invalid_utf8: replace, which counts what it replaces."

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass
class ReadReport:
    """What came out of the units read with it, as a running sum."""

    documents: int = 0
    empty: int = 0  # skipped: nothing but white space, or null, in the text or in a pair's input
    bytes: int = 0  # of the documents' text and input, as UTF-8
    invalid_utf8: int = 0  # replacements made


class Location(NamedTuple):
    """Where a piece of text stands, for messages. `offset`: of its first byte in the unpacked shard, if known."""

    name: str
    offset: int | None = None


Values = Sequence[bytes | str | None]
"""Of a row: text, then input and value to split by, as far as the source has them."""

RawDocument = tuple[Location, Values]

TextBlock = tuple[Location, bytes]


@dataclass(frozen=True, slots=True)
class Reading:
    """What every reader needs to judge text and to say where it is bad."""

    path: str
    config: DataConfig
    report: ReadReport

    @property
    def limit(self) -> int:
        return self.config.max_document_bytes

    @property
    def record_limit(self) -> int:
        """The longest line or row, in bytes, that may hold a document: all of it \\u-escaped, and other fields."""
        return 6 * self.limit + 65536

    def bad(self, place: Location | None, what: str) -> BadShardError:
        """The error for `what`, which ends in a remedy."""
        return BadShardError(f"{self.path}, {place.name}: {what}" if place else f"{self.path}: {what}")

    def too_long(self, place: Location | None, remedy: str) -> BadShardError:
        return self.bad(place, f"a document of more than data.max_document_bytes={self.limit:,} bytes. {remedy}")

    def document(self, data: bytes | str | None, place: Location) -> str:
        """A document's text, or "" where there is nothing in it."""
        text = "" if data is None else self.text(data, place)
        if not text or text.isspace():
            return ""
        size = len(text.encode())
        if size > self.limit:
            raise self.too_long(place, SPLIT_REMEDY)
        return text

    def text(self, data: bytes | str, place: Location) -> str:
        """`data` as text that UTF-8 can hold; what has to be replaced is refused or counted, as the config says."""
        try:
            if isinstance(data, bytes):
                return data.decode()
            data.encode()
            return data
        except UnicodeError as error:
            if self.config.invalid_utf8 == "refuse":
                raise self.bad(place, f"{_invalid(error, place)}. {_UTF8_REMEDY}") from None
        if isinstance(data, bytes):
            text, there = data.decode(errors="replace"), data.count(_REPLACEMENT.encode())
        else:
            text, there = data.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), data.count(_REPLACEMENT)
        self.report.invalid_utf8 += text.count(_REPLACEMENT) - there
        return text


def _invalid(error: UnicodeError, place: Location) -> str:
    if isinstance(error, UnicodeDecodeError):
        at = f"byte {error.start} of the value" if place.offset is None else f"byte offset {place.offset + error.start}"
        return f"invalid UTF-8 at {at}: {error.object[error.start : error.start + 8]!r}"
    assert isinstance(error, UnicodeEncodeError)
    # JSON can spell half of a surrogate pair ("\\ud800"), which UTF-8 cannot hold.
    return f"invalid Unicode at character {error.start}: {error.object[error.start]!a} is half of a surrogate pair"


def shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHORTENED else f"{shown[:SHORTENED]}…"


def reason_of(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
