"""Hold a finished SAE with its hooks, model and metadata.

Every format is read into this, and written from it.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.hooks import Hook
from scopemill.trainer.formats.tensors import check_values
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae


@dataclass(frozen=True)
class FinishedSae:
    """Hold an SAE that reads raw activations of hooks ``inputs`` and reconstructs hooks ``outputs``.

    The activations of several hooks lie side by side.
    """

    sae: Sae
    inputs: tuple[str, ...]  # names of hooks; empty where a format does not say
    outputs: tuple[str, ...]
    model: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)  # whatever else is known, under SAELens' names

    @staticmethod
    def of(sae: Sae) -> "FinishedSae":
        """Return a finished SAE as its own description has it."""
        cfg = sae.cfg or sae.describe()
        return FinishedSae(sae, cfg.inputs, cfg.outputs, cfg.model, dict(cfg.metadata))

    def hooks(self, place: str) -> tuple[tuple[Hook, ...], tuple[Hook, ...]]:
        """Return the hooks that the SAE reads and those that it reconstructs.

        Raises InputError, naming the place, where the files name none.
        """
        if not self.inputs:
            raise InputError(f"{place}: cfg.json names no hook, so the place of the SAE in the model is unknown: add metadata.hook_name")
        inputs, outputs = (tuple(Hook.parse(name) for name in names) for names in (self.inputs, self.outputs or self.inputs))
        return inputs, outputs

    def described(self) -> "FinishedSae":
        """Give the SAE its description, and return this."""
        targets = () if self.sae.shape.autoencoder else self.outputs
        self.sae.with_cfg(self.sae.describe(self.inputs, targets, self.model, self.metadata))
        return self

    @property
    def fingerprint(self) -> str:
        """Return a digest of the weights: equal fingerprints mean the same function."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.sae.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, place: str) -> None:
        """Raise SaeFormatError, naming the place, for an SAE that could not be read back."""
        sae = self.sae
        check_values(place, dict(sae.named_parameters()))
        if isinstance(sae.activation, TopK) and not 1 <= sae.activation.k <= sae.width:
            raise SaeFormatError(f"{place}: k is {sae.activation.k}; it has to be a number from 1 to the {sae.width} latents.")
        if not sae.shape.autoencoder and not self.outputs:
            raise SaeFormatError(f"{place}: a transcoder needs the hook that it reconstructs (hook_name_out).")
