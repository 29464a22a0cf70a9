"""Utilization equals numbers computed by hand, and is None if an input is not known."""

import pytest

from model.config import ModelConfig
from model.size import flops_per_pair, flops_per_token
from orchestrator.run.utilization import PEAKS, model_flops_per_token, peak_of, utilization


def test_utilization_of_two_workers() -> None:
    # 1e9 FLOPs a token, 1000 tokens in 10 s: 1e11 FLOP/s of 2 x 1e12.
    assert utilization(1e9, 1000, 10.0, 20.0, 1e12) == (1e11, pytest.approx(0.05))


def test_a_change_of_size_counts_each_worker_for_its_own_time() -> None:
    # 5 s of one worker, then 5 s of three.
    assert utilization(1e9, 1000, 10.0, 5.0 + 15.0, 1e12).mfu == pytest.approx(0.05)


def test_unknown_inputs_give_none() -> None:
    assert utilization(None, 1000, 10.0, 20.0, 1e12) == (None, None)
    assert utilization(1e9, 1000, 10.0, 20.0, None) == (1e11, None)
    assert utilization(1e9, 0, 0.0, 0.0, 1e12) == (None, None)


@pytest.mark.parametrize(
    ("device", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H200", 989.5e12, 67e12),
        ("NVIDIA B200", 2.25e15, 75e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362.05e12, 91.6e12),
        ("NVIDIA A10G", 70e12, 35e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("Tesla T4", None, 8.1e12),
        ("Tesla V100-SXM2-16GB", None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 14e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA L40", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("cpu", None, None),
        ("", None, None),
    ],
)
def test_peaks_by_device_name(device: str, bf16: float | None, fp32: float | None) -> None:
    assert (peak_of([device], "bf16"), peak_of([device], "fp32")) == (bf16, fp32)


def test_every_peak_can_be_found_and_has_a_source() -> None:
    for peak in PEAKS:
        assert peak_of([f"NVIDIA {peak.name}"], "fp32") == peak.fp32
        assert peak.source


def test_attempts_on_different_devices_have_no_peak() -> None:
    assert peak_of(["NVIDIA L4", "", "NVIDIA L4"], "bf16") == 121e12
    assert peak_of(["NVIDIA L4", "Tesla T4"], "fp32") is None
    assert peak_of(["NVIDIA L4", "Tesla T4"], "fp32", override=1e12) == 1e12


def test_flops_of_both_shapes() -> None:
    config = ModelConfig(n_layers=2, d_model=32, n_heads=4)
    assert model_flops_per_token(config, 60, 16) == flops_per_token(config, 60, 16)
    pairs = ModelConfig(architecture="encoder_decoder", preset="original", n_layers=2, d_model=24)
    assert model_flops_per_token(pairs, 60, 99, (12, 16)) == flops_per_pair(pairs, 60, 12, 16) / 16
    # Between two lengths that there are, a mean of pairs is between what they take.
    assert flops_per_pair(pairs, 60, 12, 16) < 16.5 * model_flops_per_token(pairs, 60, 99, (12.5, 16.5))
