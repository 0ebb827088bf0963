"""What a trainer is told: which SAE, on what, and where it goes."""

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
    """What an SAE sees of a batch of its stream. SAEs with the same view share one."""

    factors: tuple[float, ...]  # of each hook: from the units that are stored to those of the SAE
    inputs: int  # so many of the hooks are read, the others are targets

    def of(self, rows: list[torch.Tensor]) -> Batch:
        """Rows as they are stored, [B, d] for each hook, as x [B, d_in] and y [B, d_out]; y is None where there are no targets."""
        scaled = [of_hook if factor == 1 else of_hook * factor for factor, of_hook in zip(self.factors, rows, strict=True)]
        inputs, targets = scaled[: self.inputs], scaled[self.inputs :]
        return side_by_side(inputs), side_by_side(targets) if targets else None


@dataclass(frozen=True)
class Assignment:
    """One SAE to train."""

    name: str  # unique in the sweep; the metrics' label
    root: str  # the SAE's folder in the bucket
    inputs: tuple[HookStats, ...]
    targets: tuple[HookStats, ...]  # empty: it rebuilds what it reads
    stream: wire.StreamSpec
    config: SaeConfig
    model: str
    metadata: dict[str, Any]  # what SAELens' users want to know beside it, such as context_size
    provenance: dict[str, Any]
    monitors: tuple[MonitorName, ...] = ()  # told each row of the history as it is made

    @property
    def wiring(self) -> Wiring:
        return Wiring(*(tuple(Port(h.name, h.d, h.scale) for h in side) for side in (self.inputs, self.targets)))

    @property
    def view(self) -> View:
        wiring = self.wiring
        return View(tuple(port.scale / port.unit(self.config) for port in wiring.inputs + wiring.targets), len(wiring.inputs))


def side_by_side(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows of several hooks [B, d] each, as one [B, sum of d]."""
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
