"""Measure an SAE's fidelity: FVU, L0, firing frequencies and spliced loss.

Every sum is float64 over the whole evaluation. Legend: S sequences in all, B in a batch, T positions, d width of the hook.
Rows are the positions whose token is not special. A loss counts if its predicted token is not special.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from scopemill.evaluator.fidelity.decoder_cosine import decoder_cosine
from scopemill.evaluator.fidelity.results import Histogram
from scopemill.harvester.language_model.model import Edit, LanguageModel, put_rows
from scopemill.proto.errors import InputError, NotFinite
from scopemill.proto.hooks import Hook
from scopemill.trainer.sae.base import Sae

ROUNDING = 1e-20  # of the squared mean: float64 sums leave less variance than this of equal rows, float32 rows that differ have more
PIECE_BYTES = 768 * 2**20  # of latents, and of what an activation makes on the way to them, at a time
LATENT_BYTES = 16  # of these for each row and latent, at most
LOG_FREQUENCY_EDGES = [x / 4 for x in range(-28, 1)]  # log10 from 1e-7 to 1, four bins a decade


@dataclass(frozen=True)
class EvaluationText:
    """Hold the text to evaluate on."""

    tokens: torch.Tensor  # [S, T]
    is_row: torch.Tensor  # [S, T], bool
    sequences_per_forward: int

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return tokens and row mask, both [B, T], of each forward pass."""
        n = self.sequences_per_forward
        return list(zip(self.tokens.split(n), self.is_row.split(n), strict=True))


@dataclass(frozen=True)
class Baseline:
    """Record the reference values of one output's SAEs. Losses are in nats per token."""

    loss_clean: float
    loss_zero_ablated: float
    loss_mean_ablated: float
    variance: float  # sum over rows of ||x - mean||^2
    rows: int


@dataclass(frozen=True)
class Fidelity:
    """Record one SAE's measurements. The loss is in nats per token."""

    loss_spliced: float
    fvu: float
    l0: float
    dead_fraction: float
    decoder_cosine: float
    histogram: Histogram


