"""A batch's way from the stream's memory to the device that trains."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

# What a stream stores: bits of that size, which numpy and torch both can copy, and what they mean.
STORED = {np.dtype("<u2"): (torch.int16, torch.bfloat16), np.dtype("<f4"): (torch.int32, torch.float32)}
T = TypeVar("T")
Rows = list[torch.Tensor]  # of a batch: [B, d] for each hook


class Transfer:
    """Arrays [B, d] as they are stored, to float32 tensors on the device.

    To a GPU they go through pinned memory and a CUDA stream of their own: `in_turn` begins that for the next batch before it hands
    out this one, so it runs beside this one's steps.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._staged: list[torch.Tensor] = []  # pinned
        self._moved: torch.cuda.Event | None = None  # the last batch has left the pinned memory

    def take(self, arrays: Sequence[np.ndarray]) -> tuple[Rows, "torch.cuda.Event | None"]:
        """A batch's rows, and what to wait for before they are used. The arrays' memory may be used anew at once."""
        if self._side is None:
            return [_filled(_empty(array), array).float() for array in arrays], None
        if self._moved:
            self._moved.synchronize()
        self._staged = self._staged or [_empty(array).pin_memory() for array in arrays]  # a stream's batches are all of one shape
        staged = [_filled(*pair) for pair in zip(self._staged, arrays, strict=True)]
        with torch.cuda.stream(self._side):
            rows = [bits.to(self._device, non_blocking=True).float() for bits in staged]
            self._moved = self._side.record_event()
        return rows, self._moved

    def in_turn(self, batches: Iterable[tuple[int, tuple[Rows, "torch.cuda.Event | None"]]]) -> Iterator[tuple[int, Rows]]:
        """What a stream whose batches we take gives, to be used at once."""
        for index, (rows, moved) in batches if self._side is None else one_ahead(batches):
            if moved is not None:
                computing = torch.cuda.current_stream(self._device)
                computing.wait_event(moved)
                for tensor in rows:
                    tensor.record_stream(computing)  # its memory is the other stream's
            yield index, rows


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each after the next one was made."""
    upcoming = iter(items)
    for item in upcoming:
        for following in upcoming:
            yield item
            item = following
        yield item


def _empty(array: np.ndarray) -> torch.Tensor:
    return torch.empty(array.shape, dtype=STORED[array.dtype][1])


def _filled(tensor: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    """The tensor, with the array's bits: torch takes no memory that it may not write, and numpy knows no bfloat16."""
    bits = tensor.view(STORED[array.dtype][0]).numpy()
    bits[:] = array.view(bits.dtype)
    return tensor
