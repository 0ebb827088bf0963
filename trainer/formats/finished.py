"""A finished SAE and what it belongs to: what every format is read into and written from."""

from dataclasses import dataclass, field
from typing import Any

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.formats.tensors import check_values
from scopemill.trainer.sae.base import Sae


@dataclass(frozen=True)
class FinishedSae:
    """``sae`` takes raw activations of the hooks ``inputs``, side by side, and rebuilds those of ``outputs``."""

    sae: Sae
    inputs: tuple[str, ...]  # names of hooks; empty where a format does not say
    outputs: tuple[str, ...]
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # what else is known, in SAELens' words

    def check(self, place: str) -> None:
        """SaeFormatError, naming the place, for one that would not be read back: no format is to hold it."""
        sae = self.sae
        check_values(place, dict(sae.named_parameters()))
        if sae.activation.name == "topk" and not 1 <= sae.activation.k <= sae.width:
            raise SaeFormatError(f"{place}: k is {sae.activation.k}, not a number from 1 to the {sae.width} latents")
        if not sae.shape.autoencoder and not self.outputs:
            raise SaeFormatError(f"{place}: a transcoder without the hook that it rebuilds is of no use; say which it is")
