"""Stop training at a number that is not finite, before it reaches a checkpoint."""

import math
from collections.abc import Mapping

import torch

from scopemill.proto.errors import NotFinite
from scopemill.trainer.config.recipe import SaeConfig


def check_step(config: SaeConfig, step: int, loss: float, x: torch.Tensor, y: torch.Tensor | None) -> None:
    """Raise NotFinite if a step's loss, or what it read, is not finite.

    ``step`` counts from 1. The batch is x [B, d_in] with targets y [B, d_out]; without targets (None) they are x.
    """
    # The targets are in the loss. Inputs that are not targets may be lost on the way: a NaN exceeds no threshold.
    if math.isfinite(loss) and (y is None or _is_finite(x)):
        return
    for side, rows in (("inputs", x), ("targets", x if y is None else y)):
        wrong = (~rows.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if wrong:
            raise NotFinite(
                f"step {step}: {len(wrong)} rows of its batch (the first is row {wrong[0]} of the {side}) hold a NaN or an infinity, so "
                "nothing can be learnt from it: make the activations anew without such rows"
            )
    raise NotFinite(
        f"step {step}: the loss is {loss}, and its batch is finite: training diverged. Lower learning_rate ({config.learning_rate:g}), "
        "set clip_gradient, or lengthen lr_warmup_steps"
    )


def check_state(config: SaeConfig, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise NotFinite, naming the tensor, if the state after a step is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise NotFinite(
                f"after step {step}: {name} holds a NaN or an infinity: training diverged, and nothing of it is kept. "
                f"Lower learning_rate ({config.learning_rate:g}), or set clip_gradient"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    return all(math.isfinite(bound.item()) for bound in tensor.detach().aminmax())  # one pass, no copy; a NaN is both bounds
