"""Compute the training loss of an SAE.

Legend of shapes: B rows, d_in and d_out widths of input and reconstruction, F latents.
"""

from dataclasses import dataclass

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.codes import Codes, DensePre, Pre, SparsePre
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.kernels.select import require_backend


@dataclass
class Losses:
    """Hold the losses of one batch.

    Each is a mean over the B rows; errors are summed over d first.
    """

    reconstruction: torch.Tensor  # E ||y - y_hat||^2
    nested: torch.Tensor | float  # the same for Matryoshka's smaller prefixes, summed
    sparsity: torch.Tensor  # the penalty, without its coefficient
    l0: torch.Tensor  # mean number of latents that fire
    auxiliary: torch.Tensor | float  # the architecture's auxiliary loss
    variance: torch.Tensor | float  # errors are divided by this: 1, or E ||y - mean y||^2
    target: torch.Tensor  # y as the SAE reconstructs it: normalised under a layer norm
    codes: Codes  # the latents of this rank

    def total(self, coefficient: float) -> torch.Tensor:
        """Return the loss to minimise, with the coefficient of the sparsity penalty."""
        return (self.reconstruction + self.nested) / self.variance + coefficient * self.sparsity + self.auxiliary


class Objective:
    """Compute the losses that an architecture is trained by.

    The memory for the encoder's products is kept between steps.
    """

    def __init__(self, sae: Sae, config: SaeConfig):
        self.sae, self.config = sae, config
        self._products: torch.Tensor | None = None  # [B, F], of the last sparse step

    def losses(
        self, x: torch.Tensor, y: torch.Tensor, dead: torch.Tensor, max_entries: int = 0, gradients: SparseGradients | None = None
    ) -> Losses:
        """Return the differentiable losses of a batch.

        The batch is scaled activations x [B, d_in] with targets y [B, d_out]. ``dead`` [F]: the latents that have not fired for long.
        ``max_entries``: compute at entries only where so many are enough; 0: never. ``gradients`` then collects the weights' gradients
        as terms; without a collector they are dense, as torch's optimisers take them.
        """
        sae, config = self.sae, self.config
        if sae.layer_norm:
            x = y = sae.normalized(x)[0]
        pre = self._pre_activations(x, max_entries, gradients)
        codes = sae.activation.codes(pre, config)
        constant = sae.shard.replicated(sae.b_dec + sae.skip(x).to(sae.b_dec.dtype) if sae.skip else sae.b_dec)
        errors = self.reconstruction_errors(codes, y - constant)
        *nested, reconstruction = [squares / len(x) for squares, _ in errors]
        return Losses(
            reconstruction=reconstruction,
            nested=sum(nested),
            sparsity=sae.activation.penalty(codes, pre, sae, config),
            l0=sae.shard.all_reduce(codes.l0.detach()),
            auxiliary=sae.activation.auxiliary(sae, pre, y, errors[-1][1], dead, config),
            variance=(y - y.mean(0)).square().sum() / len(y) if sae.activation.normalized_error else 1.0,
            target=y,
            codes=codes,
        )

    def reconstruction_errors(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return squared error and error of each nested prefix of the latents.

        All latents come last: see `Sae.reconstruction_error`.
        """
        return [self.sae.reconstruction_error(codes, target)]

    def _pre_activations(self, x: torch.Tensor, max_entries: int, gradients: SparseGradients | None) -> Pre:
        sae = self.sae
        if max_entries:
            products = self._memory(x)
            with torch.no_grad():
                encoder_input = sae.encoder_input(x)
                sae.products_into(encoder_input, products)
                bias = x.new_zeros(sae.width) if sae.b_enc is None else sae.b_enc.detach()
                selected = sae.activation.select(products, bias, self.config, max_entries)
            if selected is not None:
                return SparsePre(products, bias, *selected, sae.encoder_at(encoder_input, gradients), gradients)
        return DensePre(sae.encoder(x))

    def _memory(self, x: torch.Tensor) -> torch.Tensor:
        """Return memory [B, F] for the products of a batch, of the last step if that had as many rows."""
        if self._products is None or len(self._products) != len(x):
            self._products = x.new_empty(len(x), self.sae.width, dtype=require_backend(x).operand(x[:0]).dtype)
        return self._products
