"""Configure the activation server."""

from typing import Literal

from pydantic import Field, model_validator

from scopemill.activation_server.keys import is_loopback
from scopemill.proto.config import LOOPBACK, Config


class ServerConfig(Config):
    """Describe how batches are made, held and served."""

    shards_side_by_side: int = Field(8, ge=1, le=1024, description="Number of shards that each batch takes rows from (K).")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the order of shards.")
    window_mib: int = Field(1024, ge=1, description="Memory for batches in MiB, divided equally among the server's streams.")
    lag: Literal["block", "detach", "skip"] = Field(
        "block",
        description="A trainer that is too slow slows down the others (block), reads its own batches (detach), or loses batches (skip).",
    )
    lag_seconds: float = Field(30, gt=0, description="Seconds that others wait for a slow trainer before it is detached or loses batches.")
    join_seconds: float = Field(
        120, gt=0, description="Seconds that the window is kept for a trainer that has not connected yet, or lost its connection."
    )
    host: str = Field(LOOPBACK, description="Address to listen on; trainers must be able to reach it.")
    keys: str | None = Field(
        None, description="Folder of keys made by `scopemill keys DIR`, at the same path on every node; required unless host is loopback."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ServerConfig":
        if self.lag == "block":
            self.check_effect("lag_seconds", "under lag: block the others wait for as long as it takes", "set lag to detach or skip")
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached by other machines: make keys with `scopemill keys DIR` and set keys: DIR")
        return self
