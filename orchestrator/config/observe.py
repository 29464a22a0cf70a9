"""The recipe's section `observe`: who is told of a run, beside its own folder. None of it decides a result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.section import Place, Section


class MlflowConfig(Section):
    """Where MLflow is told of the run, if it is."""

    tracking_uri: Place | None = Field(
        None,
        min_length=1,
        description="Tracking server or store of MLflow, as http://host:5000 or sqlite:////path/mlflow.db: the run is "
        "told there, too. A name and password go into MLFLOW_TRACKING_USERNAME and _PASSWORD. null: it is not.",
    )
    experiment: str = Field("manta", min_length=1, description="Experiment of MLflow that the run is in.")


class WandbConfig(Section):
    """What Weights & Biases is told of the run, if it is."""

    project: str | None = Field(
        None,
        min_length=1,
        description="Project of Weights & Biases that the run is told to, too; the key to it is in WANDB_API_KEY. "
        "null: it is not.",
    )
    entity: str | None = Field(None, min_length=1, description="User or team that owns the project; null: the key's.")
    mode: Literal["online", "offline"] = Field(
        "online", description="Whether it is sent, or written beside the run for a later `wandb sync`."
    )


class ObserveConfig(Section):
    """Who is told of a run while it goes on."""

    tensorboard: bool = Field(
        True, description="Whether the run's folder has event files of TensorBoard, a value for every step."
    )
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="MLflow.")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Weights & Biases.")
    peak_flops: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Floating-point operations a second that one worker's device can do at most, for utilization; "
        "null: as its data sheet says, where the device is known.",
    )
