"""Many objects in the process of one actor: a process for each would cost a sweep of many small runs most of its time.

An object in a host is called as an actor of its own would be: `hosted.method.remote(...)` returns a reference.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import ray

M_ARENA_MAX = -8
"""Name of the limit, in malloc.h."""

COMING_S = 10.0
"""Seconds that a call waits for an object that is about to be placed."""


@dataclass(frozen=True)
class Hosted:
    """An object in a host, in place of an actor's handle.

    Attributes:
        host: name of the host, an actor.
        key: of the object there.
    """

    host: str
    key: str

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self, name)


@dataclass(frozen=True)
class _Method:
    hosted: Hosted
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> ray.ObjectRef[Any]:
        """Calls the method; does not wait. The answer is a RayActorError where the host or the object is gone."""
        try:
            call = host_named(self.hosted.host).call
        except ray.exceptions.RayActorError as error:
            gone: ray.ObjectRef[Any] = _fail.remote(error)
            return gone
        reference: ray.ObjectRef[Any] = call.remote(self.hosted.key, self.name, *args, **kwargs)
        return reference


@ray.remote(num_cpus=0, max_retries=0)
def _fail(error: Exception) -> None:
    raise error


@cache
def host_named(name: str) -> Any:
    """Handle of the host of that name.

    Raises:
        RayActorError: it is gone.
    """
    try:
        return ray.get_actor(name)
    except ValueError:
        raise ray.exceptions.RayActorError(error_msg=f"The process {name}, which runs shared, is gone.") from None


def is_there(name: str) -> bool:
    """Whether an actor of that name lives."""
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def _gone(key: str) -> ray.exceptions.RayActorError:
    return ray.exceptions.RayActorError(error_msg=f"{key} is not in its process any more.")


class Host:
    """Body of an actor that runs all calls of its objects one after the other: none of them may wait for long."""

    def __init__(self) -> None:
        _share_memory_of_threads()
        self._placed: dict[str, Any] = {}

    def place(self, key: str, make: Callable[[], Any]) -> None:
        """Makes an object, and keeps it under the key."""
        self._placed[key] = make()

    def call(self, key: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of an object.

        Raises:
            RayActorError: it has been dropped, or has died with the process before this one.
        """
        if key not in self._placed:
            raise _gone(key)
        return getattr(self._placed[key], method)(*args, **kwargs)

    def drop(self, prefix: str) -> None:
        """Forgets the objects whose keys begin so, after a call of their `close`, where they have one."""
        for key in [key for key in self._placed if key.startswith(prefix)]:
            close(self._placed.pop(key))


class ConcurrentHost:
    """Body of an actor whose objects wait for others: coroutines run in its loop, other methods in threads."""

    def __init__(self) -> None:
        os.environ["RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"] = "0"  # what waits is in a thread
        _share_memory_of_threads()
        self._placed: dict[str, tuple[Any, ThreadPoolExecutor]] = {}
        self._coming: set[str] = set()
        self._changed = asyncio.Condition()

    async def place(self, key: str, make: Callable[[], Any], threads: int = 1) -> None:
        """Makes an object, and keeps it under the key.

        Args:
            threads: of the object, which its methods run in.
        """
        executor = ThreadPoolExecutor(threads, thread_name_prefix=key)
        self._coming.add(key)
        try:
            content = await asyncio.get_running_loop().run_in_executor(executor, make)
        except Exception as error:
            content = _Failed(error)
        async with self._changed:
            self._placed[key] = content, executor
            self._changed.notify_all()
        if key not in self._coming:
            await self.drop(key)  # as it was while it was made
        self._coming.discard(key)
        if isinstance(content, _Failed):
            raise content.error

    async def call(self, key: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of an object; waits for one that is about to be placed.

        Raises:
            RayActorError: it has been dropped, or has died with the process before this one.
            Exception: what making it raised.
        """
        if key not in self._placed:
            await self._arrival_of(key)
        if key not in self._placed:  # it was dropped at once
            raise _gone(key)
        content, executor = self._placed[key]
        if isinstance(content, _Failed):
            raise content.error
        function = getattr(content, method)
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(executor, partial(function, *args, **kwargs))

    async def _arrival_of(self, key: str) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: key in self._placed), COMING_S)
            except TimeoutError:
                raise _gone(key) from None

    async def drop(self, prefix: str) -> None:
        """See `Host.drop`; an object that is being made is dropped once it is there."""
        self._coming = {key for key in self._coming if not key.startswith(prefix)}
        for key in [key for key in self._placed if key.startswith(prefix)]:
            content, executor = self._placed.pop(key)
            executor.submit(close, content)
            executor.shutdown(wait=False)


@dataclass(frozen=True)
class _Failed:
    """In place of an object that could not be made."""

    error: Exception


def close(content: Any) -> None:
    """Calls the object's `close`, where it has one."""
    getattr(content, "close", lambda: None)()


def _share_memory_of_threads() -> None:
    """Limits the pools of memory that glibc keeps, one for each thread: objects come and go here, with theirs."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def start_host(body: type, name: str, **options: Any) -> Any:
    """Starts a host; returns the actor's handle. The host ends with the last handle, or with the calling process.

    Args:
        body: `Host` or `ConcurrentHost`.
        name: of the actor.
        options: of Ray, for the actor.
    """
    return ray.remote(body).options(name=name, num_cpus=0, **options).remote()
