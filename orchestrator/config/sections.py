"""Sections of a recipe that belong to the orchestrator: length and batch, workers, saving, evaluation, samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.section import Place, Section
from model.optim.config import OptimizerConfig, ScheduleConfig


class TrainConfig(Section):
    """How long to train, on how much at a time, and with which update."""

    steps: int = Field(ge=1, description="Optimizer updates in the whole run.")
    global_batch_size: int = Field(
        ge=1, description="Sequences in one optimizer update, over all workers; fixed for a run."
    )
    micro_batch_size: int = Field(ge=1, description="Sequences in one forward pass on one worker.")
    lr: float = Field(gt=0, allow_inf_nan=False, description="Peak learning rate; the schedule scales it.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Update rule and its constants.")
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig, description="Course of the learning rate over the run."
    )
    grad_clip: float | None = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest norm of a step's gradient; a longer one is scaled to it.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="Decay of an exponential moving average of the weights (0.999 is usual), which is evaluated in "
        "their place; d = min(ema_decay, (1 + step) / (10 + step)). null: none is kept.",
    )
    max_loss_jump: float | None = Field(
        3.0,
        gt=1,
        allow_inf_nan=False,
        description="A loss so many times the median of the 64 steps before has gone astray, like one that is no "
        "number: that step's data is left out, once in a run. null: only what is no number.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each target's probability that is spread over the whole vocabulary while training.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format of forward and backward passes; weights and optimizer stay fp32."
    )
    compile: bool = Field(False, description="Whether torch.compile compiles the model, once, before the first step.")
    init_from: Place | None = Field(
        None,
        min_length=1,
        description="Folder (URL or path) of a Llama, GPT-2 or Marian as transformers has them, such as `manta export` "
        "writes: the run begins with its weights. null draws them by seed.",
    )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches in one optimizer update over all workers; independent of how many those are."""
        return self.global_batch_size // self.micro_batch_size


class ScalingConfig(Section):
    """What to ask the cluster for. Changes how long a run takes, never its result."""

    num_workers: int = Field(1, ge=1, description="Training processes that share each step's micro-batches.")
    min_workers: int | None = Field(
        None, ge=1, description="Fewest workers to train with, where nodes come and go; null means num_workers."
    )
    max_workers: int | None = Field(
        None, ge=1, description="Most workers to use, where nodes come and go; null means num_workers."
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores reserved for each worker.")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="GPUs for each worker: 0 trains on CPU, 1 on a GPU.")
    gpu_resource: str = Field(
        "GPU",
        min_length=1,
        description="Ray's name of what a GPU worker takes. Any other than GPU stands in for one, as gpu-stand-in does "
        "on a cluster of this machine; workers train on the CPU then.",
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="Threads torch computes with in each worker; null means cpus_per_worker."
    )

    @property
    def effective_min_workers(self) -> int:
        """Workers below which the run waits."""
        return self.min_workers or self.num_workers

    @property
    def effective_max_workers(self) -> int:
        """Workers above which it has no use for more."""
        return self.max_workers or self.num_workers

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on a GPU."""
        return self.gpus_per_worker > 0 and self.gpu_resource == "GPU"

    @property
    def per_worker(self) -> dict[str, float]:
        """What a worker takes of the cluster, by Ray's names."""
        gpus = {self.gpu_resource: float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}

    @property
    def threads(self) -> int:
        """Threads torch computes with in each worker, with the default filled in."""
        return self.threads_per_worker or self.cpus_per_worker


class CheckpointConfig(Section):
    """When the run is saved to storage, and how many saves are kept."""

    every_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds from one checkpoint to the next; null lets it follow from what one costs and how often "
        "workers die.",
    )
    every_steps: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next; if set, every_s does not count."
    )
    keep: int = Field(3, ge=1, description="Newest checkpoints kept; older ones are deleted.")


class EvalConfig(Section):
    """When the held-out sequences are evaluated."""

    every_steps: int | None = Field(
        None, ge=1, description="Steps from one evaluation to the next; null evaluates only at the end."
    )
    background: bool = Field(
        True,
        description="Whether evaluations on the way run background training where there is a place that no worker can "
        "use; else the workers do them, and do not train meanwhile.",
    )
    translate: int = Field(
        200, ge=0, description="Held-out pairs translated at the end of a run and scored by BLEU and chrF; 0: none."
    )
    translate_during_training: int = Field(
        0, ge=0, description="Held-out pairs translated and scored at every evaluation on the way; 0: only at the end."
    )
    language: str | None = Field(
        None, description="Language of the texts, as zh: what counts as a word for BLEU; null: words between spaces."
    )
    beam_size: int = Field(4, ge=1, le=64, description="Translations kept at once by beam search; 1 is greedy.")
    length_penalty: float = Field(
        0.6,
        ge=0,
        allow_inf_nan=False,
        description="How much beam search favours long translations: their log-probability is divided by "
        "((5 + length) / 6) to this power.",
    )


class SampleConfig(Section):
    """Text generated from a trained model."""

    prompts: tuple[str, ...] = Field((), description="Beginnings to continue; none generates from nothing.")
    max_new_tokens: int = Field(64, ge=1, description="Most tokens generated for one prompt.")
    temperature: float = Field(
        0.8,
        ge=0,
        allow_inf_nan=False,
        description="Divides the logits: below 1 safer, above 1 bolder; 0 is greedy.",
    )
    top_k: int | None = Field(None, ge=1, description="Draw among this many likeliest tokens; null draws among all.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw among the likeliest tokens that together reach this probability; null: all."
    )
    seed: int = Field(0, ge=0, description="Seed of the draw; the same seed gives the same text.")
    beam_size: int | None = Field(
        None, ge=1, le=64, description="Texts kept at once by beam search, which takes the likeliest; null draws."
    )
    length_penalty: float = Field(
        0.6, ge=0, allow_inf_nan=False, description="How much beam search favours long texts, see eval.length_penalty."
    )
