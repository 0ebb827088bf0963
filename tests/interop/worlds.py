"""Statistics of sae_lens' synthetic world beside ours: ``python worlds.py ANSWER``, in the environment of requirements.txt.

The two draw other numbers from the same distributions, so what is compared are frequencies, magnitudes, pairs that fire together, and
the angles of directions. ANSWER is a JSON file of (ours, theirs, tolerance) for each statistic.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.synthetic import (
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)

from scopemill.evaluator.synthetic.world import World, WorldConfig

CONFIG = WorldConfig(features=512, d=48, roots=8, branching=4, depth=2, least=2e-3)
ROWS, BATCHES = 4096, 20


def main(answer: Path) -> None:
    torch.manual_seed(0)
    ours, theirs = World(CONFIG), their_world()
    a = torch.cat([ours.strengths(k, ROWS) for k in range(BATCHES)])
    b = torch.cat([theirs.activation_generator.sample(ROWS) for _ in range(BATCHES)])
    told = {name: (mine, others, tolerance) for name, mine, others, tolerance in statistics(a, b, ours, theirs)}
    answer.write_text(json.dumps(told))


def their_world() -> SyntheticModel:
    c = CONFIG
    return SyntheticModel(
        SyntheticModelConfig(
            num_features=c.features,
            hidden_dim=c.d,
            firing_probability=ZipfianFiringProbabilityConfig(exponent=c.zipf_exponent, max_prob=c.most, min_prob=c.least),
            hierarchy=HierarchyConfig(
                total_root_nodes=c.roots,
                branching_factor=c.branching,
                max_depth=c.depth,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
            ),
            orthogonalization=OrthogonalizationConfig(),
            correlation=LowRankCorrelationConfig(rank=c.rank, correlation_scale=c.correlation),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=c.strongest, end=c.weakest),
            std_firing_magnitudes=c.deviation,
            bias=False,
            seed=1,
        )
    )


def statistics(a: torch.Tensor, b: torch.Tensor, ours: World, theirs: SyntheticModel):
    """Name, ours, theirs, and how far apart they may be."""
    fires = [(x > 0).double() for x in (a, b)]
    yield "features that fire per row", *(f.sum(1).mean().item() for f in fires), 0.1
    tree = CONFIG.roots
    for generation, (_, children) in enumerate(ours.generations):
        yield f"generation {generation + 1}, fired per row", *(f[:, children.flatten()].sum(1).mean().item() for f in fires), 0.05
        tree += children.numel()
    yield "features outside trees, fired per row", *(f[:, tree:].sum(1).mean().item() for f in fires), 0.05
    frequencies = [f.mean(0) for f in fires]
    yield "largest difference of a feature's frequency", (frequencies[0] - frequencies[1]).abs().max().item(), 0.0, 0.02
    for name, part in (("first", slice(0, 8)), ("last", slice(-64, None))):
        yield f"mean magnitude of the {name} features", *((x[:, part].sum() / (x[:, part] > 0).sum()).item() for x in (a, b)), 0.05
    correlated = [torch.corrcoef(f[:, : CONFIG.roots].T) for f in fires]
    spread = [c[~torch.eye(CONFIG.roots, dtype=torch.bool)].std().item() for c in correlated]
    yield "deviation of roots' correlations", *spread, 0.01
    for_both = (ours.directions, theirs.feature_dict.feature_vectors.detach())
    yield "root mean square cosine of directions", *(rms(w.double()) for w in for_both), 0.01


def rms(w: torch.Tensor) -> float:
    w = w / w.norm(dim=1, keepdim=True)
    gram = w @ w.T
    return ((gram.square().sum() - len(w)) / (len(w) * (len(w) - 1))).sqrt().item()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
