"""Hold the scores of probes, and their means over tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

SAE, RANDOM_DECODER, RANDOM_ENCODER, RESIDUAL = "sae", "random decoder", "random encoder", "residual"


@dataclass(frozen=True)
class ProbeScore:
    """Record the score of one probe on one task."""

    task: str
    latents_of: str  # "sae", "random decoder" or "random encoder"; "residual" is the dense probe of the activation itself
    k: int  # the number of latents, or of the activation's columns
    auc: float
    accuracy: float
    prompts: int  # of training and test together


@dataclass(frozen=True)
class ProbeSummary:
    """Hold the mean AUC of an SAE's probes over all tasks."""

    tasks: int
    auc: dict[int, dict[str, float]]  # by k, then by the latents' owner
    residual: float

    @staticmethod
    def of(scores: Sequence[ProbeScore]) -> "ProbeSummary":
        """Average scores over tasks."""

        def mean(owner: str, k: int | None) -> float:
            chosen = [score.auc for score in scores if score.latents_of == owner and k in (score.k, None)]
            return sum(chosen) / len(chosen)

        ks = sorted({score.k for score in scores if score.latents_of == SAE})
        auc = {k: {owner: mean(owner, k) for owner in (SAE, RANDOM_DECODER, RANDOM_ENCODER)} for k in ks}
        return ProbeSummary(len({score.task for score in scores}), auc, mean(RESIDUAL, None))
