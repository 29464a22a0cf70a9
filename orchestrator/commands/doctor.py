"""`manta doctor`: is this machine, its packages, the object storage and Ray fit for a run, and if not, what to do.

Every check is bounded in time, and none can stop the others. Ray and torch are tried in processes of their own, which
can be ended when they hang and leave this one as it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data.config import StoreConfig
from data.errors import ConflictError, MantaError
from orchestrator.config.recipe import RunConfig

_ROOT = Path(__file__).resolve().parent.parent

# Other releases of these may well fail or learn something else; of the rest, they should merely work.
_EXACT = ("ray", "torch")

_SET_UP = "Set up again: make .venv/.ready, or pip install -c constraints.txt -e ."

_TRY_RAY = """
import json, os, ray
there = os.environ.get("RAY_ADDRESS")
local = {} if there else {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
ray.init(address=there, logging_level="ERROR", log_to_driver=False, **local)
answer = ray.get(ray.remote(lambda: 6 * 7).options(num_cpus=0.1).remote(), timeout=60)
resources = ray.cluster_resources()
ray.shutdown()
print(json.dumps({"version": ray.__version__, "answer": answer, "cpus": resources.get("CPU", 0)}))
"""

_TRY_CUDA = """
import json, torch
print(json.dumps({"usable": torch.cuda.is_available(), "cuda": torch.version.cuda}))
"""


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, what was found, and what to do about it where something is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The fields, for JSON."""
        return asdict(self)


def examine(config: RunConfig | None, *, on_machine_only: bool = False) -> list[Check]:
    """All checks, with the object storage of `config` if there is one.

    Args:
        config: the recipe whose storage is tried.
        on_machine_only: leave out what starts or asks another process: GPUs, storage and Ray.
    """
    checks = [check_python(sys.version_info), *check_packages(_installed(), _direct_pins(), _all_pins())]
    checks += [check_cores(config), check_memory(), check_disk(Path.cwd())]
    if on_machine_only:
        return checks
    checks.append(_bounded("GPUs", 60, check_gpus))
    if config is not None:
        checks.append(_bounded("object storage", 90, lambda: check_recipe_storage(config)))
    else:
        checks.append(Check("object storage", "ok", "not tried", "To try it: manta doctor RECIPE"))
    checks.append(check_ray())
    return checks


def print_checks(checks: Sequence[Check]) -> None:
    """A table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "check", "found", "what to do", title_justify="left")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        table.add_row(
            Text(check.status, style=colours[check.status]), Text(check.name), Text(check.found), Text(check.remedy)
        )
    Console().print(table)


def check_python(version: tuple[Any, ...]) -> Check:
    """Is the interpreter one that Manta runs on?"""
    found = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) < (3, 11):
        return Check("Python", "fail", found, "Install 3.11 or newer, then make PYTHON=/path/to/python3.11 …")
    return Check("Python", "ok", found)


def check_packages(installed: Mapping[str, str], direct: Mapping[str, str], pins: Mapping[str, str]) -> list[Check]:
    """Are all packages there, in the versions the project is tested with?

    Args:
        installed: version by name of what is installed.
        direct: pinned version by name of what Manta itself imports.
        pins: pinned version by name of the whole tree.
    """
    if not pins:
        return [Check("packages", "warn", "constraints.txt is not here, so versions cannot be compared", "")]
    checks = []
    for name, wanted in direct.items():
        found = installed.get(name)
        if found is None:
            checks.append(Check(name, "fail", "not installed", _SET_UP))
        elif name in _EXACT and _public(found) != wanted:
            checks.append(Check(name, "fail", f"{found}, needs {wanted}", _SET_UP))
    named = {check.name for check in checks}
    others = [n for n, v in pins.items() if n in installed and n not in named and _public(installed[n]) != v]
    if others:
        shown = ", ".join(f"{name} {installed[name]} (tested: {pins[name]})" for name in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        checks.append(Check("packages", "warn", shown + more, _SET_UP))
    if not checks:
        exact = ", ".join(f"{name} {direct[name]}" for name in _EXACT if name in direct)
        checks.append(Check("packages", "ok", f"{sum(name in installed for name in pins)} as tested, {exact}"))
    return checks


def check_cores(config: RunConfig | None) -> Check:
    """Are there cores for the workers? (Those of this machine; a cluster may have more.)"""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config is None:
        return Check("cores", "ok", f"{cores}")
    wanted = config.scaling.num_workers * config.scaling.cpus_per_worker
    if wanted > cores and not os.environ.get("RAY_ADDRESS"):
        fitting = max(1, cores // config.scaling.cpus_per_worker)
        remedy = f"Without a cluster (RAY_ADDRESS): --set scaling.num_workers={fitting}"
        return Check("cores", "warn", f"{cores}, the recipe asks for {wanted}", remedy)
    return Check("cores", "ok", f"{cores}, the recipe asks for {wanted}")


def check_memory() -> Check:
    """Is there memory for Ray, two workers and a small model?"""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_int(Path("/sys/fs/cgroup/memory.max"))  # a container's own, if it has one
    available = min(total, limit) if limit else total
    found = f"{available / 1e9:.1f} GB" + (" (limit of the container)" if limit and limit < total else "")
    if available < 3e9:
        return Check("memory", "fail", found, "Ray and one worker need 3 GB; use a larger machine or raise the limit.")
    if available < 6e9:
        return Check("memory", "warn", found, "Enough for one worker; two and the S3 server want 6 GB.")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Is there room for tokenized data, checkpoints and Ray's own files?"""
    places = {str(folder): shutil.disk_usage(folder).free, "/tmp": shutil.disk_usage("/tmp").free}
    found = ", ".join(f"{free / 1e9:.1f} GB free in {place}" for place, free in places.items())
    least = min(places.values())
    if least < 1e9:
        return Check("disk", "fail", found, "Free some: shards, checkpoints and Ray's files in /tmp need room.")
    if least < 5e9:
        return Check("disk", "warn", found, "Ray slows down and complains when a disk is 95 % full.")
    return Check("disk", "ok", found)


def check_gpus() -> Check:
    """Are there GPUs, and can torch use them?"""
    if shutil.which("nvidia-smi") is None:
        return Check("GPUs", "ok", "none; training on CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, timeout=15)
    names = [line.strip() for line in listed.stdout.splitlines() if line.strip()]
    if listed.returncode != 0 or not names:
        return Check(
            "GPUs", "warn", f"nvidia-smi: {(listed.stderr or listed.stdout).strip()[:200]}", "Check the driver."
        )
    found = "; ".join(names)
    torch_says = _run_python(_TRY_CUDA, timeout_s=40)
    if not torch_says["usable"]:
        remedy = "This torch has no CUDA, or another driver's. pip install torch==2.13.0 from the default index."
        return Check("GPUs", "warn", f"{found}; torch (CUDA {torch_says['cuda']}) cannot use them", remedy)
    return Check("GPUs", "ok", f"{found}; CUDA {torch_says['cuda']}")


def check_recipe_storage(config: RunConfig) -> Check:
    """Does the recipe's storage do all that a run asks of it? Its local server is started if it has one."""
    from orchestrator.run.run import reaching_storage  # takes Ray to import, which may be what is broken

    with reaching_storage(config) as config:
        return check_storage(config.storage, config.store)


def check_storage(url: str, config: StoreConfig) -> Check:
    """Write, read, list, both conditional puts both ways, and delete, under a key of its own."""
    from data.stores.open import open_store

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
        return Check(name, "fail", f"{url}: {error}", "Put right what is named, then run manta doctor again.")
    if wrong:
        remedy = "Two attempts at one run could overwrite each other: use a store with conditional writes."
        return Check(name, "fail", f"{url}: {'; '.join(wrong)}", remedy)
    return Check(name, "ok", f"{url}: write, read, list, conditional puts, delete")


def check_ray(timeout_s: float = 120) -> Check:
    """Does Ray import, start or join a cluster, and run a task?"""
    where = os.environ.get("RAY_ADDRESS")
    name = f"Ray at {where}" if where else "Ray on this machine"
    remedy = (
        f"Is the cluster of RAY_ADDRESS={where} up, and of the same Ray and Python version? Unset it to run locally."
        if where
        else "The logs are in /tmp/ray/session_latest/logs. A left-over cluster is ended by: ray stop"
    )
    try:
        answer = _run_python(_TRY_RAY, timeout_s=timeout_s)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Check(name, "fail", _short(error), remedy)
    if answer["answer"] != 42:
        return Check(name, "fail", f"a task returned {answer['answer']} for 6 * 7", remedy)
    return Check(name, "ok", f"{answer['version']}, ran a task" + (f", {answer['cpus']:.0f} CPUs" if where else ""))


def _store_answers(store: Any, key: str) -> Iterator[tuple[str, bool]]:
    """What could be wrong with the store, and whether it is right."""
    yield "what was written is not what is read", store.get(key) == b"first"
    yield "list does not show what was written", key in [info.key for info in store.list("doctor/")]
    yield "put-if-absent overwrites what is there", _conflicts(lambda: store.put_if_absent(key, b"second"))
    stale = store.head(key).etag
    fresh = store.put_if_match(key, b"third", stale)
    yield "put-if-match overwrites what has changed", _conflicts(lambda: store.put_if_match(key, b"fourth", stale))
    yield "put-if-match does not write what has not", store.get(key) == b"third"
    store.put_if_match(key, b"fifth", fresh)
    store.delete(key)
    store.put_if_absent(key, b"sixth")
    yield "put-if-absent does not write what is absent", store.get(key) == b"sixth"


def _conflicts(write: Callable[[], object]) -> bool:
    try:
        write()
    except ConflictError:
        return True
    return False


def _bounded(name: str, limit_s: float, check: Callable[[], Check]) -> Check:
    """The check's result, or a failure if it raises or takes longer than `limit_s`."""
    results: list[Check] = []

    def attempt() -> None:
        try:
            results.append(check())
        except Exception as error:  # whatever it is, the other checks are still worth making
            results.append(Check(name, "fail", f"{type(error).__name__}: {_short(error)}", ""))

    # A daemon, because a thread cannot be ended: one that hangs must not keep the command from leaving.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(limit_s)
    return results[0] if results else Check(name, "fail", f"no answer within {limit_s:.0f} s", "")


def _run_python(program: str, timeout_s: float) -> dict[str, Any]:
    """The JSON that `program` prints last, run by this interpreter in a process that is killed at the time limit.

    Raises:
        RuntimeError: it failed; with its last line.
        TimeoutExpired: it took too long. Ray's processes die with the one that started them.
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout_s)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _installed() -> dict[str, str]:
    return {_canonical(d.metadata["Name"]): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}


def _direct_pins() -> dict[str, str]:
    """The pins of what pyproject.toml names as dependencies."""
    import tomllib

    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    except FileNotFoundError:
        return {}
    pins = _all_pins()
    names = [_canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in project["dependencies"]]
    return {name: pins[name] for name in names if name in pins}


def _all_pins() -> dict[str, str]:
    try:
        lines = (_ROOT / "constraints.txt").read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {_canonical(name): version.strip() for name, version in pairs}


def _canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _public(version: str) -> str:
    """A version without its local part: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def _short(error: object) -> str:
    return str(error).strip()[:300]


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
