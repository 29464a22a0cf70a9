"""Held-out micro-batches arrive also where the feeder dies after it has named them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from data.feed.fetch import FETCH_TRIES, held_out_batches
from data.feed.spec import HeldOut


def lost() -> ray.exceptions.ObjectLostError:
    return ray.exceptions.OwnerDiedError("ref", None, "")


class Feeder:
    """A feeder whose first `deaths` answers are lost with it."""

    def __init__(self, deaths: int) -> None:
        self.deaths, self.answers = deaths, 0
        self.held_out = SimpleNamespace(remote=self.answer)

    def answer(self) -> HeldOut:
        self.answers += 1
        refs: list[Any] = [lost() if self.answers <= self.deaths else number for number in range(4)]
        return HeldOut(refs, 10, 20)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(value: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(ray, "get", get)


@pytest.mark.parametrize("deaths", range(FETCH_TRIES))
def test_a_successor_of_the_feeder_makes_the_same(deaths: int) -> None:
    feeder = Feeder(deaths)
    assert list(held_out_batches(feeder, feeder.answer(), (1, 3))) == [1, 3]
    assert feeder.answers == deaths + 1


def test_a_feeder_that_always_dies_is_an_error() -> None:
    feeder = Feeder(deaths=100)
    with pytest.raises(ray.exceptions.ObjectLostError):
        list(held_out_batches(feeder, feeder.answer(), (1, 3)))
