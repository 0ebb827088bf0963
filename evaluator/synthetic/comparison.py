"""Train each architecture on the same world and score it against the planted features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scopemill.evaluator.synthetic.truth import Truth, score
from scopemill.evaluator.synthetic.world import World
from scopemill.trainer.fit import train_sae

# Penalties are for rows of E||x||^2 = 1. Those of standard and gated are chosen so that their L0 comes near the world's.
COUNTED: dict[str, dict[str, Any]] = {"topk": {}, "batchtopk": {}, "matryoshka": {}}
PENALIZED: dict[str, dict[str, Any]] = {
    "standard": {"sparsity": 0.1},
    "gated": {"sparsity": 0.4},
    "jumprelu": {"penalty": "target_l0"},
}
ARCHITECTURES = (*PENALIZED, *COUNTED)


@dataclass(frozen=True)
class Compared:
    """Record one trained SAE's score."""

    architecture: str
    sparsity: float
    truth: Truth


def compare(
    world: World, architectures: Sequence[str], width: int, l0: float, steps: int, batch_size: int, seed: int = 0, **fields: Any
) -> Iterator[Compared]:
    """Train an SAE of each architecture on the same batches, and score it.

    The score is on rows that none was trained on. ``l0`` is k, or the target of the penalty. ``fields`` are those of a
    sweep's ``train`` section.
    """
    for architecture in architectures:
        options = {"sparsity": l0} | COUNTED.get(architecture, {}) | PENALIZED.get(architecture, {}) | fields
        sae = train_sae(world.batches(batch_size), architecture, width, steps=steps, batch_size=batch_size, seed=seed, **options)
        yield Compared(architecture, options["sparsity"], score(sae, world, rows=20_000))


def true_l0(world: World, rows: int = 8192) -> float:
    """Return the mean number of features that fire per row."""
    batch = 1024
    fired = [int((world.strengths(-1 - k, batch) > 0).sum()) for k in range(-(-rows // batch))]
    return sum(fired) / (len(fired) * batch)
