"""The check of one GPU, on a CPU: it runs to its end there, and keeps to its budget."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

STAGES = {
    "machine",
    "correctness",
    "speed_124m",
    "top_kernels",
    "host_syncs",
    "lost_peers",
    "snapshots",
    "loss_alone",
    "speed_350m",
    "speed_encoder_decoder",
    "regrouping",
    "attention_alone",
    "speed_760m",
}


@pytest.mark.slow
def test_every_stage_finds_something_on_a_cpu(tmp_path: Path) -> None:
    stages = check(tmp_path, budget_s=120)["stages"]
    assert stages.keys() == STAGES
    assert not [name for name, found in stages.items() if "failed" in found or "left_out" in found]
    assert stages["correctness"]["right"]
    assert stages["correctness"]["fp32"]["same_bits_twice"]
    assert stages["speed_124m"]["last_loss"] < stages["speed_124m"]["first_loss"]
    assert stages["top_kernels"]["top_ms_and_calls"]
    assert stages["loss_alone"]["gradient_error"] < 0.02
    for case in ("dies, leave_group", "never_comes, leave_group"):
        found = stages["lost_peers"][case]
        assert "raised" in found["collective"], "a collective without its other rank must not return"
        assert found["next_group"]["returned"] == 1.0
    assert len(stages["regrouping"]["first_step_s"]) == 4


@pytest.mark.slow
def test_without_a_budget_every_stage_is_left_out_and_says_so(tmp_path: Path) -> None:
    stages = check(tmp_path, budget_s=0)["stages"]
    assert stages.keys() == STAGES
    assert all(found.keys() == {"left_out"} for found in stages.values())


def check(out: Path, budget_s: float) -> dict[str, Any]:
    """What the check wrote."""
    script = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--device", "cpu", "--tiny"]
    subprocess.run([*script, "--budget", str(budget_s), "--out", str(out)], cwd=ROOT, timeout=300, check=True)
    found: dict[str, Any] = json.loads((out / "gpu_check.json").read_text())
    return found
