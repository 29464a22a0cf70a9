"""Trials that run to their last step in one go, unless a rule of Ray Tune stops them."""

from __future__ import annotations

from orchestrator.sweep.schedule.legs import Decisions, Leg, Trials, ranked


class WholeTrials:
    """The schedule.

    Args:
        trials: number of trials.
        levels: steps at which a rule may stop a trial, the last step included.
    """

    def __init__(self, trials: int, levels: list[int]) -> None:
        self.levels, self._trials = levels, trials

    def decide(self, trials: Trials) -> Decisions:
        """See `Schedule`."""
        numbers, last = range(1, self._trials + 1), self.levels[-1]
        open_ = [number for number in numbers if number not in trials or not trials[number].has_ended]
        return Decisions([Leg(number, last) for number in open_], {}, ranked(list(numbers), trials, last))
