"""Compile the CPU's loops before they are needed, each in one process of a machine.

numba keeps what it compiles in a folder. Trainers that start together would each compile all of it, for a minute of a core.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from scopemill.proto.turns import by_turns
from scopemill.trainer.sparse.kernels.base import Adam, Columns, Moments
from scopemill.trainer.sparse.kernels.select import backend_for


def compile_loops(selects: bool) -> None:
    """Compile or load the loops of training on the CPU.

    With ``selects``, also that of TopK.
    """
    if backend_for(torch.zeros(1)) is not None:
        from scopemill.trainer.sparse.kernels import numba_loops

        by_turns(Path(str(numba_loops.scan.stats.cache_path)), loops_of_training(selects))


def loops_of_training(selects: bool) -> dict[str, Callable[[], object]]:
    """Return calls that run each loop on a batch of two rows."""
    x, weights, bias = torch.ones(2, 4), torch.ones(3, 4), torch.zeros(3)
    backend = backend_for(x)
    assert backend is not None, "numba is installed"
    products = x @ weights.T
    starts, latents, values = torch.tensor([0, 1, 2]), torch.zeros(2, dtype=torch.int32), torch.ones(2)
    adam, updated = Adam(1, 1e-3, 0.0, 0.999, 1e-8, 1.0, 0.03, False), torch.zeros(3, dtype=torch.int32)
    moments = Moments(torch.zeros(3, 0), torch.zeros_like(weights))
    columns = Columns(torch.tensor([0, 2, 2, 2]), *torch.tensor([[0, 1], [0, 1]], dtype=torch.int32))
    calls: dict[str, Callable[[], object]] = {
        "moments": lambda: backend.moments(x),
        "update_dense": lambda: backend.update_dense(torch.zeros_like(weights), weights, moments, updated, adam),
        "scan": lambda: backend.scan(products, bias, bias, products.numel()),
        "by_latents": lambda: backend.by_latents(starts, latents, len(weights)),
        "update_rows": lambda: backend.update_rows(columns, values, x, weights, moments, updated, adam),
        "reconstruction_error": lambda: backend.reconstruction_error(starts, latents, values, weights, x),
        "sum_by_latent": lambda: backend.sum_by_latent(columns, values),
        "gradient": lambda: backend.gradient(columns, values, x, torch.zeros_like(weights)),
        "decode": lambda: backend.decode(starts, latents, values, weights),
        "products": lambda: backend.products(starts, latents, x, weights),
    }
    return calls | ({"largest": lambda: backend.largest(products, bias, 1)} if selects else {})
