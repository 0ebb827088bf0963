"""Generate rows whose features are known: sums of a few planted directions.

The world is SynthSAEBench's (arXiv 2602.14687). Features fire with Zipf's frequencies; a part of them are trees, in which a
child fires only with its parent and only one child of a parent at a time; features are correlated through a Gaussian copula of
low rank; magnitudes are normal, cut at zero. Legend: n rows, N features, d columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from scopemill.proto.errors import InputError

SMALLEST_OWN_VARIANCE = 0.01  # of a feature's Gaussian: the rest is shared with other features
FRAME_STEPS = 8


@dataclass(frozen=True)
class WorldConfig:
    """Describe a world. The defaults are SynthSAEBench's 16k world."""

    features: int = 16_384
    d: int = 768
    zipf_exponent: float = 0.5
    most: float = 0.4  # probability of the most frequent feature
    least: float = 5e-4
    roots: int = 128  # of trees; features that fit no tree are independent of each other
    branching: int = 4
    depth: int = 3  # generations below a root
    strongest: float = 5.0  # mean magnitude of the most frequent feature
    weakest: float = 4.0
    deviation: float = 0.5  # of every magnitude
    rank: int = 25
    correlation: float = 0.1  # deviation of the copula's factors
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most <= 1:
            raise InputError(f"a world's frequencies run from most to least: {self.most} and {self.least} are not 0 < least < most <= 1")
        if self.roots > self.features:
            raise InputError(f"a world of {self.features} features cannot have {self.roots} roots: lower roots")


SMALL = WorldConfig(features=1024, d=64, roots=8, least=2e-3)  # of the same form, for a processor and a few minutes


class World:
    """Hold planted features and give rows.

    Batch k is a pure function of configuration and k.
    """

    def __init__(self, config: WorldConfig, device: torch.device | str = "cpu"):
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        self.directions = spread(torch.randn(config.features, config.d, generator=generator, dtype=torch.float64)).float().to(device)
        factors = config.correlation * torch.randn(config.features, config.rank, generator=generator)
        largest = (1 - SMALLEST_OWN_VARIANCE) ** 0.5
        self._factors = (factors * (largest / factors.norm(dim=1, keepdim=True)).clamp(max=1)).to(device)
        self._own = (1 - self._factors.square().sum(1)).sqrt()
        self.generations = generations(config)
        self.probabilities = zipf(config)  # with which each feature fires, but for collisions among several children
        drawn = before_the_tree(self.probabilities, self.generations).clamp(max=1 - 1e-7)
        self._thresholds = torch.special.ndtri(1 - drawn.double()).float().to(device)
        self._means = torch.linspace(config.strongest, config.weakest, config.features).to(device)

    def strengths(self, k: int, rows: int) -> torch.Tensor:
        """Return the magnitudes [n, N] of batch k: 0 where a feature does not fire."""
        device, features = self.directions.device, self.config.features
        generator = torch.Generator(device).manual_seed(self.config.seed * 1_000_003 + k + 1)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        gaussian = torch.addmm(normal(rows, features).mul_(self._own), normal(rows, self.config.rank), self._factors.T)
        fires = gaussian > self._thresholds
        for parents, children in self.generations:
            fires[:, children] = chosen(fires[:, parents], fires[:, children], generator)
        row, feature = fires.nonzero(as_tuple=True)
        strengths = torch.zeros_like(gaussian)
        strengths[row, feature] = (self._means[feature] + self.config.deviation * normal(len(row))).clamp(min=0)
        return strengths

    def rows(self, strengths: torch.Tensor) -> torch.Tensor:
        """Return the rows [n, d] that strengths [n, N] give."""
        return strengths @ self.directions

    def batches(self, rows: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Yield batches of rows [n, d] without end, from batch ``start`` on."""
        k = start
        while True:
            yield self.rows(self.strengths(k, rows))
            k += 1


def zipf(config: WorldConfig) -> torch.Tensor:
    """Return each feature's frequency: a power of its rank, from most to least."""
    power = torch.arange(1, config.features + 1, dtype=torch.float64) ** -config.zipf_exponent
    return (config.least + (config.most - config.least) * (power - power[-1]) / (power[0] - power[-1])).float()


Generation = tuple[torch.Tensor, torch.Tensor]  # parents [p], and their children [p, b]


def generations(config: WorldConfig) -> list[Generation]:
    """Return the trees, generation by generation.

    Features are numbered so: roots, their children, and so on. Parents whose children do not all fit have none.
    """
    found, first, parents = [], config.roots, torch.arange(config.roots)
    for _ in range(config.depth):
        count = min(len(parents), (config.features - first) // config.branching)
        if not count:
            break
        children = torch.arange(first, first + count * config.branching).view(count, config.branching)
        found.append((parents[:count], children))
        first, parents = first + children.numel(), children.flatten()
    return found


def before_the_tree(wanted: torch.Tensor, trees: list[Generation]) -> torch.Tensor:
    """Return the probabilities to draw with, so that about the wanted ones are left.

    A child is drawn with p / parent's p, times 1 + the expected number of siblings drawn with it, at most 1: one sibling is kept.
    """
    drawn = wanted.clone()
    for parents, children in trees:
        share = wanted[children] / wanted[parents, None]
        drawn[children] = (share * (1 + share.sum(1, keepdim=True) - share)).clamp(max=1)
    return drawn


def chosen(parents: torch.Tensor, children: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Keep one child that fires of each parent that fires, each with the same chance.

    Parents bool [n, p], children bool [n, p, b].
    """
    lots = torch.rand(children.shape, generator=generator, device=children.device).masked_fill(~children, -1)
    winner = torch.zeros_like(children).scatter_(2, lots.argmax(2, keepdim=True), True)
    return children & winner & parents.unsqueeze(2)


def spread(directions: torch.Tensor) -> torch.Tensor:
    """Return unit rows [N, d] whose mean squared cosine is about the least possible.

    Rows of equal norm that form a tight frame have it (Benedetto and Fickus 2003), so whitening and normalizing take turns.
    """
    for _ in range(FRAME_STEPS):
        directions = whitened(directions) if len(directions) >= directions.shape[1] else whitened(directions.T).T
        directions = directions / directions.norm(dim=1, keepdim=True)
    return directions


def whitened(rows: torch.Tensor) -> torch.Tensor:
    """Return rows [N, d] times the inverse root of their Gram matrix [d, d]."""
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return rows @ (vectors * values.rsqrt()) @ vectors.T
