"""Runs `manta chaos`: an undisturbed and a disturbed run, or a soak, and optionally stock Ray Train."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.local.processes import calling
from data.errors import InputError
from orchestrator.chaos.cost import command_restarts, costs, gaps_after, largest_difference, standstill_s
from orchestrator.chaos.faults import STOCK_WORKER, Injector
from orchestrator.chaos.plan import KINDS, MIN_NODES, Plan, draw_by_rates, draw_faults, gaps, refuse_unknown
from orchestrator.chaos.process import Command
from orchestrator.chaos.runs import RECOVERY_S, Disturber, Runs
from orchestrator.chaos.small_memory import small_memory
from orchestrator.chaos.soak import counted, left_over, still_running
from orchestrator.config.load import load_recipe
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import resolved
from orchestrator.console import Console
from orchestrator.driver.prepare import prepare
from orchestrator.run.run import reaching_storage, stores

TOLERANCE = 1e-5
"""Largest relative difference of losses that counts as rounding, of fp32 sums in another order."""

ENDLESS = 1_000_000_000
"""Steps of a run that is stopped when its soak is over."""

Publish = Callable[[dict[str, Any]], object]


def chaos(recipe: Path, overrides: Sequence[str], plan: Plan, baseline: bool, publish: Publish) -> dict[str, Any]:
    """Trains the recipe's run with faults and reports what every fault cost; see `compare` and `soak`.

    Args:
        publish: called with the report as soon as there is one, and again with the baseline, which takes long.

    Raises:
        InputError: a fault is unknown, or needs what is not there: an object store, or the right to mount.
        MantaError: one of the runs failed.
    """
    refuse_unknown(plan.kinds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM also ends the nodes
    endless = [f"train.steps={ENDLESS}"] if plan.soak_s is not None else []
    overrides = [*overrides, *endless]
    config = load_recipe(recipe, overrides)
    if missing := [kind for kind in plan.kinds if _lacks_store(kind, config)]:
        raise InputError(f"{', '.join(missing)} need `storage: s3://…`; this recipe has {config.storage}")
    with ExitStack() as stack:
        config = stack.enter_context(reaching_storage(config))
        prepare(config)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manta-chaos-")))
        needs_mount = any(KINDS[kind].needs_mount for kind in plan.kinds)
        memory = stack.enter_context(small_memory(folder / "memory")) if needs_mount else None
        runs = Runs(recipe, overrides, config, plan, folder, memory, Console())
        report = compare(runs) if plan.soak_s is None else soak(runs, plan.soak_s)
        publish(report)
        if baseline:
            report["baseline"] = stock_ray(runs)
            publish(report)
        return report


def possible_kinds(config: RunConfig) -> list[str]:
    """The kinds of faults that can be injected into the recipe's run on this machine."""
    may_mount = os.geteuid() == 0
    return [
        kind for kind, row in KINDS.items() if (may_mount or not row.needs_mount) and not _lacks_store(kind, config)
    ]


def _lacks_store(kind: str, config: RunConfig) -> bool:
    return KINDS[kind].needs_store and not config.storage.startswith("s3://")


def is_same_run(report: Mapping[str, Any]) -> bool:
    """Whether the disturbed run equals the undisturbed one: every sample once, and losses equal up to rounding."""
    samples, difference = report["samples"], report["loss_max_rel_diff"]
    return bool(
        report["status"] == "finished"
        and report["same_digest"]
        and samples["duplicated"] == samples["missing"] == 0
        and difference is not None
        and difference <= TOLERANCE
    )


