"""Every architecture's loss in float64 numpy, written out from the published formulas, with gradients by central differences.

A threshold has no useful derivative: its pseudo-gradient is put together as published, from the slopes of the loss in
the latents and in the firing rates. Legend: B rows, F latents, d widths of what is read and rebuilt.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from scopemill.trainer.config.recipe import SaeConfig, sae_config
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae

B, F = 96, 20
ONE = Shape.square(12)
PAIR = Shape((12,), (9,), autoencoder=False)
STACK = Shape((7, 5), (7, 5), autoencoder=True)  # two layers, read and rebuilt
CROSS = Shape((6, 5, 4), (4, 5, 6), autoencoder=False)  # three layers, F latents each


SMALL = dict(
    architecture="jumprelu", tokens=1_000_000, batch_size=1024, learning_rate=3e-3, lr_warmup_steps=50, lr_decay_fraction=0.3,
    sparsity_warmup_steps=300, initial_threshold=0.03, bandwidth=0.03, initial_decoder_bias="mean", initial_scale="as_published",
    dead_after_tokens=200_000, checkpoint_every=500, log_every=20, width=F, sparsity=0.37,
)  # fmt: skip


def quick(**changes) -> SaeConfig:
    """A small configuration that any test can start from; weights that a test sets stay as they are. No template changes it."""
    return sae_config(SMALL | changes)


@dataclass(frozen=True)
class Case:
    """One architecture with options that change its loss. With ``k`` it is a topk kind with dead latents for AuxK."""

    architecture: str
    shape: Shape = ONE
    k: int | None = None
    options: dict = field(default_factory=dict)

    @cached_property
    def config(self) -> SaeConfig:
        counted = {"sparsity": self.k, "auxk_latents": 3} if self.k else {}
        same = dict(architecture=self.architecture, bandwidth=0.4, skip_rank=2, prefixes=(0.25, 0.5, 1.0), initial_decoder_bias="zero")
        return quick(**same | counted | self.options)

    @cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is read and what shall be rebuilt, [B, d] each, float64."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(B, self.shape.d_in, generator=generator, dtype=torch.float64)
        return x, x if self.shape.autoencoder else torch.randn(B, self.shape.d_out, generator=generator, dtype=torch.float64)

    def dead(self, width: int) -> torch.Tensor:
        return torch.arange(width) % 4 == 1 if self.k else torch.zeros(width, dtype=torch.bool)

    def sae(self, dtype: torch.dtype = torch.float64) -> Sae:
        """Every parameter its own random numbers, so that no term hides behind a zero or a tie."""
        generator = torch.Generator().manual_seed(4)
        sae = initial_sae(self.config, self.shape, torch.zeros(self.shape.d_out)).double()
        with torch.no_grad():
            for name, p in sae.named_parameters():
                if name == "activation.threshold":
                    p.uniform_(0.3, 0.9, generator=generator)
                else:
                    p.normal_(0, 0.4, generator=generator)
                if name.startswith("W_dec"):  # norms from a fifth to thrice the usual, as some penalties count them
                    p *= torch.linspace(0.2, 3, len(p), dtype=p.dtype)[:, None]
        return sae.to(dtype)


def jump(**options) -> dict:
    return {"activation": "jumprelu"} | options


RELU, TANH = {"activation": "relu"}, {"penalty": "tanh", "tanh_scale": 1.7}
CASES = {
    "standard": Case("standard"),
    "gated": Case("gated"),
    "jumprelu l0": Case("jumprelu"),
    "jumprelu tanh": Case("jumprelu", options=TANH),
    "jumprelu target": Case("jumprelu", options={"penalty": "target_l0", "sparsity": 4.0, "target_coefficient": 0.37}),
    "jumprelu frequency": Case("jumprelu", options={"frequency_limit": 0.1}),
    "jumprelu target frequency": Case("jumprelu", options={"penalty": "target_l0", "sparsity": 4.0, "frequency_limit": 0.2}),
    "jumprelu pre-activation": Case("jumprelu", options=TANH | {"pre_activation_coefficient": 0.21}),
    "jumprelu layer norm": Case("jumprelu", options={"normalization": "layer_norm"}),
    "topk": Case("topk", k=4),
    "topk without AuxK": Case("topk", k=4, options={"auxk_coefficient": 0.0}),
    "topk layer norm": Case("topk", k=4, options={"normalization": "layer_norm"}),
    "batchtopk": Case("batchtopk", k=4),
    "matryoshka topk": Case("matryoshka", k=4, options={"activation": "topk"}),
    "matryoshka batchtopk": Case("matryoshka", k=4),
    "matryoshka jumprelu": Case("matryoshka", options=jump()),
    "matryoshka coefficients": Case("matryoshka", k=4, options={"prefix_coefficients": (0.3, 0.0, 1.0)}),
    "matryoshka detached": Case("matryoshka", options=jump(detached_prefixes=True, prefix_coefficients=(0.5, 2.0, 1.0))),
    "matryoshka relu": Case("matryoshka", options=RELU),
    "skip jumprelu": Case("skip", options=jump()),
    "skip gated": Case("skip", options={"activation": "gated"}),
    "skip topk": Case("skip", k=4, options={"activation": "topk"}),
    "transcoder jumprelu": Case("transcoder", PAIR),
    "transcoder relu": Case("transcoder", PAIR, options=RELU),
    "transcoder topk": Case("transcoder", PAIR, k=4, options={"activation": "topk"}),
    "skip_transcoder jumprelu": Case("skip_transcoder", PAIR),
    "skip_transcoder batchtopk": Case("skip_transcoder", PAIR, k=4, options={"activation": "batchtopk"}),
    "crosscoder relu": Case("crosscoder", STACK, options=RELU),
    "crosscoder tanh": Case("crosscoder", STACK, options=jump(**TANH)),
    "crosscoder batchtopk": Case("crosscoder", STACK, k=4, options={"activation": "batchtopk"}),
    "clt tanh": Case("clt", CROSS, options=jump(**TANH)),
    "clt relu": Case("clt", CROSS, options=RELU),
    "clt topk": Case("clt", CROSS, k=9, options={"activation": "topk"}),
    "per_layer_transcoder jumprelu": Case("per_layer_transcoder", CROSS),
    "per_layer_transcoder relu": Case("per_layer_transcoder", CROSS, options=RELU),
}


class Reference:
    """One SAE on one batch. What the published gradient holds still (who fires, AuxK's error, Gated's frozen decoder) is taken
    once, at the SAE's own parameters; ``loss`` is a function of everything else."""

    def __init__(self, case: Case, sae: Sae):
        self.config, self.shape = case.config, case.shape
        self.dead = case.dead(sae.width).numpy()
        self.p = {name: p.detach().double().numpy() for name, p in sae.named_parameters()}
        self.x, self.y = (rows.numpy() for rows in case.rows)
        if self.config.normalization == "layer_norm":
            mean, deviation = self.x.mean(axis=1, keepdims=True), self.x.std(axis=1, ddof=1, keepdims=True)
            self.x = self.y = (self.x - mean) / (deviation + 1e-5)
        self.on = self._firing(self.p)
        self.f = self.latents(self.p)
        self.error = self.y - self.rebuilt(self.p, self.f)
        self.revived = self._largest_dead(self.pre(self.p))

    def pre(self, p: dict) -> np.ndarray:
        if self.config.architecture in ("clt", "per_layer_transcoder"):
            columns = np.cumsum((0, *self.shape.inputs))
            layers = [self.x[:, a:b] @ p[f"W_enc.{i}"].T for i, (a, b) in enumerate(zip(columns, columns[1:], strict=False))]
            return np.concatenate(layers, axis=1) + p["b_enc"]
        centred = self.x - p["b_dec"] if self.shape == ONE else self.x
        return np.einsum("bd,fd->bf", centred, p["W_enc"]) + p.get("b_enc", 0.0)

    def _gate(self, p: dict) -> np.ndarray:
        return self.pre(p) + p["activation.b_gate"]

    def _values(self, p: dict) -> np.ndarray:
        if self.config.latents == "gated":
            return np.exp(p["activation.r_mag"]) * self.pre(p) + p["activation.b_mag"]
        return self.pre(p)

    def _firing(self, p: dict) -> np.ndarray:
        """Which latents fire, [B, F]."""
        z, kind = self._values(p), self.config.latents
        if kind == "gated":
            return (self._gate(p) > 0) & (z > 0)
        if kind == "jumprelu":
            return z > p["activation.threshold"]
        on = z > 0
        if kind == "topk":
            for row, fires in zip(z, on, strict=True):
                fires[np.argsort(row)[: -self.config.k]] = False
        if kind == "batchtopk":
            on.flat[np.argsort(z, axis=None)[: -self.config.k * len(z)]] = False
        return on

    def latents(self, p: dict) -> np.ndarray:
        return np.where(self.on, self._values(p), 0.0)

    def _decoder(self, p: dict) -> np.ndarray:
        """[F, d_out]; of cross-layer transcoders with zeros where a latent does not reach."""
        if "W_dec" in p:
            return p["W_dec"]
        columns, blocks = np.cumsum((0, *self.shape.outputs)), []
        for layer in range(len(self.shape.outputs)):
            last = len(self.shape.outputs) if self.config.architecture == "clt" else layer + 1
            block = np.zeros((F, self.shape.d_out))
            block[:, columns[layer] : columns[last]] = p[f"W_dec.{layer}"]
            blocks.append(block)
        return np.concatenate(blocks)

    def rebuilt(self, p: dict, f: np.ndarray, end: int | None = None) -> np.ndarray:
        """From the first ``end`` latents."""
        skip = p["skip.W_skip"] if "skip.W_skip" in p else p["skip.W_up"] @ p["skip.W_down"] if "skip.W_up" in p else 0.0
        out = np.einsum("bf,fd->bd", f[:, :end], self._decoder(p)[:end]) + p["b_dec"]
        return out + np.einsum("bi,oi->bo", self.x, skip) if np.ndim(skip) else out

    def _norms(self, p: dict) -> np.ndarray:
        decoder = self._decoder(p)
        if self.config.architecture == "crosscoder":
            return sum(np.sqrt((block**2).sum(axis=1)) for block in np.split(decoder, np.cumsum(self.shape.outputs)[:-1], axis=1))
        return np.sqrt((decoder**2).sum(axis=1))

    def penalty(self, p: dict, f: np.ndarray, firing: np.ndarray) -> float:
        config = self.config
        match config.latents:
            case "relu":
                return sum((f[:, i] * norm).mean() for i, norm in enumerate(self._norms(p)))
            case "gated":
                return np.maximum(self._gate(p), 0).sum(axis=1).mean()
            case "topk" | "batchtopk":
                return 0.0
        if config.penalty == "tanh":
            return sum(np.tanh(config.tanh_scale * f[:, i] * norm).mean() for i, norm in enumerate(self._norms(p)))
        l0 = sum(firing)
        value = l0 if config.penalty == "l0" else 2 / config.sparsity * (l0 - config.sparsity) ** 2
        return value + sum(share * share / config.frequency_limit for share in firing) if config.frequency_limit else value

    def _largest_dead(self, z: np.ndarray) -> np.ndarray:
        if not self.config.counts_latents:
            return np.zeros_like(z, dtype=bool)
        on = self.dead & (z > 0)
        ranks = np.argsort(np.argsort(np.where(self.dead, -z, np.inf), axis=1), axis=1)
        return on & (ranks < (self.config.auxk_latents or self.shape.d_out // 2))

    def auxiliary(self, p: dict) -> float:
        config = self.config
        match config.latents:
            case "gated":
                rebuilt = np.maximum(self._gate(p), 0) @ self.p["W_dec"] + self.p["b_dec"]
                return ((self.y - rebuilt) ** 2).sum(axis=1).mean()
            case "jumprelu":
                below = np.maximum(p["activation.threshold"] - self.pre(p), 0)
                return config.pre_activation_coefficient * (below * self._norms(p)).sum(axis=1).mean()
            case "topk" | "batchtopk":
                guess = np.where(self.revived, self.pre(p), 0.0) @ self._decoder(p)
                spread = ((self.error - self.error.mean(axis=0)) ** 2).sum()
                return config.auxk_coefficient * ((guess - self.error) ** 2).sum() / spread
        return 0.0

    def loss(self, p: dict, f: np.ndarray | None = None, firing: np.ndarray | None = None) -> float:
        f = self.latents(p) if f is None else f
        firing = self.on.mean(axis=0) if firing is None else firing
        nested = self.config.architecture == "matryoshka"
        ends = [round(share * f.shape[1]) for share in (self.config.prefixes if nested else (1,))]
        coefficients = (nested and self.config.prefix_coefficients) or [1] * len(ends)
        error = 0.0
        for coefficient, smaller, end in zip(coefficients, [0, *ends], ends, strict=False):
            rebuilt = self.rebuilt(p, f, end)
            if nested and self.config.detached_prefixes:  # the smaller prefix is held still
                rebuilt += self.rebuilt(self.p, self.f, smaller) - self.p["b_dec"] - (self.rebuilt(p, f, smaller) - p["b_dec"])
            error += coefficient * ((self.y - rebuilt) ** 2).sum(axis=1).mean()
        if self.config.counts_latents:
            error /= ((self.y - self.y.mean(axis=0)) ** 2).sum(axis=1).mean()
        return error + self.config.coefficient * self.penalty(p, f, firing) + self.auxiliary(p)

    @property
    def fvu(self) -> float:
        return (self.error**2).sum() / ((self.y - self.y.mean(axis=0)) ** 2).sum()

    @cached_property
    def kernel(self) -> np.ndarray:
        """Where a row's pre-activation lies within half a bandwidth of the threshold, [B, F]."""
        return np.abs((self.pre(self.p) - self.p["activation.threshold"]) / self.config.bandwidth) < 0.5

    @cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        found = {name: slopes(lambda v, name=name: self.loss(self.p | {name: v}), value) for name, value in self.p.items()}
        if "activation.threshold" in found:
            found["activation.threshold"] += sum(self.pseudo_gradients())
        return found

    def pseudo_gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the thresholds [F]: through the latents, and through the firing rates."""
        bandwidth = self.config.bandwidth
        by_latents = slopes(lambda f: self.loss(self.p, f=f), self.f, self.kernel)
        by_firing = slopes(lambda firing: self.loss(self.p, firing=firing), self.on.mean(axis=0))
        through_latents = -(self.p["activation.threshold"] / bandwidth) * (self.kernel * by_latents).sum(axis=0)
        return through_latents, -self.kernel.mean(axis=0) / bandwidth * by_firing


def slopes(function: Callable[[np.ndarray], float], at: np.ndarray, where: np.ndarray | None = None, step: float = 1e-5) -> np.ndarray:
    """Central differences of a function in every entry, or in those that count."""
    found, at = np.zeros(at.shape), at.copy()
    for i in np.ndindex(at.shape) if where is None else zip(*np.nonzero(where), strict=True):
        kept = at[i]
        at[i] = kept + step
        above = function(at)
        at[i] = kept - step
        found[i] = (above - function(at)) / (2 * step)
        at[i] = kept
    return found
