"""Check activations in memory and put them in order: the batches that `train_sae` trains on."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from scopemill.proto.errors import InputError

CHUNK_VALUES = 2**24  # values per pass over a large tensor: float64 copies stay small
Array = torch.Tensor | np.ndarray
Sides = tuple[torch.Tensor, ...]  # x alone, or x and y: [rows, all layers side by side]


@dataclass(frozen=True)
class Layout:
    """Say what the rows of an architecture look like.

    They have targets y or none, and are of one layer or of several.
    """

    architecture: str
    paired: bool
    layered: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the sides."""
        return ("x", "y") if self.paired else ("x",)


@dataclass(frozen=True)
class Stats:
    """Describe one side's layers: widths, scales and mean row.

    A scale C makes E||row / C||^2 = 1; the mean row [d] is float64.
    """

    widths: tuple[int, ...]
    scales: tuple[float, ...]
    mean: torch.Tensor


class RowSource(Protocol):
    """Give rows for calibration, then the batches of training."""

    rows: int | None  # None: unknown until the end

    def calibrate(self, wanted: int) -> tuple[Stats, ...]:
        """Return each side's statistics over all rows.

        Of an iterator, only the first ``wanted`` rows count.
        """
        ...

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Sides]:
        """Yield the batches of training, each side [size, d]."""
        ...


def row_source(x: Any, y: Any, layout: Layout) -> RowSource:
    """Return the rows of a tensor, of a pair of tensors, or of an iterator.

    Raises InputError if they do not fit the architecture.
    """
    kind = layout.architecture
    if y is not None and not layout.paired:
        raise InputError(f"y: a {kind} reconstructs x itself; leave y out, or choose an architecture such as transcoder.")
    if isinstance(x, tuple) and len(x) == 2 and y is None and layout.paired:
        x, y = x
    if isinstance(x, Array):
        if layout.paired and y is None:
            raise InputError(f"y: a {kind} needs the rows that it reconstructs; pass y=, or x=(x, y).")
        return TensorRows((x, y) if layout.paired else (x,), layout)
    if y is not None:
        raise InputError("y: with an iterator as x, let the iterator yield pairs (x, y) and leave y out.")
    if not isinstance(x, Iterable) or isinstance(x, str | bytes | dict):
        raise InputError(f"x is a {type(x).__name__}; give a tensor [rows, d], or an iterator of such tensors.")
    return IteratorRows(iter(x), layout)


