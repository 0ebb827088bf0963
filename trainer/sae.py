"""The base of every SAE architecture: the seam between the training loop and the maths of one kind of SAE.

Legend of shapes: B rows, d width of the hook, F latents.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.config import SaeConfig


@dataclass
class Losses:
    """Of one batch. Each is a mean over the B rows; the reconstruction error is summed over d first."""

    reconstruction: torch.Tensor  # E ||x - x_hat||^2
    sparsity: torch.Tensor  # the penalty, without its coefficient
    latents: torch.Tensor  # [B, F], detached: what fired

    def total(self, coefficient: float) -> torch.Tensor:
        return self.reconstruction + coefficient * self.sparsity


class Sae(nn.Module, ABC):
    """An encoder, a decoder and what lies between. Finished ones take raw activations; in training x is scaled.

    ``centred``: whether the decoder's bias is subtracted from x before encoding. Training does, and ``folded`` folds
    it away.
    """

    architecture: ClassVar[str]
    unit_decoder: ClassVar[bool]  # whether training keeps the decoder's rows at unit norm

    def __init__(self, d: int, width: int, centred: bool):
        super().__init__()
        self.centred = centred
        self.W_enc = nn.Parameter(torch.zeros(width, d))
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.W_dec = nn.Parameter(torch.zeros(width, d))
        self.b_dec = nn.Parameter(torch.zeros(d))

    @classmethod
    def initial(cls, config: SaeConfig, d: int, mean: torch.Tensor) -> Self:
        """Gemma Scope's start: decoder rows He-uniform, then of unit norm, the encoder their copy, biases zero.

        With ``initial_decoder_bias: mean`` the decoder's bias starts at ``mean`` [d] of the scaled activations.
        """
        sae = cls(d, config.width, centred=True)
        generator = torch.Generator().manual_seed(config.seed)
        bound = (6 / d) ** 0.5
        with torch.no_grad():
            sae.W_dec.uniform_(-bound, bound, generator=generator)
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
            sae.W_enc.copy_(sae.W_dec)
            if config.initial_decoder_bias == "mean":
                sae.b_dec.copy_(mean)
        return sae

    @property
    def width(self) -> int:
        return self.W_dec.shape[0]

    @property
    def d(self) -> int:
        return self.W_dec.shape[1]

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """[B, d] to [B, F]."""
        return nn.functional.linear(x - self.b_dec if self.centred else x, self.W_enc, self.b_enc)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., d] to latents [..., F]."""
        return self.activate(self.pre_activations(x))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [..., F] to activations [..., d]."""
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))

    @abstractmethod
    def activate(self, pre: torch.Tensor) -> torch.Tensor:
        """Pre-activations to latents, at inference."""

    @abstractmethod
    def losses(self, x: torch.Tensor, config: SaeConfig) -> Losses:
        """Of a batch of scaled activations [B, d], differentiable as the architecture defines it."""

    def after_update(self) -> None:
        """What an update may have broken is mended here, such as a threshold that must not be negative."""

    @torch.no_grad()
    def folded(self, scale: float) -> "Sae":
        """The same SAE for raw activations (scaled = raw / ``scale``), without a pre-encoder bias.

        b_enc' = C (b_enc - W_enc b_dec), b_dec' = C b_dec; the weights stay as they are.
        """
        sae = type(self)(self.d, self.width, centred=False)
        sae.W_enc.copy_(self.W_enc)
        sae.W_dec.copy_(self.W_dec)
        sae.b_enc.copy_(scale * (self.b_enc - self.W_enc @ self.b_dec if self.centred else self.b_enc))
        sae.b_dec.copy_(scale * self.b_dec)
        return sae


def check_tensors(place: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """SaeFormatError unless what was read at a place is exactly the tensors of these names and shapes."""
    for name in sorted(tensors.keys() | shapes.keys()):
        if name not in tensors:
            raise SaeFormatError(f"{place} lacks the tensor {name}")
        if name not in shapes:
            raise SaeFormatError(f"{place} holds a tensor {name}, which does not belong there")
        if list(tensors[name].shape) != list(shapes[name]):
            raise SaeFormatError(f"{place}: tensor {name} has the shape {list(tensors[name].shape)} where {list(shapes[name])} belongs")
