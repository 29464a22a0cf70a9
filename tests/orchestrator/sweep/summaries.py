"""Made-up summaries of sweeps: one that looks like a real one, and hypothesis strategies for all the others."""

from __future__ import annotations

import math
import random
from typing import Any

from hypothesis import strategies as st

STEPS, RUNGS = 280, (35, 70, 140)

SPACE: dict[str, Any] = {
    "train.optimizer.name": {"kind": "choice", "values": ["sgd", "adam", "adamw"], "when": None},
    "train.lr": {"kind": "loguniform", "low": 1e-4, "high": 1e-1, "when": None},
    "train.optimizer.momentum": {
        "kind": "uniform",
        "low": 0.0,
        "high": 0.95,
        "when": {"train.optimizer.name": "sgd"},
    },
    "train.optimizer.weight_decay": {
        "kind": "loguniform",
        "low": 1e-3,
        "high": 3e-1,
        "when": {"train.optimizer.name": "adamw"},
    },
    "train.warmup_steps": {"kind": "int", "low": 0, "high": 40, "when": None},
}


def realistic(trials: int = 16, seed: int = 3, status: str = "finished", pbt: bool = False) -> dict[str, Any]:
    """A sweep over learning rate and optimizer with ASHA, halving at each rung; one trial fails."""
    rng = random.Random(seed)
    told = [_trial(number, rng) for number in range(trials)]
    alive = [trial for trial in told if trial["status"] != "failed"]
    rungs = []
    before = 0
    for rung in RUNGS:
        came = [trial for trial in alive if trial["status"] == "running"]
        came.sort(key=lambda trial: _at(trial, rung))
        for trial in came[(len(came) + 1) // 2 :]:
            trial |= {"status": "stopped", "reason": f"below the best half at step {rung}", "step": rung}
        for trial in came:
            trial["rungs"].append(rung)
        cost = sum(trial["_step_s"] * max(0, min(trial["step"], rung) - before) for trial in told)
        rungs.append({"step": rung, "trials": len(came), "stopped": len(came) // 2, "worker_s": round(cost, 1)})
        before = rung
    last = [trial for trial in alive if trial["status"] == "running"]
    cost = sum(trial["_step_s"] * (STEPS - before) for trial in last)
    rungs.append({"step": STEPS, "trials": len(last), "stopped": 0, "worker_s": round(cost, 1)})
    for trial in alive:
        if trial["status"] == "running":
            trial["status"] = "finished"
    began = 1_790_000_000.0
    for number, trial in enumerate(told):
        trial["curve"] = [point for point in trial["curve"] if point[0] <= trial["step"]]
        trial["loss"] = trial["curve"][-1][1] if trial["curve"] else None
        trial["worker_s"] = round(trial["_step_s"] * trial["step"] + 14, 1)
        trial["started_at"] = began + 60 + number // 2 * 55
        trial["ended_at"] = trial["started_at"] + trial["worker_s"] / 2 + 6
        del trial["_step_s"]
    if pbt:
        _exploit(told)
    best = min((t for t in told if t["status"] == "finished"), key=lambda t: t["loss"], default=None)
    steps, of_all = sum(t["step"] for t in told), STEPS * len(told)
    return {
        "sweep": "quickstart-lr",
        "status": status,
        "message": "",
        "metric": "train_loss",
        "searcher": "optuna",
        "scheduler": "pbt" if pbt else "asha",
        "started_at": began,
        "ended_at": None if status == "running" else began + 1325.0,
        "space": SPACE,
        "trials": told,
        "best": best
        and {
            "id": best["id"],
            "run": best["run"],
            "loss": best["loss"],
            "config": best["config"],
            "recipe": "s3://manta/quickstart/sweeps/quickstart-lr/best.yaml",
        },
        "rungs": rungs,
        "cost": {
            "worker_s": round(sum(t["worker_s"] for t in told), 1),
            "steps": steps,
            "steps_of_all": of_all,
            "share": round(steps / of_all, 4),
        },
        "tokenized": {"units": 24, "tokenized": 24, "cached": 0},
        "attempts": 2,
    }


def _trial(number: int, rng: random.Random) -> dict[str, Any]:
    optimizer = ("sgd", "adam", "adamw")[number % 3]
    lr = 10 ** rng.uniform(-4, -1)
    config: dict[str, Any] = {"train.optimizer.name": optimizer, "train.lr": lr}
    good = {"sgd": -1.1, "adam": -2.6, "adamw": -2.4}[optimizer]
    floor = {"sgd": 4.9, "adam": 4.3, "adamw": 4.25}[optimizer] + 0.35 * (math.log10(lr) - good) ** 2
    if optimizer == "sgd":
        config["train.optimizer.momentum"] = round(rng.uniform(0, 0.95), 3)
    if optimizer == "adamw":
        config["train.optimizer.weight_decay"] = 10 ** rng.uniform(-3, -0.5)
    config["train.warmup_steps"] = rng.randrange(41)
    speed = rng.uniform(18, 45) + config["train.warmup_steps"] / 2
    curve = [
        [step, floor + (7.66 - floor) * math.exp(-step / speed) + rng.gauss(0, 0.03)] for step in range(1, STEPS + 1, 3)
    ]
    curve[-1] = [STEPS, floor + rng.gauss(0, 0.02)]
    failed = number == 9
    return {
        "id": f"t{number:03}",
        "run": f"quickstart-lr-t{number:03}",
        "status": "failed" if failed else "running",
        "reason": "the loss of step 53 is no number, twice; lr 0.08" if failed else "",
        "config": config,
        "step": 52 if failed else STEPS,
        "steps": STEPS,
        "loss": None,
        "curve": curve,
        "rungs": [],
        "worker_s": 0.0,
        "started_at": None,
        "ended_at": None,
        "first_step_s": round(rng.uniform(9, 14), 1),
        "workers": rng.choice((1, 2, 2)),
        "parameters": 84_000,
        "from_trial": None,
        "_step_s": rng.uniform(0.5, 0.8),
    }


def _at(trial: dict[str, Any], step: int) -> float:
    return float(next(loss for at, loss in reversed(trial["curve"]) if at <= step))


def _exploit(told: list[dict[str, Any]]) -> None:
    for copy, donor, step in ((4, 1, 70), (7, 2, 70), (12, 5, 140), (8, 12, 200)):
        told[copy]["from_trial"] = {"id": told[donor]["id"], "step": step}
        told[copy]["step"] = STEPS


_SEEN = st.characters(exclude_categories=["C", "Z", "M"])
"""Characters that take capacity: no id of a trial has others."""

_losses = st.one_of(st.floats(min_value=-1e3, max_value=1e6), st.floats(min_value=0.1, max_value=12))
_words = st.text(max_size=12) | st.sampled_from(["<b>", "a&b", "'\"", "]]>", "[red]x[/]", "</script>", "\x00\n"])
_values = st.one_of(
    st.floats(1e-8, 1e8), st.integers(-5, 2000), st.booleans(), _words, st.none(), st.lists(_words, max_size=2)
)
_names = st.sampled_from(["train.lr", "train.optimizer.name", "model.lr", "a<b", "seed", "train.momentum"])


@st.composite
def _trials(draw: st.DrawFn) -> list[dict[str, Any]]:
    ids = draw(st.lists(st.text(_SEEN, min_size=1, max_size=8), max_size=9, unique=True))
    return [draw(_any_trial(id, ids)) for id in ids]


@st.composite
def _any_trial(draw: st.DrawFn, id: str, ids: list[str]) -> dict[str, Any]:
    steps = draw(st.integers(1, 500))
    step = draw(st.integers(0, steps))
    at = sorted(draw(st.sets(st.integers(1, step), max_size=8))) if step else []
    curve = [[s, draw(_losses)] for s in at]
    donor = draw(st.none() | st.fixed_dictionaries({"id": st.sampled_from(ids), "step": st.integers(0, steps)}))
    return {
        "id": id,
        "run": draw(_words),
        "status": draw(st.sampled_from(["pending", "running", "finished", "stopped", "failed"])),
        "reason": draw(_words),
        "config": draw(st.dictionaries(_names, _values, max_size=4)),
        "step": step,
        "steps": steps,
        "loss": curve[-1][1] if curve else None,
        "curve": curve,
        "rungs": [s for s in at if s % 2],
        "worker_s": draw(st.floats(0, 1e6)),
        "started_at": draw(st.none() | st.floats(1.7e9, 1.8e9)),
        "ended_at": draw(st.none() | st.floats(1.7e9, 1.8e9)),
        "first_step_s": draw(st.none() | st.floats(0, 100)),
        "workers": draw(st.integers(0, 9)),
        "parameters": draw(st.none() | st.integers(1, 10**12)),
        "from_trial": donor,
    }


@st.composite
def _domains(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["choice", "grid", "uniform", "loguniform", "int"]))
    when = draw(st.none() | st.dictionaries(_names, _words, min_size=1, max_size=1))
    if kind in ("choice", "grid"):
        return {"kind": kind, "values": draw(st.lists(_values, min_size=1, max_size=5)), "when": when}
    low = draw(st.floats(1e-6, 1))
    return {"kind": kind, "low": low, "high": low * draw(st.floats(1, 1e4)), "when": when}


@st.composite
def summaries(draw: st.DrawFn) -> dict[str, Any]:
    """Any summary of this form, sensible or not: none, one or all trials failed, one step, equal losses, odd names."""
    trials = draw(_trials())
    best = draw(st.none() | st.sampled_from(trials)) if trials else None
    return {
        "sweep": draw(_words),
        "status": draw(st.sampled_from(["running", "finished", "stopped", "died"])),
        "message": draw(_words),
        "metric": "train_loss",
        "searcher": draw(_words),
        "scheduler": draw(_words),
        "started_at": 1.79e9,
        "ended_at": draw(st.none() | st.floats(1.79e9, 1.8e9)),
        "space": draw(st.dictionaries(_names, _domains(), max_size=4)),
        "trials": trials,
        "best": best
        and {
            "id": best["id"],
            "run": "r",
            "loss": best["loss"] or 0.0,
            "config": best["config"],
            "recipe": draw(_words),
        },
        "rungs": [
            {"step": step, "trials": 3, "stopped": 1, "worker_s": draw(st.floats(0, 1e5))}
            for step in sorted(draw(st.sets(st.integers(1, 400), max_size=3)))
        ],
        "cost": {"worker_s": 0.0, "steps": 0, "steps_of_all": 0, "share": 0.0},
        "tokenized": {"units": 3, "tokenized": 3, "cached": 0},
        "attempts": 1,
    }
