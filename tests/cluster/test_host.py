"""Objects that share an actor's process behave as actors of their own."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import uuid
from collections.abc import Iterator

import pytest
import ray

from cluster.host import ConcurrentHost, Host, Hosted, host_named, start_host
from data.errors import BadShardError
from tests.ray_contract import MESSAGE, Failing, fail

FOREVER = {"max_restarts": -1, "max_task_retries": -1}


class Noted(Failing):
    """Notes what it is called with."""

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._meeting = threading.Barrier(2)

    def note(self, number: int, *, twice: bool = False) -> None:
        self._seen += [number] * (1 + twice)

    def seen(self) -> list[int]:
        return self._seen

    def process(self) -> int:
        return os.getpid()

    def meet(self) -> int:
        return self._meeting.wait(60)

    async def waited(self) -> list[int]:
        await asyncio.sleep(0)
        return self._seen

    def close(self) -> None:
        self._seen.append(-1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster_small")
class TestActor:
    @pytest.fixture(params=[Host, ConcurrentHost])
    def host(self, request: pytest.FixtureRequest) -> Iterator[str]:
        name = f"host-{uuid.uuid4()}"
        handle = start_host(request.param, name, **FOREVER)
        yield name
        ray.kill(handle)

    def placed(self, host: str, key: str) -> Hosted:
        ray.get(host_named(host).place.remote(key, Noted))
        return Hosted(host, key)

    def test_objects_are_called_by_their_keys_in_one_process(self, host: str) -> None:
        one, two = self.placed(host, "a/one"), self.placed(host, "a/two")
        ray.get([one.note.remote(1), two.note.remote(2, twice=True)])
        assert ray.get([one.seen.remote(), two.seen.remote()]) == [[1], [2, 2]]
        assert ray.get(one.process.remote()) == ray.get(two.process.remote()) != os.getpid()
        assert ray.get(pickle.loads(pickle.dumps(one)).seen.remote()) == [1]
        with pytest.raises(BadShardError, match=MESSAGE):
            ray.get(one.fail.remote())

    @pytest.mark.parametrize("host", [Host], indirect=True)
    def test_calls_of_one_process_run_in_their_order(self, host: str) -> None:
        noted = self.placed(host, "a")
        for number in range(500):
            noted.note.remote(number)
        assert ray.get(noted.seen.remote()) == list(range(500))

    @pytest.mark.parametrize("host", [Host], indirect=True)
    def test_what_was_in_a_process_that_died_is_gone_and_the_next_one_takes_others(self, host: str) -> None:
        lost = self.placed(host, "a")
        os.kill(ray.get(lost.process.remote()), signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError, match="a is not in its process any more"):
            ray.get(lost.seen.remote())
        assert ray.get(self.placed(host, "b").seen.remote()) == []

    def test_a_host_that_is_gone_is_an_error_of_ray(self) -> None:
        """As for the handle of an actor, the call itself does not fail: who calls may not wait for the answer."""
        answer = Hosted("no-such-host", "a").seen.remote()
        with pytest.raises(ray.exceptions.RayActorError, match="no-such-host"):
            ray.get(answer)


def test_dropped_objects_are_closed_and_the_others_stay() -> None:
    host = Host()
    for key in ("a/1", "a/2", "b/1"):
        host.place(key, Noted)
    dropped = host.call("a/1", "seen")
    host.drop("a/")
    assert dropped == [-1]
    with pytest.raises(ray.exceptions.RayActorError, match="a/1 is not in its process any more"):
        host.call("a/1", "seen")
    assert host.call("b/1", "seen") == []


def test_an_object_whose_methods_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "")
    monkeypatch.setattr("cluster.host.COMING_S", 0.2)

    async def check() -> None:
        host = ConcurrentHost()
        early = asyncio.create_task(host.call("a", "waited"))  # it arrives before the object
        await asyncio.sleep(0)
        await host.place("a", Noted, threads=2)
        seen = await early
        assert sorted(await asyncio.gather(host.call("a", "meet"), host.call("a", "meet"))) == [0, 1]
        await host.drop("a")
        while seen != [-1]:
            await asyncio.sleep(0.01)
        with pytest.raises(ray.exceptions.RayActorError, match="a is not in its process any more"):
            await host.call("a", "seen")

    asyncio.run(check())


def test_an_object_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "")

    async def check() -> None:
        host = ConcurrentHost()
        for _ in range(2):
            with pytest.raises(BadShardError, match=MESSAGE):
                await host.place("a", fail)
            with pytest.raises(BadShardError, match=MESSAGE):
                await host.call("a", "seen")
            await host.drop("a")

    asyncio.run(check())


def test_an_object_that_is_dropped_while_it_is_made_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WARN_BLOCKING_GET_INSIDE_ASYNC", "")
    monkeypatch.setattr("cluster.host.COMING_S", 0.1)
    made, goes_on = [], threading.Event()

    def make() -> Noted:
        assert goes_on.wait(60)
        made.append(Noted())
        return made[0]

    async def check() -> None:
        host = ConcurrentHost()
        placing = asyncio.create_task(host.place("a", make))
        await asyncio.sleep(0)
        await host.drop("a")
        goes_on.set()
        await placing
        with pytest.raises(ray.exceptions.RayActorError):
            await host.call("a", "seen")
        while made[0].seen() != [-1]:
            await asyncio.sleep(0.01)

    asyncio.run(check())
