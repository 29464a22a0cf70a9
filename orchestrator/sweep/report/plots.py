"""Charts of losses: learning curves, the best loss so far, loss against each field, importance of fields, timeline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

from orchestrator.report.format import duration, label
from orchestrator.report.svg import Scale, axes, colour, cross, dash, esc, line, mark, polyline, svg, tag, text_at
from orchestrator.sweep.report.facts import Facts, Field, Trial
from orchestrator.sweep.report.importance import Importance

WIDTH, HEIGHT = 760.0, 380.0

LEFT, RIGHT, TOP, BOTTOM = 62.0, 740.0, 34.0, 330.0

MAX_POINTS, CHART_POINTS = 300, 16_000
"""Maximum number of drawn points of a curve, and of all curves of a chart: more are not visible, and slow."""

MAX_REASON = 80
"""Characters of a reason in a tooltip; the table of trials has all of it."""

# Size of charts that are shown in pairs.
SMALL_WIDTH, SMALL_HEIGHT, SMALL_RIGHT, SMALL_BOTTOM = 480.0, 300.0, 464.0, 250.0


def tip(facts: Facts, trial: Trial) -> str:
    """The tooltip of a trial's mark."""
    loss = f"loss {trial.loss:.4f}" if trial.loss is not None else "no loss"
    text = [f"{trial.id}{'  (best)' if trial.is_best else ''}: {trial.status}, {loss} at step {trial.step}"]
    text += [f"{f.short} = {label(f.of(trial))}" for f in facts.fields if f.name in trial.config]
    return "\n".join([*text, *([trial.reason[:MAX_REASON]] if trial.reason else [])])


def trial_mark(facts: Facts, trial: Trial, *drawn: str) -> str:
    """Groups the drawing of one trial; pointing at it highlights the trial on the whole page."""
    classes = f"mark {trial.status if trial.status.isalpha() else 'other'} {colour(facts.group(trial))}"
    best = " best" if trial.is_best else ""
    return tag("g", tag("title", esc(tip(facts, trial))), *drawn, class_=classes + best, data_trial=trial.id)


def ceiling(trials: Iterable[Trial]) -> float:
    """The upper end of a chart's loss axis, since diverged trials would flatten all others."""
    losses = [loss for trial in trials for _, loss in trial.curve]
    firsts = sorted(trial.curve[0][1] for trial in trials if trial.curve)
    lasts = sorted(trial.curve[-1][1] for trial in trials if trial.curve)
    usual = max(median(firsts), lasts[math.ceil(len(lasts) * 0.75) - 1])
    return min(max(losses), usual + 0.15 * abs(usual))


