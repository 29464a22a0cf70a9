"""The outages of stores as the monitor keeps them: those that go on, and what has been told of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from data.stores.patience import Outage, Tell, telling
from orchestrator.run.record import OUTAGES


class Outages:
    """Records outages by what needs the store.

    Args:
        kept: list that outages are added to, as JSON; the newest `OUTAGES` stay.
        log: receives lines for the console.
    """

    def __init__(self, kept: list[dict[str, Any]], log: Callable[[str], None]) -> None:
        self._kept, self._log = kept, log
        self._going_on: dict[str, tuple[dict[str, Any], Tell]] = {
            entry["doing"]: (entry, telling(log, entry["doing"])) for entry in kept if entry["until"] is None
        }

    @property
    def any(self) -> bool:
        """Whether one goes on."""
        return bool(self._going_on)

    def report(self, doing: str, outage: Outage | None) -> None:
        """Records that a store fails, or answers again (None).

        Args:
            doing: what needs the store.
        """
        if outage is None:
            if doing in self._going_on:
                entry, tell = self._going_on.pop(doing)
                entry["until"] = time.time()
                tell(None)
            return
        if doing not in self._going_on:
            entry = {"doing": doing, "since": outage.since, "until": None, "problem": outage.problem}
            self._kept.append(entry)
            del self._kept[:-OUTAGES]
            self._going_on[doing] = entry, telling(self._log, doing)
        entry, tell = self._going_on[doing]
        entry["problem"] = outage.problem
        tell(outage)
