"""The recipe of a run: `RunConfig`, with one field per section, checked against the rules between fields.

The sections `store`, `data` and `model` belong to the packages they configure. Derived values, such as
`micro_batches_per_step`, are computed and cannot be set.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from data.config import DataConfig, StoreConfig
from data.section import Section, StoreUrlOrPath
from model.config import ModelConfig
from orchestrator.config.observe import ObserveConfig
from orchestrator.config.rules import contradictions
from orchestrator.config.sections import CheckpointConfig, EvalConfig, SampleConfig, ScalingConfig, TrainConfig


class RunConfig(Section):
    """Everything about a run: what decides its result, where it is kept, and on what it is computed.

    Raises:
        ValidationError: fields are invalid or contradict each other; `load_recipe` raises a clearer message.
    """

    run: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run, by which it is stored, found and continued: letters, digits, - _ and .",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random: weights, data order, dropout.")
    storage: StoreUrlOrPath = Field(
        min_length=1,
        description="Where runs, tokenized data and tokenizers are stored: s3://bucket/prefix or a path.",
    )
    store: StoreConfig = Field(default_factory=StoreConfig, description="How to reach object storage.")
    data: DataConfig = Field(description="Text, cleaning, tokenizer and sequences.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Shape of the model.")
    train: TrainConfig = Field(description="Length of the run, batch size and optimizer.")
    scaling: ScalingConfig = Field(default_factory=ScalingConfig, description="Number of workers and their resources.")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="When checkpoints are saved, and how many are kept."
    )
    eval: EvalConfig = Field(default_factory=EvalConfig, description="When and how the held-out text is evaluated.")
    sample: SampleConfig = Field(
        default_factory=SampleConfig, description="How text is generated from the trained model."
    )
    observe: ObserveConfig = Field(
        default_factory=ObserveConfig, description="Where metrics go besides the run's folder."
    )

    def evaluates_after(self, step: int) -> bool:
        """Whether the held-out set is evaluated after `step`, during training."""
        every = self.eval.every_steps
        return every is not None and step % every == 0 and step < self.train.steps

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self
