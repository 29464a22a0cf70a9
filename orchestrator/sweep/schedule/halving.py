"""Successive halving whose result does not depend on the cluster: at each rung, the best of all trials go on.

A trial is paused at a rung until it is certain that it is among the best, and keeps its checkpoint. So the same trials
go on whether one trial runs at a time or sixteen, and whoever comes first.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016), is successive
halving; Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2, are its early
promotions; Bohdal et al., "PASHA" (2023), raises the highest rung only while the ranking still changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.sweep.schedule.legs import Decisions, Leg, Trials, is_lost, loss_at, ranked


class Halving:
    """The schedule.

    Args:
        trials: number of trials.
        levels: steps of the rungs, the last step included.
        factor: one trial in this many goes on past a rung, rounded down, at least one.
        brackets: number of groups that are halved apart from each other, each beginning a rung later.
        eager: slots that would be idle train the best trials so far beyond a rung that others have not reached yet.
            It changes the cost and not the result: the best is chosen among those that would have got there anyway.
        settles: ends below the last step, once a rung ranks the trials as the rung before it did.
    """

    def __init__(
        self,
        trials: int,
        levels: Sequence[int],
        factor: float,
        *,
        brackets: int = 1,
        eager: bool = False,
        settles: bool = False,
    ) -> None:
        self.levels = list(levels)
        self._trials, self._factor, self._eager, self._settles = trials, factor, eager, settles
        self._brackets = min(brackets, len(self.levels))

    def decide(self, trials: Trials) -> Decisions:
        """See `Schedule`."""
        decisions, left = Decisions(), list[tuple[int, float, int]]()
        for bracket in range(self._brackets):
            numbers = list(range(1 + bracket, self._trials + 1, self._brackets))
            left += self._decide_bracket(numbers, self.levels[bracket:], trials, decisions)
        decisions.legs.sort(key=lambda leg: 0 if leg.number in trials else leg.number)  # begun ones, then by number
        if self._eager and decisions.legs:
            self._add_early_legs(trials, decisions)
        if self._brackets > 1:
            decisions.finalists = ranked(decisions.finalists, trials, self.levels[-1])
        if not decisions.legs and not decisions.finalists:  # all that went on have failed
            decisions.finalists = [number for *_, number in sorted(left)]
        return decisions

    def _decide_bracket(
        self, group: list[int], levels: list[int], trials: Trials, decisions: Decisions
    ) -> list[tuple[int, float, int]]:
        """Adds its decisions; returns (-step, loss, number) of each trial that is not needed beyond the rung `step`."""
        left: list[tuple[int, float, int]] = []
        size, before = len(group), list[int]()
        undecided = 0  # trials that may still come to this rung from the one below
        for place, level in enumerate(levels):
            known = ranked(group, trials, level)
            have_come = set(known)
            on_their_way = [number for number in group if number not in have_come and not is_lost(trials.get(number))]
            decisions.legs += [Leg(number, level) for number in on_their_way]
            unknown = undecided + len(on_their_way)
            same_order = known == [each for each in before if each in have_come] != []
            if (self._settles and same_order and not unknown) or place + 1 == len(levels):
                decisions.finalists += known
                return left
            size = max(1, int(size // self._factor))
            # One that fails on its way to the next rung makes room for another.
            above = levels[place + 1]
            able = [each for each in known if not is_lost(trials[each]) or loss_at(trials[each], above) is not None]
            # After the last that is needed; some may have gone on nevertheless, and failed, as slots were free.
            needed = known.index(able[size - 1]) + 1 if len(able) >= size else len(known)
            left += [(-level, loss_at(trials[each], level) or 0.0, each) for each in known[needed:]]
            for number in able[size:]:
                decisions.out[number] = f"not among the best {size} of the trials that reached step {level}"
            group, before = able[: max(0, size - unknown)], known
            undecided = min(size, unknown + len(able)) - len(group)
        return left

    def _add_early_legs(self, trials: Trials, decisions: Decisions) -> None:
        """Adds the promotions of algorithm 2: the best 1/factor of those that have reached a rung so far."""
        chosen = {leg.number for leg in decisions.legs}
        for level, above in zip(self.levels, self.levels[1:], strict=False):
            known = ranked(list(range(1, self._trials + 1)), trials, level)
            for number in known[: int(len(known) // self._factor)]:
                is_open = number not in chosen and number not in decisions.out and not is_lost(trials[number])
                if is_open and loss_at(trials[number], above) is None:
                    decisions.legs.append(Leg(number, above, is_early=True))
                    chosen.add(number)
