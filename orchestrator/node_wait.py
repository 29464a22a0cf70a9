"""How a run's workers have nodes come for them, in the process of Ray Train's controller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from cluster.demand import Gang, Gangs, Knock

_logger = logging.getLogger(__name__)

TOKENIZING = {"CPU": 1.0}
"""What a task that tokenizes takes."""


def gangs_of(run: str, attempt: int | None = None) -> str:
    """Name of the placement groups that wait for room for a run's workers: of one attempt, or of all."""
    return f"manta {run}" if attempt is None else f"manta {run}/{attempt}"


class NodeWait:
    """Asks for what the workers lack, where an autoscaler brings nodes.

    Nothing that Ray says to it is raised: what cannot be asked for now is asked for at the next look.

    Args:
        name: of the placement groups that wait.
        per_worker: resources of a worker.
        fewest, most: workers.
    """

    def __init__(self, name: str, per_worker: Mapping[str, float], fewest: int, most: int) -> None:
        self._per_worker, self._fewest, self._most = dict(per_worker), fewest, most
        self._gangs, self._knock = Gangs(name), Knock(per_worker)

    def let_go(self) -> bool:
        """Give back the room that has come, before it is looked for; returns whether any had."""
        with suppress(Exception):
            return self._gangs.let_go()
        return False

    def for_start(self, places: int, held: int, kept_free: int) -> None:
        """No worker runs; there are `places`, `held` of them by living workers, and `kept_free` are for no worker.

        The fewest that can begin wait together, with who tokenizes; those beyond come one by one. While some are free,
        these would not have to wait, and so bring nobody.
        """
        missing = places < self._fewest + kept_free
        gang = (*[self._per_worker] * (self._fewest - held), *[TOKENIZING] * kept_free)
        self._want([gang] if missing and gang else [], self._most - self._fewest if missing and places == held else 0)

    def is_over(self) -> None:
        """Workers start; what was wanted beyond them still is."""
        with suppress(Exception):
            self._gangs.want([])

    def for_running(self, wanted: int, places: int, held: int, kept_free: int) -> None:
        """Workers run, and `wanted` would be of use; there are `places` that stay, `held` of them by living workers.

        `kept_free` of the others are for no worker. While some are free, one place more than those is waited for
        together with them: alone, it would find room there, and bring nobody.
        """
        free, missing = places - held, max(0, wanted - held)
        tokenizing = kept_free if missing else 0
        lacks = missing + tokenizing > free
        together = min(missing, free + 1 - tokenizing) if free else 0
        gang = (*[self._per_worker] * together, *[TOKENIZING] * tokenizing)
        self._want([gang] if lacks and gang else [], missing if lacks and not free else 0)

    def end(self) -> None:
        """Ask for nothing any more."""
        self._want([], 0)

    def _want(self, gangs: list[Gang], singles: int) -> None:
        try:
            self._gangs.want(gangs)
            self._knock.want(singles)
        except Exception as error:  # the controller does not survive one
            _logger.warning("Nodes cannot be asked for now: %s", error)
