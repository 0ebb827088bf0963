"""Differentiate the encoder and the decoder at entries only.

Each function takes a `SparseGradients` that collects the gradients of its weights. Without one, autograd gets dense gradients, as
any optimiser of torch expects.

Legend of shapes: B rows, F latents, d width of the input or the reconstruction, n entries.
"""

import torch

from scopemill.trainer.sparse.gradients import weight_gradient


class DecodeAt(torch.autograd.Function):
    """Decode [B, d]: the sum over a row's entries of value times weight row.

    Maps (values [n], weights [F, d]) to the reconstruction.
    """

    @staticmethod
    def forward(ctx, values, weights, entries, gradients):
        operand = entries.backend.operand(weights.detach())
        ctx.save_for_backward(values, weights)
        ctx.operand, ctx.entries, ctx.gradients = operand, entries, gradients
        return entries.backend.decode(entries.starts, entries.latents, values.contiguous(), operand)

    @staticmethod
    def backward(ctx, d_out):
        values, weights = ctx.saved_tensors
        entries, operand = ctx.entries, ctx.operand
        d_out = d_out.to(operand.dtype).contiguous()
        d_weights = weight_gradient(ctx.gradients, weights, entries, values, d_out)
        return entries.backend.products(entries.starts, entries.latents, d_out, operand), d_weights, None, None


class ReconstructionErrorAt(torch.autograd.Function):
    """Return the sum of squared errors, and the error without a gradient.

    Maps (values [n], weights [F, d], target [B, d]) to them; the error is [B, d]. The error is `DecodeAt` less the target. The values'
    gradient is known up to a factor once the error is, so it is computed in the forward pass, while the weights are in the cache.
    """

    @staticmethod
    def forward(ctx, values, weights, target, entries, gradients):
        operand = entries.backend.operand(weights.detach())
        places = entries.starts, entries.latents
        error, squares, d_values = entries.backend.reconstruction_error(*places, values.contiguous(), operand, target.contiguous())
        ctx.save_for_backward(values, weights, error, d_values)
        ctx.entries, ctx.dtype, ctx.gradients = entries, operand.dtype, gradients
        ctx.mark_non_differentiable(error)
        return squares.sum(), error

    @staticmethod
    def backward(ctx, d_sum, _):
        values, weights, error, d_values = ctx.saved_tensors
        d_out = 2 * d_sum * error
        d_weights = weight_gradient(ctx.gradients, weights, ctx.entries, values, d_out.to(ctx.dtype))
        return 2 * d_sum * d_values, d_weights, -d_out, None, None


class EncodeAt(torch.autograd.Function):
    """Return known pre-activations [n] as a differentiable function of the encoder.

    They are x W_enc^T + b_enc at the entries. ``x`` [B, d] is the encoder's input, with ``b_dec`` already subtracted if ``b_dec`` is
    given.
    """

    @staticmethod
    def forward(ctx, values, b_enc, b_dec, weights, x, entries, gradients):
        ctx.save_for_backward(weights, entries.backend.operand(x))
        ctx.entries, ctx.has_bias, ctx.centred, ctx.gradients = entries, b_enc is not None, b_dec is not None, gradients
        return values.clone()

    @staticmethod
    def backward(ctx, d_values):
        weights, x = ctx.saved_tensors
        d_values = d_values.contiguous()
        d_weights = weight_gradient(ctx.gradients, weights, ctx.entries, d_values, x)
        d_bias = ctx.entries.sum_by_latent(d_values) if ctx.has_bias or ctx.centred else None
        d_b_dec = -(d_bias @ weights.detach()) if ctx.centred else None
        return None, d_bias if ctx.has_bias else None, d_b_dec, d_weights, None, None, None
