"""orchestrator.run loads neither Ray nor torch, so `manta show` starts fast and workers decide what they load."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import orchestrator.run

ROOT = Path(__file__).parents[3]
MODULES = sorted(module.name for module in pkgutil.iter_modules(orchestrator.run.__path__, "orchestrator.run."))


def test_no_module_of_run_imports_ray_or_torch() -> None:
    assert "orchestrator.run.summary" in MODULES
    code = f"import sys, {', '.join(MODULES)}; print({{'ray', 'torch', 'pandas'}} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "none"
