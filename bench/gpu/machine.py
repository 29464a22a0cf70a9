"""Describes the machine, and measures the maximum rates of its card in products and copies."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import torch

from gpu.setting import Setting
from gpu.stages import Found

_SQUARE = 8192

# Rows, inner width and columns of the 124M shape's products over 12 x 1024 tokens; the last two are of one loss chunk.
_PRODUCTS = (
    (12288, 768, 2304),
    (12288, 768, 3072),
    (12288, 3072, 768),
    (1024, 768, 50304),
    (1024, 50304, 768),
)


def machine(setting: Setting) -> Found:
    """Versions and devices, and TFLOP/s and TB/s of the card."""
    found: Found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "c_compiler": shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),  # Triton needs one
    }
    return found | card(setting) if setting.on_gpu else found | {"card": None}


def card(setting: Setting) -> Found:
    """The card, its software, and its rates."""
    properties = torch.cuda.get_device_properties(setting.device)
    found: Found = {
        "card": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
        "cudnn": torch.backends.cudnn.version(),
    }
    source = torch.empty(2**30, device=setting.device)
    target = torch.empty_like(source)
    copy_ms = setting.milliseconds(lambda: target.copy_(source))
    found["copy_tb_per_s"] = round(2 * source.nbytes / copy_ms / 1e9, 3)
    products = ((_SQUARE, _SQUARE, _SQUARE), *_PRODUCTS)
    found["bf16_tflops"] = {"x".join(map(str, sizes)): product_tflops(setting, *sizes) for sizes in products}
    return found


def driver() -> str | None:
    """The driver's version, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        queried = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return queried.stdout.split("\n")[0].strip()


def product_tflops(setting: Setting, rows: int, inner: int, columns: int) -> float:
    """TFLOP/s of a bf16 product of (rows, inner) and (inner, columns)."""
    left = torch.randn(rows, inner, device=setting.device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=setting.device, dtype=torch.bfloat16)
    taken_ms = setting.milliseconds(lambda: left @ right)
    return round(2 * rows * inner * columns / taken_ms / 1e9, 1)
