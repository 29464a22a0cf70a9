"""Reads txt shards: whole files, paragraphs or lines, and lines of two files side by side."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from data.readers.reading import SPLIT_REMEDY, Location, RawDocument, Reading, TextBlock
from data.readers.unpack import UnpackedStream


def _whole_file(stream: UnpackedStream, reading: Reading) -> Iterator[TextBlock]:
    chunks, size = [], 0
    while chunk := stream.chunk():
        chunks.append(chunk)
        size += len(chunk)
        if size > reading.limit:
            raise reading.too_long(None, "Set document: line or paragraph for this source, or raise the limit.")
    yield Location("the whole file", stream.position - size), b"".join(chunks)


def _paragraphs(stream: UnpackedStream, reading: Reading) -> Iterator[TextBlock]:
    remedy = "Blank lines separate paragraphs here. Set document: line for this source, or raise the limit."
    first, size = Location(""), 0
    parts: list[bytes] = []
    for place, line in stream.lines(reading.limit, remedy):
        if line.strip():
            first = first if parts else place
            parts.append(line)
            size += len(line)
            if size > reading.limit + 2:
                raise reading.too_long(first, remedy)
        elif parts:
            yield first, b"".join(parts).rstrip(b"\r\n")
            parts, size = [], 0
    if parts:
        yield first, b"".join(parts).rstrip(b"\r\n")


def _text_lines(stream: UnpackedStream, reading: Reading) -> Iterator[TextBlock]:
    for place, line in stream.lines(reading.limit, SPLIT_REMEDY):
        yield place, line.rstrip(b"\r\n")


def read_aligned_lines(stream: UnpackedStream, inputs: UnpackedStream, reading: Reading) -> Iterator[RawDocument]:
    """Lines of two files side by side. Raises BadShardError where one ends before the other."""
    lines = zip_longest(_text_lines(stream, reading), _text_lines(inputs, inputs.reading))
    for line, line_read in lines:
        if line is None or line_read is None:
            longer, shorter = (inputs, stream) if line is None else (stream, inputs)
            ended = f"{shorter.reading.path} has fewer lines than {longer.reading.path}"
            raise reading.bad(None, f"{ended}. Line n of one is the input of line n of the other: write both again.")
        yield line[0], (line[1], line_read[1])


TEXT_READERS = {"file": _whole_file, "paragraph": _paragraphs, "line": _text_lines}
