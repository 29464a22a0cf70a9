"""The learning rate as a pure function of the step, so that no state is saved or restored."""

import math

from model.optim.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak_lr: float, step: int, total_steps: int) -> float:
    """Learning rate of the update that follows `step` updates.

    With s = step, W = warmup_steps, S = total_steps, D = decay_steps and f = final_lr_fraction, every schedule is the
    peak times:

    - warm-up, s < W: (s + 1) / (W + 1). It counts from 1 so that the first update is not wasted on a rate of 0.
    - constant: 1.
    - cosine: f + (1 - f) (1 + cos(pi (s - W) / (S - W))) / 2 (Loshchilov & Hutter 2017, eq. 5, without restarts).
    - wsd: 1 until S - D, then linear down to f at S. The three phases are those of Hu et al. 2024 (MiniCPM,
      section 4.2); they decay exponentially, but a linear decay has a final rate, which f can state.
    - inverse_sqrt: sqrt((W + 1) / (s + 1)) (Vaswani et al. 2017, eq. 3, scaled to reach the peak at s = W). It is
      theirs exactly, steps counted from 1 and warmup_steps of theirs being W + 1, where the peak is
      1 / sqrt(d_model (W + 1)).

    The formulas agree where phases meet. Steps at or beyond S keep the rate of S, so a run that is extended a little
    continues at a low rate; its last update, after S - 1 others, has a slightly higher rate.

    Args:
        config: which schedule, and its lengths.
        peak_lr: learning rate at the end of warm-up.
        step: optimizer updates already applied, >= 0.
        total_steps: updates in the whole run.

    Raises:
        ValueError: the phases do not fit into `total_steps`.
    """
    check_schedule(config, total_steps)
    step = min(step, total_steps)
    if step < config.warmup_steps:
        return peak_lr * (step + 1) / (config.warmup_steps + 1)
    return peak_lr * _fraction_after_warmup(config, step, total_steps)


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Refuses a schedule whose phases do not fit; called before a run starts.

    Raises:
        ValueError: warm-up fills the run, or warm-up and final decay together exceed it.
    """
    if config.warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} leaves no steps of total_steps={total_steps} to train at the peak. "
            f"Largest that does: {max(total_steps - 1, 0)}."
        )
    if config.decay_steps is not None and config.warmup_steps + config.decay_steps > total_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} and decay_steps={config.decay_steps} together exceed "
            f"total_steps={total_steps}. Largest decay_steps that fits: {total_steps - config.warmup_steps}."
        )


def _fraction_after_warmup(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Fraction of the peak at a step from warmup_steps up to total_steps, both included."""
    final = config.final_lr_fraction
    match config.name:
        case "constant":
            return 1.0
        case "cosine":
            progress = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
            return final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0
        case "wsd":
            remaining = (total_steps - step) / _decay_steps(config, total_steps)
            return final + (1.0 - final) * min(remaining, 1.0)
        case "inverse_sqrt":
            return math.sqrt((config.warmup_steps + 1) / (step + 1))


def _decay_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Length of the final decay; by default 10 % of the run, rounded up, or what warm-up leaves if that is less."""
    if config.decay_steps is not None:
        return config.decay_steps
    return min(-(-total_steps // 10), total_steps - config.warmup_steps)