class TensorRows:
    """Shuffle the rows of tensors.

    Every epoch is a new permutation, and batches run on across its end.
    """

    def __init__(self, sides: Iterable[Any], layout: Layout):
        tensors = [_tensor(name, side) for name, side in zip(layout.names, sides, strict=True)]
        self._widths = _check_shapes(tensors, layout)
        self._sides = tuple(tensor.flatten(1) for tensor in tensors)
        self.rows: int | None = len(tensors[0])
        if not self.rows:
            raise InputError("x holds no rows.")
        for name, side in zip(layout.names, self._sides, strict=True):
            _check_finite(name, side)

    def calibrate(self, wanted: int) -> tuple[Stats, ...]:
        """Return each side's statistics over all rows."""
        return tuple(_stats(side, widths) for side, widths in zip(self._sides, self._widths, strict=True))

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Sides]:
        """Yield batches in an order that depends on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            while len(order) < size:
                order = torch.cat([order, torch.randperm(len(self._sides[0]), generator=generator)])
            yield tuple(side[order[:size].to(side.device)] for side in self._sides)
            order = order[size:]


class IteratorRows:
    """Cut an iterator's rows, in their order, into batches of one size."""

    def __init__(self, pieces: Iterator[Any], layout: Layout):
        self.rows: int | None = None
        self._pieces, self._layout = pieces, layout
        self._read: deque[Sides] = deque()  # rows that no batch has taken yet
        self._left = 0  # their number
        self._count = 0  # rows read so far
        self._widths: list[tuple[int, ...]] | None = None

    def calibrate(self, wanted: int) -> tuple[Stats, ...]:
        """Return each side's statistics over the first rows, which training then begins with."""
        while self._count < wanted and self._read_piece():
            pass
        if not self._count or self._widths is None:
            raise InputError("x: the iterator yielded no rows.")
        sides = map(torch.cat, zip(*self._read, strict=True))
        return tuple(_stats(side, widths) for side, widths in zip(sides, self._widths, strict=True))

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Sides]:
        """Yield batches in the iterator's order. InputError if the iterator ends before the last step."""
        for step in range(steps):
            while self._left < size:
                if not self._read_piece():
                    raise InputError(
                        f"x: the iterator ended after {self._count} rows, in step {step + 1} of {steps}, and training needs "
                        f"{steps * size} rows; pass tokens={self._count // size * size}, or an iterator of more rows."
                    )
            yield self._take(size)

    def _take(self, rows: int) -> Sides:
        """Take rows from the front. Only they are copied: calibration may have read far ahead."""
        taken: list[Sides] = []
        self._left -= rows
        while rows:
            piece = self._read.popleft()
            taken.append(tuple(side[:rows] for side in piece))
            if len(piece[0]) > rows:
                self._read.appendleft(tuple(side[rows:] for side in piece))
            rows -= len(taken[-1][0])
        return tuple(map(torch.cat, zip(*taken, strict=True)))

    def _read_piece(self) -> bool:
        """Read and check one more tensor, or pair of tensors; return False at the end."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        layout, place = self._layout, f" of the tensor that begins with row {self._count}"
        sides = piece if isinstance(piece, tuple | list) else (piece,)
        if len(sides) != len(layout.names):
            wanted = "pairs (x, y)" if layout.paired else "one tensor at a time"
            raise InputError(f"x: for a {layout.architecture} the iterator has to yield {wanted}, and it yielded {len(sides)} parts.")
        tensors = [_tensor(name, side) for name, side in zip(layout.names, sides, strict=True)]
        widths = _check_shapes(tensors, layout)
        if self._widths and widths != self._widths:
            raise InputError(f"x: the widths{place} are {widths}, and before they were {self._widths}.")
        self._widths = widths
        rows = tuple(tensor.flatten(1) for tensor in tensors)
        for name, side in zip(layout.names, rows, strict=True):
            _check_finite(name, side, self._count)
        self._read.append(rows)
        self._count += len(rows[0])
        self._left += len(rows[0])
        return True


def _tensor(name: str, side: Any) -> torch.Tensor:
    if not isinstance(side, Array):
        raise InputError(f"{name} is a {type(side).__name__}; give a tensor [rows, d].")
    tensor = torch.as_tensor(side).detach()
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{name} holds {kind}, and activations are floating-point numbers; pass {name}.float().")
    return tensor


def _check_shapes(tensors: list[torch.Tensor], layout: Layout) -> list[tuple[int, ...]]:
    """Return each side's widths, layer by layer. InputError for a shape that the architecture does not take."""
    wanted = "[rows, layers, d]" if layout.layered else "[rows, d]"
    for name, tensor in zip(layout.names, tensors, strict=True):
        if tensor.ndim != (3 if layout.layered else 2) or 0 in tensor.shape[1:]:
            hint = "" if layout.layered or tensor.ndim < 3 else f"; flatten it with {name}.flatten(...)"
            raise InputError(f"{name} has the shape {list(tensor.shape)}, and a {layout.architecture} takes {wanted}{hint}.")
        if layout.layered and tensor.shape[1] < 2:
            raise InputError(f"{name} has the shape {list(tensor.shape)}, and a {layout.architecture} spans at least 2 layers: {wanted}.")
        if tensor.shape[: tensor.ndim - 1] != tensors[0].shape[: tensor.ndim - 1]:
            raise InputError(
                f"{name} has the shape {list(tensor.shape)} and x {list(tensors[0].shape)}; both need the same rows and layers."
            )
    return [(tensor.shape[-1],) * (tensor.shape[1] if layout.layered else 1) for tensor in tensors]


def _chunks(side: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from side.split(max(1, CHUNK_VALUES // side.shape[1]))


def _check_finite(name: str, side: torch.Tensor, before: int = 0) -> None:
    """InputError that names the first row with a NaN or an infinity; ``before`` rows came earlier."""
    for chunk in _chunks(side):
        finite = chunk.isfinite().all(1)
        if not finite.all():
            raise InputError(
                f"{name}: row {before + int((~finite).nonzero()[0])} holds a NaN or an infinity; drop such rows before training."
            )
        before += len(chunk)


def _stats(side: torch.Tensor, widths: tuple[int, ...]) -> Stats:
    """Return scales and mean of rows [n, d] from float64 sums. InputError if a layer's rows are all zero."""
    total = torch.zeros(side.shape[1], dtype=torch.float64)
    squares = torch.zeros(side.shape[1], dtype=torch.float64)
    for chunk in _chunks(side):
        exact = chunk.double()
        total += exact.sum(0).cpu()
        squares += exact.square().sum(0).cpu()
    scales = tuple(float(part.sum() / len(side)) ** 0.5 for part in squares.split(widths))
    if 0 in scales:
        raise InputError("every row is zero" + (f" in layer {scales.index(0)}" if len(scales) > 1 else "") + ": there is nothing to learn.")
    return Stats(widths, scales, total / len(side))
