"""Copy batches from the stream's memory to the device that trains."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

# Per stored dtype: the integer dtype of its bits, which numpy and torch can both copy, and the torch dtype that they mean.
STORED = {np.dtype("<u2"): (torch.int16, torch.bfloat16), np.dtype("<f4"): (torch.int32, torch.float32)}
T = TypeVar("T")
Rows = list[torch.Tensor]  # one batch: [B, d] for each hook


class Transfer:
    """Convert stored arrays [B, d] to float32 tensors on the device.

    On the way to a GPU, arrays pass pinned memory and a separate CUDA stream: `prefetched` starts the copy of the next batch before
    it yields the current one, so the copy overlaps with the steps on the current batch.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staged: list[torch.Tensor] = []  # in pinned memory
        self._moved: torch.cuda.Event | None = None  # occurs when the last batch has left the pinned memory

    def take(self, arrays: Sequence[np.ndarray]) -> tuple[Rows, "torch.cuda.Event | None"]:
        """Return a batch's rows, and the event to wait for before using the rows.

        The arrays are borrowed only during the call.
        """
        if self._side is None:
            return [_filled(_empty(array), array).float() for array in arrays], None
        if self._moved:
            self._moved.synchronize()
        self._staged = self._staged or [_empty(array).pin_memory() for array in arrays]  # all batches of a stream have one shape
        staged = [_filled(*pair) for pair in zip(self._staged, arrays, strict=True)]
        with torch.cuda.stream(self._side):
            rows = [bits.to(self._device, non_blocking=True).float() for bits in staged]
            self._moved = self._side.record_event()
        return rows, self._moved

    def prefetched(self, batches: Iterable[tuple[int, tuple[Rows, "torch.cuda.Event | None"]]]) -> Iterator[tuple[int, Rows]]:
        """Yield the number and rows of each batch of `take`, ready to use.

        To a GPU, one batch is prefetched.
        """
        for index, (rows, moved) in batches if self._side is None else one_ahead(batches):
            if moved is not None:
                computing = torch.cuda.current_stream(self._device)
                computing.wait_event(moved)
                for tensor in rows:
                    tensor.record_stream(computing)  # its memory belongs to the other stream
            yield index, rows


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items, each only after the next one was made."""
    upcoming = iter(items)
    for item in upcoming:
        for following in upcoming:
            yield item
            item = following
        yield item


def _empty(array: np.ndarray) -> torch.Tensor:
    return torch.empty(array.shape, dtype=STORED[array.dtype][1])


def _filled(tensor: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    # As integers: torch accepts no read-only memory, and numpy has no bfloat16.
    bits = tensor.view(STORED[array.dtype][0]).numpy()
    bits[:] = array.view(bits.dtype)
    return tensor
