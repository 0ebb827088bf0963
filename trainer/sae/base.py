"""The base of every SAE: an encoder, an activation, a decoder; and the seam between the training loop and the maths.

Legend of shapes: B rows, d_in and d_out widths of what is read and rebuilt (of several hooks: side by side), F latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import torch
from torch import nn

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.config.recipe import OWN_ACTIVATION, SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.parallel.shards import Part
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.cfg import SaeCfg
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sparse.codes import Codes, DenseCodes, DensePre, Pre, SparsePre, missed
from scopemill.trainer.sparse.entries import EncodeAt, Entries
from scopemill.trainer.sparse.kernels.select import backend_for

LAYER_NORM_EPSILON = 1e-5
ARCHITECTURE_OF: dict[str, str] = {
    activation: word for word, activation in OWN_ACTIVATION.items()
}  # where nothing but the activation names it
DRAWN_ROWS = 4096  # of weights at a time, where a part keeps some of them


@dataclass
class Losses:
    """Of one batch. Each is a mean over the B rows; errors are summed over d first."""

    reconstruction: torch.Tensor  # E ||y - y_hat||^2
    nested: torch.Tensor | float  # likewise of Matryoshka's smaller parts, added up
    sparsity: torch.Tensor  # the penalty, without its coefficient
    l0: torch.Tensor  # mean number of latents that fire
    auxiliary: torch.Tensor | float  # what else the architecture trains by
    variance: torch.Tensor | float  # what errors are divided by: 1, or E ||y - mean y||^2
    target: torch.Tensor  # y as it was to be rebuilt: normalised, if rows are
    codes: Codes  # of the latents that are here

    def total(self, coefficient: float) -> torch.Tensor:
        return (self.reconstruction + self.nested) / self.variance + coefficient * self.sparsity + self.auxiliary


class Sae(nn.Module):
    """Finished ones take raw activations; in training x is scaled.

    ``centred``: whether the decoder's bias is subtracted from x before encoding. Training an autoencoder of one hook does,
    and ``finished`` folds it away. ``layer_norm``: each row is brought to mean 0 and variance 1 before it is encoded.
    """

    def __init__(
        self, shape: Shape, width: int, activation: Activation, centred: bool = False, skip: Skip | None = None, layer_norm: bool = False
    ):
        super().__init__()
        self.cfg: SaeCfg | None = None  # of a finished SAE: see `with_cfg`
        self.shape, self.centred, self.layer_norm = shape, centred, layer_norm
        self.width = width  # latents that are here
        self.activation, self.skip = activation, skip
        self._everything: torch.Tensor | None = None  # the products [B, F] of the last sparse step
        self._make_weights()
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))

    def _make_weights(self) -> None:
        self.W_enc = nn.Parameter(torch.zeros(self.width, self.shape.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.width)) if self.activation.has_bias else None
        self.W_dec = nn.Parameter(torch.zeros(self.width, self.shape.d_out))

    @classmethod
    def initial(cls, config: SaeConfig, shape: Shape, activation: Activation, mean: torch.Tensor) -> Self:
        """Gemma Scope's start: decoder rows He-uniform, then of unit norm, the encoder their copy, biases zero.

        With ``initial_decoder_bias: mean`` the decoder's bias starts at ``mean`` [d_out] of what is to be rebuilt.
        """
        skip = Skip(shape.d_in, shape.d_out, config.skip_rank) if config.architecture == "skip" else None
        centred = shape.autoencoder and len(shape.inputs) == 1
        sae, part = cls(shape, activation.width, activation, centred, skip, config.normalization == "layer_norm"), activation.part
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            sae.W_dec.copy_(unit_rows(part.width, shape.d_out, generator, part.first, part.stop))
            sae.W_enc.copy_(sae.W_dec if shape.autoencoder else unit_rows(part.width, shape.d_in, generator, part.first, part.stop))
            if config.initial_decoder_bias == "mean":
                sae.b_dec.copy_(mean)
        if skip:
            skip.initialize(generator)
        return sae

    @property
    def part(self) -> Part:
        """What of the SAE's latents this is."""
        return self.activation.part

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        """Whether training keeps the decoder's rows at unit norm."""
        return self.activation.unit_decoder(config)

    # The public face: what the SAE is, and inference.

    @property
    def d_in(self) -> int:
        """Return the width of the input, all hooks side by side."""
        return self.shape.d_in

    @property
    def d_out(self) -> int:
        """Return the width of the reconstruction, all hooks side by side."""
        return self.shape.d_out

    @property
    def d_sae(self) -> int:
        """Return the number of latents, over all ranks."""
        return self.part.width

    @property
    def hook(self) -> str | None:
        """Return the label of the SAE's hooks, or None if unknown."""
        return self.cfg.hook or None if self.cfg else None

    @property
    def model(self) -> str | None:
        """Return the name of the language model, or None if unknown."""
        return self.cfg.model if self.cfg else None

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, in which the SAE computes."""
        return self.b_dec.dtype

    @property
    def architecture(self) -> str:
        """Return the sweep file's word for this architecture."""
        return "skip" if self.skip else ARCHITECTURE_OF[self.activation.name]

    def describe(
        self,
        inputs: Sequence[str] = (),
        targets: Sequence[str] = (),
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> SaeCfg:
        """Return the description of this SAE with these hooks, this model and these metadata."""
        return SaeCfg(
            architecture=self.architecture,
            activation=self.activation.name,
            d_in=self.d_in,
            d_sae=self.d_sae,
            d_out=self.d_out,
            inputs=tuple(inputs),
            targets=tuple(targets),
            model=model,
            normalization="layer_norm" if self.layer_norm else "none",
            k=self.activation.to_config().get("k"),
            metadata=dict(metadata or {}),
        )

    def with_cfg(self, cfg: SaeCfg) -> Self:
        """Attach a description and return this SAE; ValueError if their widths differ."""
        for field in ("d_in", "d_sae", "d_out"):
            if getattr(cfg, field) != getattr(self, field):
                raise ValueError(f"cfg.{field} is {getattr(cfg, field)}, but the SAE's {field} is {getattr(self, field)}")
        self.cfg = cfg
        return self

    def __repr__(self) -> str:
        """Return one line: architecture, hook, widths, activation, dtype and device."""
        where = f" at {self.hook}" if self.hook else ""
        dtype = str(self.dtype).removeprefix("torch.")
        out = "" if self.shape.autoencoder else f" -> {self.d_out}"
        return f"Sae({self.architecture}{where}, {self.d_in} -> {self.d_sae}{out}, {self.activation.name}, {dtype}, {self.device})"

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents [..., F] of activations [..., d_in], in the activations' dtype."""
        return self.activation(self.encoder(self.normalized(self._as_rows(x))[0])).to(x.dtype)

    def decode(self, latents: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """Return the decoder's output [..., d_out] for latents [..., F], in the latents' dtype.

        Of a skip SAE the skip's output is not included; of an SAE with layer norm the norm is not undone. ``heads``: return
        [..., heads, d_head], as an attn_z hook has it.
        """
        own = latents.to(self.dtype)
        rebuilt = (self.mix(DenseCodes(own, own.new_empty(self.width))) + self.b_dec).to(latents.dtype)
        return rebuilt.unflatten(-1, (heads, -1)) if heads else rebuilt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction [..., d_out] of activations [..., d_in], in their dtype.

        An SAE of an attn_z hook takes [..., heads, d_head] as well, and returns that shape.
        """
        return self.reconstruct(x)[1]

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents [..., F] and the reconstruction [..., d_out] of activations [..., d_in], in their dtype."""
        rows, mean, deviation = self.normalized(self._as_rows(x))
        latents = self.activation(self.encoder(rows))
        rebuilt = self.decode(latents) + (self.skip(rows) if self.skip else 0)
        if mean is not None and deviation is not None:
            rebuilt = rebuilt * deviation + mean
        if self._has_heads(x):
            rebuilt = rebuilt.view(x.shape)
        return latents.to(x.dtype), rebuilt.to(x.dtype)

    # What other packages take. Formats lie above this room, so their modules are imported when asked for.

    def push_to_hub(self, repo_id: str, folder: str = "", private: bool | None = None, token: str | None = None) -> str:
        """Push this SAE with a model card to Hugging Face, and return the id that `load_sae` takes."""
        return import_module("scopemill.trainer.formats.hub").push_to_hub(self, repo_id, folder, private, token)

    def to_saelens(self) -> Any:
        """Return this SAE as an SAE of the package sae_lens. InputError if sae_lens is missing or has no such architecture."""
        return import_module("scopemill.trainer.formats.saelens").to_saelens(self)

    def _has_heads(self, x: torch.Tensor) -> bool:
        """Return whether x is [..., heads, d_head] of the attn_z hook that this SAE reads."""
        splits = self.cfg is not None and self.cfg.splits_heads and x.ndim > 1
        return splits and x.shape[-1] != self.d_in and x.shape[-2] * x.shape[-1] == self.d_in

    def _as_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return x as rows [..., d_in] in the SAE's dtype."""
        return (x.flatten(-2) if self._has_heads(x) else x).to(self.dtype)

    def normalized(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """What is encoded; of a layer norm with the mean and the deviation [..., 1] that give x back.

        As SAELens defines it: the sample's deviation, with d - 1, and an epsilon on the way in only.
        """
        if not self.layer_norm:
            return x, None, None
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (deviation + LAYER_NORM_EPSILON), mean, deviation

    # Parts that architectures differ in.

    def encoder(self, x: torch.Tensor) -> torch.Tensor:
        """Pre-activations [..., F]."""
        return nn.functional.linear(self.seen(x), self.W_enc, self.b_enc).to(self.b_dec.dtype)

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """What the encoder's weights are multiplied with, [..., d_in]."""
        return x - self.b_dec if self.centred else x

    def products_into(self, seen: torch.Tensor, out: torch.Tensor) -> None:
        """Pre-activations without the bias, of what is ``seen`` [B, d_in], into memory [B, F] that was used before.

        Fresh memory takes longer to touch than to fill, and to add the bias would be one more pass over all of it.
        """
        if torch.is_autocast_enabled(seen.device.type) and out.dtype == seen.dtype:
            out.copy_(nn.functional.linear(seen, self.W_enc))
        else:
            torch.mm(seen.to(out.dtype), self.W_enc.to(out.dtype).T, out=out)

    def encoder_at(self, seen: torch.Tensor) -> Callable[[Entries, torch.Tensor], torch.Tensor]:
        """Makes pre-activations of what is ``seen`` [B, d_in] that are known at some entries [n] differentiable there."""
        return lambda entries, values: EncodeAt.apply(values, self.b_enc, self.b_dec if self.centred else None, self.W_enc, seen, entries)

    def mix(self, codes: Codes) -> torch.Tensor:
        """What the decoders of all parts make of latents, without the bias, [..., d_out]."""
        return self.part.sum(codes.decode(self.W_dec).to(self.b_dec.dtype))

    def misses(self, codes: Codes, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """By how much the latents miss the target [B, d_out]: see `Codes.misses`. Of nested parts each, the whole last."""
        return [codes.misses(self.W_dec, target) if self.part.whole else missed(self.mix(codes), target)]

    def norms(self) -> torch.Tensor:
        """Of each latent's decoder row, [F], as a penalty counts them."""
        return self.W_dec.norm(dim=1)

    # Training.

    def begin(self, x: torch.Tensor, config: SaeConfig) -> None:
        """Before the first step, with its batch [B, d_in]."""
        with torch.no_grad():
            self.activation.begin(self.encoder(self.normalized(x)[0]), config)

    def losses(self, x: torch.Tensor, y: torch.Tensor, config: SaeConfig, dead: torch.Tensor, at_most: int = 0) -> Losses:
        """Of a batch of scaled activations x [B, d_in] that shall become y [B, d_out], differentiable as the architecture
        defines it. ``dead`` [F] says which latents have not fired for long. The sparse way is taken where ``at_most`` entries
        are enough; it leaves the weights' gradients to them as terms."""
        if self.layer_norm:
            x = y = self.normalized(x)[0]
        pre = self._pre_activations(x, config, at_most)
        codes = self.activation.codes(pre, config)
        constant = self.part.once(self.b_dec + self.skip(x).to(self.b_dec.dtype) if self.skip else self.b_dec)
        misses = self.misses(codes, y - constant)
        *nested, reconstruction = [squares / len(x) for squares, _ in misses]
        return Losses(
            reconstruction=reconstruction,
            nested=sum(nested),
            sparsity=self.activation.penalty(codes, pre, self.norms, config),
            l0=self.part.sum(codes.l0.detach()),
            auxiliary=self.activation.auxiliary(self, pre, y, misses[-1][1], dead, config),
            variance=(y - y.mean(0)).square().sum() / len(y) if self.activation.normalized_error else 1.0,
            target=y,
            codes=codes,
        )

    def _pre_activations(self, x: torch.Tensor, config: SaeConfig, at_most: int) -> Pre:
        if at_most:
            if self._everything is None or len(self._everything) != len(x):
                self._everything = x.new_empty(len(x), self.width, dtype=backend_for(x).operand(x[:0]).dtype)
            with torch.no_grad():
                seen = self.seen(x)
                self.products_into(seen, self._everything)
                bias = x.new_zeros(self.width) if self.b_enc is None else self.b_enc.detach()
                selected = self.activation.select(self._everything, bias, config, at_most)
            if selected is not None:
                return SparsePre(self._everything, bias, *selected, self.encoder_at(seen))
        return DensePre(self.encoder(x))

    # What folding needs to know of the weights' layout.

    def folded_bias(self) -> torch.Tensor:
        """Return the encoder's bias [F] with the pre-encoder bias folded in."""
        bias = torch.zeros_like(self.W_enc[:, 0]) if self.b_enc is None else self.b_enc
        return bias - self.W_enc @ self.b_dec if self.centred else bias

    def scaled_weights(self, inputs: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return encoder and decoder by parameter name, their columns multiplied by ``inputs`` [d_in] and ``outputs`` [d_out]."""
        return {"W_enc": self.W_enc * inputs, "W_dec": self.W_dec * outputs}


def unit_rows(rows: int, d: int, generator: torch.Generator, first: int = 0, stop: int | None = None) -> torch.Tensor:
    """He-uniform rows [rows, d], brought to unit norm; of these the ones from ``first`` up to ``stop``.

    Numbers are drawn one after another, so what others keep is drawn too, a block at a time, and forgotten.
    """
    bound = (6 / d) ** 0.5
    weights = torch.empty((rows if stop is None else stop) - first, d)
    for start in range(0, rows, DRAWN_ROWS):
        block = torch.empty(min(DRAWN_ROWS, rows - start), d).uniform_(-bound, bound, generator=generator)
        mine = block[max(0, first - start) : max(0, first + len(weights) - start)]
        weights[max(0, start - first) :][: len(mine)] = mine
    return weights / weights.norm(dim=1, keepdim=True)


def check_tensors(place: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """SaeFormatError unless what was read at a place is exactly the tensors of these names and shapes."""
    for name in sorted(tensors.keys() | shapes.keys()):
        if name not in tensors:
            raise SaeFormatError(f"{place} lacks the tensor {name}")
        if name not in shapes:
            raise SaeFormatError(f"{place} holds a tensor {name}, which does not belong there")
        if list(tensors[name].shape) != list(shapes[name]):
            raise SaeFormatError(f"{place}: tensor {name} has the shape {list(tensors[name].shape)} where {list(shapes[name])} belongs")
