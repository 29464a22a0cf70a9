"""Reads csv and tsv shards."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain

from data.readers.reading import SPLIT_REMEDY, Location, RawDocument, Reading, near_names, reason_of, shortened
from data.readers.unpack import UnpackedStream

TOO_LONG = f"{SPLIT_REMEDY} A quote that is never closed looks the same."
"""Remedy for a field or row above the limit."""


class _CsvLines:
    """Lines of text for the `csv` module, which joins them into rows.

    A quote that is never closed would make `csv` join all remaining lines of the shard, so rows are limited here.
    """

    def __init__(self, stream: UnpackedStream, reading: Reading) -> None:
        self._lines = stream.lines(reading.record_limit, SPLIT_REMEDY)
        self._reading = reading
        self.row = Location("line 1")  # where the row being joined begins
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for location, line in self._lines:
            if self.row_bytes == 0:
                self.row = location
            self.row_bytes += len(line)
            if self.row_bytes > self._reading.record_limit:
                raise self._reading.too_long(self.row, TOO_LONG)
            yield self._reading.text(line, location)


def read_delimited(stream: UnpackedStream, reading: Reading, delimiter: str) -> Iterator[RawDocument]:
    """The documents of a csv or tsv shard."""
    source = reading.source
    csv.field_size_limit(reading.limit)  # of characters, each of which takes four bytes while a field is joined
    lines = _CsvLines(stream, reading)
    quoted = csv.reader(lines, delimiter=delimiter, strict=True)
    plain = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    rows = _csv_rows(quoted if source.quotes else plain, lines, reading)
    top, first = next(rows, (Location("line 1"), []))
    header = first if source.header else [str(number) for number in range(1, len(first) + 1)]
    for field, column in source.columns.items():
        if column not in header:
            what = "the header has no column" if source.header else "the first row has no column"
            raise reading.bad(top, f"{what} '{column}'. {near_names(column, header)} Set {field}.")
        if header.count(column) > 1:
            raise reading.bad(top, f"the header has the column '{column}' twice. Rename one of them.")
    at = [header.index(column) for column in source.columns.values()]
    for location, row in rows if source.header else chain([(top, first)] if first else [], rows):
        if len(row) != len(header):
            found = f"{len(row)} fields where the {'header' if source.header else 'first row'} has {len(header)}"
            remedy = "Quote fields that hold the delimiter, a quote or a line break."
            raise reading.bad(location, f"{found}: {shortened(row)}. {remedy}")
        yield location, [row[index] for index in at]


def _csv_rows(rows: Iterable[list[str]], lines: _CsvLines, reading: Reading) -> Iterator[tuple[Location, list[str]]]:
    try:
        for row in rows:
            lines.row_bytes = 0
            if row:  # else a blank line
                yield lines.row, row
    except csv.Error as error:
        if "field limit" in str(error):
            raise reading.too_long(lines.row, TOO_LONG) from None
        remedy = "Close every quote, quote fields that hold one, and double it inside."
        raise reading.bad(lines.row, f"not a well-formed row ({reason_of(error)}). {remedy}") from None
