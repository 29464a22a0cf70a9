"""The recipe of a run: its sections, and what must hold between them.

The sections `store`, `data` and `model` belong to the packages they configure. Values that follow from others, such as
`micro_batches_per_step`, are computed and cannot be set.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from data.config import DataConfig, StoreConfig
from data.section import Place, Section
from model.config import ModelConfig
from orchestrator.config.observe import ObserveConfig
from orchestrator.config.rules import contradictions
from orchestrator.config.sections import CheckpointConfig, EvalConfig, SampleConfig, ScalingConfig, TrainConfig


class RunConfig(Section):
    """A run, whole: everything that decides its result, and where and on what it is computed.

    Raises:
        ValidationError: fields are wrong by themselves or contradict each other; `load_recipe` says it better.
    """

    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run, under which it is kept, found and continued: letters, digits, - _ and .",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random: weights, data order, dropout.")
    storage: Place = Field(
        min_length=1,
        description="Where runs, tokenized data and tokenizers are kept: s3://bucket/prefix, gs://…, or a path.",
    )
    store: StoreConfig = Field(default_factory=StoreConfig, description="How to reach object storage.")
    data: DataConfig = Field(description="Text, tokenizer and sequences.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Shape of the model.")
    train: TrainConfig = Field(description="Length, batch and update.")
    scaling: ScalingConfig = Field(default_factory=ScalingConfig, description="Workers.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="Saving.")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Evaluation.")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="Generated text.")
    observe: ObserveConfig = Field(default_factory=ObserveConfig, description="Who is told of the run.")

    def evaluates_after(self, step: int) -> bool:
        """Whether the held-out set is evaluated after `step`, on the way."""
        every = self.eval.every_steps
        return every is not None and step % every == 0 and step < self.train.steps

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self
