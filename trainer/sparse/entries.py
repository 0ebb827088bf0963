"""Find and hold the entries of a batch on which loss and gradients depend.

An entry is a pair [row, latent].

Legend of shapes: B rows, F latents, n entries.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from scopemill.trainer.sparse.kernels.base import Backend, Columns, offsets
from scopemill.trainer.sparse.kernels.select import require_backend


@dataclass(frozen=True)
class Entries:
    """Hold entries by rows: row i has ``latents[starts[i]:starts[i + 1]]``."""

    starts: torch.Tensor  # [B + 1], int64
    latents: torch.Tensor  # [n], int32
    width: int
    backend: Backend

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(self.starts) - 1

    @cached_property
    def columns(self) -> Columns:
        """Return the same entries by latents."""
        return self.backend.by_latents(self.starts, self.latents, self.width)

    def sum_by_latent(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum [F] of the values [n] of each latent."""
        return self.backend.sum_by_latent(self.columns, values)

    def share(self, fires: torch.Tensor | None = None) -> torch.Tensor:
        """Return the share [F] of rows in which each latent has an entry.

        With ``fires`` [n], only entries that fire count.
        """
        counts = self.columns.starts.diff() if fires is None else self.sum_by_latent(fires.float())
        return counts.float() / self.rows

    def kept(self, keep: torch.Tensor) -> "Entries":
        """Return the entries for which ``keep`` [n] is true."""
        return Entries(offsets(keep)[self.starts], self.latents[keep], self.width, self.backend)

    def renumbered(self, by: int, width: int) -> "Entries":
        """Return the entries with ``by`` added to every latent's number, among ``width`` latents."""
        return Entries(self.starts, self.latents + by, width, self.backend)

    def slice(self, start: int, stop: int) -> tuple["Entries", torch.Tensor]:
        """Return the entries of latents ``start`` to ``stop``, and a mask of them.

        They are renumbered from 0; the mask [n] marks them among all entries.
        """
        inside = (self.latents >= start) & (self.latents < stop)
        return self.kept(inside).renumbered(-start, stop - start), inside

    @staticmethod
    def of_equal_rows(latents: torch.Tensor, keep: torch.Tensor, width: int, backend: Backend) -> "Entries":
        """Return the candidates [B, k] for which ``keep`` [B, k] is true, as entries."""
        return Entries(offsets(keep.sum(1)), latents[keep].to(torch.int32), width, backend)


def scan(products: torch.Tensor, bias: torch.Tensor, lower: torch.Tensor, max_entries: int) -> tuple[Entries, torch.Tensor] | None:
    """Find the entries of products plus bias above ``lower``, with their values [n].

    Products are [B, F], bias and ``lower`` [F]. None if there are more than about ``max_entries``. Where rounding decides, an entry may
    be in or out: the caller's result must not depend on such entries.
    """
    backend = require_backend(bias)
    found = backend.scan(products, bias, lower.detach(), max_entries)
    return None if found is None else (Entries(found.starts, found.latents, products.shape[1], backend), found.values)
