"""Describe a trainer's task: the SAE, the stream and the folder."""

from dataclasses import dataclass
from typing import Any

import torch

from scopemill.proto import wire
from scopemill.proto.dataset import HookStats
from scopemill.trainer.config.grid import MonitorName
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Port, Wiring

Batch = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class View:
    """Select and scale what an SAE sees of a batch.

    SAEs with equal views share the result.
    """

    factors: tuple[float, ...]  # per hook: from stored units to units of the SAE
    inputs: int  # the first so many hooks are read, the others are targets

    def of(self, rows: list[torch.Tensor]) -> Batch:
        """Convert stored rows to x and y.

        Rows are [B, d] for each hook, x is [B, d_in], y is [B, d_out], or None without targets.
        """
        scaled = [of_hook if factor == 1 else of_hook * factor for factor, of_hook in zip(self.factors, rows, strict=True)]
        inputs, targets = scaled[: self.inputs], scaled[self.inputs :]
        return concatenated(inputs), concatenated(targets) if targets else None


@dataclass(frozen=True)
class Assignment:
    """Describe one SAE to train."""

    name: str  # unique in the sweep; the metrics' label
    root: str  # the SAE's folder in the bucket
    inputs: tuple[HookStats, ...]
    targets: tuple[HookStats, ...]  # empty for an SAE that reconstructs its input
    stream: wire.StreamSpec
    config: SaeConfig
    model: str
    metadata: dict[str, Any]  # for users of SAELens, such as context_size
    provenance: dict[str, Any]
    text: str | None = None  # checksum of the packed text that the rows come from
    monitors: tuple[MonitorName, ...] = ()  # told each row of the history as it is made

    @property
    def wiring(self) -> Wiring:
        """Return the hooks that the SAE reads and reconstructs."""
        return Wiring(*(tuple(Port(h.name, h.d, h.scale) for h in side) for side in (self.inputs, self.targets)))

    @property
    def view(self) -> View:
        """Return what the SAE sees of a batch."""
        wiring = self.wiring
        return View(tuple(port.scale / port.unit(self.config) for port in wiring.inputs + wiring.targets), len(wiring.inputs))


def concatenated(rows: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate rows of several hooks, [B, d] each, to [B, sum of d]."""
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
