"""Reads jsonl shards: one JSON object per line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data.readers.reading import SPLIT_REMEDY, Location, RawDocument, Reading, near_names, reason_of, shortened
from data.readers.unpack import UnpackedStream


def read_json_lines(stream: UnpackedStream, reading: Reading) -> Iterator[RawDocument]:
    """The documents of a jsonl shard. Blank lines are skipped."""
    for location, line in stream.lines(reading.record_limit, f"{SPLIT_REMEDY} Is it one JSON object a line?"):
        if not line.strip():
            continue
        record = _json_object(reading.text(line, location), location, reading)
        yield (
            location,
            [_json_value(record, field, key, location, reading) for field, key in reading.source.columns.items()],
        )


class _WithKeysTwice(dict[str, Any]):
    """An object that gives keys more than once: JSON does not say which one counts."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.keys_twice = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _WithKeysTwice(pairs)


def _json_value(record: dict[str, Any], field: str, key: str, location: Location, reading: Reading) -> str | None:
    if isinstance(record, _WithKeysTwice) and key in record.keys_twice:
        raise reading.bad(location, f"the key '{key}' is there twice. Keep one of them.")
    if key not in record:
        raise reading.bad(location, f"no key '{key}'. {near_names(key, record)} Set {field}.")
    value = record[key]
    if value is None or isinstance(value, str):
        return value
    if field == "split_column":  # any value that can be compared
        return json.dumps(value, sort_keys=True)
    raise reading.bad(
        location, f"'{key}' is {shortened(value)}, not a string. Set {field} to the key that holds the text."
    )


def _json_object(text: str, location: Location, reading: Reading) -> dict[str, Any]:
    try:
        record = json.loads(text, object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else reason_of(error)
        shown = shortened(text.strip())
        raise reading.bad(location, f"not JSON ({reason}): {shown}. Write one JSON object a line.") from None
    if not isinstance(record, dict):
        raise reading.bad(location, f"not a JSON object: {shortened(record)}. Write one JSON object a line.")
    return record
