"""Cross-layer transcoders: each layer has latents that read its MLP's input and help to rebuild the MLP outputs of this
layer and all that follow (Anthropic, Circuit Tracing, March 2025); and per-layer transcoders, which rebuild only their own.

    y^_l = sum_{l' <= l} W^{l' -> l} a_{l'} + b_l        loss = sum_l ||y^_l - y_l||^2 + lambda * penalty

A latent's norm is that of its decoder rows to all layers together. Latents of all layers stand side by side in [B, L * F].
"""

from collections.abc import Callable

import torch
from torch import nn

from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.base import Sae, unit_rows
from scopemill.trainer.sparse.codes import Codes, missed
from scopemill.trainer.sparse.entries import EncodeAt, Entries


class CrossLayerTranscoder(Sae):
    """``W_enc`` is [L, F, d_in]; ``W_dec`` holds for each layer [F, columns of what it rebuilds]. ``width`` is L * F."""

    architecture = "clt"

    def _reach(self, layer: int) -> range:
        """The columns of the output that a layer's latents write to."""
        return range(sum(self.shape.outputs[:layer]), self.shape.d_out)

    def _make_weights(self) -> None:
        layers = len(self.shape.inputs)
        self.per_layer = self.width // layers
        self.W_enc = nn.ParameterList([torch.zeros(self.per_layer, d) for d in self.shape.inputs])
        self.b_enc = nn.Parameter(torch.zeros(self.width))
        self.W_dec = nn.ParameterList([torch.zeros(self.per_layer, len(self._reach(layer))) for layer in range(layers)])

    @classmethod
    def initial(cls, config: SaeConfig, shape: Shape, activation: Activation, mean: torch.Tensor) -> "CrossLayerTranscoder":
        sae = cls(shape, activation.width, activation)
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            for weights in (*sae.W_enc, *sae.W_dec):
                weights.copy_(unit_rows(*weights.shape, generator))
            for weights in sae.W_dec:  # every output is a sum over the layers before it
                weights /= len(shape.inputs)
            if config.initial_decoder_bias == "mean":
                sae.b_dec.copy_(mean)
        return sae

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        return False

    def encoder(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.cat(self._products(x), dim=-1) + self.b_enc).to(self.b_dec.dtype)

    def products_into(self, seen: torch.Tensor, out: torch.Tensor) -> None:
        torch.cat(self._products(seen), dim=1, out=out)

    def _products(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Of each layer's latents, without the bias."""
        parts = x.split(self.shape.inputs, dim=-1)
        return [nn.functional.linear(part, weights) for part, weights in zip(parts, self.W_enc, strict=True)]

    def encoder_at(self, seen: torch.Tensor) -> Callable[[Entries, torch.Tensor], torch.Tensor]:
        parts = seen.split(self.shape.inputs, dim=1)

        def at(entries: Entries, values: torch.Tensor) -> torch.Tensor:
            places, found = [], []
            for layer, (part, weights) in enumerate(zip(parts, self.W_enc, strict=True)):
                start, stop = layer * self.per_layer, (layer + 1) * self.per_layer
                own, inside = entries.part(start, stop)
                places.append(inside.nonzero()[:, 0])
                found.append(EncodeAt.apply(values[inside], self.b_enc[start:stop], None, weights, part, own))
            return torch.cat(found)[torch.cat(places).argsort()]

        return at

    def mix(self, codes: Codes) -> torch.Tensor:
        total: torch.Tensor | float = 0.0
        for layer, weights in enumerate(self.W_dec):
            reach = self._reach(layer)
            part = codes.part(layer * self.per_layer, (layer + 1) * self.per_layer).decode(weights).to(self.b_dec.dtype)
            total = total + nn.functional.pad(part, (reach.start, self.shape.d_out - reach.stop))
        return total

    def misses(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [missed(self.mix(codes), target)]

    def norms(self) -> torch.Tensor:
        return torch.cat([weights.norm(dim=1) for weights in self.W_dec])

    def folded_bias(self) -> torch.Tensor:
        return self.b_enc

    def scaled_weights(self, inputs: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        by_layer = zip(self.W_enc, inputs.split(self.shape.inputs), strict=True)
        scaled = {f"W_enc.{layer}": weights * factors for layer, (weights, factors) in enumerate(by_layer)}
        for layer, weights in enumerate(self.W_dec):
            reach = self._reach(layer)
            scaled[f"W_dec.{layer}"] = weights * outputs[reach.start : reach.stop]
        return scaled


class PerLayerTranscoder(CrossLayerTranscoder):
    """Each layer's latents rebuild their own layer only."""

    architecture = "per_layer_transcoder"

    def _reach(self, layer: int) -> range:
        start = sum(self.shape.outputs[:layer])
        return range(start, start + self.shape.outputs[layer])
