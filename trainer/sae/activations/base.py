"""Define the base of every activation: how pre-activations become latents, and the penalty on latents.

Legend of shapes: B rows, F latents of this rank, d width of the reconstruction.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.decoder import Decoder
from scopemill.trainer.sparse.codes import Codes, DenseCodes, DensePre, Pre
from scopemill.trainer.sparse.entries import Entries


class Activation(nn.Module, ABC):
    """Map pre-activations to latents: `forward` in inference, `codes` in training."""

    name: ClassVar[str]
    has_bias: ClassVar[bool] = True  # whether the encoder has a bias of its own
    normalized_error: ClassVar[bool] = False  # whether training divides the error by the batch's variance

    def __init__(self, width: int, shard: LatentShard | None = None):
        super().__init__()
        self.width = width  # latents of this rank
        self.shard = shard or LatentShard(width)

    @classmethod
    def initial(cls, config: SaeConfig, shard: LatentShard) -> Self:
        """Return the activation of an SAE before its first step."""
        return cls(shard.local_width, shard=shard)

    @classmethod
    def from_config(cls, width: int, config: dict[str, Any]) -> Self:
        """Return the activation of a finished SAE, weights still to be loaded.

        Raises KeyError for a field that ``cfg.json`` lacks.
        """
        return cls(width)

    def to_config(self) -> dict[str, Any]:
        """Return the fields that `from_config` needs."""
        return {}

    @staticmethod
    def unit_decoder(config: SaeConfig) -> bool:
        """Return whether training keeps the decoder's rows at unit norm.

        It does not where the penalty counts their norms.
        """
        return True

    @abstractmethod
    def codes(self, pre: Pre, config: SaeConfig) -> Codes:
        """Return the latents of pre-activations, differentiable as the architecture defines."""

    def select(
        self, products: torch.Tensor, bias: torch.Tensor, config: SaeConfig, max_entries: int
    ) -> tuple[Entries, torch.Tensor] | None:
        """Select the entries on which loss and gradients depend, with their values [n].

        The entries are of products [B, F] plus bias [F]. None where there are more than ``max_entries``, or where nothing can be left
        out. Where ranks depend on each other, None on all of them.
        """
        return None

    def penalty(self, codes: Codes, pre: Pre, decoder: Decoder, config: SaeConfig) -> torch.Tensor:
        """Return the sparsity penalty over all ranks, a mean over the rows, without its coefficient."""
        return codes.values.new_zeros(())

    def auxiliary(
        self, decoder: Decoder, pre: Pre, y: torch.Tensor, error: torch.Tensor, dead: torch.Tensor, config: SaeConfig
    ) -> torch.Tensor | float:
        """Return the auxiliary loss, with its own coefficient.

        ``error`` [B, d_out] is reconstruction less y, without a gradient; ``dead`` [F] the latents that have not fired for long.
        """
        return 0.0

    def preview(self, pre: torch.Tensor, config: SaeConfig) -> DenseCodes:
        """Return the latents of pre-activations [B, F] as training has them, and record nothing."""
        codes = self.codes(DensePre(pre), config)
        assert isinstance(codes, DenseCodes), "dense pre-activations have dense latents"
        return codes

    def calibrate(self, pre: torch.Tensor, config: SaeConfig) -> None:
        """Set what starts from data, such as thresholds, from the first batch's pre-activations [B, F]."""

    def after_update(self) -> None:
        """Restore the constraints that an update may have broken.

        An example is thresholds of at least 0.
        """

    def folded(self, scale: float, bias: torch.Tensor) -> tuple[torch.Tensor, "Activation"]:
        """Return encoder bias [F] and activation of the finished SAE.

        Its pre-activations are ``scale`` times as large. ``bias`` [F] is the present encoder bias with the pre-encoder bias folded in.
        """
        return scale * bias, self.copied()

    def copied(self) -> Self:
        """Return a copy with the same weights."""
        copy = type(self).from_config(self.width, self.to_config())
        copy.load_state_dict(self.state_dict())
        return copy
