"""Refuse unknown fields of requests."""

from pydantic import BaseModel, ConfigDict


class Given(BaseModel):
    """Refuse unknown fields of a request."""

    model_config = ConfigDict(extra="forbid")
