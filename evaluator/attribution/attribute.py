"""Tell which latents a logit difference rests on, by gradient and by ablation.

The SAE is spliced in as a difference: x + decode(f + change) - decode(f). So with no change the model is the clean one, and what the SAE
does not explain stays as it is whatever is ablated. With M the logit difference at the last token:

    gradient    a_{t,i} = f_{t,i} * dM/df_{t,i}, the gradient averaged over ``steps`` points of the way from no latents to all of them; for
                one step it is the gradient where the model is
    ablation    M - M with the latent set to 0

Legend of shapes: T positions, n rows (positions whose token is not special), F latents, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from scopemill.evaluator.steering.edits import Edit
from scopemill.evaluator.steering.steering import SteeredSae, Steering
from scopemill.harvester.language_model.model import Edit as ModelEdit
from scopemill.proto.hooks import Hook
from scopemill.trainer.formats.finished import FinishedSae
from scopemill.trainer.sparse.codes import DenseCodes

Metric = Callable[[torch.Tensor], torch.Tensor]  # logits [B, T, V] -> a number for each sequence


class Model(Protocol):
    """Give logits under edits, as a `LanguageModel` does."""

    @property
    def device(self) -> torch.device:
        """Return the device of tokens and logits."""

    def logits(
        self, tokens: torch.Tensor, edits: dict[Hook, ModelEdit] | None = None, capture: Sequence[Hook] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits [B, T, V], and captured activations."""


@dataclass(frozen=True)
class Share:
    """Record what a logit difference rests on: a latent, at one position or at all."""

    latent: int
    position: int | None  # None: all of them together
    activation: float  # at the position, or the largest
    gradient: float
    ablation: float | None = None  # exact; None: not among the first


@dataclass(frozen=True)
class Attribution:
    """Record what a logit difference rests on."""

    difference: float  # of the clean model
    without_latents: float  # with every latent set to 0: what rests on the SAE's error and on other paths
    latents: list[Share]  # all positions together, the largest first
    places: list[Share]  # one position each, the largest first


@dataclass
class _Scaled(SteeredSae):
    """Splice an SAE with all latents scaled by ``factor``, and let gradients reach the latents."""

    factor: float = 1.0
    latents: torch.Tensor | None = None  # [n, F], of the last pass
    change: torch.Tensor | None = None  # [n, F], whose gradient is that of the latents

    def acts(self, generated: bool) -> list[bool]:
        return [True]

    def encodes(self, acts: Sequence[bool]) -> bool:
        return True

    def difference(self, x: torch.Tensor | None, acts: Sequence[bool]) -> torch.Tensor:
        assert x is not None
        with torch.no_grad():
            x = x.to(self.sae.dtype)
            self.latents, deviation = self.sae.encode(x), self.sae.normalized(x)[2]
        self.change = ((self.factor - 1) * self.latents).requires_grad_(torch.is_grad_enabled())
        difference = self.sae.decode_no_bias(DenseCodes(self.change, self.change.new_empty(self.sae.width)))
        return difference if deviation is None else difference * deviation


def logit_difference(answer: int, against: int | None) -> Metric:
    """Return the metric: the answer's logit at the last token less that of another one.

    Without another one it is less the mean of all logits.
    """

    def metric(logits: torch.Tensor) -> torch.Tensor:
        last = logits[:, -1]
        return last[:, answer] - (last.mean(-1) if against is None else last[:, against])

    return metric


def attribute(
    lm: Model, finished: FinishedSae, place: str, tokens: torch.Tensor, is_row: torch.Tensor, metric: Metric, steps: int = 1,
    most: int = 20, ablated: int = 10,
) -> Attribution:  # fmt: skip
    """Return how much a metric of a prompt's logits rests on each latent.

    ``tokens`` and ``is_row`` are [T]. ``most`` latents and places are listed, the first ``ablated`` of each with their exact ablation.
    Raises InputError for an SAE that cannot act within one pass.
    """
    checked = SteeredSae.of(finished, place, [_ablation(place, 0)])
    scaled = _Scaled(checked.sae, checked.inputs, checked.outputs, ())
    latents, gradient = _mean_gradient(lm, scaled, tokens, is_row, metric, steps)
    shares = latents * gradient
    positions = is_row.nonzero()[:, 0].tolist()

    def run(steered: SteeredSae, where: torch.Tensor) -> float:
        with torch.no_grad():
            return float(metric(lm.logits(tokens[None], Steering((steered,)).edits(where[None]))[0].double())[0])

    def effect(latent: int, position: int | None) -> float:
        where = is_row if position is None else torch.arange(len(is_row)) == position
        return clean - run(SteeredSae.of(finished, place, [_ablation(place, latent)]), where)

    with torch.no_grad():
        clean = float(metric(lm.logits(tokens[None])[0].double())[0])
    scaled.factor = 0.0
    without = run(scaled, is_row)
    by_latent = [
        Share(latent, None, float(latents[:, latent].max()), float(value))
        for latent, value in _largest(shares.sum(0), most, (latents > 0).any(0))
    ]
    by_place = [
        Share(at % latents.shape[1], positions[at // latents.shape[1]], float(latents.flatten()[at]), float(value))
        for at, value in _largest(shares.flatten(), most, (latents > 0).flatten())
    ]
    return Attribution(clean, without, *(_with_ablation(listed, ablated, effect) for listed in (by_latent, by_place)))


def _ablation(place: str, latent: int) -> Edit:
    return Edit.model_validate({"sae": place, "latent": latent, "op": "ablate"})


def _mean_gradient(
    lm: Model, scaled: _Scaled, tokens: torch.Tensor, is_row: torch.Tensor, metric: Metric, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents [n, F] of the clean pass, and the gradient [n, F] averaged over the way to them."""
    total: Any = 0
    for step in range(steps):
        scaled.factor = 1.0 if steps == 1 else (step + 0.5) / steps
        with torch.enable_grad():
            value = metric(lm.logits(tokens[None], Steering((scaled,)).edits(is_row[None]))[0])[0]
            assert scaled.change is not None
            (gradient,) = torch.autograd.grad(value, scaled.change)
        total = total + gradient.double()
    assert scaled.latents is not None
    return scaled.latents.double().cpu(), (total / steps).cpu()


def _largest(values: torch.Tensor, most: int, counted: torch.Tensor) -> list[tuple[int, float]]:
    """Return the entries of the largest magnitude; among equals the first comes first."""
    order = (-values.abs()).sort(stable=True).indices
    chosen = order[counted[order]][:most]
    return list(zip(chosen.tolist(), values[chosen].tolist(), strict=True))


def _with_ablation(shares: list[Share], ablated: int, effect: Callable[[int, int | None], float]) -> list[Share]:
    """Return the shares with the exact ablation of the first ones."""
    exact = [effect(share.latent, share.position) for share in shares[:ablated]]
    return [
        Share(share.latent, share.position, share.activation, share.gradient, exact[i] if i < len(exact) else None)
        for i, share in enumerate(shares)
    ]
