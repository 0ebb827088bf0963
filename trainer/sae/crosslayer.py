"""Define cross-layer transcoders, and per-layer transcoders (Anthropic, Circuit Tracing, March 2025).

Each layer has latents that read its MLP's input and help to reconstruct the MLP outputs of this layer and all later ones; a per-layer
transcoder's latents reconstruct their own layer only.

    y^_l = sum_{l' <= l} W^{l' -> l} a_{l'} + b_l        loss = sum_l ||y^_l - y_l||^2 + lambda * penalty

A latent's norm is that of its decoder rows to all layers together. Latents of all L layers stand side by side in [B, L * F].
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.weights import align_rows, unit_rows
from scopemill.trainer.sparse.codes import Codes, DenseCodes, reconstruction_error
from scopemill.trainer.sparse.entries import Entries
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.operations import EncodeAt


class CrossLayerTranscoder(Sae):
    """Reconstruct each layer from the latents of this layer and all earlier ones.

    ``W_enc`` has [F, d_in] for each layer, ``W_dec`` [F, columns of what the layer writes to]; ``width`` is L * F.
    """

    architecture = "clt"
    # One matrix per layer, where every other architecture has one for all.
    W_enc: nn.ParameterList  # type: ignore[assignment]
    W_dec: nn.ParameterList  # type: ignore[assignment]
    b_enc: nn.Parameter

    def reach(self, layer: int) -> range:
        """Return the columns of the output that a layer's latents write to."""
        return range(sum(self.shape.outputs[:layer]), self.shape.d_out)

    def _make_weights(self) -> None:
        layers = len(self.shape.inputs)
        self.per_layer = self.width // layers
        self.W_enc = nn.ParameterList([torch.zeros(self.per_layer, d) for d in self.shape.inputs])
        self.b_enc = nn.Parameter(torch.zeros(self.width))
        self.W_dec = nn.ParameterList([torch.zeros(self.per_layer, len(self.reach(layer))) for layer in range(layers)])

    def _draw_weights(self, config: SaeConfig, generator: torch.Generator, mean: torch.Tensor) -> None:
        for weights in (*self.W_enc, *self.W_dec):
            rows, d = weights.shape
            weights.copy_(unit_rows(rows, d, generator))
        for weights in self.W_dec:  # every output is a sum over the layers before it
            weights /= len(self.shape.inputs)
        if config.initial_decoder_bias == "mean":
            self.b_dec.copy_(mean)

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        return False

    def encoder(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.cat(self._products(x), dim=-1) + self.b_enc).to(self.b_dec.dtype)

    def products_into(self, encoder_input: torch.Tensor, out: torch.Tensor) -> None:
        torch.cat(self._products(encoder_input), dim=1, out=out)

    def _products(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the pre-activations of each layer's latents, without the bias."""
        rows = x.split(self.shape.inputs, dim=-1)
        return [nn.functional.linear(of_layer, weights) for of_layer, weights in zip(rows, self.W_enc, strict=True)]

    def encoder_at(self, encoder_input: torch.Tensor, gradients: SparseGradients | None) -> Callable[[Entries, torch.Tensor], torch.Tensor]:
        rows = encoder_input.split(self.shape.inputs, dim=1)

        def at(entries: Entries, values: torch.Tensor) -> torch.Tensor:
            places, found = [], []
            for layer, (of_layer, weights) in enumerate(zip(rows, self.W_enc, strict=True)):
                start, stop = layer * self.per_layer, (layer + 1) * self.per_layer
                own, inside = entries.slice(start, stop)
                places.append(inside.nonzero()[:, 0])
                found.append(EncodeAt.apply(values[inside], self.b_enc[start:stop], None, weights, of_layer, own, gradients))
            return torch.cat(found)[torch.cat(places).argsort()]

        return at

    def scale_encoder(self, factor: float) -> None:
        for weights in self.W_enc:
            weights.mul_(factor)

    def align_decoder(self, codes: DenseCodes, target: torch.Tensor) -> None:
        for layer, weights in enumerate(self.W_dec):
            reach = self.reach(layer)
            align_rows(weights, codes.slice(layer * self.per_layer, (layer + 1) * self.per_layer), target[:, reach.start : reach.stop])
            weights /= len(self.shape.inputs)  # every output is a sum over the layers before it

    def decode_no_bias(self, codes: Codes) -> torch.Tensor:
        outputs = []
        for layer, weights in enumerate(self.W_dec):
            reach = self.reach(layer)
            of_layer = codes.slice(layer * self.per_layer, (layer + 1) * self.per_layer)
            written = of_layer.decode(weights).to(self.b_dec.dtype)
            outputs.append(nn.functional.pad(written, (reach.start, self.shape.d_out - reach.stop)))
        return reduce(torch.add, outputs)

    def reconstruction_error(self, codes: Codes, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reconstruction_error(self.decode_no_bias(codes), target)

    def norms(self) -> torch.Tensor:
        return torch.cat([weights.norm(dim=1) for weights in self.W_dec])

    def folded_bias(self) -> torch.Tensor:
        return self.b_enc

    def scaled_weights(self, inputs: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        by_layer = zip(self.W_enc, inputs.split(self.shape.inputs), strict=True)
        scaled = {f"W_enc.{layer}": weights * factors for layer, (weights, factors) in enumerate(by_layer)}
        for layer, weights in enumerate(self.W_dec):
            reach = self.reach(layer)
            scaled[f"W_dec.{layer}"] = weights * outputs[reach.start : reach.stop]
        return scaled


class PerLayerTranscoder(CrossLayerTranscoder):
    """Reconstruct each layer from its own latents only."""

    architecture = "per_layer_transcoder"

    def reach(self, layer: int) -> range:
        start = sum(self.shape.outputs[:layer])
        return range(start, start + self.shape.outputs[layer])
