"""Define the base of every SAE: an encoder, an activation and a decoder.

`Objective` trains it, `fold` finishes it. Legend of shapes: B rows, d_in and d_out widths of input and reconstruction (several hooks
side by side), F latents.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Self

import torch
from torch import nn

from scopemill.proto.errors import InputError
from scopemill.trainer.config.recipe import OWN_ACTIVATION, SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.parallel.shards import LatentShard
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.cfg import SaeCfg
from scopemill.trainer.sae.skip import Skip
from scopemill.trainer.sae.weights import align_rows, unit_rows
from scopemill.trainer.sparse.codes import Codes, DenseCodes, reconstruction_error
from scopemill.trainer.sparse.entries import Entries
from scopemill.trainer.sparse.gradients import SparseGradients
from scopemill.trainer.sparse.operations import EncodeAt

LAYER_NORM_EPSILON = 1e-5
ARCHITECTURE_OF: dict[str, str] = {activation: word for word, activation in OWN_ACTIVATION.items()}  # where only the activation names it


class Sae(nn.Module):
    """Encode activations into sparse latents, and reconstruct activations from latents.

    A finished SAE takes raw activations, an SAE in training takes scaled ones. ``centred``: the decoder's bias is subtracted from the
    input before encoding; training an autoencoder of one hook does so, and `fold` removes it. ``layer_norm``: each row is normalised
    to mean 0 and variance 1 before encoding.
    """

    def __init__(
        self, shape: Shape, width: int, activation: Activation, centred: bool = False, skip: Skip | None = None, layer_norm: bool = False
    ):
        super().__init__()
        self.cfg: SaeCfg | None = None  # of a finished SAE: see `with_cfg`
        self.shape, self.centred, self.layer_norm = shape, centred, layer_norm
        self.width = width  # latents of this rank
        self.activation, self.skip = activation, skip
        self._make_weights()
        self.b_dec = nn.Parameter(torch.zeros(shape.d_out))

    def _make_weights(self) -> None:
        self.W_enc = nn.Parameter(torch.zeros(self.width, self.shape.d_in))
        self.b_enc = nn.Parameter(torch.zeros(self.width)) if self.activation.has_bias else None
        self.W_dec = nn.Parameter(torch.zeros(self.width, self.shape.d_out))

    @classmethod
    def initial(cls, config: SaeConfig, shape: Shape, activation: Activation, mean: torch.Tensor) -> Self:
        """Return an SAE before its first step, with weights drawn from ``config.seed``.

        ``mean`` [d_out] is that of the target, where the decoder's bias starts with ``initial_decoder_bias: mean``.
        """
        skip = cls._initial_skip(config, shape)
        centred = shape.autoencoder and len(shape.inputs) == 1
        sae = cls(shape, activation.width, activation, centred, skip, config.normalization == "layer_norm")
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            sae._draw_weights(config, generator, mean)
        if skip:
            skip.initialize(generator)
        return sae

    @staticmethod
    def _initial_skip(config: SaeConfig, shape: Shape) -> Skip | None:
        return Skip(shape.d_in, shape.d_out, config.skip_rank) if config.architecture == "skip" else None

    def _draw_weights(self, config: SaeConfig, generator: torch.Generator, mean: torch.Tensor) -> None:
        """Start as Gemma Scope does: unit-norm He-uniform decoder rows, the encoder a copy of the decoder, biases zero."""
        shape, shard = self.shape, self.shard
        self.W_dec.copy_(unit_rows(shard.width, shape.d_out, generator, shard.start, shard.stop))
        self.W_enc.copy_(self.W_dec if shape.autoencoder else unit_rows(shard.width, shape.d_in, generator, shard.start, shard.stop))
        if config.initial_decoder_bias == "mean":
            self.b_dec.copy_(mean)

    @property
    def shard(self) -> LatentShard:
        """Return which of the SAE's latents this rank holds."""
        return self.activation.shard

    def keeps_unit_decoder(self, config: SaeConfig) -> bool:
        """Return whether training keeps the decoder's rows at unit norm.

        It does not where one matrix is encoder and decoder: the norm is then the encoder's gain.
        """
        return self.activation.unit_decoder(config) and not config.tied_weights

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
        return self.shard.width

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
        """Return the latents [..., F] of activations [..., d_in], in the activations' dtype.

        Activations of another floating-point dtype are cast to the SAE's, and the result back. InputError for another shape.
        """
        return self.activation(self.encoder(self.normalized(self._as_rows(x))[0])).to(x.dtype)

    def decode(self, latents: torch.Tensor, heads: int | None = None) -> torch.Tensor:
        """Return the decoder's output [..., d_out] for latents [..., F], in the latents' dtype.

        Of a skip SAE the skip's output is not included; of an SAE with layer norm the norm is not undone. ``heads``: return
        [..., heads, d_head], as an attn_z hook has it.
        """
        own = latents.to(self.dtype)
        reconstruction = (self.decode_no_bias(DenseCodes(own, own.new_empty(self.width))) + self.b_dec).to(latents.dtype)
        return reconstruction.unflatten(-1, (heads, -1)) if heads else reconstruction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction [..., d_out] of activations [..., d_in], in their dtype.

        An SAE of an attn_z hook takes [..., heads, d_head] as well, and returns that shape.
        """
        return self.reconstruct(x)[1]

    def reconstruct(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents [..., F] and reconstruction [..., d_out] of activations [..., d_in].

        Both have the activations' dtype.
        """
        rows, mean, deviation = self.normalized(self._as_rows(x))
        latents = self.activation(self.encoder(rows))
        reconstruction = self.decode(latents) + (self.skip(rows) if self.skip else 0)
        if mean is not None and deviation is not None:
            reconstruction = reconstruction * deviation + mean
        if self._has_heads(x):
            reconstruction = reconstruction.reshape(x.shape)
        return latents.to(x.dtype), reconstruction.to(x.dtype)

    # What other packages take. Formats lie above this room, so their modules are imported when asked for.

    def push_to_hub(self, repo_id: str, folder: str = "", private: bool | None = None, token: str | None = None) -> str:
        """Push this SAE with a model card to Hugging Face.

        Returns the id that `load_sae` takes.
        """
        return import_module("scopemill.trainer.formats.hub").push_to_hub(self, repo_id, folder, private, token)

    def to_saelens(self) -> Any:
        """Return this SAE as an SAE of the package sae_lens.

        Raises InputError if sae_lens is missing or has no such architecture.
        """
        return import_module("scopemill.trainer.formats.saelens").to_saelens(self)

    def _has_heads(self, x: torch.Tensor) -> bool:
        """Return whether x is [..., heads, d_head] of the attn_z hook that this SAE reads."""
        splits = self.cfg is not None and self.cfg.splits_heads and x.ndim > 1
        return splits and x.shape[-1] != self.d_in and x.shape[-2] * x.shape[-1] == self.d_in

    def _as_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return x as rows [..., d_in] in the SAE's dtype. InputError for other shapes, and for integers, which latents would be cut to."""
        rows = x.flatten(-2) if self._has_heads(x) else x
        if not rows.ndim or rows.shape[-1] != self.d_in or not rows.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            heads = " or [..., heads, d_head]" if self.cfg is not None and self.cfg.splits_heads else ""
            raise InputError(
                f"the activations are {kind} of the shape {list(x.shape)}, and this SAE takes floating-point rows [..., {self.d_in}]{heads}"
            )
        return rows.to(self.dtype)

    def normalized(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the rows to encode.

        With a layer norm, also return the mean and the deviation [..., 1] that undo the norm. As SAELens defines it: the sample
        deviation, with d - 1, and an epsilon on the way in only.
        """
        if not self.layer_norm:
            return x, None, None
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return (x - mean) / (deviation + LAYER_NORM_EPSILON), mean, deviation

    # The layout of the weights: architectures override these.

    def encoder(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pre-activations [..., F]."""
        return nn.functional.linear(self.encoder_input(x), self.W_enc, self.b_enc).to(self.b_dec.dtype)

    def encoder_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the encoder's weights are multiplied by, [..., d_in]."""
        return x - self.b_dec if self.centred else x

    def products_into(self, encoder_input: torch.Tensor, out: torch.Tensor) -> None:
        """Write pre-activations without the bias into memory [B, F] that was used before.

        They are of an encoder input [B, d_in].
        """
        # Fresh memory takes longer to touch than to fill, and adding the bias would be one more pass over all of it.
        if torch.is_autocast_enabled(encoder_input.device.type) and out.dtype == encoder_input.dtype:
            out.copy_(nn.functional.linear(encoder_input, self.W_enc))
        else:
            torch.mm(encoder_input.to(out.dtype), self.W_enc.to(out.dtype).T, out=out)

    def encoder_at(self, encoder_input: torch.Tensor, gradients: SparseGradients | None) -> Callable[[Entries, torch.Tensor], torch.Tensor]:
        """Return a function that makes known pre-activations [n] at entries differentiable."""
        b_dec = self.b_dec if self.centred else None
        return lambda entries, values: EncodeAt.apply(values, self.b_enc, b_dec, self.W_enc, encoder_input, entries, gradients)

    def scale_encoder(self, factor: float) -> None:
        """Multiply the encoder's weights by a factor, in place, before its biases have left zero."""
        self.W_enc.mul_(factor)

    def align_decoder(self, codes: DenseCodes, target: torch.Tensor) -> None:
        """Point each decoder row, in place, where targets lie when its latent fires.

        For SAEs whose decoder has no encoder to copy: see `align_rows`. Targets are [B, d_out].
        """
        align_rows(self.W_dec, codes, target)

    def decode_no_bias(self, codes: Codes) -> torch.Tensor:
        """Return the decoder's output [..., d_out] without the bias, summed over ranks."""
        return self.shard.all_reduce(codes.decode(self.W_dec).to(self.b_dec.dtype))

    def reconstruction_error(self, codes: Codes, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of squared errors against ``target``, and the error.

        Target and error are [B, d_out]; the error has no gradient.
        """
        if self.shard.whole:
            return codes.reconstruction_error(self.W_dec, target)
        return reconstruction_error(self.decode_no_bias(codes), target)

    def norms(self) -> torch.Tensor:
        """Return the norm [F] of each latent's decoder row, as a penalty counts it."""
        return self.W_dec.norm(dim=1)

    def folded_bias(self) -> torch.Tensor:
        """Return the encoder's bias [F] with the pre-encoder bias folded in."""
        bias = torch.zeros_like(self.W_enc[:, 0]) if self.b_enc is None else self.b_enc
        return bias - self.W_enc @ self.b_dec if self.centred else bias

    def scaled_weights(self, inputs: torch.Tensor, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return encoder and decoder by parameter name, with scaled columns.

        The columns are multiplied by ``inputs`` [d_in] and ``outputs`` [d_out].
        """
        return {"W_enc": self.W_enc * inputs, "W_dec": self.W_dec * outputs}
