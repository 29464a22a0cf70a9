"""Every fault in every phase of a run: what is told, that nothing is lost or doubled, and for how long it stands still.

`make soak` runs it, for about half an hour. Seconds go to bench/results/fault_matrix.json, a table of them beside it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.local.faulty_proxy import FaultyProxy
from cluster.local.nodes import LocalNodes
from cluster.local.s3 import LocalS3
from data.config import StoreConfig
from data.errors import MantaError
from data.stores.open import open_store
from orchestrator.chaos.cost import largest_difference, standstill_s
from tests.end_to_end import fault_matrix
from tests.end_to_end.fault_matrix import NODES, Cell, Site, write_results
from tests.recipes import tiny_recipe, write_recipe, write_text

pytestmark = pytest.mark.soak

RESULTS = Path(__file__).parents[2] / "bench/results/fault_matrix.json"

GLOBAL_BATCH_SIZE = 24

STEP_S = 1.0
"""Seconds for a step, on any machine."""

TOLD = {
    "kill-worker": "starting the workers again: a worker died",
    "hang-worker": "starting the workers again: the workers hung",
    "kill-node": "starting the workers again: a node was lost",
    "drain-node": "workers are on draining nodes",
    "kill-driver": "",
    "store-away": "the store fails .*the store answers again",
    "kill-monitor": "the monitor died, and has been started again",
    "kill-feeder": "the feeder died, and has been started again",
    "kill-agent": "",
}
"""The faults, and what the run says about each; "": nothing, as nothing is asked of anybody."""

LEFT_OUT = r"starting \d workers: \d (?:are alive|slots)"
"""What a run says of a death while the workers start again anyway, if that group had not been formed."""

TOLD_IN = {
    **{
        (phase, fault): f"{TOLD[fault]}|{LEFT_OUT}"
        for phase in ("resize", "restart")
        for fault in ("kill-worker", "kill-node")
    },
    ("starting", "drain-node"): "starting the workers again: a node was lost",
    ("tokenizing", "kill-node"): "",
    ("tokenizing", "drain-node"): "",
}
"""Where a run says something else, by phase and fault."""

SETS = {
    "starting": (),
    "tokenizing": (),
    "training": (),
    "snapshot": (),
    "save": ("checkpoint.every_s=1",),
    "evaluation": ("eval.every_steps=1", "eval.background=false", "data.validation_sequences=2000"),
    "resize": (),
    "restart": (),
}
"""The phases, and the fields of the recipe with which a run is often in them."""

OF_TOKENIZING = ("kill-node", "drain-node", "store-away", "kill-driver")
"""Faults that there are before a run has workers and actors."""

CELLS = [(phase, fault) for phase in SETS for fault in TOLD if phase != "tokenizing" or fault in OF_TOKENIZING]


@dataclass(frozen=True)
class Trained:
    """The cells of a phase by fault, and the runs that they were done to, which are over.

    Attributes:
        runs: of each its metrics by step, and what is shown of it.
        tracebacks: in the output of any.
    """

    cells: dict[str, Cell]
    runs: list[tuple[list[dict[str, Any]], dict[str, Any]]]
    tracebacks: list[list[str]]


@pytest.fixture(scope="module")
def site(s3_server: LocalS3, s3_store_config: StoreConfig) -> Iterator[Site]:
    s3_server.ensure_bucket("matrix")
    store = open_store("s3://matrix", s3_store_config)
    keys = {
        "AWS_ACCESS_KEY_ID": s3_server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_access_key,
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="manta-", dir="/tmp") as scratch,  # sockets need a short path
        FaultyProxy(s3_server.endpoint_url) as proxy,
        LocalNodes(Path(scratch), environment=keys) as nodes,
    ):
        patch.setattr("orchestrator.chaos.faults.STORE_AWAY_S", (10.0, 10.0))
        folder = Path(scratch)
        for shard in write_text(folder / "text", documents=24, words=30_000).iterdir():
            store.put_file(f"text/{shard.name}", shard)
        fields = tiny_recipe(
            store=s3_store_config.model_dump(exclude_defaults=True) | {"endpoint_url": proxy.endpoint_url},
            **{
                "data.sources": [{"path": "s3://matrix/text"}],
                "data.seq_len": 64,
                "data.validation_fraction": 0.05,
                "model.d_model": 64,
                "train.global_batch_size": GLOBAL_BATCH_SIZE,
                "train.micro_batch_size": 2,  # so many micro-batches that four workers are faster than three
                "train.schedule": {"name": "constant"},
                "train.lr": 1e-5,  # so low that rounding does not grow: made-up text makes for rugged losses
                "scaling": {"num_workers": NODES, "min_workers": 1, "max_workers": NODES + 1},
                "checkpoint.every_s": 3,
            },
        )
        nodes.add(NODES)
        yield Site(folder, nodes, proxy, store, write_recipe(folder / "recipe.yaml", fields))


@pytest.fixture(scope="module")
def trained(site: Site) -> Callable[[str], Trained]:
    """Does all faults in a phase, once for all tests of the phase."""

    @cache
    def once(phase: str) -> Trained | Exception:
        try:
            made = tokenized(site) if phase == "tokenizing" else disturbed(site, phase)
        except (AssertionError, MantaError) as error:
            return error
        write_results(list(made.cells.values()), RESULTS)
        return made

    def made(phase: str) -> Trained:
        if isinstance(result := once(phase), Exception):
            raise result
        return result

    return made


def disturbed(site: Site, phase: str) -> Trained:
    """One run, to which one fault after the other is done."""
    run = site.run(phase, *SETS[phase])
    cells = {}
    with run.command:
        run.await_new_step()
        for seed, fault in enumerate(TOLD):
            if phase == "starting":
                assert run.command.stop() == 130, run.console.text
                site.refill()
            cells[fault] = run.do(phase, fault, getattr(fault_matrix, phase), run.injector(seed))
            write_results([cells[fault]], RESULTS)  # so that something is left of a matrix that is interrupted
        assert run.command.stop() == 130, run.console.text
    rows = run.rows()
    measure(cells.values(), rows)
    return Trained(cells, [(rows, run.show())], run.command.tracebacks)


def tokenized(site: Site) -> Trained:
    """A run for every fault, each with a storage of its own, where nothing is tokenized yet."""
    trained = Trained({}, [], [])
    for seed, fault in enumerate(OF_TOKENIZING):
        run = site.run("tokenizing", f"storage=s3://matrix/{fault}")
        site.refill()
        cell = run.do("tokenizing", fault, fault_matrix.tokenizing, run.injector(seed, title="ray::"))
        assert run.command.stop() == 130, run.console.text
        rows = run.rows()
        measure([cell], rows)
        trained.cells[fault] = cell
        write_results([cell], RESULTS)
        trained.runs.append((rows, run.show()))
        trained.tracebacks.extend(run.command.tracebacks)
    return trained


def measure(cells: Iterable[Cell], rows: list[dict[str, Any]]) -> None:
    """Sets for how long the run stood still in each cell."""
    for cell in cells:
        steps_at = [row["at"] for row in rows]
        cell.standstill_s = None if cell.problem else standstill_s(steps_at, cell.at, cell.until)


@pytest.mark.parametrize(("phase", "fault"), CELLS)
def test_a_run_goes_on_and_says_what_happened(trained: Callable[[str], Trained], phase: str, fault: str) -> None:
    cell = trained(phase).cells[fault]
    assert cell.problem == ""
    assert cell.standstill_s is not None
    told = TOLD_IN.get((phase, fault), TOLD[fault])
    assert re.search(told, " ".join(cell.told)), cell.told


@pytest.mark.parametrize("phase", SETS)
def test_nothing_is_lost_or_doubled(trained: Callable[[str], Trained], phase: str) -> None:
    for _, shown in trained(phase).runs:
        samples = shown["samples"]
        assert samples["in_order"] and samples["seen"] == samples["expected"] == GLOBAL_BATCH_SIZE * shown["step"]
        assert (samples["duplicated"], samples["missing"]) == (0, 0)
    assert trained(phase).tracebacks == []


@pytest.fixture(scope="module")
def alone(site: Site) -> Iterator[Any]:
    """Losses of a run that is left alone, up to any step: it is continued as far as that is asked for."""
    run = site.run("alone", "checkpoint.every_s=30")
    site.refill()

    def losses(steps: int) -> list[float]:
        if run.step() < steps:
            with run.command:
                run.wait(lambda: run.step() >= steps, f"step {steps}", patience_s=STEP_S * steps)
                assert run.command.stop() == 130
        return [row["loss"] for row in run.rows()[:steps]]

    yield losses


@pytest.mark.parametrize("phase", SETS)
def test_losses_are_those_of_a_run_left_alone(trained: Callable[[str], Trained], alone: Any, phase: str) -> None:
    for rows, _ in trained(phase).runs:
        losses = [row["loss"] for row in rows]
        difference = largest_difference(alone(len(losses)), losses)
        assert difference is not None and difference <= 1e-5
