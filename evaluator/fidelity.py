"""How faithful an SAE is: FVU, L0, firing frequencies, and the language model's loss with its reconstruction spliced in.

Every sum is float64 over the whole evaluation. Legend: B sequences, T positions, d width of the hook, F latents.
Rows are the positions whose token is not special; a loss counts where the token that is predicted is not special.
"""

from dataclasses import dataclass

import numpy as np
import torch

from scopemill.evaluator.results import Histogram
from scopemill.harvester.language_model import Edit, LanguageModel
from scopemill.proto.hooks import Hook
from scopemill.trainer.sae import Sae

LOG_FREQUENCY_EDGES = [x / 4 for x in range(-28, 1)]  # log10 from 1e-7 to 1, four bins a decade


@dataclass(frozen=True)
class EvaluationText:
    """Tokens [S, T], which of them are rows, and how many go through the model at once."""

    tokens: torch.Tensor
    is_row: torch.Tensor
    sequences_per_forward: int

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        n = self.sequences_per_forward
        return list(zip(self.tokens.split(n), self.is_row.split(n), strict=True))


@dataclass(frozen=True)
class Baseline:
    """What every SAE of a hook is held against. Losses in nats per token."""

    loss_clean: float
    loss_zero_ablated: float
    loss_mean_ablated: float
    variance: float  # sum over rows of ||x - mean||^2
    rows: int


@dataclass(frozen=True)
class Fidelity:
    loss_spliced: float
    fvu: float
    l0: float
    dead_fraction: float
    histogram: Histogram


class _LossMean:
    """Mean loss over the tokens that count."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, losses: torch.Tensor, is_row: torch.Tensor) -> None:
        counted = losses[is_row[:, 1:].to(losses.device)]
        self._sum += counted.sum(dtype=torch.float64).item()
        self._count += counted.numel()

    @property
    def value(self) -> float:
        return self._sum / self._count


class Moments:
    """Mean and summed squared distance from it, by Chan's pairwise update: right also where the mean is large."""

    def __init__(self, d: int):
        self.count, self.mean, self.squares = 0, np.zeros(d), 0.0

    def add(self, rows: torch.Tensor) -> None:
        x = rows.double().cpu().numpy()
        if not len(x):
            return
        mean = x.mean(axis=0)
        shift = mean - self.mean
        total = self.count + len(x)
        self.squares += float(((x - mean) ** 2).sum()) + float(shift @ shift) * self.count * len(x) / total
        self.mean = self.mean + shift * (len(x) / total)
        self.count = total


def measure_baseline(lm: LanguageModel, hook: Hook, text: EvaluationText, splice_special: bool) -> Baseline:
    """The clean loss, the rows' variance, then the losses with the rows replaced by zero and by their mean."""
    clean, zero, mean_ablated = _LossMean(), _LossMean(), _LossMean()
    moments: Moments | None = None

    def look(x: torch.Tensor) -> torch.Tensor:
        nonlocal moments
        moments = moments or Moments(x.shape[-1])
        moments.add(x[is_row.to(x.device)])
        return x

    for tokens, is_row in text.batches():
        clean.add(lm.token_losses(tokens, {hook: look}), is_row)
    mean = torch.from_numpy(moments.mean).float()
    for tokens, is_row in text.batches():
        zero.add(lm.token_losses(tokens, {hook: _replace(is_row, splice_special, torch.zeros_like)}), is_row)
        ablate = _replace(is_row, splice_special, lambda x: mean.to(x.device).expand_as(x))
        mean_ablated.add(lm.token_losses(tokens, {hook: ablate}), is_row)
    return Baseline(clean.value, zero.value, mean_ablated.value, moments.squares, moments.count)


def measure(lm: LanguageModel, sae: Sae, hook: Hook, text: EvaluationText, baseline: Baseline, splice_special: bool) -> Fidelity:
    """One SAE, for raw activations, against the baseline of its hook and the same text."""
    spliced = _LossMean()
    error, fired = 0.0, torch.zeros(sae.width, dtype=torch.float64)

    def reconstruct(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        nonlocal error, fired
        latents = sae.encode(x)
        reconstruction = sae.decode(latents)
        error += (x - reconstruction)[counted].double().square().sum().item()
        fired += (latents > 0)[counted].sum(0).double().cpu()
        return reconstruction

    for tokens, is_row in text.batches():
        everywhere = torch.ones_like(is_row) if splice_special else is_row

        def splice(x: torch.Tensor, is_row=is_row, everywhere=everywhere) -> torch.Tensor:
            x, out = x.float(), x.clone()
            out[everywhere.to(x.device)] = reconstruct(x[everywhere.to(x.device)], is_row[everywhere].to(x.device)).to(out.dtype)
            return out

        spliced.add(lm.token_losses(tokens, {hook: splice}), is_row)
    return Fidelity(
        loss_spliced=spliced.value,
        fvu=error / baseline.variance,
        l0=float(fired.sum()) / baseline.rows,
        dead_fraction=float((fired == 0).double().mean()),
        histogram=_histogram(fired.numpy() / baseline.rows),
    )


def _replace(is_row: torch.Tensor, splice_special: bool, value) -> Edit:
    """An edit that replaces the rows (and, if asked, the special positions) by ``value`` of them."""

    def edit(x: torch.Tensor) -> torch.Tensor:
        where = (torch.ones_like(is_row) if splice_special else is_row).to(x.device)
        out = x.clone()
        out[where] = value(x[where]).to(out.dtype)
        return out

    return edit


def _histogram(frequencies: np.ndarray) -> Histogram:
    alive = np.log10(frequencies[frequencies > 0])
    counts, edges = np.histogram(np.clip(alive, LOG_FREQUENCY_EDGES[0], 0.0), bins=LOG_FREQUENCY_EDGES)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), never=int((frequencies == 0).sum()))
