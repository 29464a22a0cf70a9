"""Settings of the optimizer and of the learning-rate schedule, checked when they are built."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from model.config import FROZEN


class ParameterGroup(BaseModel):
    """Learning rate and weight decay of parameters that are chosen by name."""

    model_config = FROZEN

    match: str = Field(
        min_length=1,
        description="Pattern of the parameters' names, such as *norm* or blocks.0.*: * is any text, ? any character, "
        "[ab] one of them. Of several groups that match, the first counts.",
    )
    lr: float = Field(
        default=1.0, ge=0.0, description="Their learning rate as a multiple of the run's; 0 freezes them."
    )
    weight_decay: float | None = Field(
        default=None, ge=0.0, description="Their weight decay, whatever their kind; null keeps the default."
    )


# Usual values where they differ from the fields' defaults. Sources: Chen et al. 2023, section 5 (lion); Jordan et al.
# 2024 (muon); torch.optim for the others. Decay that is added to the gradient is scaled by the rule like the gradient
# itself (Loshchilov and Hutter 2019, section 2): at 0.1, sgd, adam, rmsprop and adagrad hardly learn.
_USUAL: dict[str, dict[str, Any]] = {
    "sgd": {"weight_decay": 0.0},
    "adam": {"weight_decay": 0.0},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "nesterov": True},
    "rmsprop": {"momentum": 0.0, "weight_decay": 0.0},
    "adagrad": {"eps": 1e-10, "weight_decay": 0.0},
}


class OptimizerConfig(BaseModel):
    """Update rule and its constants; the learning rate comes from the schedule.

    An omitted constant has the usual value of the rule; a constant that the rule does not have is ignored.

    Raises:
        ValueError: fields contradict each other.
    """

    model_config = FROZEN

    name: Literal["sgd", "adam", "adamw", "adafactor", "lion", "muon", "rmsprop", "adagrad"] = Field(
        default="adamw",
        description="Update rule. Weight decay is added to the gradient by sgd, adam, rmsprop and adagrad, and apart "
        "from it in the others. muon is for the matrices inside the model; adamw updates all other parameters.",
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95),
        description="Decay of the running mean of gradients and of their squares (adam, adamw, muon's adamw); lion's "
        "two decays, 0.9 and 0.99 unless set.",
    )
    eps: float = Field(
        default=1e-8,
        gt=0.0,
        description="Added to the root of the squares (adam, adamw, muon's adamw, rmsprop; adagrad, 1e-10 unless set).",
    )
    momentum: float = Field(
        default=0.9,
        ge=0.0,
        lt=1.0,
        description="Decay of the velocity (sgd; muon, 0.95 unless set; rmsprop, 0 unless set).",
    )
    nesterov: bool = Field(
        default=False, description="Whether to look ahead along the velocity (sgd; muon, true unless set)."
    )
    alpha: float = Field(
        default=0.99, ge=0.0, lt=1.0, description="Decay of the running mean of squared gradients (rmsprop)."
    )
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw",
        description="Factor on muon's learning rate for a matrix of A x B: match_rms_adamw, 0.2 sqrt(max(A, B)), makes "
        "steps as large as adamw's, so that its learning rate fits; original, sqrt(max(1, A / B)), wants about 0.02.",
    )
    adamw_lr: float = Field(
        default=1.0,
        ge=0.0,
        description="Learning rate of the parameters that adamw updates, as a multiple of the run's (muon).",
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0.0,
        description="Decay of linear-layer matrices; norms, biases and embeddings have none (0 unless set: sgd, adam, "
        "rmsprop, adagrad).",
    )
    groups: tuple[ParameterGroup, ...] = Field(
        default=(), description="Parameters, chosen by name, with a learning rate or weight decay of their own."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_usual_values(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
            return fields
        return _USUAL.get(fields["name"], {}) | fields

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        problems = []
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                nearest = 0.0 if beta < 0.0 else 0.999
                problems.append(f"betas[{index}]={beta} is outside [0, 1). Nearest usual value: {nearest}.")
        if self.nesterov and self.name not in ("sgd", "muon"):
            problems.append(f"nesterov=True needs name=sgd or muon, but name={self.name}. Set nesterov to False.")
        elif self.nesterov and self.name == "sgd" and self.momentum == 0.0:
            problems.append("nesterov=True needs a velocity, but momentum=0.0. Set momentum above 0 (0.9 is usual).")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ScheduleConfig(BaseModel):
    """Course of the learning rate between 0 and its peak; `model.optim.schedule` has the formulas.

    Raises:
        ValueError: fields contradict each other.
    """

    model_config = FROZEN

    name: Literal["constant", "cosine", "wsd", "inverse_sqrt"] = Field(
        default="cosine",
        description="Course of the learning rate after warm-up. inverse_sqrt is that of Vaswani et al. 2017 where "
        "train.lr is 1 / sqrt(d_model W), 7e-4 for d_model 512 and W 4000, and warmup_steps is W - 1.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises to its peak.")
    decay_steps: int | None = Field(
        default=None, ge=1, description="Length of the final decay of wsd in steps (null means 10 % of all steps)."
    )
    final_lr_fraction: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Last learning rate as a fraction of the peak (cosine and wsd)."
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.decay_steps is not None and self.name != "wsd":
            raise ValueError(
                f"decay_steps={self.decay_steps} needs name=wsd, but name={self.name}. Set decay_steps to null."
            )
        return self
