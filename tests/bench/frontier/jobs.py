"""What is trained: the table of every package's settings, and the jobs in their order.

A package gets three learning rates at the middle L0; the best goes to the other L0s. Ours is trained on fewer rows as well, each with
a schedule of its own, since that is what a user with fewer rows would do: it tells how many rows a given FVU takes.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf, log
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
OURS, SAE_LENS, DICTIONARIES = "ours", "sae-lens", "dictionary-learning"
PACKAGES = {OURS: "train_ours.py", SAE_LENS: "train_saelens.py", DICTIONARIES: "train_dictionaries.py"}
ARCHITECTURES = ("jumprelu", "topk", "batchtopk", "matryoshka")
L0S = (8, 16, 32, 64, 128)
MIDDLE = 32  # the L0 at which learning rates are found
PREFIXES = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]

# Aux losses and thresholds of the peers count in millions of rows; they are scaled to the rows that there are.
LENS = {"lr_warm_up_steps": 50, "lr_decay_fraction": 0.3, "dead_feature_window": 50}
DICTIONARY = {"warmup_steps": 50, "decay_start_fraction": 0.7}
DICTIONARY_TOPK = DICTIONARY | {"dead_after_rows": 50_000, "threshold_start_step_fraction": 0.3, "threshold_beta": 0.99}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    OURS: dict.fromkeys(ARCHITECTURES, {"template": "quick"}),  # as everyone gets it
    SAE_LENS: {
        "jumprelu": LENS | {"l0_warm_up_fraction": 0.5},
        "topk": LENS,
        "batchtopk": LENS | {"topk_threshold_lr": 0.03},  # it starts at zero, and L0 is wrong until that is forgotten
        "matryoshka": LENS | {"topk_threshold_lr": 0.03, "prefixes": PREFIXES},
    },
    DICTIONARIES: {
        "jumprelu": DICTIONARY | {"sparsity_warmup_steps_fraction": 0.5},
        "topk": DICTIONARY_TOPK,
        "batchtopk": DICTIONARY_TOPK,
        "matryoshka": DICTIONARY_TOPK | {"group_fractions": [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]},
    },
}
RATES = dict.fromkeys(PACKAGES, (3e-3, 1e-2, 2e-2))
# What each package is told so that JumpReLU's L0 comes near 8, 16, 32, 64, 128: coefficients of the L0 penalty, for rows with
# E||x||^2 = 1, or L0 itself.
COEFFICIENTS = (1.5e-2, 6e-3, 2.5e-3, 1e-3, 3e-4)
OUR_COEFFICIENTS = (8e-3, 4e-3, 2e-3, 8e-4, 2e-4)  # a wider kernel moves thresholds further
JUMPRELU = {OURS: OUR_COEFFICIENTS, SAE_LENS: COEFFICIENTS, DICTIONARIES: L0S}


@dataclass(frozen=True)
class Size:
    """What all jobs of a run have in common."""

    rows: int
    width: int
    batch: int = 1024
    threads: int = 1


@dataclass(frozen=True)
class Plan:
    """What is trained in a run, each with all rows of a size; ``shares`` of the rows are what ours is trained on as well."""

    size: Size
    architectures: tuple[str, ...] = ARCHITECTURES
    l0s: tuple[int, ...] = (MIDDLE, 8, 128, 16, 64)
    shares: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2)

    @property
    def steps(self) -> int:
        return self.size.rows // self.size.batch


FULL = Plan(Size(586 * 1024, 1024))
OTHER = Plan(Size(586 * 1024, 1024), l0s=(MIDDLE, 8, 128), shares=(1 / 4, 1 / 2))  # rows of another model, as many as there are
QUICK = Plan(Size(192 * 1024, 512), ("jumprelu", "topk"), (MIDDLE, 8, 128), (1 / 4,))


@dataclass(frozen=True)
class Job:
    package: str
    architecture: str
    sparsity: float
    learning_rate: float
    steps: int
    size: Size

    def told(self) -> dict[str, Any]:
        """What the package's process is told, apart from places."""
        return {
            "architecture": self.architecture, "sparsity": self.sparsity, "learning_rate": self.learning_rate, "steps": self.steps,
            "width": self.size.width, "batch": self.size.batch, "threads": self.size.threads, "seed": 0, "warm_up": 3,
            "settings": SETTINGS[self.package][self.architecture],
        }  # fmt: skip

    def key(self, version: str, data: str) -> str:
        """A name for the result: the same for the same work, by a package's version, on the same rows."""
        content = json.dumps([self.package, version, data, self.told()], sort_keys=True)
        return f"{self.architecture}-{self.package}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        return f"{self.architecture} {self.package} {self.sparsity:g}, learning rate {self.learning_rate:g}, {self.steps} steps"


@dataclass(frozen=True)
class Result:
    """A finished job, as it is kept."""

    job: Job
    fvu: float
    l0: float
    dead: float
    seconds: float  # of one core, without waiting for other processes
    clock_seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        fields = json.loads(text)
        job = fields.pop("job")
        return cls(Job(**job | {"size": Size(**job["size"])}), **fields)


def sparsity(package: str, architecture: str, l0: int) -> float:
    return JUMPRELU[package][L0S.index(l0)] if architecture == "jumprelu" else l0


def searches(plan: Plan) -> list[Job]:
    """Each package's learning rates at one L0, packages in turn."""
    return [
        Job(package, architecture, sparsity(package, architecture, MIDDLE), RATES[package][n], plan.steps, plan.size)
        for n in (1, 0, 2)
        for architecture in plan.architectures
        for package in PACKAGES
    ]


def others(plan: Plan, best: Callable[[str, str], float]) -> list[Job]:
    """All L0s at each package's best learning rate, packages in turn; then ours on fewer rows."""

    def job(package: str, architecture: str, l0: int, steps: int) -> Job:
        return Job(package, architecture, sparsity(package, architecture, l0), best(package, architecture), steps, plan.size)

    full = [job(package, kind, l0, plan.steps) for l0 in plan.l0s for kind in plan.architectures for package in PACKAGES]
    return full + [job(OURS, kind, l0, int(plan.steps * share)) for share in plan.shares for kind in plan.architectures for l0 in plan.l0s]


def merit(result: Result) -> float:
    """Less is better: log FVU, along FVU ~ L0^-1/2, since JumpReLU's L0 is not quite the same at every learning rate."""
    return log(result.fvu) + log(result.l0) / 2 if result.fvu > 0 and result.l0 > 0 else inf


def version_of_ours() -> str:
    """A hash of everything that ours trains with."""
    files = sorted(path for folder in ("trainer", "proto") for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
