"""Population-based training in generations: after each, the worst trials continue from the state of the best ones.

All trials end a generation before the next begins, so that who continues from whom does not depend on the cluster.
Jaderberg et al., "Population Based Training of Neural Networks" (2017).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from orchestrator.sweep.schedule.legs import Decisions, Leg, Trials, is_lost, ranked
from orchestrator.sweep.trial_record import TrialRecord


class Population:
    """The schedule.

    Args:
        trials: number of trials.
        levels: steps at which generations end, the last step included.
        quantile: share of the trials that is replaced, and share that is copied from.
        seed: of the draw of donors.
    """

    def __init__(self, trials: int, levels: Sequence[int], quantile: float, seed: int) -> None:
        self.levels = list(levels)
        self._trials, self._quantile, self._seed = trials, quantile, seed

    def decide(self, trials: Trials) -> Decisions:
        """See `Schedule`."""
        decisions = Decisions()
        numbers = list(range(1, self._trials + 1))
        before = 0
        for level in self.levels:
            known = ranked(numbers, trials, level)
            have_come = set(known)
            on_their_way = [number for number in numbers if number not in have_come and not is_lost(trials.get(number))]
            if on_their_way or level == self.levels[-1]:
                decisions.legs = self._legs(on_their_way, level, before, trials)
                decisions.finalists = known if level == self.levels[-1] else ranked(numbers, trials, before)
                return decisions
            before = level
        return decisions

    def _legs(self, numbers: list[int], level: int, before: int, trials: Trials) -> list[Leg]:
        donors = self._donors(before, trials) if before else {}
        copying = [Leg(number, level, donors[number], before) for number in numbers if number in donors]
        # A donor's checkpoint may be replaced by newer ones once it goes on.
        needed = {leg.donor for leg in copying if not has_copied(trials[leg.number], before)}
        return copying + [Leg(number, level) for number in numbers if number not in donors and number not in needed]

    def _donors(self, level: int, trials: Trials) -> dict[int, int]:
        """Donor by the number of the trial that continues from it after the generation that ended at `level`."""
        known = ranked(list(range(1, self._trials + 1)), trials, level)  # one that has failed since has left its state
        count = min(max(1, int(len(known) * self._quantile)), len(known) // 2)
        if not count:
            return {}
        best, worst = known[:count], known[-count:]
        return {number: best[random.Random(f"{self._seed}/{number}/{level}").randrange(count)] for number in worst}


def has_copied(record: TrialRecord, level: int) -> bool:
    """Whether the trial has a copy of its donor's state at `level`."""
    return any(each.donor is not None and each.donor.step == level and each.is_forked for each in record.trial_runs)
