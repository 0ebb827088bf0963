"""Describe a language model by its configuration: the model card.

This module imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    lacking: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # layers that lack a site which others have: hybrid models

    def hooks(self, layers: Sequence[int] | Literal["all"], sites: Sequence[str] | Literal["all"]) -> list[Hook]:
        """Return the hooks at these layers and sites, layer by layer.

        ``all`` layers are those that have the site. Raises ModelError for a layer or site that the model lacks.
        """
        chosen_layers = range(self.layers) if layers == "all" else layers
        chosen_sites = list(self.widths) if sites == "all" else sites
        for layer in chosen_layers:
            if layer >= self.layers:
                raise ModelError(f"harvest.layers: {self.name} has no layer {layer}: its layers are 0 to {self.layers - 1}")
        for site in chosen_sites:
            if site not in self.widths:
                raise ModelError(f"harvest.sites: {self.name} has no site {site!r}: it has {', '.join(self.widths)}")
        hooks = [Hook(layer, site) for layer in sorted(chosen_layers) for site in chosen_sites]
        there = [hook for hook in hooks if hook.layer not in self.lacking.get(hook.site, ())]
        if len(there) < len(hooks) and "all" not in (layers, sites):
            hook = next(hook for hook in hooks if hook not in there)
            having = [str(layer) for layer in range(self.layers) if layer not in self.lacking[hook.site]]
            raise ModelError(
                f"harvest.layers: layer {hook.layer} of {self.name} has no {hook.site}, because its layers are of several kinds: layers "
                f"{', '.join(having)} have it"
            )
        return there
