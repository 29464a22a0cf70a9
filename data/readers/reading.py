"""What all readers share: locations in a shard, checks of text against the limits, and error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from data.errors import BadShardError

SHORTENED_CHARS = 60
"""Characters of a bad value that a message shows."""

SPLIT_REMEDY = "Split it, or raise the limit."

_UTF8_REMEDY = "Write the shard again as UTF-8, or set data.invalid_utf8: replace, which counts what it replaces."

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass
class ReadReport:
    """Running totals over the units read with it."""

    documents: int = 0
    empty: int = 0  # skipped: null, or only white space, in the text or in a pair's input
    bytes: int = 0  # of the documents' text and input, as UTF-8
    invalid_utf8: int = 0  # replacements made


class Location(NamedTuple):
    """Where a piece of text is, for messages. `offset`: of its first byte in the unpacked shard, if known."""

    name: str
    offset: int | None = None


Values = Sequence[bytes | str | None]
"""The values of a row: text, then input and value to split by, as far as the source has them."""

RawDocument = tuple[Location, Values]


class SourceFields(Protocol):
    """The fields of a `SourceConfig` that readers use."""

    @property
    def columns(self) -> Mapping[str, str]: ...

    @property
    def header(self) -> bool: ...

    @property
    def quotes(self) -> bool: ...

    @property
    def document(self) -> str: ...


class TextLimits(Protocol):
    """The fields of a `DataConfig` that readers use."""

    @property
    def max_document_bytes(self) -> int: ...

    @property
    def invalid_utf8(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """The context of reading one file: how to read it, what to refuse, and what to count.

    Attributes:
        path: the file, for messages.
        source: which columns to read and how.
        limits: the size limit and the treatment of invalid UTF-8.
        report: updated while text is read.
    """

    path: str
    source: SourceFields
    limits: TextLimits
    report: ReadReport

    @property
    def limit(self) -> int:
        """Most bytes of a document."""
        return self.limits.max_document_bytes

    @property
    def record_limit(self) -> int:
        """Most bytes of a line or row that holds a document: all of it \\u-escaped, and other fields."""
        return 6 * self.limit + 65536

    def bad(self, location: Location | None, problem: str) -> BadShardError:
        """The error for `problem`, which ends in a remedy."""
        return BadShardError(f"{self.path}, {location.name}: {problem}" if location else f"{self.path}: {problem}")

    def too_long(self, location: Location | None, remedy: str) -> BadShardError:
        """The error for a document above the limit."""
        return self.bad(location, f"a document of more than data.max_document_bytes={self.limit:,} bytes. {remedy}")

    def document(self, data: bytes | str | None, location: Location) -> str:
        """A document's text; "" for null and for white space alone.

        Raises:
            BadShardError: it is longer than the limit, or is not valid text.
        """
        text = "" if data is None else self.text(data, location)
        if not text or text.isspace():
            return ""
        size = len(text.encode())
        if size > self.limit:
            raise self.too_long(location, SPLIT_REMEDY)
        return text

    def text(self, data: bytes | str, location: Location) -> str:
        """`data` as text that UTF-8 can encode. Invalid parts are refused, or replaced and counted, as configured.

        Raises:
            BadShardError: `data` is not valid text, and `invalid_utf8` is refuse.
        """
        try:
            if isinstance(data, bytes):
                return data.decode()
            data.encode()
            return data
        except UnicodeError as error:
            if self.limits.invalid_utf8 == "refuse":
                raise self.bad(location, f"{_invalid(error, location)}. {_UTF8_REMEDY}") from None
        if isinstance(data, bytes):
            text, there = data.decode(errors="replace"), data.count(_REPLACEMENT.encode())
        else:
            text, there = data.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), data.count(_REPLACEMENT)
        self.report.invalid_utf8 += text.count(_REPLACEMENT) - there
        return text


def _invalid(error: UnicodeError, location: Location) -> str:
    if isinstance(error, UnicodeDecodeError):
        at = (
            f"byte {error.start} of the value"
            if location.offset is None
            else f"byte offset {location.offset + error.start}"
        )
        return f"invalid UTF-8 at {at}: {error.object[error.start : error.start + 8]!r}"
    assert isinstance(error, UnicodeEncodeError)
    # JSON can spell half of a surrogate pair ("\\ud800"), which UTF-8 cannot encode.
    return f"invalid Unicode at character {error.start}: {error.object[error.start]!a} is half of a surrogate pair"


def shortened(value: object) -> str:
    """The value as a message shows it."""
    shown = repr(value)
    return shown if len(shown) <= SHORTENED_CHARS else f"{shown[:SHORTENED_CHARS]}…"


def reason_of(error: Exception) -> str:
    """The first line of another library's error, for use inside a message."""
    return str(error).partition("\n")[0].rstrip(".")


def near_names(wanted: str, names: Iterable[str]) -> str:
    """A sentence that lists the existing names, with the one nearest to `wanted`."""
    there = [str(name) for name in names]
    near = difflib.get_close_matches(wanted, there, n=1, cutoff=0.4)
    listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    return f"There are: {listed or 'none'}." + (f" Nearest: '{near[0]}'." if near else "")
