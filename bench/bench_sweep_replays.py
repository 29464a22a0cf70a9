"""Whether a sweep's winner depends on the cluster: made-up sweeps replayed on 1, 4 and 16 slots, and killed at random.

A replay has 16 trials whose curves cross, and speeds of their own. It is run with the real schedules, and with the
stopping rule of Ray Tune, for which whoever comes first matters. A second part draws points for a made-up loss over
learning rate and optimizer, as the searcher does, and measures how far the best of 24 is from the minimum.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable

import harness
from harness import Verdict
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from orchestrator.sweep.schedule.halving import Halving
from orchestrator.sweep.space import Domain, Point, Space
from orchestrator.sweep.suggest import STARTUP_TRIALS, Result, suggest_by_optuna
from orchestrator.sweep.trial_record import Report, TrialRecord, TrialRun

TRIALS, LEVELS, FACTOR, SLOTS = 16, [10, 40, 90], 4, (1, 4, 16)
POINTS, BATCH = 24, 4

Losses = Callable[[int, int], float]


def curves(seed: int) -> Losses:
    """Loss by trial and step: each falls at a rate of its own to a level of its own."""
    draw = random.Random(seed)
    drawn = [(draw.uniform(2, 4), draw.uniform(0.5, 4), draw.uniform(8, 60)) for _ in range(TRIALS)]
    noise = [[draw.gauss(0, 0.02) for _ in LEVELS] for _ in range(TRIALS)]

    def loss(number: int, step: int) -> float:
        low, height, steps = drawn[number - 1]
        return low + height * math.exp(-step / steps) + noise[number - 1][LEVELS.index(step)]

    return loss


def halved(losses: Losses, slots: int, seed: int, *, eager: bool, kills: int = 0) -> tuple[int, int]:
    """Winner and steps of a sweep by the real schedule; after a kill, all but the records is lost."""
    schedule, draw, trials = Halving(TRIALS, LEVELS, FACTOR, eager=eager), random.Random(seed), dict[int, TrialRecord]()
    speed = [draw.uniform(0.5, 2.0) for _ in range(TRIALS)]
    running: list[tuple[float, int, int]] = []
    now, done, killed_at = 0.0, 0, {draw.randrange(1, 25) for _ in range(kills)}
    while (decisions := schedule.decide(trials)).legs:
        busy = {number for _, number, _ in running}
        for leg in decisions.legs:
            if len(running) < slots and leg.number not in busy:
                record = trials.setdefault(leg.number, TrialRecord(leg.number, [TrialRun("", {})]))
                steps = leg.until - max((each.step for each in record.reports), default=0)
                heapq.heappush(running, (now + steps / speed[leg.number - 1], leg.number, leg.until))
                busy.add(leg.number)
        now, number, until = heapq.heappop(running)
        trials[number].reports.append(Report(0, until, losses(number, until), 0.0, now))
        done += 1
        if done in killed_at:
            running.clear()
    steps = sum(record.reports[-1].step for record in trials.values() if record.reports)
    return schedule.decide(trials).finalists[0], steps


def stopped(losses: Losses, slots: int, seed: int) -> tuple[int, int]:
    """Winner and steps of a sweep by the stopping rule."""
    draw, rule = random.Random(seed), None
    rule = ASHAScheduler(
        time_attr="step",
        metric="loss",
        mode="min",
        max_t=LEVELS[-1],
        grace_period=LEVELS[0],
        reduction_factor=FACTOR,
        stop_last_trials=False,
    )
    speed = [draw.uniform(0.5, 2.0) for _ in range(TRIALS)]
    waiting, running, finished, steps, now = list(range(1, TRIALS + 1)), list[tuple[float, int, int]](), [], 0, 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            number = waiting.pop(0)
            rule.on_trial_add(None, _Trial(number))
            heapq.heappush(running, (now + LEVELS[0] / speed[number - 1], number, 0))
        now, number, place = heapq.heappop(running)
        result = {"step": LEVELS[place], "loss": losses(number, LEVELS[place])}
        stops = rule.on_trial_result(None, _Trial(number), result) == TrialScheduler.STOP
        if place + 1 == len(LEVELS) or stops:
            steps += LEVELS[place]
            finished += [number] if place + 1 == len(LEVELS) else []
        else:
            heapq.heappush(running, (now + (LEVELS[place + 1] - LEVELS[place]) / speed[number - 1], number, place + 1))
    return min(finished, key=lambda each: losses(each, LEVELS[-1])), steps


class _Trial:
    """A trial for Tune's rule, which uses only its id."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trial) and other.trial_id == self.trial_id

    def __hash__(self) -> int:
        return hash(self.trial_id)


SPACE: Space = {
    "optimizer": Domain(choice=("sgd", "adam", "adamw")),
    "lr": Domain(loguniform=(1e-4, 1e-1)),
}


def regret(seed: int) -> float:
    """How far the best of POINTS points is above the minimum, 0, of a loss whose best learning rate differs."""
    best_lr, floor = {"sgd": 5e-2, "adam": 1e-3, "adamw": 2e-3}, {"sgd": 0.5, "adam": 0.1, "adamw": 0.0}

    def loss(point: Point) -> float:
        return floor[point["optimizer"]] + math.log10(point["lr"] / best_lr[point["optimizer"]]) ** 2

    points: list[Point] = []
    for number in range(1, POINTS + 1):
        learned = 0 if number <= STARTUP_TRIALS else number - 1 - (number - 1 - STARTUP_TRIALS) % BATCH
        known = [Result(point, loss(point) if place < learned else None) for place, point in enumerate(points)]
        points.append(suggest_by_optuna(SPACE, seed * 1000 + number, known))
    return min(map(loss, points))


def main() -> None:
    """Run the benchmark."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--replays", type=int, default=25, help="made-up sweeps, and searches")
    options = parser.parse_args()
    rules: dict[str, Callable[[Losses, int, int], tuple[int, int]]] = {
        "asha": lambda losses, slots, seed: halved(losses, slots, seed, eager=True),
        "halving": lambda losses, slots, seed: halved(losses, slots, seed, eager=False),
        "asha, killed three times": lambda losses, slots, seed: halved(losses, slots, seed, eager=True, kills=3),
        "asha-stopping": stopped,
    }
    verdicts, details = [], {}
    for name, rule in rules.items():
        found = [[rule(curves(seed), slots, seed) for slots in SLOTS] for seed in range(options.replays)]
        differing = sum(len({winner for winner, _ in by_slots}) > 1 for by_slots in found)
        share = statistics.mean(steps for by_slots in found for _, steps in by_slots) / (TRIALS * LEVELS[-1])
        title = f"{name}: replays whose winner depends on the slots"
        make = Verdict.without_bound if name == "asha-stopping" else lambda what, value: Verdict.at_most(what, value, 0)
        verdicts += [make(title, float(differing)), Verdict.without_bound("  share of all steps", share)]
        details[name] = found
    regrets = sorted(regret(seed) for seed in range(options.replays))
    verdicts += [
        Verdict.at_most("median regret of TPE", statistics.median(regrets), 0.01),
        Verdict.at_most("  worst", regrets[-1], 0.2),
    ]
    harness.report("sweep_replays", vars(options), verdicts, {**details, "regrets": regrets})


if __name__ == "__main__":
    main()
