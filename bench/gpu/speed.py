"""Measures the speed of whole steps, their time by kernel, and how often they make the host wait for the device."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu.setting import Setting
from gpu.stages import Found
from gpu.training import ENCODER_DECODER, GPT2_124M, GPT2_350M, GPT2_760M, WARMUP_STEPS, Shape, Training, sized
from orchestrator.train.step import apply_update, compute
from orchestrator.train.step_sync import StepDirective

_TOP = 25
"""Kernels that the profile lists."""


def speed_124m(setting: Setting) -> Found:
    """GPT-2's smallest shape, compiled and not."""
    found = speed_of(GPT2_124M, setting, steps=10)
    found["not_compiled"] = speed_of(GPT2_124M, setting, steps=6, compiled=False) if setting.on_gpu else None
    return found


def speed_350m(setting: Setting) -> Found:
    """24 layers of 1024."""
    return speed_of(GPT2_350M, setting)


def speed_760m(setting: Setting) -> Found:
    """24 layers of 1536."""
    return speed_of(GPT2_760M, setting)


def speed_encoder_decoder(setting: Setting) -> Found:
    """The base model of Vaswani et al. 2017."""
    return speed_of(ENCODER_DECODER, setting)


def speed_of(shape: Shape, setting: Setting, steps: int = 6, compiled: bool = True) -> Found:
    """Tokens/s and MFU of a shape."""
    training = begun(sized(shape, setting), setting, compiled=compiled)
    found = training.run(WARMUP_STEPS + (2 if setting.tiny else steps)).speed()
    del training
    setting.release()
    return found


def begun(shape: Shape, setting: Setting, *, compiled: bool) -> Training:
    """A run without earlier compiled code. On a CPU nothing is compiled."""
    torch._dynamo.reset()
    return Training(shape, setting, compiled=compiled and setting.on_gpu)


def top_kernels(setting: Setting) -> Found:
    """A step of the 124M shape, kernel by kernel."""
    training = begun(sized(GPT2_124M, setting), setting, compiled=True).run(WARMUP_STEPS)
    # The device's activities alone: an operation's own entry would count the time of its kernels once more.
    with profile(activities=[ProfilerActivity.CUDA if setting.on_gpu else ProfilerActivity.CPU]) as profiled:
        step = training.step()
    kernels = [each for each in profiled.key_averages() if not getattr(each, "is_user_annotation", False)]
    kernels.sort(key=lambda each: self_us(each, setting), reverse=True)
    return {
        "step_ms": round(1e3 * step.seconds, 2),
        "busy_ms": round(sum(self_us(each, setting) for each in kernels) / 1e3, 2),
        "top_ms_and_calls": [
            [each.key[:100], round(self_us(each, setting) / 1e3, 3), each.count] for each in kernels[:_TOP]
        ],
    }


def self_us(entry: Any, setting: Setting) -> float:
    """Microseconds of a profile's entry, without those of entries it called."""
    return float(entry.self_device_time_total if setting.on_gpu else entry.self_cpu_time_total)


def host_syncs(setting: Setting) -> Found:
    """How often each part of a step makes the host wait for the GPU, and the source lines."""
    if not setting.on_gpu:
        return {"note": "only a GPU computes beside the host"}
    training = begun(sized(GPT2_124M.with_model(n_layers=2), setting), setting, compiled=False).run(WARMUP_STEPS)
    counts, places = {}, []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for part, body in parts_of_step(training).items():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                body()
            waits = [each for each in caught if "synchroniz" in str(each.message)]
            counts[part] = len(waits)
            places += [f"{part}: {each.filename}:{each.lineno}" for each in waits]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"micro_batches": len(training.share.batches), "waits": counts, "places": sorted(set(places))}


def parts_of_step(training: Training) -> dict[str, Any]:
    """The three parts of a step, to be called in order."""
    config, setting = training.config, training.setting
    done: list[Any] = []
    return {
        "compute": lambda: done.extend(compute(training.ddp, training.share, config, 0, setting.device)),
        "combine": lambda: done[0].combine(StepDirective(), 0, done[1]),
        "update": lambda: apply_update(training.model, training.optimizer, training.shape.lr, config.train.grad_clip),
    }
