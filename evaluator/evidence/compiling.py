"""Compile the loops of evidence ahead, each in one process of a machine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from scopemill.evaluator.evidence import loops
from scopemill.evaluator.evidence.encoding import Collector
from scopemill.evaluator.evidence.ledger import Firings, Ledger, Sizes
from scopemill.evaluator.evidence.neighbours import by_cofiring
from scopemill.proto.turns import by_turns


def compile_loops() -> None:
    """Compile or load the loops that count firings and find neighbours."""
    by_turns(Path(str(loops.count.stats.cache_path)), loops_of_evidence())


def loops_of_evidence() -> dict[str, Callable[[], object]]:
    """Return calls that run each loop on two firings of one latent."""
    sizes, one = Sizes(top=1, samples=1, tokens=1, window=2), np.ones(2, np.float32)
    firings = Firings(np.array([0, 2]), np.arange(2, dtype=np.int32), one)
    empty = Ledger.empty(1, sizes)
    return {
        "cofiring": lambda: by_cofiring(np.zeros(2, np.int32), np.arange(2), 4, width=1, k=1),
        "count": lambda: Ledger.of(firings, 0, np.arange(4, dtype=np.int32), context=4, sizes=sizes, seed=0),
        "merge": lambda: empty.merged(empty),
        "group": lambda: Collector(0, 1).firings(),
    }
