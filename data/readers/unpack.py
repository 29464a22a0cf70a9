"""A shard's bytes after decompression, in chunks and in lines."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

from data.readers import zstd
from data.readers.reading import Location, Reading, reason_of
from data.stores.shard_file import ShardFile

FETCH_BYTES = 4 << 20
"""Bytes of one request to the storage."""

CHUNK_BYTES = 1 << 20
"""Bytes of one step of decompression and line splitting."""

WINDOW_LOG = 31
"""Logarithm of the bytes that .zst may look back, which is what `zstd --long=31` writes, and takes to read."""

_BOM = b"\xef\xbb\xbf"

_UTF_16 = re.compile(rb"\xff\xfe|\xfe\xff|([^\0]\0){4}|(\0[^\0]){4}", re.DOTALL)
"""How UTF-16 begins: with its mark, or with four characters of ASCII, which would be read as text with NULs in it."""


class UnpackedStream:
    """A shard's bytes after decompression, without a byte order mark, in chunks and lines."""

    def __init__(self, file: ShardFile, compression: str | None, reading: Reading) -> None:
        self._compression = compression
        self.reading = reading
        self._stream: Any = io.BufferedReader(file, FETCH_BYTES)
        # Both detect a truncated stream, decompress no more than is asked for, and read what Arrow's do not: padding
        # after gzip, and frames of zstd that are to be skipped or look far back (pzstd, --long).
        if compression == "gzip":
            self._stream = gzip.GzipFile(fileobj=self._stream)
        elif compression == "zstd":
            self._stream = zstd.ZstdFile(self._stream, options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
        self.position = 0  # unpacked bytes read so far

    def chunk(self) -> bytes:
        """The next bytes, b"" at the end.

        Raises:
            BadShardError: they cannot be decompressed, or are no UTF-8.
        """
        try:
            data: bytes = self._stream.read(CHUNK_BYTES)
        except (OSError, EOFError, zlib.error, zstd.ZstdError) as error:  # not the storage's, which are Manta's own
            what = f"truncated or damaged {self._compression} ({reason_of(error)})"
            raise self.reading.bad(None, f"{what}. Upload the shard again from a sound copy.") from error
        first, self.position = self.position == 0, self.position + len(data)
        if first and _UTF_16.match(data):
            raise self.reading.bad(None, "text in UTF-16. Write the shard again as UTF-8.")
        return data.removeprefix(_BOM) if first else data

    def lines(self, limit: int, remedy: str) -> Iterator[tuple[Location, bytes]]:
        """Each line, with its line end where it has one.

        Raises:
            BadShardError: a line is longer than `limit` bytes; the rest of it is not read. `remedy` ends the message.
        """
        number, size = 1, 0
        parts: list[bytes] = []  # of a line that continues in the next chunk
        while chunk := self.chunk():
            offset = self.position - len(chunk) - size
            for line in _split_at_newline(chunk):
                parts.append(line)
                size += len(line)
                if size > limit + 2:  # the line end does not count
                    raise self.reading.too_long(Location(f"line {number}"), remedy)
                if line.endswith(b"\n"):
                    yield Location(f"line {number}", offset), b"".join(parts)
                    number, offset, size, parts = number + 1, offset + size, 0, []
        if parts:
            yield Location(f"line {number}", self.position - size), b"".join(parts)


def _split_at_newline(chunk: bytes) -> list[bytes]:
    if b"\r" not in chunk:
        return chunk.splitlines(keepends=True)
    # `splitlines` would also split at a lone carriage return.
    *lines, rest = chunk.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])
