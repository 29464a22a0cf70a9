"""Values in messages: those that may be keys are not shown."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.problems import _shown

KEY = "hunter2Zebra99xyz"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store.secret_access_key", KEY),
        ("environment", [{"name": "DB_PASSWORD", "value": KEY}]),
        ("environment", {"DB": {"PASSWORD": KEY}}),
        ("environment.DB_PASSWORD.value", KEY),
        ("data.sources", f"s3://bob:{KEY}@host/bucket"),
    ],
)
def test_a_key_is_not_shown_wherever_it_stands(name: str, value: Any) -> None:
    assert _shown(name, value) == "(not shown)"


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.tokenizer.kind", "bpx"), ("tolerations.0.key", "spot"), ("data.sources", [{"path": "text"}]), ("run", 7)],
)
def test_other_values_are_shown(name: str, value: Any) -> None:
    assert "not shown" not in _shown(name, value)
