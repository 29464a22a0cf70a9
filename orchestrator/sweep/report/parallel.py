"""Charts of whole trials: parallel coordinates over all fields, and which trials continued from another's state."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.report.format import label
from orchestrator.report.svg import Scale, colour, dash, esc, line, mark, polyline, svg, tag, text_at
from orchestrator.sweep.report.facts import Facts, Field, Trial
from orchestrator.sweep.report.plots import ceiling, trial_mark

TOP, BOTTOM = 60.0, 340.0

MARGIN = 100.0
"""Width left of the first axis, for its labels."""

Height = Callable[[Trial], float | None]


def parallel(facts: Facts, metric: str) -> str:
    """One line per trial through one axis per field and one for the loss; gaps at fields that a trial does not use.

    "" where no trial has a loss.
    """
    shown = [trial for trial in facts.trials if trial.loss is not None]
    fields = [f for f in facts.fields if any(f.of(trial) is not None for trial in shown)]
    if not shown or not fields:
        return ""
    between = max(130.0, 640.0 / len(fields))
    width = 160 + between * len(fields)
    axes: list[tuple[float, Height]] = []
    drawn = []
    for number, field in enumerate(fields):
        at = MARGIN + number * between
        ticks, height = _axis(field, shown)
        axes.append((at, height))
        drawn.append(_axis_drawn(at, field.short, ticks, "only some trials" if field.when else ""))
    top = ceiling([t for t in shown if t.curve]) if any(t.curve for t in shown) else max(t.loss or 0 for t in shown)
    y = Scale.over([min(trial.loss or 0.0, top) for trial in shown], BOTTOM, TOP)
    axes.append((MARGIN + len(fields) * between, lambda trial: y(min(trial.loss or 0.0, top))))
    drawn.append(_axis_drawn(axes[-1][0], metric, y.ticks(), "at its last step"))
    lines = [
        _trial_drawn(facts, trial, axes) for trial in sorted(shown, key=lambda t: (t.is_best, t.status == "finished"))
    ]
    names = ", ".join(field.name for field in fields)
    return svg(
        "parallel",
        "Every trial over all fields",
        f"{len(shown)} trials as lines over the axes {names} and {metric}; a line is broken at a field the trial does "
        "not have. The table of trials has the numbers.",
        width,
        BOTTOM + 24,
        *lines,
        tag("g", *drawn, aria_hidden="true", class_="over"),
    )


def _trial_drawn(facts: Facts, trial: Trial, axes: list[tuple[float, Height]]) -> str:
    group = facts.group(trial)
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, height in axes:
        y = height(trial)
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((at, y))
    drawn = [polyline(piece, "hit") + polyline(piece, "curve", dash(group)) for piece in pieces if len(piece) > 1]
    # A single point between two gaps is not visible as a line. The shape shows the same as the colour.
    drawn += [mark(group, *piece[0], "dot", 4.0) for piece in pieces if len(piece) == 1]
    if pieces[-1]:
        drawn.append(mark(group, *pieces[-1][-1], "dot", 4.0))
    return trial_mark(facts, trial, *drawn)


def _axis(field: Field, trials: list[Trial]) -> tuple[list[tuple[float, str]], Height]:
    if field.is_numeric:
        numbers = [at for trial in trials if (at := field.number(trial)) is not None]
        y = Scale.over(numbers, BOTTOM, TOP, field.is_log)

        def by_number(trial: Trial) -> float | None:
            at = field.number(trial)
            return None if at is None else y(at)

        return y.ticks(), by_number
    values = list(field.values)
    heights = [BOTTOM - (BOTTOM - TOP) * (n + 0.5) / len(values) for n in range(len(values))]

    def by_value(trial: Trial) -> float | None:
        value = field.of(trial)
        return None if value is None else heights[values.index(value)]

    return list(zip(heights, map(label, values), strict=True)), by_value


def _axis_drawn(at: float, name: str, ticks: list[tuple[float, str]], note: str) -> str:
    drawn = [line(at, TOP, at, BOTTOM, "axis"), text_at(at, TOP - 30, name, "name mid", 20)]
    drawn.append(text_at(at, TOP - 15, note, "note mid"))
    for y, text in ticks:
        drawn.append(line(at - 4, y, at + 4, y, "axis"))
        drawn.append(
            text_at(at - 8, y + 4, text, "tick end", 14) if at == MARGIN else text_at(at + 7, y + 4, text, "tick halo")
        )
    return "".join(drawn)


def ancestry(facts: Facts) -> str:
    """One row per trial, and an arrow from a donor to the trial that continued from its state; "" without any."""
    by_id = {trial.id: trial for trial in facts.trials}
    copies = [trial for trial in facts.trials if trial.donor and trial.donor[0] in by_id]
    if not copies:
        return ""
    related = {trial.id for trial in copies} | {trial.donor[0] for trial in copies if trial.donor}
    rows = [trial for trial in facts.trials if trial.id in related]
    row, left, right, top = 30.0, 110.0, 720.0, 20.0
    bottom = top + row * len(rows)
    x = Scale(0, max(max(t.steps, t.step, *(c.donor[1] for c in copies if c.donor)) for t in rows) * 1.02, left, right)
    height = {trial.id: top + row * (number + 0.5) for number, trial in enumerate(rows)}
    drawn = []
    for at, text in x.ticks(8):
        drawn.append(line(at, top, at, bottom, "grid") + text_at(at, bottom + 16, text, "tick mid"))
    for trial in rows:
        y = height[trial.id]
        drawn.append(text_at(left - 10, y + 4, trial.id, "tick end", 14))
        drawn.append(
            trial_mark(facts, trial, line(x(0), y, x(trial.step), y, "life"), mark(-1, x(trial.step), y, "dot"))
        )
    for trial in copies:
        donor, step = trial.donor or ("", 0)
        text = f"{trial.id} continued from {donor}'s state at step {step}"
        start, end = height[donor], height[trial.id]
        sign = 1 if end > start else -1
        head = [(-5, -9 * sign), (5, -9 * sign), (0, -2 * sign)]
        tip = " ".join(f"{x(step) + dx:.1f},{end + dy:.1f}" for dx, dy in head)
        arrow = line(x(step), start, x(step), end, "arrow") + tag("polygon", points=tip, class_="head")
        group = colour(facts.group(trial))
        drawn.append(tag("g", tag("title", esc(text)), arrow, class_=f"mark {group}", data_trial=trial.id))
    drawn.append(text_at((left + right) / 2, bottom + 34, "step", "name mid"))
    text = "; ".join(f"{t.id} from {t.donor[0]} at step {t.donor[1]}" for t in copies if t.donor)
    return svg("ancestry", "Trials that continued from another trial's state", text, 760, bottom + 44, *drawn)
