"""Select the sparse kernels for a device."""

from functools import cache
from importlib.util import find_spec

import torch

from scopemill.trainer.sparse.kernels.base import Backend


def backend_for(example: torch.Tensor) -> Backend | None:
    """Return the sparse kernels for tensors of this device and dtype.

    Returns None where training has to stay dense.
    """
    return _backend_on(example.device.type) if example.dtype == torch.float32 else None


def require_backend(example: torch.Tensor) -> Backend:
    """Return the sparse kernels for tensors of this device and dtype.

    Raises RuntimeError where there are none.
    """
    backend = backend_for(example)
    if backend is None:
        raise RuntimeError(f"there are no sparse kernels for {example.dtype} on {example.device.type}: train with dense steps")
    return backend


@cache
def _backend_on(device: str) -> Backend | None:
    # Both libraries are optional, and even one that is not used takes a second to import.
    if device == "cpu" and find_spec("numba"):
        from scopemill.trainer.sparse.kernels.numba_backend import NumbaBackend

        return NumbaBackend()
    if device == "cuda" and find_spec("triton"):
        from scopemill.trainer.sparse.kernels.triton_backend import TritonBackend

        return TritonBackend()
    return None
