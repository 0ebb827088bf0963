"""Select the sparse kernels for a device."""

from functools import cache
from importlib.util import find_spec

import torch

from scopemill.trainer.sparse.kernels.base import Backend


def backend_for(example: torch.Tensor) -> Backend | None:
    """What takes the sparse way with tensors like this one; None where training has to stay dense."""
    return _backend_on(example.device.type) if example.dtype == torch.float32 else None


@cache
def _backend_on(device: str) -> Backend | None:
    # Both libraries are optional, and one that is not used takes its second to import all the same.
    if device == "cpu" and find_spec("numba"):
        from scopemill.trainer.sparse.kernels.numba_backend import NumbaBackend

        return NumbaBackend()
    if device == "cuda" and find_spec("triton"):
        from scopemill.trainer.sparse.kernels.triton_backend import TritonBackend

        return TritonBackend()
    return None