def curves(facts: Facts, metric: str, is_log: bool) -> str:
    """All learning curves; "" where no trial has reported a loss, or where a loss has no logarithm."""
    shown = [trial for trial in facts.trials if trial.curve]
    if not shown or (is_log and any(loss <= 0 for trial in shown for _, loss in trial.curve)):
        return ""
    top = ceiling(shown)
    kept = [loss for trial in shown for _, loss in trial.curve if loss <= top]
    y = Scale.over((math.log10(loss) if is_log else loss for loss in kept), BOTTOM, TOP, is_log)
    x = Scale(0, max(max(trial.steps, trial.curve[-1][0]) for trial in shown) * 1.02, LEFT, RIGHT)
    most = max(10, CHART_POINTS // len(shown))
    drawn = []
    for rung in (rung for rung in facts.rungs if rung < x.high / 1.02):
        drawn.append(line(x(rung), TOP, x(rung), BOTTOM, "rung"))
        drawn.append(text_at(x(rung) + 4, TOP + 10, f"rung {rung}", "note"))
    # The best trial last, on top of the others.
    for trial in sorted(shown, key=lambda trial: (trial.is_best, trial.status == "finished")):
        # Points above the chart are clipped; those far above are moved to a coordinate that can be drawn.
        points = [
            (x(at), max(-HEIGHT, y(math.log10(loss) if is_log else loss))) for at, loss in thinned(trial.curve, most)
        ]
        end = (points[-1][0], max(TOP, points[-1][1]))
        group = facts.group(trial)
        drawn.append(
            trial_mark(
                facts,
                trial,
                polyline(points, "hit"),
                polyline(points, "curve", dash(group)),
                cross(*end, "curve") if trial.status == "failed" else mark(group, *end, "dot", 4.0),
            )
        )
        if trial.is_best:
            drawn.append(text_at(min(end[0] + 4, RIGHT), end[1] - 14, f"best: {trial.id}", "note strong end halo"))
    name = "curves-log" if is_log else "curves"
    box = tag("rect", x=LEFT, y=TOP - 6, width=RIGHT - LEFT + 8, height=BOTTOM - TOP + 12)
    clipped = tag("clipPath", box, id=f"{name}-clip") + tag("g", *drawn, clip_path=f"url(#{name}-clip)")
    axis = f"{metric}{', logarithmic' if is_log else ''}"
    gone = sum(any(loss > top for _, loss in trial.curve[len(trial.curve) // 2 :]) for trial in shown)
    note = text_at(RIGHT, TOP - 12, f"{gone} curves end above the chart", "note end") if gone else ""
    described = f"{len(shown)} curves of {metric} by step, from {_range(shown)}. The table of trials has the numbers."
    return svg(name, f"Learning curves: {axis}", described, WIDTH, HEIGHT, axes(x, y, "step", axis), clipped, note)


def thinned(curve: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> Sequence[tuple[int, float]]:
    """At most `most` + 1, and MAX_POINTS + 1, of the curve's points, including the last one."""
    every = math.ceil(len(curve) / min(most, MAX_POINTS)) or 1
    return curve if every == 1 else (*curve[:-1:every], curve[-1])


def best_curve(facts: Facts, metric: str) -> str:
    """The best trial's learning curve and the median of all trials that reached each step; "" without a best trial."""
    best = facts.best
    if best is None or not best.curve:
        return ""
    others = [trial for trial in facts.trials if trial.curve]
    middle = []
    curve = thinned(best.curve)
    for step, _ in curve:
        there = [loss for trial in others if (loss := trial.loss_at(step)) is not None]
        middle.append((step, median(there)))
    x = Scale(0, max(best.curve[-1][0], best.steps) * 1.02, LEFT, SMALL_RIGHT)
    y = Scale.over([loss for _, loss in (*curve, *middle)], SMALL_BOTTOM, TOP)
    last = best.curve[-1]
    drawn = [
        polyline([(x(at), y(loss)) for at, loss in middle], "middle", "4 4"),
        trial_mark(
            facts,
            best,
            polyline([(x(at), y(loss)) for at, loss in curve], "hit"),
            polyline([(x(at), y(loss)) for at, loss in curve], "curve"),
            mark(facts.group(best), x(last[0]), y(last[1]), "dot"),
        ),
        text_at(x(last[0]) - 4, y(last[1]) - 12, f"{last[1]:.4f} at step {last[0]}", "note strong end halo"),
        text_at(
            x(middle[len(middle) // 3][0]) + 6,
            y(middle[len(middle) // 3][1]) - 8,
            "median of all trials that reached the step",
            "note",
        ),
    ]
    text = f"{metric} of {best.id} goes from {best.curve[0][1]:.4f} to {last[1]:.4f} at step {last[0]}."
    return svg("best", f"Best curve: {best.id}", text, SMALL_WIDTH, SMALL_HEIGHT, axes(x, y, "step", metric), *drawn)


def best_so_far(facts: Facts, metric: str, began: float | None) -> str:
    """The lowest loss of all ended trials over time; "" where fewer than two have ended."""
    ended = sorted(
        (trial for trial in facts.trials if trial.ended_at and trial.loss is not None and trial.status != "failed"),
        key=lambda trial: trial.ended_at or 0.0,
    )
    if len(ended) < 2 or began is None:
        return ""
    minutes = [((trial.ended_at or began) - began) / 60 for trial in ended]
    best, steps = math.inf, []
    for at, trial in zip(minutes, ended, strict=True):
        best = min(best, trial.loss if trial.loss is not None else math.inf)
        steps.append((at, best))
    x = Scale.over([0.0, *minutes], LEFT, SMALL_RIGHT)
    top = min(
        ceiling(ended) if all(t.curve for t in ended) else math.inf, max(t.loss for t in ended if t.loss is not None)
    )
    y = Scale.over([*(loss for _, loss in steps), top], SMALL_BOTTOM, TOP)
    stairs = [(x(steps[0][0]), y(steps[0][1]))]
    for (_, before), (at, loss) in pairwise(steps):
        stairs += [(x(at), y(before)), (x(at), y(loss))]
    dots = [
        trial_mark(facts, trial, mark(facts.group(trial), x(at), max(TOP, y(trial.loss or 0.0)), "dot"))
        for at, trial in zip(minutes, ended, strict=True)
    ]
    text = f"Lowest {metric} of the trials ended so far: {steps[0][1]:.4f} after the first, {best:.4f} after the last."
    name = "minutes since the sweep began"
    return svg(
        "sofar",
        "Best so far",
        text,
        SMALL_WIDTH,
        SMALL_HEIGHT,
        axes(x, y, name, metric),
        polyline(stairs, "stairs"),
        *dots,
    )


def scatter(facts: Facts, field: Field, metric: str, number: int) -> str:
    """Loss against a numeric field; the first chart is large; "" where fewer than two trials have both."""
    shown = [
        (trial, at) for trial in facts.trials if trial.loss is not None and (at := field.number(trial)) is not None
    ]
    if len(shown) < 2:
        return ""
    top = ceiling([trial for trial, _ in shown if trial.curve]) if any(trial.curve for trial, _ in shown) else math.inf
    right, bottom = (SMALL_RIGHT, SMALL_BOTTOM) if number else (RIGHT, BOTTOM)
    y = Scale.over([min(trial.loss or 0.0, top) for trial, _ in shown], bottom, TOP)
    x = Scale.over((at for _, at in shown), LEFT, right, field.is_log)
    drawn = []
    for trial, at in sorted(shown, key=lambda pair: pair[0].is_best):
        place = (x(at), y(min(trial.loss or 0.0, top)))
        shape = cross(*place, "curve") if trial.status == "failed" else mark(facts.group(trial), *place, "dot", 6.0)
        ring = tag("circle", cx=place[0], cy=place[1], r=11.0, class_="ring") if trial.is_best else ""
        drawn.append(trial_mark(facts, trial, shape, ring))
    size = (SMALL_WIDTH, SMALL_HEIGHT) if number else (WIDTH, HEIGHT)
    axis = f"{field.name}{', logarithmic' if field.is_log else ''}"
    text = f"{len(shown)} trials: {metric} at the last step of each against {field.name}."
    return svg(f"by-{number}", f"Loss against {field.name}", text, *size, axes(x, y, axis, metric), *drawn)


def bars(found: Importance) -> str:
    """The importance of each field, as bars with their intervals and numbers."""
    rows, drawn, row = found.effects, [], 30.0
    left, right = 190.0, 380.0
    x = Scale(0.0, 1.0, left, right)
    for number, effect in enumerate(rows):
        y = 16 + number * row
        drawn.append(text_at(left - 10, y + 13, effect.field.short, "name end"))
        drawn.append(tag("rect", x=left, y=y, width=right - left, height=18.0, class_="track", rx=3))
        if effect.share is None:
            drawn.append(text_at(left + 8, y + 13, effect.note, "note", 64))
            continue
        if effect.is_certain:
            width = max(1.5, x(effect.share) - left)
            drawn.append(tag("rect", x=left, y=y, width=width, height=18.0, class_="bar", rx=3))
        drawn.append(line(x(effect.low), y + 9, x(effect.high), y + 9, "range"))
        drawn += [line(x(end), y + 4, x(end), y + 14, "range") for end in (effect.low, effect.high)]
        sure = f"p = {effect.p:.3f}" if effect.p >= 0.001 else "p < 0.001"
        using = f", {effect.points} points" if effect.points < found.points else ""
        drawn.append(text_at(right + 12, y + 13, f"{effect.text}, {sure}{using}", "tick", 64))
    text = "; ".join(f"{effect.field.name}: {effect.text}" for effect in rows)
    return svg("mattered", "What each field explains", text, WIDTH, 24 + row * len(rows), *drawn)


def timeline(facts: Facts, began: float | None) -> str:
    """When each trial ran; "" where no trial has start and end."""
    ran = [
        trial for trial in facts.trials if trial.started_at and trial.ended_at and trial.ended_at >= trial.started_at
    ]
    if not ran or began is None:
        return ""
    ran.sort(key=lambda trial: (trial.started_at or 0.0, trial.id))
    row, left = 17.0, 110.0
    bottom = TOP + row * len(ran)
    x = Scale.over([0.0, *(((trial.ended_at or began) - began) / 60 for trial in ran)], left, RIGHT, pad=0.01)
    drawn = []
    for at, text in x.ticks(8):
        drawn.append(line(at, TOP, at, bottom, "grid") + text_at(at, bottom + 16, text, "tick mid"))
    for number, trial in enumerate(ran):
        y = TOP + number * row
        start, end = (x(((at or began) - began) / 60) for at in (trial.started_at, trial.ended_at))
        bar = tag("rect", x=start, y=y + 3, width=max(2.0, end - start), height=row - 6, rx=2, class_="span")
        sign = cross(end, y + row / 2, "curve", 4.0) if trial.status == "failed" else ""
        drawn.append(text_at(left - 8, y + 13, trial.id, "tick end", 14))
        drawn.append(trial_mark(facts, trial, bar, sign))
    drawn.append(text_at((left + RIGHT) / 2, bottom + 34, "minutes since the sweep began", "name mid", 60))
    took = duration(max(trial.ended_at or 0.0 for trial in ran) - min(trial.started_at or 0.0 for trial in ran))
    return svg("time", "When each trial ran", f"{len(ran)} trials in {took}.", WIDTH, bottom + 44, *drawn)


def _range(trials: list[Trial]) -> str:
    ends = [trial.curve[-1][1] for trial in trials]
    return f"last losses between {min(ends):.4f} and {max(ends):.4f}"
