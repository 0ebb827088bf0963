"""Find the latents that fire on rows, by sparse kernels where possible.

Legend of shapes: B rows, F latents, n firings.
"""

import numpy as np
import torch

from scopemill.evaluator.evidence import loops
from scopemill.evaluator.evidence.ledger import Firings
from scopemill.trainer.sae.activations.batchtopk import BatchTopK
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.activations.relu import ReLU
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sparse.kernels.base import Found, offsets
from scopemill.trainer.sparse.kernels.select import backend_for

MOST_DENSE = 8  # a row of which more than one latent in so many fires is encoded densely


class Scratch:
    """Lend memory for one matrix at a time, to SAEs that are encoded in turn."""

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def matrix(self, rows: int, columns: int, example: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised matrix on the device of an example, of its dtype."""
        kept = self._kept
        if kept.numel() < rows * columns or (kept.dtype, kept.device) != (example.dtype, example.device):
            self._kept = kept = example.new_empty(rows * columns)
        return kept[: rows * columns].view(rows, columns)


class Encoder:
    """Find the firings of raw rows, in memory kept between calls."""

    def __init__(self, sae: Sae, scratch: Scratch | None = None):
        self.sae, self._scratch = sae, scratch or Scratch()
        self._backend = backend_for(sae.b_dec)
        self._bias = sae.b_dec.new_zeros(sae.width) if sae.b_enc is None else sae.b_enc.detach()
        self._lower = _lower_bound(sae)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> Found:
        """Return the firings of raw rows [B, d_in]: latents above 0."""
        x = x.to(self.sae.b_dec)
        return self._sparse(x) or _dense(self.sae, x)

    def _sparse(self, x: torch.Tensor) -> Found | None:
        k = self.sae.activation.k if type(self.sae.activation) is TopK else None
        if self._backend is None or (self._lower is None and k is None):
            return None
        products = self._scratch.matrix(len(x), self.sae.width, x)
        self.sae.products_into(self.sae.encoder_input(self.sae.normalized(x)[0]), products)
        if k is not None:
            latents, values = self._backend.largest(products, self._bias, min(k, self.sae.width))
            latents, order = latents.sort(dim=1)
            values = values.gather(1, order)
            return Found(offsets((values > 0).sum(1)), latents[values > 0], values[values > 0])
        lower = self._lower
        assert lower is not None
        # The scan rounds the bound, we the value: a bound some units lower misses nothing.
        slack = 4e-7 * (lower.abs() + self._bias.abs())
        found = self._backend.scan(products, self._bias, lower - slack, products.numel() // MOST_DENSE)
        return None if found is None else _kept(found, found.values > lower[found.latents.long()])


def _lower_bound(sae: Sae) -> torch.Tensor | None:
    """Return what a pre-activation [F] has to exceed to fire; None where that is not all."""
    activation = sae.activation
    if isinstance(activation, JumpReLU | BatchTopK):
        return activation.threshold.detach().expand(sae.width).clamp(min=0).contiguous()
    return sae.b_dec.new_zeros(sae.width) if isinstance(activation, ReLU) else None


def _kept(found: Found, keep: torch.Tensor) -> Found:
    if bool(keep.all()):
        return found
    return Found(offsets(keep)[found.starts], found.latents[keep], found.values[keep])


def _dense(sae: Sae, x: torch.Tensor) -> Found:
    latents = sae.encode(x)
    fires = latents > 0
    return Found(offsets(fires.sum(1)), fires.nonzero()[:, 1].to(torch.int32), latents[fires])


class Collector:
    """Collect a shard's firings of some latents, and group them by latents."""

    def __init__(self, start: int, stop: int, room: int = 2**16):
        self._start, self._stop = start, stop
        self._counts: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._latents, self._values, self._n = np.empty(room, np.int32), np.empty(room, np.float32), 0

    def add(self, places: np.ndarray, found: Found) -> None:
        """Add the firings of rows at places [B] of the packed text."""
        starts, latents, values = (x.cpu().numpy() for x in found)
        counts = np.diff(starts)
        if self._start or self._stop <= int(latents.max(initial=0)):
            inside = (latents >= self._start) & (latents < self._stop)
            counts = np.diff(np.concatenate([np.zeros(1, np.int64), inside.cumsum()])[starts])
            latents, values = latents[inside] - self._start, values[inside]
        end = self._n + len(latents)
        if end > len(self._latents):
            room = max(end, 2 * len(self._latents))
            more = room - self._n
            self._latents = np.concatenate([self._latents[: self._n], np.empty(more, np.int32)])
            self._values = np.concatenate([self._values[: self._n], np.empty(more, np.float32)])
        self._latents[self._n : end], self._values[self._n : end], self._n = latents, values, end
        self._counts.append(counts)
        self._places.append(places)

    def firings(self) -> Firings:
        """Return all firings by latents, each latent's by rising place."""
        places = np.concatenate(self._places) if self._places else np.zeros(0, np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), *(counts.astype(np.int64) for counts in self._counts)]).cumsum()
        return Firings(*loops.group(places.argsort(), starts, self._latents, self._values, places, self._stop - self._start))
