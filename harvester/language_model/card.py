"""Describe a language model by its configuration: the model card.

This module imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook


@dataclass(frozen=True)
class ModelCard:
    """Describe a language model by its configuration alone. ``describe.describe`` reads it."""

    name: str  # the last part of the model's id or path
    fingerprint: str  # of configuration and weights: equal fingerprints mean equal models
    layers: int
    context_length: int | None  # None: the configuration states none
    widths: Mapping[str, int]  # d of each site that the model has
    bos: int
    special: tuple[int, ...]  # ids of BOS, EOS and PAD: their activations are not rows

    def hooks(self, layers: Sequence[int] | Literal["all"], sites: Sequence[str] | Literal["all"]) -> list[Hook]:
        """Return the hooks at these layers and sites, layer by layer.

        Raises ModelError for a layer or site that the model lacks.
        """
        chosen_layers = range(self.layers) if layers == "all" else layers
        chosen_sites = list(self.widths) if sites == "all" else sites
        for layer in chosen_layers:
            if layer >= self.layers:
                raise ModelError(f"harvest.layers: {self.name} has no layer {layer}: its layers are 0 to {self.layers - 1}")
        for site in chosen_sites:
            if site not in self.widths:
                raise ModelError(f"harvest.sites: {self.name} has no site {site!r}: it has {', '.join(self.widths)}")
        return [Hook(layer, site) for layer in sorted(chosen_layers) for site in chosen_sites]
