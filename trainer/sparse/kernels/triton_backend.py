"""Run the sparse numerics on GPUs.

Triton's kernels go over a row's or a latent's entries; torch sorts and takes the top k.
"""

import torch
import triton

from scopemill.trainer.sparse.kernels import triton_kernels as kernels
from scopemill.trainer.sparse.kernels.base import Adam, Backend, Columns, Found, Moments, offsets

SCANNED = 1024  # latents that a program compares together
TILE = 8192  # numbers that a program gathers together: with 256 threads, 32 registers each
WARPS = 8


class TritonBackend(Backend):
    """Compute on a GPU with Triton."""

    def operand(self, tensor):
        """Return the matrix in bfloat16 under autocast.

        Gathering takes most of the time, and bfloat16 is half the bytes.
        """
        device = tensor.device.type
        return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor

    def scan(self, products, bias, lower, max_entries):
        rows, width = products.shape
        marks = products.new_empty(rows, triton.cdiv(width, 32), dtype=torch.int32)
        counts = products.new_empty(rows, dtype=torch.int32)
        block = max(32, min(SCANNED, triton.next_power_of_2(width)))
        kernels.mark[(rows,)](products, bias, lower.contiguous(), marks, counts, width, block)
        starts = offsets(counts)
        n = int(starts[-1])  # the only value that the host waits for
        if n > max_entries:
            return None
        latents, values = products.new_empty(n, dtype=torch.int32), bias.new_empty(n)
        kernels.compact[(rows,)](products, bias, marks, starts, latents, values, width, block)
        return Found(starts, latents, values)

    def largest(self, products, bias, k):
        values, latents = (products + bias).topk(k, dim=1, sorted=False)
        return latents.to(torch.int32), values

    def by_latents(self, starts, latents, width):
        ordered, order = latents.sort(stable=True)
        bounds = torch.arange(width + 1, dtype=torch.int32, device=latents.device)
        rows = torch.arange(len(starts) - 1, dtype=torch.int32, device=latents.device)
        row_of = rows.repeat_interleave(starts.diff(), output_size=len(latents))
        return Columns(torch.searchsorted(ordered, bounds), row_of[order], order)

    def sum_by_latent(self, columns, values):
        out = values.new_empty(len(columns.starts) - 1)
        kernels.sum_by_latent[(len(out),)](columns.starts, columns.order, values, out, BLOCK=128, num_warps=1)
        return out

    def decode(self, starts, latents, values, weights):
        out = values.new_empty(len(starts) - 1, weights.shape[1])
        kernels.decode[(len(out),)](starts, latents, values, weights, out, weights.shape[1], **_tile(weights))
        return out

    def products(self, starts, latents, rows, weights):
        out = rows.new_empty(len(latents), dtype=torch.float32)
        kernels.products[(len(rows),)](starts, latents, rows, weights, out, weights.shape[1], **_tile(weights))
        return out

    def reconstruction_error(self, starts, latents, values, weights, target):
        error, squares, out = torch.empty_like(target), target.new_empty(len(target)), torch.empty_like(values)
        places = starts, latents, values, weights
        kernels.reconstruction_error[(len(target),)](*places, target, error, squares, out, weights.shape[1], **_tile(weights))
        return error, squares, out

    def gradient(self, columns, factors, matrix, total):
        kernels.gradient[(len(total),)](*columns, factors, matrix, total, total.shape[1], **_tile(total))

    def update_rows(self, columns, factors, matrix, weights, moments, updated, adam):
        state = weights, *moments, updated, _decay(updated, adam), adam.update
        sizes = _tile(weights) | _kind(moments, adam)
        kernels.update_rows[(len(weights),)](*columns, factors, matrix, *state, *_rates(adam), weights.shape[1], **sizes)

    def update_dense(self, gradients, weights, moments, updated, adam):
        state, tile = (weights, *moments, _decay(updated, adam)), _tile(weights)
        sizes = _kind(moments, adam) | {"BLOCK_D": tile["BLOCK_D"], "num_warps": tile["num_warps"]}
        kernels.update_dense[(len(weights),)](gradients, *state, *_rates(adam), weights.shape[1], **sizes)
        updated.fill_(adam.update)


def _tile(matrix: torch.Tensor) -> dict[str, int]:
    """Return how a program takes rows of a matrix [..., d]: whole rows, as many together as make a tile."""
    block = triton.next_power_of_2(matrix.shape[1])
    return {"BLOCK_D": block, "AT_ONCE": min(16, max(1, TILE // block)), "num_warps": WARPS}


def _decay(updated: torch.Tensor, adam: Adam) -> torch.Tensor:
    """Return the factor [F] by which second moments decay for missed updates."""
    missed = (adam.update - 1 - updated).double()
    return torch.pow(torch.tensor(adam.beta2, dtype=torch.float64, device=missed.device), missed).float()


def _kind(moments: Moments, adam: Adam) -> dict[str, bool]:
    """Return what decides which Adam is compiled."""
    return {"UNIT": adam.unit, "FIRST": moments.first.shape[1] > 0}


def _rates(adam: Adam) -> tuple[float, ...]:
    return adam[1:-1]
