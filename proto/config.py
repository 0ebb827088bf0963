"""The base of every configuration model: strict, immutable, and closed to unknown fields."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
