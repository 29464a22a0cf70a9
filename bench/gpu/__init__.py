"""The stages of `bench/gpu_check.py`. Importing this package replaces Ray and storage clients by stand-ins.

The project's modules import those at their top, so this package must be imported before any of them, which the sorting
of imports ensures.
"""

import sys
from pathlib import Path

from gpu.stand_ins import StandIns

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where the project is not installed
sys.meta_path.insert(0, StandIns())
