"""A run from the outside: its config, its record, and where it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from safetensors.numpy import load_file

from cluster.local.s3 import LocalS3
from data.feed.spec import FeedSpec
from data.order.known_units import Excluded, KnownUnits
from data.prepare import PreparedData, prepare_data
from data.stores.open import open_store
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import differing_fields, result_fields
from orchestrator.errors import ConfigChangedError
from orchestrator.run.checkpoint import PROGRESS, fetch_newest
from orchestrator.run.record import RunRecord, load_record
from orchestrator.run.vocabulary import vocabulary_of


@dataclass(frozen=True)
class Run:
    """A run that exists: its record, and where it and the data it was made from are kept.

    Attributes:
        root: the recipe's `storage`.
        store: the run's own folder in it.
    """

    config: RunConfig
    root: Store
    store: Store
    record: RunRecord

    def prepare(self, tell: Callable[[str], None], start_ray: Callable[[], None] = lambda: None) -> PreparedData:
        """The data this run is pinned to, read from storage as far as it is there.

        Raises:
            InputError: the data is gone or has changed, or the model has no room for its vocabulary.
        """

        def check(tokenizer: Tokenizer, input_tokenizer: Tokenizer | None) -> None:
            vocabulary_of(self.config, tokenizer, input_tokenizer)

        config = self.config
        return prepare_data(config.data, config.store, self.root, self.record.pins, tell, check, start_ray)


def open_run(config: RunConfig) -> Run:
    """The run the recipe names.

    Raises:
        UnknownRunError: it was never started.
        StoreAccessError: its storage cannot be reached.
    """
    root, store = stores(config)
    root.check()
    return Run(config, root, store, load_record(store))


def stores(config: RunConfig) -> tuple[Store, Store]:
    """The recipe's storage, and the run's folder in it."""
    root = open_store(config.storage, config.store)
    return root, root.child(f"runs/{config.run}")


@contextmanager
def reaching_storage(config: RunConfig) -> Iterator[RunConfig]:
    """The config with its object store within reach: where the recipe asks to serve one, it runs inside the block."""
    if config.store.serve is None:
        yield config
        return
    with LocalS3(Path(config.store.serve)) as server:
        paths = (path for source in config.data.sources for path in (source.path, source.input_path) if path)
        urls = [config.storage, *paths]
        for bucket in {urlsplit(url).netloc for url in urls if url.startswith("s3://")}:
            server.ensure_bucket(bucket)
        reach = {
            "endpoint_url": server.endpoint_url,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
        }
        yield config.model_copy(update={"store": config.store.model_copy(update=reach)})


def refuse_changed_config(
    record: RunRecord, config: RunConfig, of: tuple[str, ...] = ("",), but: tuple[str, ...] = ()
) -> None:
    """Raises ConfigChangedError if the run was begun with other values of fields that decide its result.

    Args:
        of: how the names of the fields begin that are looked at, if not all are.
        but: names that may differ.
    """
    differing = [
        each
        for each in differing_fields(record.result_fields, result_fields(config))
        if each[0].startswith(of) and each[0] not in but
    ]
    if differing:
        changes = "\n".join(f"  {name}: {old!r} in the run, {new!r} now" for name, old, new in differing)
        raise ConfigChangedError(
            f"Run {config.run!r} was begun with other settings, and these decide its result:\n{changes}\n"
            f"Set them back to continue it, or choose another `run:` name (--set run=NAME) to begin a new one."
        )


def feed_spec(run: Run, data: PreparedData) -> FeedSpec:
    """What the run's feeder has to know: the run's data and, from its newest checkpoint, how far it is known."""
    train, known, step = run.config.train, data.known(), 0
    with tempfile.TemporaryDirectory(prefix="manta-progress-") as scratch:
        fetched = fetch_newest(run.store, run.record, (PROGRESS,), Path(scratch))
        if fetched is not None:
            step, state = fetched[0].step, fetched[1]
            saved = load_file(Path(scratch) / PROGRESS)["counts"]
            if data.unit_table is None:
                skipped = {int(unit): reason for unit, reason in state["skipped"].items()}
                known = KnownUnits(saved, skipped, Excluded.of_json(state.get("excluded", {})))
    return FeedSpec(
        data.manifest, data.job, run.config.seed, train.global_batch_size, train.micro_batch_size, known, step
    )
