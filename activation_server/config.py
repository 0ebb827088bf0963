"""How batches are made and held."""

from typing import Literal

from pydantic import Field, model_validator

from scopemill.activation_server.keys import is_loopback
from scopemill.proto.config import LOOPBACK, Config


class ServerConfig(Config):
    shards_side_by_side: int = Field(8, ge=1, le=1024, description="Shards that a batch takes its rows from (K).")
    seed: int = Field(0, ge=0, lt=2**63, description="Of the order in which shards are read.")
    window_mib: int = Field(1024, ge=1, description="Memory for batches, shared by all streams of the server, in MiB.")
    lag: Literal["block", "detach", "skip"] = Field(
        "block",
        description="A slow trainer slows the others (block), is left behind to read on by itself (detach), or loses batches (skip).",
    )
    lag_seconds: float = Field(30, gt=0, description="How long others wait for a slow trainer before it is detached or skips.")
    join_seconds: float = Field(120, gt=0, description="How long the window is kept for a trainer that is to come or come back.")
    host: str = Field(LOOPBACK, description="The address to listen on; trainers must be able to reach it.")
    keys: str | None = Field(
        None, description="Folder of keys made by `scopemill keys DIR`, at this path on every node; required beyond loopback."
    )

    @model_validator(mode="after")
    def _guarded(self):
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached by others than this machine: make keys with `scopemill keys DIR` and give keys: DIR"
            )
        return self
