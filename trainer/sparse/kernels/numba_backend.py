"""Run the sparse numerics on the CPU: numba's loops over the memory of torch's tensors."""

import numba
import numpy as np
import torch

from scopemill.trainer.sparse.kernels import numba_loops as loops
from scopemill.trainer.sparse.kernels.base import Adam, Backend, Columns, Found, offsets


class NumbaBackend(Backend):
    """Compute on the CPU with numba."""

    def begin_step(self) -> None:
        """Let loops run on as many threads as torch has.

        Trainers that share a machine must not each take all of it.
        """
        threads = torch.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        if torch.get_num_threads() != threads:  # when numba launches its threads, it gives OpenMP, and so torch, all cores
            torch.set_num_threads(threads)

    def moments(self, rows):
        total, squares = loops.moments(rows.numpy())
        return torch.from_numpy(total), torch.tensor(squares, dtype=torch.float64)

    def scan(self, products, bias, lower, max_entries):
        bounds = _bounds(len(products))
        threads = len(bounds) - 1
        latents, values = (np.empty((threads, max_entries // threads), dtype) for dtype in (np.int32, np.float32))
        counts = np.zeros(len(products), np.int64)
        if not loops.scan(products.numpy(), (lower - bias).contiguous().numpy(), bounds, counts, latents, values):
            return None
        starts = offsets(torch.from_numpy(counts))
        used = np.diff(starts.numpy()[bounds])
        index, found = (torch.from_numpy(np.concatenate([p[:n] for p, n in zip(parts, used, strict=True)])) for parts in (latents, values))
        return Found(starts, index, found + bias[index])

    def largest(self, products, bias, k):
        latents, values = torch.empty(len(products), k, dtype=torch.int32), products.new_empty(len(products), k)
        loops.largest(products.numpy(), bias.numpy(), k, _bounds(len(products)), latents.numpy(), values.numpy())
        return latents, values

    def by_latents(self, starts, latents, width):
        return Columns(*map(torch.from_numpy, loops.by_latents(starts.numpy(), latents.numpy(), width)))

    def sum_by_latent(self, columns, values):
        out = values.new_empty(len(columns.starts) - 1)
        loops.sum_by_latent(columns.starts.numpy(), columns.order.numpy(), values.numpy(), out.numpy())
        return out

    def decode(self, starts, latents, values, weights):
        out = weights.new_empty(len(starts) - 1, weights.shape[1])
        loops.decode(starts.numpy(), latents.numpy(), values.numpy(), weights.numpy(), out.numpy())
        return out

    def products(self, starts, latents, rows, weights):
        out = rows.new_empty(len(latents))
        loops.products(starts.numpy(), latents.numpy(), rows.numpy(), weights.numpy(), out.numpy())
        return out

    def reconstruction_error(self, starts, latents, values, weights, target):
        error, squares, out = torch.empty_like(target), target.new_empty(len(target)), torch.empty_like(values)
        places = starts.numpy(), latents.numpy()
        loops.reconstruction_error(*places, values.numpy(), weights.numpy(), target.numpy(), error.numpy(), squares.numpy(), out.numpy())
        return error, squares, out

    def gradient(self, columns, factors, matrix, total):
        loops.gradient(*_arrays(*columns, factors, matrix, total))

    def update_rows(self, columns, factors, matrix, weights, moments, updated, adam):
        loops.update_rows(*_arrays(*columns, factors, matrix, weights, *moments, updated), *_numbers(adam))

    def update_dense(self, gradients, weights, moments, updated, adam):
        loops.update_dense(*_arrays(gradients, weights, *moments, updated), *_numbers(adam))


def _bounds(rows: int) -> np.ndarray:
    """Return the row of a batch at which each of torch's threads starts, and the row at which the last stops."""
    return np.linspace(0, rows, torch.get_num_threads() + 1).astype(np.int64)


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in tensors]


def _numbers(adam: Adam) -> tuple:
    return adam.update, *map(np.float32, adam[1:-1]), adam.unit
