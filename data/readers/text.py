"""Reads txt shards: whole files, paragraphs or lines, and the lines of two files as pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from data.readers.reading import SPLIT_REMEDY, Location, RawDocument, Reading
from data.readers.unpack import UnpackedStream

_Block = tuple[Location, bytes]


def read_text(stream: UnpackedStream, reading: Reading) -> Iterator[RawDocument]:
    """The documents of a txt shard, cut as the source's field `document` says."""
    cut = {"file": _whole_file, "paragraph": _paragraphs, "line": _lines}[reading.source.document]
    return ((location, (data,)) for location, data in cut(stream, reading))


def read_aligned_lines(stream: UnpackedStream, inputs: UnpackedStream, reading: Reading) -> Iterator[RawDocument]:
    """Pairs from two files: line n of `inputs` is the input of line n of `stream`.

    Raises:
        BadShardError: one file has fewer lines than the other.
    """
    lines = zip_longest(_lines(stream, reading), _lines(inputs, inputs.reading))
    for line, input_line in lines:
        if line is None or input_line is None:
            longer, shorter = (inputs, stream) if line is None else (stream, inputs)
            ended = f"{shorter.reading.path} has fewer lines than {longer.reading.path}"
            raise reading.bad(None, f"{ended}. Line n of one is the input of line n of the other: write both again.")
        yield line[0], (line[1], input_line[1])


def _whole_file(stream: UnpackedStream, reading: Reading) -> Iterator[_Block]:
    chunks, size = [], 0
    while chunk := stream.chunk():
        chunks.append(chunk)
        size += len(chunk)
        if size > reading.limit:
            raise reading.too_long(None, "Set document: line or paragraph for this source, or raise the limit.")
    yield Location("the whole file", stream.position - size), b"".join(chunks)


def _paragraphs(stream: UnpackedStream, reading: Reading) -> Iterator[_Block]:
    remedy = "Blank lines separate paragraphs here. Set document: line for this source, or raise the limit."
    first, size = Location(""), 0
    parts: list[bytes] = []
    for location, line in stream.lines(reading.limit, remedy):
        if line.strip():
            first = first if parts else location
            parts.append(line)
            size += len(line)
            if size > reading.limit + 2:
                raise reading.too_long(first, remedy)
        elif parts:
            yield first, b"".join(parts).rstrip(b"\r\n")
            parts, size = [], 0
    if parts:
        yield first, b"".join(parts).rstrip(b"\r\n")


def _lines(stream: UnpackedStream, reading: Reading) -> Iterator[_Block]:
    for location, line in stream.lines(reading.limit, SPLIT_REMEDY):
        yield location, line.rstrip(b"\r\n")
