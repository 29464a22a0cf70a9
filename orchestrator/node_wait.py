"""How a run's workers have nodes come for them, in the process of Ray Train's controller."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.demand import Gangs, Knock

TOKENIZING = {"CPU": 1.0}
"""What a task that tokenizes takes."""


class NodeWait:
    """Asks for what the workers lack, where an autoscaler brings nodes.

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
        return self._gangs.let_go()

    def for_start(self, places: int, held: int, kept_free: int) -> None:
        """No worker runs; there are `places`, `held` of them by living workers, and `kept_free` are for no worker.

        The fewest that can begin wait together, with who tokenizes; those beyond come one by one. While some are free,
        these would not have to wait, and so bring nobody.
        """
        missing = places < self._fewest + kept_free
        gang = (*[self._per_worker] * (self._fewest - held), *[TOKENIZING] * kept_free)
        self._gangs.want([gang] if missing and gang else [])
        self._knock.want(self._most - self._fewest if missing and places == held else 0)

    def is_over(self) -> None:
        """Workers start."""
        self._gangs.want([])

    def for_running(self, wanted: int, workers: int, places: int, held: int, kept_free: int) -> None:
        """`workers` run where `wanted` would be of use; there are `places` that stay, `held` of them by living workers.

        Of those that are free, `kept_free` are for no worker.
        """
        free, lack = places - held, wanted - places
        tokenizing = [TOKENIZING] * (kept_free if wanted > workers else 0)
        gang = (*[self._per_worker] * (free + (lack > 0)), *tokenizing)
        self._gangs.want([gang] if tokenizing or (free > 0 and lack > 0) else [])
        self._knock.want(lack if free == 0 else 0)

    def end(self) -> None:
        """Ask for nothing any more."""
        self._gangs.want([])
        self._knock.want(0)
