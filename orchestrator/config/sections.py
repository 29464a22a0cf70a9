"""The recipe sections `train`, `scaling`, `checkpoint`, `eval` and `sample`, which belong to the orchestrator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.section import Section, StoreUrlOrPath
from model.optim.config import OptimizerConfig, ScheduleConfig


class TrainConfig(Section):
    """Length of the run, batch size, learning rate and optimizer."""

    steps: int = Field(ge=1, description="Optimizer updates in the whole run: the run ends after this step.")
    global_batch_size: int = Field(
        ge=1, description="Sequences in one step, over all workers; fixed for a run, whatever the number of workers."
    )
    micro_batch_size: int = Field(ge=1, description="Sequences in one forward pass on one worker.")
    lr: float = Field(gt=0, allow_inf_nan=False, description="Peak learning rate; the schedule scales it.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer and its constants.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over the run.")
    grad_clip: float | None = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Maximum norm of a step's gradient; a larger gradient is scaled down to it. null: no clipping.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Decay of an exponential moving average of the weights (0.999 is usual), which is evaluated and "
        "exported in their place; the decay of a step is min(ema_decay, (1 + step) / (10 + step)). null: no average.",
    )
    max_loss_jump: float | None = Field(
        3.0,
        gt=1,
        allow_inf_nan=False,
        description="A loss this many times the median of the 64 steps before is a loss spike, like a loss or gradient "
        "that is not finite: the workers restart from the last saved state and skip that step's data, once in a run. "
        "null: only a loss or gradient that is not finite is a spike.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each target's probability that is spread over the whole vocabulary during training.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format of forward and backward passes; weights and optimizer state stay fp32."
    )
    compile: bool = Field(False, description="Whether torch.compile compiles the model, once, before the first step.")
    init_from: StoreUrlOrPath | None = Field(
        None,
        min_length=1,
        description="Folder (URL or path) of a Llama, GPT-2 or Marian model in the format of transformers, such as "
        "`manta export` writes: the run starts from its weights. null: random weights, drawn by seed.",
    )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in one step over all workers, whatever the number of workers."""
        return self.global_batch_size // self.micro_batch_size


class ScalingConfig(Section):
    """Workers and their resources. Changes how long a run takes, never its result."""

    num_workers: int = Field(
        1, ge=1, description="Workers: training processes that share the micro-batches of each step."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Minimum number of workers on a cluster that changes size; with fewer, the run waits. "
        "null: num_workers.",
    )
    max_workers: int | None = Field(
        None, ge=1, description="Maximum number of workers on a cluster that changes size. null: num_workers."
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores reserved for each worker.")
    gpus_per_worker: int | float = Field(
        0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="GPUs of each worker: 0 trains on the CPU, 1 on a GPU. A part of one, such as 0.25, lets several "
        "trials of a sweep share a GPU; each of them has one worker.",
    )
    gpu_resource: str = Field(
        "GPU",
        min_length=1,
        description="Ray resource that gpus_per_worker counts. With any other than GPU, such as the gpu-stand-in of a "
        "local cluster, workers are placed as GPU workers are and train on the CPU.",
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="Threads that torch uses in each worker; null: cpus_per_worker."
    )

    @property
    def effective_min_workers(self) -> int:
        """Minimum number of workers, with the default filled in."""
        return self.min_workers or self.num_workers

    @property
    def effective_max_workers(self) -> int:
        """Maximum number of workers, with the default filled in."""
        return self.max_workers or self.num_workers

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on a GPU."""
        return self.gpus_per_worker > 0 and self.gpu_resource == "GPU"

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of one worker, by Ray's resource names."""
        gpus = {self.gpu_resource: float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}

    @property
    def threads(self) -> int:
        """Threads that torch uses in each worker, with the default filled in."""
        return self.threads_per_worker or self.cpus_per_worker


class CheckpointConfig(Section):
    """When checkpoints are saved, and how many are kept."""

    every_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds between checkpoints; null: computed from the cost of a checkpoint and the rate of "
        "failures.",
    )
    every_steps: int | None = Field(None, ge=1, description="Steps between checkpoints; if set, every_s is ignored.")
    keep: int = Field(3, ge=1, description="Number of newest checkpoints that are kept; older ones are deleted.")


class EvalConfig(Section):
    """When and how the held-out text is evaluated."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps between evaluations; null: only at the end of the run."
    )
    background: bool = Field(
        True,
        description="Whether an evaluation during training runs in a process of its own while training continues, "
        "where the cluster has resources that no worker can use; otherwise the workers pause training and evaluate.",
    )
    translate: int = Field(
        200,
        ge=0,
        description="Held-out pairs that are translated at the end of the run and scored by BLEU and chrF; 0: none.",
    )
    translate_during_training: int = Field(
        0,
        ge=0,
        description="Held-out pairs that are translated and scored at every evaluation during training; 0: none.",
    )
    language: str | None = Field(
        None, description="Language of the texts, such as zh: decides how BLEU splits words; null: at spaces."
    )
    beam_size: int = Field(4, ge=1, le=64, description="Beams of beam search in translation; 1 is greedy.")
    length_penalty: float = Field(
        0.6,
        ge=0,
        allow_inf_nan=False,
        description="How much beam search favours long translations: the log-probability of each is divided by "
        "((5 + length) / 6) to this power.",
    )


class SampleConfig(Section):
    """How text is generated from a trained model."""

    prompts: tuple[str, ...] = Field(
        (), description="Texts to continue, or to translate; none: generation starts from an empty text."
    )
    max_new_tokens: int = Field(64, ge=1, description="Maximum number of tokens generated for one prompt.")
    temperature: float = Field(
        0.8,
        ge=0,
        allow_inf_nan=False,
        description="Divisor of the logits: below 1 favours likely tokens, above 1 unlikely ones; 0 is greedy.",
    )
    top_k: int | None = Field(None, ge=1, description="Sample from this many likeliest tokens; null: from all.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that together reach this probability; null: from all.",
    )
    seed: int = Field(0, ge=0, description="Seed of sampling; the same seed gives the same text.")
    beam_size: int | None = Field(
        None, ge=1, le=64, description="Beams of beam search, which returns the likeliest text; null: sampling."
    )
    length_penalty: float = Field(
        0.6,
        ge=0,
        allow_inf_nan=False,
        description="How much beam search favours long texts; see eval.length_penalty.",
    )
