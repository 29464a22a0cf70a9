"""Synthetic report data: one run with every kind of event, one before its first step, and a hypothesis strategy."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

from hypothesis import strategies as st

BEGAN = 1_795_000_000.0

CAUSES = ("node", "crash", "hang", "error", "bad step", "resize")


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The rows as the report's data has them."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def eventful(steps: int = 600, seed: int = 3) -> dict[str, Any]:
    """Two attempts with a long pause between them, and all kinds of events, three of them within two seconds."""
    rng = random.Random(seed)
    rows, at, tokens = [], BEGAN + 30, 0
    half = steps * 2 // 3
    for step in range(1, steps + 1):
        if step == half + 1:
            at += 90_000
        size = 3 if step <= steps // 4 else 1 if step <= steps // 3 else 4
        at += 0.5
        tokens += rng.randrange(900, 1100)
        loss = 3.4 + 5.2 * math.exp(-step / 90) + rng.gauss(0, 0.08)
        rows.append(
            {
                "step": step,
                "loss": None if step == 99 else loss,
                "lr": 1e-3 * min(1.0, step / 50),
                "grad_norm": None if step == 99 else abs(rng.gauss(1, 0.2)),
                "tokens": tokens,
                "world_size": size,
                "step_s": 0.5,
                "at": at,
            }
        )
    done = [steps // 4, steps // 4 + 1, steps // 4 + 2, steps // 3, steps - 20]
    causes = ["node", "crash", "hang", "resize", "node"]
    disruptions = [
        {
            "attempt": 1 if step <= half else 2,
            "number": number,
            "cause": cause,
            "step": step,
            "workers": 3,
            "at": rows[step - 1]["at"] + 0.4,
            "phases": {"teardown": 0.1, "placement": 0.2, "processes": 0.9, "first_step": 0.4},
            "restored_step": step,
            "workers_after": None if step == steps - 20 else 1,
            "lost_s": None if step == steps - 20 else 2.4,
            "detection_s": 0.8,
            "replayed_steps": 0,
        }
        for number, (step, cause) in enumerate(zip(done, causes, strict=True), 1)
    ]
    first_ends, second_begins = rows[half - 1]["at"] + 2, rows[half]["at"] - 20
    ended = rows[-1]["at"] + 3
    pause = second_begins - first_ends
    seconds = {"training_s": 0.5 * steps, "startup_s": 50.0, "detection_s": 4.0, "restart_s": 8.0, "idle_s": pause}
    seconds["checkpoint_s"] = ended - BEGAN - sum(seconds.values())
    return {
        "run": "eventful",
        "status": "finished",
        "phase": "done",
        "message": "",
        "attempts": 2,
        "restarts": len(disruptions),
        "disruptions": disruptions,
        "restart_counts": dict(Counter(causes)),
        "decisions": [
            {"attempt": 1, "at": BEGAN + 20, "step": 0, "what": "starting 3 workers: 4 slots, at most 4 workers"},
            {
                "attempt": 2,
                "at": second_begins + 5,
                "step": half,
                "what": "starting 4 workers: 4 slots",
            },
        ],
        "outages": [
            {"attempt": 1, "doing": "saving checkpoints", "since": BEGAN + 90, "until": BEGAN + 165, "problem": "busy"},
            {
                "attempt": 2,
                "doing": "reading shards and tokens",
                "since": ended - 60,
                "until": None,
                "problem": "The store does not answer.",
            },
        ],
        "step": steps,
        "steps": steps,
        "tokens": tokens,
        "samples": {
            "expected": steps * 8,
            "seen": steps * 8,
            "duplicated": 0,
            "missing": 0,
            "digest": "ceaa1aadcee1d142" * 4,
            "in_order": True,
        },
        "skipped_steps": [99],
        "skipped_units": {"count": 1, "reasons": ["shard 3 is cut short"]},
        "cleaning_steps": [],
        "units_read": 3,
        "pairs_too_long": 0,
        "cleaning": ["step lowercase: 0 of 12 documents removed"],
        "loss": {"train": rows[-1]["loss"], "val": 3.51},
        "val_weights": "averaged",
        "val_perplexity": 33.4,
        "val_bits_per_byte": 1.62,
        "translations": {"bleu": 31.25, "chrf": 50.5, "translated": 500, "bleu_signature": "nrefs:1"},
        "world_sizes": [[1, 3]],
        "goodput": {**seconds, "wall_s": ended - BEGAN},
        "tokens_per_s": 2000.0,
        "first_step_s": 20.5,
        "checkpoints": [
            {"step": steps, "attempt": 2, "url": f"s3://manta/runs/eventful/checkpoints/step-{steps:08}-a2"}
        ],
        "made_at": ended + 60,
        "url": "s3://manta/runs/eventful/",
        "rows": columns_of(rows),
        "lives": [
            {
                "number": 1,
                "host": "head-1",
                "status": "failed",
                "message": "the disk is full",
                "started_at": BEGAN,
                "ended_at": first_ends,
                "from_step": 0,
                "step": half + 7,
                "first_step_s": 30.5,
                "versions": {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0"},
            },
            {
                "number": 2,
                "host": "head-2",
                "status": "finished",
                "message": "",
                "started_at": second_begins,
                "ended_at": ended,
                "from_step": half,
                "step": steps,
                "first_step_s": 20.5,
                "versions": {},
            },
        ],
        "evaluations": [
            {
                "step": step,
                "at": rows[step - 1]["at"] + 1,
                "val_loss": 3.3 + 5 * math.exp(-step / 90),
                "val_bits_per_byte": 2.0,
                "val_bleu": 31.25 * step / steps,
                "val_chrf": 50.5 * step / steps,
            }
            for step in range(100, steps + 1, 100)
        ],
        "saves": list(range(50, steps + 1, 50)),
        "config": [
            {"name": "run", "value": "eventful", "is_default": False},
            {"name": "train.lr", "value": 1e-3, "is_default": False},
            {"name": "train.compile", "value": False, "is_default": True},
        ],
    }


def before_first_step() -> dict[str, Any]:
    """A run that prepares its data, before its first step."""
    life = eventful()["lives"][0] | {"status": "preparing", "from_step": None, "step": 0, "first_step_s": None}
    life |= {"ended_at": BEGAN + 12, "message": ""}
    return {
        "run": "early",
        "status": "preparing",
        "phase": "",
        "message": "",
        "disruptions": [],
        "decisions": [],
        "outages": [],
        "step": 0,
        "steps": 100,
        "tokens": 0,
        "samples": {},
        "goodput": {"startup_s": 12.0, "wall_s": 12.0},
        "tokens_per_s": None,
        "checkpoints": [],
        "made_at": BEGAN + 13,
        "url": "runs/early/",
        "rows": {},
        "lives": [life],
        "evaluations": [],
        "saves": [],
        "config": [],
    }


_words = st.text(max_size=10) | st.sampled_from(["<b>", "a&b", "'\"", "]]>", "</script>", "\x00\n"])
_seconds = st.floats(0, 1e6)
_moments = st.floats(BEGAN, BEGAN + 1e6)
_numbers = st.one_of(st.floats(-1e6, 1e6), st.floats(0.1, 12.0), st.just(math.nan), st.just(math.inf), st.none())


@st.composite
def _rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows, at, tokens = [], BEGAN, 0
    for step in range(1, draw(st.integers(0, 12)) + 1):
        step_s = draw(st.floats(0, 1e4))
        at += step_s
        tokens += draw(st.integers(0, 5000))
        rows.append(
            {
                "step": step,
                "loss": draw(_numbers),
                "lr": draw(st.floats(0, 1.0)),
                "grad_norm": draw(_numbers),
                "tokens": tokens,
                "world_size": draw(st.integers(1, 300)),
                "step_s": step_s,
                "at": at,
            }
        )
    return rows


@st.composite
def _lives(draw: st.DrawFn) -> list[dict[str, Any]]:
    lives, at = [], BEGAN
    for number in range(1, draw(st.integers(1, 4)) + 1):
        started = at + draw(st.sampled_from([0.0, 3.0, 1e6]))
        at = started + draw(st.floats(-5.0, 1e5))  # clocks of two machines may differ
        first = draw(st.none() | st.integers(0, 12))
        lives.append(
            {
                "number": number,
                "host": draw(_words),
                "status": draw(st.sampled_from(["preparing", "running", "finished", "stopped", "failed", "died"])),
                "message": draw(_words),
                "started_at": started,
                "ended_at": at,
                "from_step": first,
                "step": draw(st.integers(first or 0, 14)),
                "first_step_s": draw(st.none() | _seconds),
                "versions": draw(st.dictionaries(_words, _words, max_size=2)),
            }
        )
    return lives


_disruptions = st.fixed_dictionaries(
    {
        "attempt": st.integers(1, 4),
        "number": st.integers(1, 5000),
        "cause": st.sampled_from(CAUSES) | _words,
        "step": st.integers(0, 14),
        "workers": st.integers(0, 300),
        "at": _moments,
        "phases": st.dictionaries(_words, _seconds, max_size=3),
        "restored_step": st.none() | st.integers(0, 14),
        "workers_after": st.none() | st.integers(1, 300),
        "lost_s": st.none() | _seconds,
        "detection_s": _seconds,
        "replayed_steps": st.none() | st.integers(0, 5),
    }
)
_evaluations = st.fixed_dictionaries(
    {"step": st.integers(1, 14), "at": st.none() | _moments, "val_loss": _numbers, "val_bits_per_byte": _numbers},
    optional={"val_bleu": _numbers, "val_chrf": _numbers},
)


@st.composite
def summaries(draw: st.DrawFn) -> dict[str, Any]:
    """Any summary of this form: no steps, NaN losses, odd names, clocks that differ."""
    rows = draw(_rows())
    told = before_first_step() | {
        "run": draw(_words),
        "status": draw(st.sampled_from(["preparing", "running", "finished", "stopped", "failed", "died"])),
        "phase": draw(_words),
        "message": draw(_words),
        "disruptions": draw(st.lists(_disruptions, max_size=5)),
        "restart_counts": draw(st.dictionaries(st.sampled_from(CAUSES), st.integers(1, 5000))),
        "decisions": draw(
            st.lists(
                st.fixed_dictionaries({"attempt": st.just(1), "at": _moments, "step": st.just(3), "what": _words}),
                max_size=2,
            )
        ),
        "step": len(rows),
        "steps": draw(st.integers(1, 20)),
        "loss": {"train": draw(_numbers), "val": draw(_numbers)},
        "skipped_steps": draw(st.lists(st.integers(1, 14), max_size=2)),
        "goodput": draw(st.dictionaries(st.sampled_from(["training_s", "idle_s", "replay_s", "wall_s"]), _seconds)),
        "rows": columns_of(rows),
        "lives": draw(_lives()),
        "evaluations": sorted(draw(st.lists(_evaluations, max_size=4)), key=lambda each: each["step"]),
        "saves": draw(st.lists(st.integers(1, 14), max_size=4)),
        "config": [{"name": draw(_words), "value": draw(_numbers | _words), "is_default": draw(st.booleans())}],
        "url": draw(_words),
    }
    return told
