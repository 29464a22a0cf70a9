"""Errors cross process borders and keep their message, their class and their exit status."""

from __future__ import annotations

import pickle

import pytest

from orchestrator import errors

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_survives_pickling(kind: type[Exception]) -> None:
    error = kind("what, with which numbers, and what next")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_status == error.exit_status


def test_exit_status_says_whether_the_user_can_fix_it() -> None:
    status = {name: getattr(errors, name).exit_status for name in errors.__all__}
    no_fault_of_the_user = {
        "MantaError",
        "ClusterError",
        "TransientStoreError",
        "OutOfMemoryError",
        "ObjectNotFoundError",
        "ConflictError",
        "CheckpointDamagedError",
        "SnapshotGoneError",
        "WorkerDiedError",
        "BadLossError",
        "NoResultError",
        "FencedError",
    }
    assert {name for name, value in status.items() if value == 1} == no_fault_of_the_user
    assert {name for name, value in status.items() if value == 2} == set(status) - no_fault_of_the_user


def test_the_page_draws_every_error() -> None:
    assert errors.__doc__ is not None
    assert [name for name in errors.__all__ if name not in errors.__doc__] == []
