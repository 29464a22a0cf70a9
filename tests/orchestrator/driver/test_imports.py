"""The driver, the monitor and Ray Train's controller start without torch, whose import takes seconds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

CODE = """
import sys
import orchestrator.driver.attempt
import orchestrator.driver.monitor
import orchestrator.workers.hooks
import orchestrator.workers.pool
import orchestrator.workers.ray_train
print([name for name in ("torch", "ray.train.torch") if name in sys.modules])
"""


def test_driver_monitor_and_controller_import_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
