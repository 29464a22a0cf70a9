"""Patience: how what fails for a while (a store that is away, slow or overloaded) is tried again, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data.errors import TransientStoreError

_T = TypeVar("_T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Seconds before the second try, and most between two tries; the wait doubles from one to the other."""

TOLD_EVERY_S = 60.0
"""Seconds between two lines on one outage."""

JITTER = 0.5
"""Share of a wait that is drawn: processes that failed together do not come back together."""


@dataclass(frozen=True)
class Outage:
    """A store that fails.

    Attributes:
        since: first failure, seconds since the epoch.
        problem: the newest failure, in one line.
        gives_up_at: when the operation is given up, seconds since the epoch.
    """

    since: float
    problem: str
    gives_up_at: float

    def line(self, now: float) -> str:
        """What people read of it; `now` in seconds since the epoch."""
        since = f"for {now - self.since:,.0f} s" if now - self.since >= 1 else "now"
        left = f"given up in {self.gives_up_at - now:,.0f} s (store.patience)"
        return f"the store fails {since}, waiting for it; {left}: {self.problem}"


Tell = Callable[["Outage | None"], object]
"""Receives the outage at every failure, and None once an operation has succeeded after one.

Also None at the first success of all: a process that told of an outage may have died, and its successor tells its end.
"""


def silently(outage: Outage | None) -> None:
    """Tells nobody."""


def telling(log: Callable[[str], object], doing: str) -> Tell:
    """Tells in lines for the console: when an outage begins, every `TOLD_EVERY_S` of it, and when it is over.

    Args:
        doing: what needs the store, such as "reading shards".
    """
    told: list[tuple[float, float]] = []  # when the outage began, and when it was told of last

    def tell(outage: Outage | None) -> None:
        now = time.time()
        if outage is None:
            if told:
                log(f"{doing}: the store answers again, after {now - told[0][0]:,.0f} s")
            told.clear()
        elif not told or now - told[0][1] >= TOLD_EVERY_S:
            log(f"{doing}: {outage.line(now)}")
            told[:] = [(outage.since, now)]

    return tell


class Patience:
    """Tries an operation again while it raises TransientStoreError, with growing waits, until `limit_s` have passed.

    Not safe to share between threads.

    Args:
        limit_s: seconds from the first failure to giving up.
        tell: told of outages.
        sleep: waits; another one may return early.
    """

    def __init__(
        self,
        limit_s: float,
        tell: Tell = silently,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._limit_s, self._tell, self._sleep = limit_s, tell, sleep
        self._failures = 0
        self._since: tuple[float, float] | None = None  # of the monotonic clock, and of the epoch
        self._has_succeeded = False

    def call(self, operation: Callable[[], _T]) -> _T:
        """What `operation` returns.

        Raises:
            TransientStoreError: it has failed for `limit_s`.
        """
        while True:
            try:
                result = operation()
            except TransientStoreError as error:
                self.wait(error)
            else:
                self.succeeded()
                return result

    def wait(self, error: TransientStoreError) -> None:
        """Waits before the next try, after a failure.

        Raises:
            TransientStoreError: the failure; there is no patience left.
        """
        self._sleep(self.failed(error))

    def failed(self, error: TransientStoreError) -> float:
        """Records a failure; returns the seconds to wait before the next try.

        Raises:
            TransientStoreError: the failure; there is no patience left.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now, time.time()
        began, at = self._since
        left_s = began + self._limit_s - now
        self._tell(Outage(at, " ".join(str(error).split()), at + self._limit_s))
        if left_s <= 0:
            raise error
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return min(left_s, wait_s * (1 - JITTER * random.random()))

    def succeeded(self) -> None:
        """Records a success: an outage is over, and the next one has the whole patience again."""
        if self._since is None and self._has_succeeded:
            return
        self._since, self._failures, self._has_succeeded = None, 0, True
        self._tell(None)
