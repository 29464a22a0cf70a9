"""Checks of what a run needs besides this machine: the object storage and Ray."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from data.config import StoreConfig
from data.errors import ConflictError, MantaError
from data.stores.open import open_store
from orchestrator.commands.doctor.check import Check, run_python, short
from orchestrator.config.recipe import RunConfig

_TRY_RAY = """
import json, os, ray
there = os.environ.get("RAY_ADDRESS")
local = {} if there else {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
ray.init(address=there or "local", logging_level="ERROR", log_to_driver=False, **local)
answer = ray.get(ray.remote(lambda: 6 * 7).options(num_cpus=0.1).remote(), timeout=60)
resources = ray.cluster_resources()
ray.shutdown()
print(json.dumps({"version": ray.__version__, "answer": answer, "cpus": resources.get("CPU", 0)}))
"""


def check_recipe_storage(config: RunConfig) -> Check:
    """Checks the recipe's storage; starts its local server if it has one."""
    from orchestrator.run.run import reaching_storage  # imports packages that may be broken

    with reaching_storage(config) as config:
        return check_storage(config.storage, config.store)


def check_storage(url: str, config: StoreConfig) -> Check:
    """Checks write, read, list, delete, and both conditional writes in success and conflict, under a key of its own."""
    name = "object storage"
    try:
        store = open_store(url, config)
        store.check()
        key = f"doctor/{secrets.token_hex(8)}"
        store.put(key, b"first")
        try:
            wrong = [what for what, right in _store_answers(store, key) if not right]
        finally:
            store.delete(key)
        if store.head(key) is not None:
            wrong.append("delete does not remove")
    except MantaError as error:
        return Check(name, "fail", f"{url}: {error}", "Fix what the message names, then run manta doctor again.")
    if wrong:
        remedy = "Two attempts at one run could overwrite each other. Use a store with conditional writes."
        return Check(name, "fail", f"{url}: {'; '.join(wrong)}", remedy)
    return Check(name, "ok", f"{url}: write, read, list, conditional puts, delete")


def check_ray(timeout_s: float = 120) -> Check:
    """Checks that Ray can be imported, starts or joins a cluster, and runs a task."""
    where = os.environ.get("RAY_ADDRESS")
    name = f"Ray at {where}" if where else "Ray on this machine"
    remedy = (
        f"Check that the cluster of RAY_ADDRESS={where} is up and has the same versions of Ray and Python, or unset "
        "RAY_ADDRESS to run locally."
        if where
        else "The logs are in /tmp/ray/session_latest/logs. To end a cluster left over from before: ray stop"
    )
    try:
        answer = run_python(_TRY_RAY, timeout_s=timeout_s)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Check(name, "fail", short(error), remedy)
    if answer["answer"] != 42:
        return Check(name, "fail", f"a task returned {answer['answer']} for 6 * 7", remedy)
    return Check(name, "ok", f"{answer['version']}, ran a task" + (f", {answer['cpus']:.0f} CPUs" if where else ""))


def _store_answers(store: Any, key: str) -> Iterator[tuple[str, bool]]:
    """Yields what could be wrong with the store, and whether the store is right there."""
    yield "a read does not return what was written", store.get(key) == b"first"
    yield "list does not show a written object", key in [info.key for info in store.list("doctor/")]
    yield "put-if-absent overwrites an existing object", _conflicts(lambda: store.put_if_absent(key, b"second"))
    stale = store.head(key).etag
    fresh = store.put_if_match(key, b"third", stale)
    yield "put-if-match overwrites a changed object", _conflicts(lambda: store.put_if_match(key, b"fourth", stale))
    yield "put-if-match does not overwrite an unchanged object", store.get(key) == b"third"
    store.put_if_match(key, b"fifth", fresh)
    store.delete(key)
    store.put_if_absent(key, b"sixth")
    yield "put-if-absent does not write a new object", store.get(key) == b"sixth"


def _conflicts(write: Callable[[], object]) -> bool:
    try:
        write()
    except ConflictError:
        return True
    return False
