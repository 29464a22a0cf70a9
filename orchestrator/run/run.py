"""A stored run: its config, its record, and the stores of the run and its data."""

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
from data.order.known_units import ExcludedDocuments, KnownUnits
from data.prepare import prepare_data
from data.prepared import PreparedData
from data.stores.config import SECRET
from data.stores.open import open_store
from data.stores.s3_access import keys_as_variables
from data.stores.store import Store
from data.tokens.tokenizer import Tokenizer
from orchestrator.config.recipe import RunConfig
from orchestrator.config.result_fields import differing_fields, result_fields
from orchestrator.errors import ConfigChangedError
from orchestrator.run.checkpoint import PROGRESS, fetch_newest
from orchestrator.run.record import RunRecord, load_record
from orchestrator.run.vocabulary import vocabulary_of


@dataclass(frozen=True)
class Group:
    """A sweep, as the runs that are its trials know it.

    Attributes:
        id: the same in every attempt at the sweep, and different for every other sweep and run.
    """

    id: str
    name: str


@dataclass(frozen=True)
class Run:
    """A run that has been started.

    Attributes:
        root: the recipe's `storage`, which also holds manifests, tokenizers and tokenized units.
        store: the run's folder in it.
        group: the sweep that the run is a trial of, if any.
    """

    config: RunConfig
    root: Store
    store: Store
    record: RunRecord
    group: Group | None = None

    def prepare(self, log: Callable[[str], None], start_ray: Callable[[], None] = lambda: None) -> PreparedData:
        """Prepares the data that the run is pinned to; reuses what is already in storage.

        Args:
            log: takes a line of progress.
            start_ray: called before work that needs Ray.

        Raises:
            InputError: the data is gone or has changed, or the vocabulary has more ids than the model's embedding.
        """

        def check(tokenizer: Tokenizer, input_tokenizer: Tokenizer | None) -> None:
            vocabulary_of(self.config, tokenizer, input_tokenizer)

        config = self.config
        return prepare_data(config.data, config.store, self.root, self.record.pins, log, check, start_ray)


def open_run(config: RunConfig) -> Run:
    """Opens the run that the config names.

    Raises:
        UnknownRunError: the run was never started.
        StoreAccessError: the storage cannot be reached.
    """
    root, store = stores(config)
    root.check()
    return Run(config, root, store, load_record(store, name=config.run))


def stores(config: RunConfig) -> tuple[Store, Store]:
    """Opens the recipe's storage, and the run's folder in it."""
    root = open_store(config.storage, config.store)
    return root, root.child(f"runs/{config.run}")


@contextmanager
def reaching_storage(config: RunConfig) -> Iterator[RunConfig]:
    """Yields the config with a reachable object store, and without keys.

    Those of the recipe are in the environment while the block runs. If `store.serve` is set, a local S3 server runs in
    the block; its keys stay in its folder.
    """
    if config.store.serve is None:
        with keys_as_variables(config.store) as store:
            yield config.model_copy(update={"store": store})
        return
    with LocalS3(Path(config.store.serve)) as server:
        paths = (path for source in config.data.sources for path in (source.path, source.input_path) if path)
        urls = [config.storage, *paths]
        for bucket in {urlsplit(url).netloc for url in urls if url.startswith("s3://")}:
            server.ensure_bucket(bucket)
        reach = {"endpoint_url": server.endpoint_url, "serve": str(server.folder), **dict.fromkeys(SECRET)}
        yield config.model_copy(update={"store": config.store.model_copy(update=reach)})


def refuse_changed_config(
    record: RunRecord, config: RunConfig, prefixes: tuple[str, ...] = ("",), ignored: tuple[str, ...] = ()
) -> None:
    """Refuses a config that differs from the run's in fields that decide its result.

    Args:
        prefixes: only fields whose dotted names start with one of these are compared.
        ignored: names of fields that may differ.

    Raises:
        ConfigChangedError: fields differ; the message lists them.
    """
    differing = [
        each
        for each in differing_fields(record.result_fields, result_fields(config))
        if each[0].startswith(prefixes) and each[0] not in ignored
    ]
    if differing:
        changes = "\n".join(f"  {name}: {old!r} in the run, {new!r} now" for name, old, new in differing)
        raise ConfigChangedError(
            f"Run {config.run!r} was started with other settings, and these decide its result:\n{changes}\n"
            f"Set them back to continue it, or choose another `run:` name (--set run=NAME) to start a new run."
        )


def feed_spec(run: Run, data: PreparedData) -> FeedSpec:
    """Builds the spec of the run's feeder; known units and the first step come from the newest checkpoint."""
    train, known, step = run.config.train, data.known(), 0
    with tempfile.TemporaryDirectory(prefix="manta-progress-") as scratch:
        fetched = fetch_newest(run.store, run.record, (PROGRESS,), Path(scratch))
        if fetched is not None:
            step, state = fetched[0].step, fetched[1]
            saved = load_file(Path(scratch) / PROGRESS)["counts"]
            if data.unit_table is None:
                skipped = {int(unit): reason for unit, reason in state["skipped"].items()}
                known = KnownUnits(saved, skipped, ExcludedDocuments.of_json(state.get("excluded", {})))
    return FeedSpec(
        data.manifest, data.job, run.config.seed, train.global_batch_size, train.micro_batch_size, known, step
    )
