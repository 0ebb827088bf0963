"""Fine-tune one SAE inside the language model, step by step.

Each pass runs the clean model without a gradient, then the model with the SAE's reconstruction in place of its outputs. Rows are the
positions whose token is not special; only they count in either loss. Legend: B sequences of a pass, T positions, n rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from scopemill.harvester.language_model.model import LanguageModel, put_rows
from scopemill.proto.errors import ScopemillError
from scopemill.proto.hooks import Hook
from scopemill.trainer.config.finetuning import Arm, KlConfig
from scopemill.trainer.finetune.constraints import KeptNorms, freeze_thresholds, parameter_groups, trained_names
from scopemill.trainer.finetune.losses import balanced, divergence, squared_error
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class StepReport:
    """Record one step: its losses and its active latents."""

    step: int
    mse: float  # where E ||x||^2 is 1
    kl: float  # nats per token; nan in the arm that has none
    l0: float  # per row


@dataclass(frozen=True)
class Ports:
    """Hold where an SAE reads and writes, and each hook's unit, sqrt(E ||x||^2)."""

    inputs: tuple[Hook, ...]
    outputs: tuple[Hook, ...]
    input_units: tuple[float, ...]
    output_units: tuple[float, ...]


class FinetuneLoop:
    """Train a finished SAE on sequences of tokens, in one arm.

    Weights are kept in training's units, E ||x||^2 = 1, so learning rates and coefficients mean what they mean in training.
    """

    def __init__(self, lm: LanguageModel, finished: Sae, ports: Ports, config: KlConfig, arm: Arm, steps: int, sparsity: float = 0.0):
        self._lm, self._ports, self._config, self._arm, self._steps = lm, ports, config, arm, steps
        inverse = [[1 / unit for unit in units] for units in (ports.input_units, ports.output_units)]
        self.sae = fold(finished, *inverse).to(lm.device).requires_grad_(True)
        freeze_thresholds(self.sae)
        self._norms = KeptNorms(self.sae)
        self._sparsity = sparsity if self.sae.activation.name == "relu" else 0.0
        self._optimizer = torch.optim.AdamW(parameter_groups(self.sae, config.learning_rate), betas=BETAS, weight_decay=0.0)
        self.step_number = 0

    @property
    def finished(self) -> bool:
        """Return whether the last step is done."""
        return self.step_number >= self._steps

    def raw_sae(self) -> Sae:
        """Return a copy of the SAE that takes raw activations."""
        return fold(self.sae, self._ports.input_units, self._ports.output_units).requires_grad_(False)

    def step(self, tokens: torch.Tensor, is_row: torch.Tensor) -> StepReport:
        """Train on sequences [S, T] and return the step's losses.

        Raises ScopemillError, before any weight changes, if a loss is not finite.
        """
        size = self._config.sequences_per_forward
        passes = list(zip(tokens.split(size), is_row.split(size), strict=True))
        self._optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3)
        for some_tokens, some_rows in passes:
            loss, measured = self._loss(some_tokens, some_rows.to(self._lm.device))
            (loss / len(passes)).backward()
            sums += measured / len(passes)
        report = StepReport(self.step_number, *sums.tolist())
        if not torch.isfinite(sums[: 1 if self._arm == "mse" else 2]).all():
            raise ScopemillError(f"step {self.step_number}: the loss is not finite (MSE {report.mse}, KL {report.kl}); lower learning_rate")
        self._update()
        return report

    def _update(self) -> None:
        self._norms.project()
        torch.nn.utils.clip_grad_norm_([p for p in self.sae.parameters() if p.grad is not None], self._config.gradient_clip)
        left = 1 - self.step_number / self._steps
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * left
        self._optimizer.step()
        self._norms.restore()
        self.step_number += 1

    def _loss(self, tokens: torch.Tensor, is_row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a pass, and (MSE, KL, L0) without gradients."""
        spliced_at = torch.ones_like(is_row) if self._config.splice_special else is_row
        counted = is_row[spliced_at]
        with torch.no_grad():
            hooks = {*self._ports.inputs, *self._ports.outputs}
            if self._arm == "mse":
                clean_logits, clean = None, self._lm.capture(tokens, hooks)
            else:
                clean_logits, clean = self._lm.logits(tokens, capture=hooks)
            x = _side_by_side(clean, self._ports.inputs, self._ports.input_units, spliced_at)
            y = _side_by_side(clean, self._ports.outputs, self._ports.output_units, spliced_at)
        latents, reconstruction = self.sae.reconstruct(x)
        mse = squared_error(reconstruction[counted], y[counted])
        loss, kl = mse, torch.tensor(torch.nan)
        if clean_logits is not None:
            spliced_logits, _ = self._lm.logits(tokens, self._edits(reconstruction, spliced_at))
            kl = divergence(clean_logits[is_row], spliced_logits[is_row])
            loss = balanced(kl, mse)
        if self._sparsity:
            loss = loss + self._sparsity * (latents[counted] * self.sae.norms()).sum(-1).mean()
        l0 = (latents[counted] > 0).sum(-1, dtype=torch.float32).mean()
        return loss, torch.stack([mse.detach().float().cpu(), kl.detach().float().cpu(), l0.cpu()])

    def _edits(self, reconstruction: torch.Tensor, where: torch.Tensor) -> dict[Hook, partial[torch.Tensor]]:
        parts = reconstruction.split(self.sae.shape.outputs, dim=1)
        units = self._ports.output_units
        return {hook: partial(put_rows, where, part * unit) for hook, part, unit in zip(self._ports.outputs, parts, units, strict=True)}

    # The state beside the weights, for checkpoints.

    def state(self) -> dict[str, torch.Tensor]:
        """Return the weights and Adam's moments, by name."""
        tensors = {f"sae.{name}": tensor.detach().cpu() for name, tensor in self.sae.state_dict().items()}
        for name, moments in zip(trained_names(self.sae), self._moments(), strict=True):
            tensors |= {f"adam.{field}.{name}": value.detach().cpu() for field, value in moments.items()}
        return tensors

    def restore(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Continue after ``step`` steps, with the state that ``state`` returned then."""
        self.sae.load_state_dict({name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")})
        for parameter, name in zip(self._parameters(), trained_names(self.sae), strict=True):
            own = {field: tensors[f"adam.{field}.{name}"] for field in ("step", "exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {
                field: value.to(parameter.device) if field != "step" else value for field, value in own.items()
            }
        self.step_number = step

    def _moments(self) -> Sequence[dict[str, torch.Tensor]]:
        return [self._optimizer.state[parameter] for parameter in self._parameters()]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.sae.parameters() if parameter.requires_grad]


def _side_by_side(clean: dict[str, torch.Tensor], hooks: Sequence[Hook], units: Sequence[float], where: torch.Tensor) -> torch.Tensor:
    """Return rows [n, sum of widths] of some hooks in training's units."""
    return torch.cat([clean[hook.name][where].float() / unit for hook, unit in zip(hooks, units, strict=True)], dim=1)


@torch.no_grad()
def measure_units(lm: LanguageModel, hooks: Sequence[Hook], tokens: torch.Tensor, is_row: torch.Tensor) -> dict[Hook, float]:
    """Return sqrt(E ||x||^2) of each hook, summed in float64 over rows.

    The rows are those of sequences [S, T].
    """
    clean = lm.capture(tokens, set(hooks))
    where = is_row.to(lm.device)
    return {hook: float(clean[hook.name][where].double().square().sum(-1).mean().sqrt()) for hook in dict.fromkeys(hooks)}
