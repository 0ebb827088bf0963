"""Describe a finished SAE: its architecture, widths, hooks and model. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.wiring import label


@dataclass(frozen=True)
class SaeCfg:
    """Describe a finished SAE, which takes raw activations.

    ``architecture`` and ``activation`` are the words of the sweep file. A trained BatchTopK has a fixed threshold, so
    its ``activation`` is "jumprelu".
    """

    architecture: str
    activation: str
    d_in: int
    d_sae: int
    d_out: int
    inputs: tuple[str, ...] = ()  # names of the hooks that the SAE reads; empty if unknown
    targets: tuple[str, ...] = ()  # names of the hooks that a transcoder reconstructs; empty: the SAE reconstructs its inputs
    model: str | None = None
    normalization: Literal["none", "layer_norm"] = "none"  # of each row, by the SAE itself
    k: int | None = None  # latents kept per row by a TopK
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the hooks that the SAE reconstructs."""
        return self.targets or self.inputs

    @property
    def hook(self) -> str:
        """Return one label for all hooks.

        It is the hook's own name for an SAE of one hook, "" if unknown.
        """
        try:
            sides = [tuple(Hook.parse(name) for name in side) for side in (self.inputs, self.targets)]
        except InputError:  # other tools have hooks of their own
            return "--".join("-".join(side) for side in (self.inputs, self.targets) if side)
        return label(*sides)

    @property
    def splits_heads(self) -> bool:
        """Return whether the input is one attn_z hook.

        Its rows are [heads, d_head] in the language model.
        """
        try:
            return len(self.inputs) == 1 and not self.targets and Hook.parse(self.inputs[0]).site == "attn_z"
        except InputError:
            return False
