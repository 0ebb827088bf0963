"""Start an SAE from its first batch.

The batch gives thresholds, the scale of the encoder, and the directions of a transcoder's decoder.

An encoder that is the transpose of a unit decoder overshoots: many latents fire, and together they reconstruct several times the row.
Undoing that costs some hundred steps, and leaves second moments in Adam that keep the learning rate small for thousands more.

Legend of shapes: B rows, d_in and d_out widths of input and reconstruction, F latents.
"""

import math

import torch

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.codes import DenseCodes

ROUNDS = 20  # at most; with a fixed threshold the scale decides which latents fire, and they decide the scale
CLOSE = 1e-3  # relative change of the scale at which the rounds end


@torch.no_grad()
def calibrate(sae: Sae, config: SaeConfig, x: torch.Tensor, y: torch.Tensor) -> None:
    """Set what starts from data, from the first batch.

    The batch is x [B, d_in] with targets y [B, d_out]. With ``initial_scale: least_squares`` the first reconstruction is the best in
    scale, for the latents that fire at this scale. A finished SAE to start from keeps its scale.
    """
    if sae.layer_norm:
        x = y = sae.normalized(x)[0]
    pre = sae.encoder(x)
    sae.activation.calibrate(pre, config)
    if config.initial_scale == "least_squares" and not config.initial_sae:
        target = y - sae.b_dec
        if not sae.shape.autoencoder:
            sae.align_decoder(sae.activation.preview(pre, config), target)
        sae.scale_encoder(_fit_scale(sae, config, pre, target))
        if config.tied_weights:
            sae.W_dec.copy_(sae.W_enc)


def _fit_scale(sae: Sae, config: SaeConfig, pre: torch.Tensor, target: torch.Tensor) -> float:
    """Return the least-squares scale of the encoder, and leave pre-activations [B, F] and thresholds at that scale.

    For a fixed choice of latents the best factor is <y, y^> / <y^, y^>. With tied weights the scale is the decoder's as well, so y^ grows
    with its square. Where thresholds are fixed, a larger scale lets more latents fire and so asks for a smaller one: such scales may take
    turns for ever, so each bounds the search, and the one with the smallest error is taken.
    """
    scale, low, high = 1.0, 0.0, math.inf
    best = math.inf, scale
    for _ in range(ROUNDS):
        overlap, square = _products(sae, sae.activation.preview(pre, config), target, scale if config.tied_weights else 1.0)
        best = min(best, (square - 2 * overlap, scale))
        factor = overlap / square if square else math.inf
        if abs(factor - 1) < CLOSE:
            break
        low, high = (scale, high) if factor > 1 else (low, scale)
        wanted = scale * max(factor, 0) ** (0.5 if config.tied_weights else 1)
        if not low < wanted < high:
            wanted = math.sqrt(low * high)
        if not 0 < wanted < math.inf:  # nothing fires, or nothing that fires points the right way
            break
        sae.activation.calibrate(pre.mul_(wanted / scale), config)
        scale = wanted
    sae.activation.calibrate(pre.mul_(best[1] / scale), config)
    return best[1]


def _products(sae: Sae, codes: DenseCodes, target: torch.Tensor, gain: float) -> tuple[float, float]:
    """Return <y, y^> and <y^, y^>, of a reconstruction y^ by ``gain`` times the decoder."""
    rebuilt = gain * sae.decode_no_bias(codes).double()
    return (target.double() * rebuilt).sum().item(), rebuilt.square().sum().item()
