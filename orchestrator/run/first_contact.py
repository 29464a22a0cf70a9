"""First contact with a storage: one that has answered before is waited for; a wrong address is an error at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.errors import StoreSilentError, TransientStoreError
from data.stores.patience import Patience, telling
from data.stores.s3_access import S3Access
from data.stores.store import Store, prove
from orchestrator.config.recipe import RunConfig

KNOWN = Path(".manta/endpoints")
"""Where object stores have answered a command in this folder; a line each."""


def reach_storage(root: Store, config: RunConfig, log: Callable[[str], None]) -> None:
    """Checks that the storage answers.

    Silence of an endpoint that has answered a command in this folder is an outage, which passes: it is waited for, for
    `store.patience`. Silence of any other is an error: that is what a wrong address looks like.

    Args:
        root: the recipe's storage.
        log: takes a line of progress.

    Raises:
        StoreAccessError: the storage cannot be used.
        TransientStoreError: it is known, and has been silent for `store.patience`.
    """
    where = S3Access.of(config.store).where

    def ask() -> None:
        try:
            root.check()
        except StoreSilentError as error:
            if where not in _known():
                raise
            raise TransientStoreError(str(error)) from error

    Patience(config.store.patience, telling(log, "starting")).call(ask)
    is_remote = config.storage.startswith("s3://") and config.store.serve is None
    if is_remote and where not in _known():
        prove(root)
        _remember(where)


def _known() -> list[str]:
    try:
        return KNOWN.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _remember(where: str) -> None:
    try:
        KNOWN.parent.mkdir(parents=True, exist_ok=True)
        with KNOWN.open("a") as known:
            known.write(f"{where}\n")
    except OSError:  # a convenience: an unwritable folder must not prevent training
        return
