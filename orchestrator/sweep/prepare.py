"""Prepares the data of a sweep once, for all of its trials."""

from __future__ import annotations

from data.errors import InputError
from data.prepared import PreparedData
from data.stores.patience import Patience, telling
from data.stores.store import Store
from orchestrator.console import Console
from orchestrator.driver.prepare import prepared
from orchestrator.run.heartbeat import Heartbeat
from orchestrator.sweep.spec import Sweep


def prepare_once(sweep: Sweep, root: Store, heartbeat: Heartbeat, console: Console) -> PreparedData:
    """Prepares the data of all trials: tokenizes each unit here, once. Waits for a store that fails."""
    fence = heartbeat.fence
    patience = Patience(sweep.base.store.patience, telling(console.line, "preparing"))

    def log(line: str) -> None:
        console.line(line)
        heartbeat.check()

    data_config = sweep.base.data.model_copy(update={"prepare": "ahead"})
    config = sweep.base.model_copy(update={"data": data_config})
    before = patience.call(lambda: sum(1 for _ in root.list("tokens/")))
    data = patience.call(lambda: prepared(config, root, fence.record.pins, log, lambda: None))
    refuse_nothing_held_out(sweep, data)
    made = patience.call(lambda: sum(1 for _ in root.list("tokens/"))) - before
    known = fence.record.result.get("tokenized", {})
    units, tokenized = data.manifest.num_units, known.get("tokenized", 0) + made
    counted = {"units": units, "tokenized": tokenized, "cached": units - tokenized}
    patience.call(lambda: fence.add_result({"tokenized": counted}, **data.digests))
    console.line(f"data: {data.summary()}")
    console.line(f"units tokenized: {units}, each once, for all trials ({units - tokenized} were cached before)")
    return data


def refuse_nothing_held_out(sweep: Sweep, data: PreparedData) -> None:
    """Raises InputError where trials are compared by held-out text and the recipe's share of the documents is none."""
    config = sweep.base.data
    if sweep.spec.metric != "val_loss" or any(source.split == "validation" for source in config.sources):
        return
    if data.unit_table is not None and not sum(data.unit_table["validation_documents"].to_pylist()):
        documents = sum(data.unit_table["documents"].to_pylist())
        raise InputError(
            f"metric = val_loss: of {documents:,} documents, none is held out by data.validation_fraction = "
            f"{config.validation_fraction}. Raise it, or use metric: train_loss."
        )
