"""A finished SAE and what it belongs to: what every format is read into and written from."""

from dataclasses import dataclass, field
from typing import Any

from scopemill.trainer.sae import Sae


@dataclass(frozen=True)
class FinishedSae:
    """``sae`` takes raw activations of the hooks ``inputs``, side by side, and rebuilds those of ``outputs``."""

    sae: Sae
    inputs: tuple[str, ...]  # names of hooks; empty where a format does not say
    outputs: tuple[str, ...]
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # what else is known, in SAELens' words
