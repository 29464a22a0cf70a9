"""The recipe's section `observe`: where metrics go besides the run's folder. None of it changes the result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.section import Section, UrlOrPath


class MlflowConfig(Section):
    """Logging to MLflow, which is off by default."""

    tracking_uri: UrlOrPath | None = Field(
        None,
        min_length=1,
        description="MLflow tracking server or store to log the run to, such as http://host:5000 or "
        "sqlite:////path/mlflow.db. Set its user and password in MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD. null: no MLflow.",
    )
    experiment: str = Field("manta", min_length=1, description="MLflow experiment of the run.")


class WandbConfig(Section):
    """Logging to Weights & Biases, which is off by default."""

    project: str | None = Field(
        None,
        min_length=1,
        description="Weights & Biases project to log the run to; the API key is read from WANDB_API_KEY. "
        "null: no Weights & Biases.",
    )
    entity: str | None = Field(
        None, min_length=1, description="User or team that owns the project; null: the owner of the API key."
    )
    mode: Literal["online", "offline"] = Field(
        "online",
        description="online sends metrics during training; offline writes them to disk for a later `wandb sync`.",
    )


class ObserveConfig(Section):
    """Where metrics go while the run is training, besides the run's own folder."""

    tensorboard: bool = Field(
        True,
        description="Whether TensorBoard event files are written to the run's folder, one value per metric and step.",
    )
    mlflow: MlflowConfig = Field(default_factory=MlflowConfig, description="Logging to MLflow.")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Logging to Weights & Biases.")
    peak_flops: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Peak floating-point operations per second of one worker's device, for model FLOP utilization; "
        "null: the data sheet's number, where the device is known.",
    )
