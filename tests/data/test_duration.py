"""Durations with and without a unit."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from data.duration import Duration, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20s", 20), ("1.5m", 90), ("6h", 21600), ("2d", 172800), ("7", 7), (" 3 h ", 10800), ("0", 0)],
)
def test_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert TypeAdapter(Duration).validate_python(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1s", "1 week", "1h30m", "ten", ".5s", "1e3"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; give a number and a unit, such as 20s"):
        seconds_of(text)
    with pytest.raises(ValidationError, match="is not a duration"):
        TypeAdapter(Duration).validate_python(text)


def test_a_number_is_seconds() -> None:
    assert TypeAdapter(Duration).validate_python(90) == 90.0
