"""JSON objects with their own sha256: whatever byte is changed, they are read as they were, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import DamagedObjectError
from data.stores.sealed_json import sealed, unsealed

VALUES = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "sha256"),
    st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3)),
    min_size=1,
    max_size=5,
)


def stored(fields: dict[str, Any]) -> bytes:
    return sealed(json.dumps(fields, indent=1).encode())


def read(content: bytes) -> dict[str, Any]:
    return unsealed(content, "s3://bucket/run.json", dict)


@given(VALUES)
def test_what_was_sealed_is_what_is_read_and_is_still_json(fields: dict[str, Any]) -> None:
    assert read(stored(fields)) == fields
    assert json.loads(stored(fields)).keys() == {*fields, "sha256"}


@given(VALUES, st.data())
def test_a_changed_byte_changes_nothing_or_is_refused_by_name(fields: dict[str, Any], data: st.DataObject) -> None:
    content = bytearray(stored(fields))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    def known(found: dict[str, Any]) -> dict[str, Any]:
        if found.keys() != fields.keys():
            raise KeyError("another field")
        return found

    try:
        assert unsealed(bytes(content), "s3://bucket/run.json", known) == fields
    except DamagedObjectError as error:
        assert "s3://bucket/run.json is damaged" in str(error)


@pytest.mark.parametrize("end", [0, 1, 40, -1, -2, -30])
def test_a_part_of_it_is_refused(end: int) -> None:
    with pytest.raises(DamagedObjectError):
        read(stored({"run": "night", "steps": list(range(50))})[:end])


def test_one_changed_by_hand_is_read_without_the_line() -> None:
    content = stored({"run": "night"}).replace(b"night", b"other")
    with pytest.raises(DamagedObjectError, match="remove that line"):
        read(content)
    lines = content.decode().splitlines()
    assert read("\n".join([*lines[:-3], lines[-3].rstrip(","), lines[-1]]).encode()) == {"run": "other"}


@pytest.mark.parametrize("content", [b"[1]", b"3", b'"text"', b"", b"\xff", b"[" * 100_000])
def test_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedObjectError, match="Restore an earlier version"):
        read(content)
