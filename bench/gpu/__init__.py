"""The stages of `bench/gpu_check.py`. Importing this package puts stand-ins in the place of Ray and of storage clients.

The project's modules import those at their top. So this package has to be imported before any of them, which sorted
imports see to.
"""

import sys
from pathlib import Path

from gpu.stand_ins import StandIns

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where the project is not installed
sys.meta_path.insert(0, StandIns())