class _LossMean:
    """Accumulate the mean loss over predicted tokens that are not special."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, losses: torch.Tensor, is_row: torch.Tensor) -> None:
        counted = losses[is_row[:, 1:].to(losses.device)]
        self._sum += counted.sum(dtype=torch.float64).item()
        self._count += counted.numel()

    @property
    def value(self) -> float:
        return self._sum / self._count if self._count else float("nan")


class Moments:
    """Accumulate the mean of rows and the sum of squared distances from it.

    Chan's pairwise update stays accurate where the mean is large.
    """

    def __init__(self, d: int):
        self.count, self.mean, self.squares = 0, np.zeros(d), 0.0

    def add(self, rows: torch.Tensor) -> None:
        """Add rows [n, d]."""
        x = rows.double().cpu().numpy()
        if not len(x):
            return
        mean = x.mean(axis=0)
        shift = mean - self.mean
        total = self.count + len(x)
        self.squares += float(((x - mean) ** 2).sum()) + float(shift @ shift) * self.count * len(x) / total
        self.mean = self.mean + shift * (len(x) / total)
        self.count = total


def measure_baseline(lm: LanguageModel, hooks: tuple[Hook, ...], text: EvaluationText, splice_special: bool) -> Baseline:
    """Measure the variance and the clean, zero-ablated and mean-ablated losses of a tuple of hooks.

    Ablation replaces the rows of all hooks together. Raises NotFinite or InputError, naming the hooks, where no SAE can be measured.
    """
    clean, zero, mean_ablated = _LossMean(), _LossMean(), _LossMean()
    moments: dict[Hook, Moments] = {}

    def observer(hook: Hook) -> Edit:
        def observe(x: torch.Tensor) -> torch.Tensor:
            moments.setdefault(hook, Moments(x.shape[-1])).add(x[is_row.to(x.device)])
            return x

        return observe

    for tokens, is_row in text.batches():
        clean.add(lm.token_losses(tokens, {hook: observer(hook) for hook in hooks}), is_row)
    means = {hook: torch.from_numpy(moments[hook].mean).float() for hook in hooks}
    for tokens, is_row in text.batches():
        zeroed = _replace(is_row, splice_special, torch.zeros_like)
        zero.add(lm.token_losses(tokens, dict.fromkeys(hooks, zeroed)), is_row)
        averaged = {hook: _replace(is_row, splice_special, _constant(means[hook])) for hook in hooks}
        mean_ablated.add(lm.token_losses(tokens, averaged), is_row)
    variance = sum(moments[hook].squares for hook in hooks)
    baseline = Baseline(clean.value, zero.value, mean_ablated.value, variance, moments[hooks[0]].count)
    _check(baseline, hooks, sum(m.count * float(m.mean @ m.mean) for m in moments.values()))
    return baseline


def _check(baseline: Baseline, hooks: tuple[Hook, ...], squared_mean: float) -> None:
    names = ", ".join(hook.name for hook in hooks)
    if not baseline.rows:
        raise InputError(f"{names}: the evaluation's text has no row: all its tokens are special or dropped")
    if not math.isfinite(baseline.variance):
        raise NotFinite(f"{names}: the activations of the evaluation's text hold a NaN or an infinity, so no SAE can be measured there")
    for name in ("loss_clean", "loss_zero_ablated", "loss_mean_ablated"):
        if not math.isfinite(loss := getattr(baseline, name)):
            raise NotFinite(f"{names}: {name} of the language model on the evaluation's text is {loss}, so no SAE can be measured there")
    if baseline.variance <= ROUNDING * squared_mean:
        raise InputError(f"{names}: all {baseline.rows} rows of the evaluation's text are the same: FVU is not defined, leave the hook out")


def measure(
    lm: LanguageModel,
    sae: Sae,
    inputs: tuple[Hook, ...],
    outputs: tuple[Hook, ...],
    text: EvaluationText,
    baseline: Baseline,
    splice_special: bool,
) -> Fidelity:
    """Measure one SAE against the baseline of its outputs on the same text.

    The SAE is finished: it takes raw activations. It gets some rows at a time, so memory is bounded at any width. All outputs are replaced
    together by the reconstruction of the clean model's activations.
    """
    spliced = _LossMean()
    error, fired = 0.0, torch.zeros(sae.width, dtype=torch.float64)
    for tokens, is_row in text.batches():
        spliced_at = (torch.ones_like(is_row) if splice_special else is_row).to(lm.device)
        counted = is_row.to(lm.device)[spliced_at]
        clean = lm.capture(tokens, {*inputs, *outputs})
        x = _side_by_side(clean, inputs, spliced_at)
        y = x if outputs == inputs else _side_by_side(clean, outputs, spliced_at)
        del clean
        reconstruction, errors, firing = reconstruct_in_pieces(sae, x, y, counted)
        error += errors[counted].sum().item()
        fired += firing.double().cpu()
        parts = dict(zip(outputs, reconstruction.split(sae.shape.outputs, dim=1), strict=True))
        edits = {hook: partial(put_rows, spliced_at, part) for hook, part in parts.items()}
        spliced.add(lm.token_losses(tokens, edits), is_row)
    return Fidelity(
        loss_spliced=spliced.value,
        fvu=error / baseline.variance,
        l0=float(fired.sum()) / baseline.rows,
        dead_fraction=float((fired == 0).double().mean()),
        decoder_cosine=decoder_cosine(sae, fired > 0),
        histogram=_histogram(fired.numpy() / baseline.rows),
    )


def rows_at_once(width: int) -> int:
    """Return how many rows an SAE is given at once, to fit `PIECE_BYTES`."""
    return max(1, PIECE_BYTES // (LATENT_BYTES * width))


def reconstruct_in_pieces(
    sae: Sae, x: torch.Tensor, y: torch.Tensor, counted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reconstruct rows y [n, d_out] from rows x [n, d_in], some rows at a time.

    Returns the reconstruction, the squared error [n] of each row in float64, and how often each latent [F] fires on counted rows [n].
    Sums are over one row or over integers, so that the pieces' size does not show in them.
    """
    reconstruction, errors = torch.empty_like(y), torch.empty(len(y), dtype=torch.float64, device=y.device)
    firing = torch.zeros(sae.width, dtype=torch.int64, device=y.device)
    size = rows_at_once(sae.width)
    for start in range(0, len(x), size):
        piece = slice(start, start + size)
        latents, reconstruction[piece] = sae.reconstruct(x[piece])
        firing += (latents > 0)[counted[piece]].sum(0)
        errors[piece] = (y[piece] - reconstruction[piece]).double().square().sum(1)
        del latents  # or the next piece's would be made while these are still there
    return reconstruction, errors, firing


def _side_by_side(activations: dict[str, torch.Tensor], hooks: tuple[Hook, ...], where: torch.Tensor) -> torch.Tensor:
    """Return the rows [n, d] of some hooks in float32, at the positions of a mask [B, T]."""
    rows = [activations[hook.name][where].float() for hook in hooks]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def _constant(vector: torch.Tensor) -> Edit:
    """Return an edit that gives the same vector (d,) for every row."""
    return lambda x: vector.to(x.device).expand_as(x)


def _replace(is_row: torch.Tensor, splice_special: bool, replacement: Edit) -> Edit:
    """Return an edit that applies ``replacement`` to rows, and to special positions if asked."""

    def edit(x: torch.Tensor) -> torch.Tensor:
        where = (torch.ones_like(is_row) if splice_special else is_row).to(x.device)
        out = x.clone()
        out[where] = replacement(x[where]).to(out.dtype)
        return out

    return edit


def _histogram(frequencies: np.ndarray) -> Histogram:
    """Bin latents by firing frequency. The first bin includes all lower frequencies."""
    alive = np.log10(frequencies[frequencies > 0])
    counts, edges = np.histogram(np.clip(alive, LOG_FREQUENCY_EDGES[0], 0.0), bins=LOG_FREQUENCY_EDGES)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), never=int((frequencies == 0).sum()))
