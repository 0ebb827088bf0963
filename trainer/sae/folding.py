"""Fold the scales of training, and the pre-encoder bias, into an SAE's weights."""

from collections.abc import Sequence

import torch

from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.skip import Skip


@torch.no_grad()
def fold(sae: Sae, input_units: Sequence[float], output_units: Sequence[float]) -> Sae:
    """Return a copy of an SAE that takes raw activations and has no pre-encoder bias.

    Training sees raw / unit, with one unit per hook. With one unit C for all: b_enc' = C (b_enc - W_enc b_dec), b_dec' = C b_dec,
    theta' = C theta, and the weights stay as they are. In general latents are in units of the first input, and each block of the
    weights is multiplied by the ratio of its units.
    """
    unit = input_units[0]
    inputs = _per_column(input_units, sae.shape.inputs).to(sae.b_dec)
    outputs = _per_column(output_units, sae.shape.outputs).to(sae.b_dec)
    bias, activation = sae.activation.folded(unit, sae.folded_bias())
    skip = None
    if sae.skip:
        skip = Skip(sae.shape.d_in, sae.shape.d_out)
        skip.W_skip.copy_(sae.skip.matrix * (outputs[:, None] / inputs))
    raw = type(sae)(sae.shape, sae.width, activation, False, skip, sae.layer_norm).to(sae.b_dec)
    for name, weights in sae.scaled_weights(unit / inputs, outputs / unit).items():
        raw.get_parameter(name).copy_(weights)
    if raw.b_enc is not None:
        raw.b_enc.copy_(bias)
    raw.b_dec.copy_(outputs * sae.b_dec)
    return raw


def _per_column(units: Sequence[float], widths: Sequence[int]) -> torch.Tensor:
    """Return one unit per column [sum of widths]: each hook's, as often as the hook is wide."""
    return torch.cat([torch.full((d,), unit) for unit, d in zip(units, widths, strict=True)])
