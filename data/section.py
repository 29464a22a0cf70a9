"""What every part of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe: immutable, and a name it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
