"""The base of what stands between encoder and decoder: how pre-activations become latents, and what that costs.

Legend of shapes: B rows, F latents, d width of what is rebuilt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import Part
from scopemill.trainer.sparse.codes import Codes, Pre
from scopemill.trainer.sparse.entries import Entries

if TYPE_CHECKING:
    from scopemill.trainer.sae.base import Sae

Norms = Callable[[], torch.Tensor]


class Activation(nn.Module, ABC):
    """``forward`` is inference, [..., F] to [..., F]; ``codes`` is training."""

    name: ClassVar[str]
    has_bias: ClassVar[bool] = True  # whether the encoder has a bias of its own
    normalized_error: ClassVar[bool] = False  # whether training divides the error by the batch's variance

    def __init__(self, width: int):
        super().__init__()
        self.width = width  # latents that are here
        self.part = Part(width)

    @classmethod
    def initial(cls, config: SaeConfig, width: int) -> Self:
        return cls(width)

    @classmethod
    def from_config(cls, width: int, config: dict[str, Any]) -> Self:
        """Of a finished SAE, its weights still to be loaded. KeyError for a field that its ``cfg.json`` lacks."""
        return cls(width)

    def to_config(self) -> dict[str, Any]:
        """What ``from_config`` needs beside the weights."""
        return {}

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        """Whether training keeps the decoder's rows at unit norm: not where the penalty counts their norms."""
        return True

    @abstractmethod
    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        """Pre-activations to latents, differentiable as the architecture defines it."""

    def select(self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, at_most: int) -> tuple[Entries, torch.Tensor] | None:
        """Of all pre-activations, products [B, F] plus bias [F], the entries that loss and gradients depend on, with their values [n].

        None where there are more than ``at_most``, or where nothing can be left out. Where other parts have a say, None in all of them.
        """
        return None

    def penalty(self, codes: Codes, pre: Pre, norms: Norms, config: SaeConfig) -> torch.Tensor:
        """The sparsity penalty of all parts, a mean over the rows, without its coefficient. ``norms`` gives those of the decoder's
        rows [F]."""
        return codes.values.new_zeros(())

    def auxiliary(
        self, sae: "Sae", pre: Pre, y: torch.Tensor, miss: torch.Tensor, dead: torch.Tensor, config: SaeConfig
    ) -> torch.Tensor | float:
        """What else the architecture trains by, with its own coefficient. ``miss`` [B, d_out] is what was rebuilt less y, and no
        gradient goes through it; ``dead`` [F] says which latents have not fired for long."""
        return 0.0

    def begin(self, pre: torch.Tensor, config: SaeConfig) -> None:
        """Before the first step, with its pre-activations [B, F]."""

    def after_update(self) -> None:
        """What an update may have broken is mended here, such as a threshold that must not be negative."""

    def finished(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, "Activation"]:
        """The encoder's bias [F] and the activation of the finished SAE, whose pre-activations are ``scale`` times as large.

        ``bias`` is the present one with the pre-encoder bias folded in.
        """
        return scale * bias, self.copied()

    def copied(self) -> "Activation":
        copy = type(self).from_config(self.width, self.to_config())
        copy.load_state_dict(self.state_dict())
        return copy
