"""Simulates a week of a cluster of 1,024 spot nodes: the goodput with the policies, against the best possible goodput.

The policies are the real ones, `ScalingPolicy` and `save_interval_s`; the cluster and the clock are not. Rates are
published ones:

    reclaims   20 % of the nodes a month, with two minutes' notice: the upper end of the ranges that the AWS Spot
               Instance Advisor lists (under 5 %, 5 to 10, 10 to 15, 15 to 20, over 20)
    failures   without notice, as in the training of Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384
               GPUs (The Llama 3 Herd of Models, 2024, section 3.3.4); a node stands for 8 GPUs here

A lost node is replaced after ten minutes on average. The simulation proceeds second by second. Two settings:

    node memory    snapshots in the nodes' memory survive a failure, as they do here; replay goes back to the newest
    storage alone  they do not: replay goes back to the newest save in object storage, so the interval between saves
                   matters; it is compared with every fixed interval of a fine grid, on the same week

Goodput is the part of the week spent on steps that were not lost, at the speed of the full cluster.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import harness
from harness import Verdict

from orchestrator.policy.save_interval import observed_mtbf_s, save_cost_s, save_interval_s
from orchestrator.policy.scaling import Observation, SaveThenResize, ScalingPolicy, Start
from orchestrator.snapshots.clock import COST_SHARE

WEEK_S = 7 * 24 * 3600
RECLAIMS_A_MONTH, NOTICE_S = 0.20, 120
FAILURES_PER_NODE_S = 419 / (54 * 24 * 3600 * 16_384 / 8)
REPLACEMENT_S = 600.0


@dataclass
class World:
    """Costs, in seconds, of a model for which such a cluster is used."""

    nodes: int = 1024
    min_workers: int = 512
    micro_batches: int = 4096
    micro_batch_s: float = 2.0
    restart_s: float = 30.0
    stall_s: float = 2.0
    upload_s: float = 60.0


@dataclass
class Stretch:
    """Training between two ends of a worker group."""

    seconds: float
    speed: float
    planned: bool


@dataclass
class Week:
    """Results of the simulated week."""

    stretches: list[Stretch] = field(default_factory=list)
    planned: int = 0
    sudden: int = 0
    stopped_s: float = 0.0


def simulate(world: World, seed: int) -> Week:
    """Simulates nodes that leave and join, second by second, and calls the policy like the controller."""
    draw = random.Random(seed)
    policy = ScalingPolicy(world.min_workers, world.nodes, world.micro_batches, world.restart_s)
    week = Week()
    there, draining, workers = world.nodes, list[tuple[float, bool]](), 0
    replacements: list[float] = []
    busy_until = stretch_began = 0.0
    per_second = RECLAIMS_A_MONTH / (30 * 24 * 3600)
    full_step_s = math.ceil(world.micro_batches / world.nodes) * world.micro_batch_s

    def end(now: float, planned: bool) -> None:
        nonlocal busy_until, workers
        if workers:
            step_s = math.ceil(world.micro_batches / workers) * world.micro_batch_s
            week.stretches.append(Stretch(now - stretch_began, full_step_s / step_s, planned))
        week.planned, week.sudden = week.planned + planned, week.sudden + (not planned)
        workers, busy_until = 0, now + world.restart_s

    for second in range(WEEK_S):
        now = float(second)
        going = _times(draw, there * per_second)
        for _ in range(min(going, there)):  # noticed: leaves the nodes that count, and ends at its deadline
            there -= 1
            draining.append((now + NOTICE_S, workers > 0 and draw.random() < workers / (there + 1)))
        for _ in range(min(_times(draw, there * FAILURES_PER_NODE_S), there)):
            hit = workers > 0 and draw.random() < workers / there
            there -= 1
            replacements.append(now + draw.expovariate(1 / REPLACEMENT_S))
            if hit:
                end(now, planned=False)
        gone = [each for each in draining if each[0] <= now]
        draining = [each for each in draining if each[0] > now]
        replacements += [now + draw.expovariate(1 / REPLACEMENT_S) for _ in gone]
        if workers and any(ours for _, ours in gone):
            end(now, planned=False)
        there += sum(at <= now for at in replacements)
        replacements = [at for at in replacements if at > now]
        if now < busy_until:
            week.stopped_s += 1
        elif not workers:
            decision = policy.when_idle(Observation(workers=0, slots=there, now=now))
            if isinstance(decision, Start):
                workers, stretch_began = decision.workers, now
            else:
                week.stopped_s += 1
        else:
            on_draining = sum(ours for _, ours in draining)
            if isinstance(policy.when_running(_observe(world, now, workers, there, on_draining)), SaveThenResize):
                draining = [(at, False) for at, _ in draining]
                end(now, planned=True)
    end(float(WEEK_S), planned=True)
    return week


def _observe(world: World, now: float, workers: int, there: int, on_draining: int) -> Observation:
    """What the controller observes while `workers` run, `on_draining` of them on nodes that will be reclaimed."""
    step_s = math.ceil(world.micro_batches / workers) * world.micro_batch_s
    return Observation(
        workers=workers,
        slots=there,
        on_draining=on_draining,
        warm_spares=max(0, there - (workers - on_draining)),
        now=now,
        step_s=step_s,
        steps_left=int((WEEK_S - now) / step_s),
    )


def _times(draw: random.Random, mean: float) -> int:
    """Draws the number of events in a second, given their `mean`, which is far below one."""
    return int(draw.random() < mean)


def goodput(week: Week, world: World, interval_s: Callable[[float, int], float], *, memory: bool) -> float:
    """Part of the week spent on steps that were not lost.

    Args:
        interval_s: seconds between saves, given the seconds trained and the failures so far.
        memory: a failure goes back to the newest snapshot in memory, else to the newest save.
    """
    cost_s = save_cost_s(world.stall_s, world.upload_s)
    snapshot_every_s = world.stall_s / COST_SHARE
    kept_s = trained_s = since_save_s = 0.0
    failures = 0
    for stretch in week.stretches:
        left_s, useful_s = stretch.seconds, 0.0
        while left_s > 0:
            every_s = interval_s(trained_s, failures)
            part_s = min(left_s, max(0.0, every_s - since_save_s))
            useful_s, left_s, since_save_s = useful_s + part_s, left_s - part_s, since_save_s + part_s
            trained_s += part_s
            if since_save_s >= every_s:
                left_s, since_save_s = left_s - cost_s, 0.0
        if memory:
            useful_s *= 1 - COST_SHARE
        if not stretch.planned:
            lost_s = snapshot_every_s / 2 if memory else since_save_s
            useful_s, failures = useful_s - min(lost_s, useful_s), failures + 1
            since_save_s = 0.0 if not memory else since_save_s
        kept_s += useful_s * stretch.speed
    return kept_s / WEEK_S


def main() -> None:
    """Run the simulation."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    world = World()
    week = simulate(world, options.seed)
    cost_s = save_cost_s(world.stall_s, world.upload_s)

    def adaptive(trained_s: float, failures: int) -> float:
        return save_interval_s(cost_s, observed_mtbf_s(trained_s, failures), world.upload_s)

    grid = [60 * 1.05**power for power in range(100)]
    fixed = {every: goodput(week, world, lambda _s, _n, every=every: every, memory=False) for every in grid}  # type: ignore[misc]
    best = max(fixed, key=lambda every: fixed[every])
    ours = goodput(week, world, adaptive, memory=False)
    with_memory = goodput(week, world, adaptive, memory=True)
    took_s = time.monotonic() - began
    verdicts = [
        Verdict.without_bound("ends of worker groups, planned", week.planned, ""),
        Verdict.without_bound("  without notice", week.sudden, ""),
        Verdict.without_bound("nothing ran", week.stopped_s / WEEK_S * 100, "%"),
        Verdict.without_bound("goodput with node memory", with_memory * 100, "%"),
        Verdict.without_bound("goodput with storage alone, our interval", ours * 100, "%"),
        Verdict.without_bound(f"  the best fixed interval, {best:.0f} s", fixed[best] * 100, "%"),
        Verdict.without_bound("  ours to the best", ours / fixed[best], ""),
        Verdict.at_most("the simulation took", took_s, 60.0, "s"),
    ]
    details = {"fixed": {f"{every:.0f}": value for every, value in fixed.items()}, "stretches": len(week.stretches)}
    harness.report("policy", options, verdicts, details)


if __name__ == "__main__":
    main()
