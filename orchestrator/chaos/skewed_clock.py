"""A clock that is wrong, for the Python processes of one node.

Linux has no clock of its own for a group of processes, so Python's is shifted when a process starts: Python imports the
module `sitecustomize` before anything else. Shifted are `time.time` and `time.time_ns`, and with them logging and what
else calls these. Not shifted are `datetime.now` (which no part of a run's protocol uses), times of files, and the clock
of processes that are not Python, such as the raylet.
"""

from __future__ import annotations

import os
from pathlib import Path

_CODE = """import time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {seconds}
time.time_ns = lambda: _time_ns() + {seconds} * 10**9
"""


def skewed(folder: Path, seconds: int) -> dict[str, str]:
    """Variables for processes whose clock is `seconds` ahead, or behind if negative.

    Args:
        folder: for the module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_CODE.format(seconds=seconds))
    found = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in found if path)}
