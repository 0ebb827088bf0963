"""Define the losses of KL fine-tuning (arXiv 2503.17272)."""

import torch


def divergence(clean: torch.Tensor, spliced: torch.Tensor) -> torch.Tensor:
    """Return the mean of KL(clean || spliced) over rows of logits [n, V], in nats."""
    log_p, log_q = clean.float().log_softmax(-1), spliced.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def balanced(kl: torch.Tensor, mse: torch.Tensor) -> torch.Tensor:
    """Return (alpha KL + MSE) / 2.

    Alpha = MSE / KL has no gradient. The value is the MSE, so a sparsity coefficient of training keeps its meaning.
    """
    alpha = (mse / kl.clamp(min=torch.finfo(kl.dtype).tiny)).detach()
    return (alpha * kl + mse) / 2


def squared_error(reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared error of rows [n, d], the mean over rows."""
    return (reconstruction - target).square().sum(-1).mean()
