"""Claims a sweep for this process, if its recipe is still that of its trials."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from data.stores.store import Store
from orchestrator.config.result_fields import differing_fields
from orchestrator.config.schema import default_of
from orchestrator.errors import ConfigChangedError, RunInUseError, UnknownRunError
from orchestrator.run.fence import Fence
from orchestrator.run.record import load_record
from orchestrator.sweep.records import RECORD, TrialBook
from orchestrator.sweep.spec import FREE, Sweep, SweepSpec


def refuse_changed(sweep: Sweep, store: Store, book: TrialBook) -> None:
    """Raises ConfigChangedError if the sweep has trials that were started with other settings."""
    with suppress(UnknownRunError):
        record, present = load_record(store, RECORD, sweep.name), sweep.result_fields()
        changes = differing_fields(with_present_schedulers(record.result_fields, present), present)
        if len(book) and changes:
            lines = "\n".join(f"  {name}: {old!r} in the sweep, {new!r} now" for name, old, new in changes)
            raise ConfigChangedError(
                f"Sweep {sweep.name!r} was started with other settings, and these decide its result:\n{lines}\n"
                f"Set them back to continue it, or choose another `sweep:` name (--set sweep=NAME). "
                f"searcher.trials, searcher.points, scaling, {', '.join(FREE[:-1])} and {FREE[-1]} may change."
            )


def with_present_schedulers(stored: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The stored fields of a sweep as they are called now: version 0.2.0 had stopping rules under other names.

    A field that was added later had its present default.
    """
    since = {name: default_of(SweepSpec, name) for name in present if not name.startswith("run.")}
    if "searcher.batch" in stored:
        return {**since, **stored}
    name = stored.get("scheduler.name")
    renamed = {"asha": "asha-stopping", "hyperband": "hyperband (0.2)", "pbt": "pbt (0.2)"}
    known = {"searcher.batch": present["searcher.batch"], "scheduler.name": renamed.get(str(name), name)}
    fields = {**since, **stored, **known}
    return {each: value for each, value in fields.items() if not each.startswith("searcher.points")}


def claim(sweep: Sweep, store: Store, takeover: bool) -> Fence:
    """Claims the sweep for this process.

    Raises:
        ConfigChangedError: it has trials that were started with other settings.
        RunInUseError: another attempt holds it.
    """
    book = TrialBook(store)
    refuse_changed(sweep, store, book)
    try:
        return Fence.claim(
            store, sweep.name, sweep.result_fields(), keep_pins=bool(len(book)), takeover=takeover, key=RECORD
        )
    except RunInUseError as error:
        text = (
            str(error).replace("Run ", "Sweep ", 1).replace("manta train", "manta tune").replace("`run:`", "`sweep:`")
        )
        raise RunInUseError(text) from None
