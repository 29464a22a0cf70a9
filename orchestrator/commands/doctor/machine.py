"""Checks of this machine: cores, memory, disk and GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from orchestrator.commands.doctor.check import Check, run_python
from orchestrator.config.recipe import RunConfig

_TRY_CUDA = """
import json, torch
print(json.dumps({"usable": torch.cuda.is_available(), "cuda": torch.version.cuda}))
"""


def check_cores(config: RunConfig | None) -> Check:
    """Checks that this machine has cores for the recipe's workers; a cluster may have more."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config is None:
        return Check("cores", "ok", f"{cores}")
    wanted = config.scaling.num_workers * config.scaling.cpus_per_worker
    if wanted > cores and not os.environ.get("RAY_ADDRESS"):
        fitting = max(1, cores // config.scaling.cpus_per_worker)
        remedy = f"Without a cluster (RAY_ADDRESS), use --set scaling.num_workers={fitting}"
        return Check("cores", "warn", f"{cores}, the recipe asks for {wanted}", remedy)
    return Check("cores", "ok", f"{cores}, the recipe asks for {wanted}")


def check_memory() -> Check:
    """Checks that there is memory for Ray, two workers and a small model."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read_int(Path("/sys/fs/cgroup/memory.max"))  # the limit of a container
    available = min(total, limit) if limit else total
    found = f"{available / 1e9:.1f} GB" + (" (limit of the container)" if limit and limit < total else "")
    if available < 3e9:
        return Check("memory", "fail", found, "Ray and one worker need 3 GB; use a larger machine, or raise the limit.")
    if available < 6e9:
        return Check("memory", "warn", found, "Enough for one worker; two workers and the S3 server need 6 GB.")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Checks that there is disk space for tokenized data, checkpoints and Ray's own files."""
    free_bytes = {str(folder): shutil.disk_usage(folder).free, "/tmp": shutil.disk_usage("/tmp").free}
    found = ", ".join(f"{free / 1e9:.1f} GB free in {path}" for path, free in free_bytes.items())
    least = min(free_bytes.values())
    if least < 1e9:
        return Check("disk", "fail", found, "Free some space: shards, checkpoints and Ray's files in /tmp need it.")
    if least < 5e9:
        return Check("disk", "warn", found, "Ray slows down and warns when a disk is 95 % full.")
    return Check("disk", "ok", found)


def check_gpus() -> Check:
    """Checks whether there are GPUs, and whether torch can use them."""
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
    torch_says = run_python(_TRY_CUDA, timeout_s=40)
    if not torch_says["usable"]:
        remedy = "This torch has no CUDA, or a CUDA that the driver does not support. "
        remedy += "Run pip install torch==2.13.0 with the default index."
        return Check("GPUs", "warn", f"{found}; torch (CUDA {torch_says['cuda']}) cannot use them", remedy)
    return Check("GPUs", "ok", f"{found}; CUDA {torch_says['cuda']}")


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