def compare(runs: Runs) -> dict[str, Any]:
    """Trains the undisturbed and then the disturbed run on one cluster; returns the report."""
    names = {which: runs.name(which) for which in ("undisturbed", "disturbed")}
    plan = runs.plan
    with ExitStack() as stack:
        proxy = runs.proxy(stack)
        nodes = stack.enter_context(runs.cluster("tuned"))
        with runs.training(names["undisturbed"], nodes) as command:
            Disturber(command, None).await_end(names["undisturbed"])
        with runs.training(names["disturbed"], nodes, proxy) as command:
            injector = runs.injector(nodes, command, proxy, names["disturbed"])
            disturber = Disturber(command, injector, runs.console)
            drawn = draw_faults(plan.kinds, plan.seed, plan.nodes, MIN_NODES, plan.nodes + 1)
            progress = lambda: runs.progress_of(names["disturbed"])  # noqa: E731
            disturber.disturb(drawn, progress, plan.every_s, plan.count)
            disturber.await_end(names["disturbed"])
            injector.settle()
    undisturbed, disturbed = (runs.summary(names[which]) for which in ("undisturbed", "disturbed"))
    again = command_restarts(disturbed["attempt_records"])
    for summary in (undisturbed, disturbed):
        del summary["attempt_records"], summary["steps_at"]
    return {
        "faults": costs(disturber.faults, [*disturbed["disruptions"], *again], disturbed["started_at"]),
        "loss_max_rel_diff": largest_difference(undisturbed.pop("losses"), disturbed.pop("losses")),
        "same_digest": undisturbed["samples"]["digest"] == disturbed["samples"]["digest"],
        "undisturbed": undisturbed,
        **disturbed,
    }


def soak(runs: Runs, seconds: float) -> dict[str, Any]:
    """Trains for `seconds` under faults drawn by `rates`, then stops the run and looks for what is lost or left."""
    name, plan = runs.name("soak"), runs.plan
    with ExitStack() as stack:
        proxy = runs.proxy(stack)
        nodes = stack.enter_context(runs.cluster("tuned"))
        with runs.training(name, nodes, proxy) as command:
            injector = runs.injector(nodes, command, proxy, name)
            disturber = Disturber(command, injector, runs.console, always_again=True)
            drawn = draw_by_rates(plan.kinds, plan.seed, plan.nodes, MIN_NODES, plan.nodes + 1)
            progress = lambda: runs.progress_of(name)  # noqa: E731
            disturber.soak(drawn, gaps(plan.every_s, plan.seed), progress, seconds, plan.count)
            injector.settle()
            disturber.come_to_rest(progress)
            status = command.stop()
            left = left_over(nodes, runs.store_of(name))
    left["processes"] += still_running(nodes, command)
    summary = runs.summary(name)
    again, steps_at = command_restarts(summary.pop("attempt_records")), summary.pop("steps_at")
    faults = costs(disturber.faults, [*summary["disruptions"], *again], summary["started_at"])
    del summary["losses"]
    # A fault may hit the recovery from the one before, so both wait for the same step.
    ends = [*(each.at for each in disturber.faults[1:]), float("inf")]
    for row, fault, until in zip(faults, disturber.faults, ends, strict=True):
        row["lost_s"] = standstill_s(steps_at, fault.at, until)
    return {
        "soak_s": seconds,
        "faults": faults,
        "kinds": counted(faults),
        "exit_status": status,
        "ends": disturber.ends,
        "tracebacks": command.tracebacks,
        "left": left,
        **summary,
    }


def stock_ray(runs: Runs) -> dict[str, Any]:
    """Trains on stock Ray Train under the same faults, without those of the store and those it cannot survive."""
    plan = runs.plan
    kinds = [kind for kind in plan.kinds if KINDS[kind].in_baseline]
    log, config = runs.folder / "steps.jsonl", runs.folder / "config.json"
    config.write_text(json.dumps(resolved(runs.config)))
    log.touch()

    def steps() -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]

    def newest() -> tuple[int, bool]:
        return max((each["step"] for each in steps()), default=0), True

    arguments = [*calling("orchestrator.chaos.stock_ray", "main"), str(config), str(log), "1", str(plan.nodes)]
    with (
        runs.cluster("stock", stock=True) as nodes,
        Command("stock Ray", arguments, nodes.environment, runs.console) as command,
    ):
        injector = Injector(nodes, command, None, stores(runs.config)[1], random.Random(plan.seed), title=STOCK_WORKER)
        disturber = Disturber(command, injector, runs.console)
        drawn = draw_faults(kinds, plan.seed, plan.nodes, MIN_NODES, plan.nodes + 1)
        disturber.disturb(drawn, newest, plan.every_s, plan.count or len(kinds))
        after, _ = newest()
        disturber.await_(lambda: newest()[0] > after, RECOVERY_S)
    return {"faults": gaps_after(disturber.faults, steps())}
