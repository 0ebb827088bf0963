"""Tell what of a sweep is left to do, by its record and its state.

Neither model nor corpus is needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scopemill.deploy.plan.evaluations import read_evaluations
from scopemill.deploy.plan.finetunings import finetune_jobs, unfinished_jobs
from scopemill.deploy.plan.record import PlanRecord
from scopemill.deploy.plan.state import SweepState
from scopemill.evaluator.fidelity.jobs import Job
from scopemill.proto.storage.bucket import Bucket

PHASES = ("harvest", "train", "finetune", "evaluate")


@dataclass(frozen=True)
class Work:
    """Hold a sweep's record and its state at one moment, and answer what is left."""

    bucket: Bucket
    record: PlanRecord
    state: SweepState
    every_checkpoint: bool  # is measured, rather than the newest one of each SAE

    def left(self, phases: Iterable[str] = PHASES) -> list[str]:
        """Return those of the phases that have work which is not committed."""
        has_work = {
            "harvest": lambda: not all(self.state.passes[number].harvested for number in self.to_harvest()),
            "train": lambda: bool(self.state.unfinished),
            "finetune": lambda: bool(unfinished_jobs(self.bucket, finetune_jobs(self.bucket, self.record, self.state))),
            "evaluate": lambda: bool(self.unevaluated()),
        }
        return [phase for phase in phases if has_work[phase]()]

    def to_harvest(self) -> list[int]:
        """Return the numbers of the passes that are harvested before training."""
        if not self.record.sheds:
            return list(range(len(self.record.passes)))
        return [number for number in self.in_turn() if self.state.passes[number].unfinished][:1]

    def in_turn(self) -> list[int]:
        """Return the passes' numbers as planned.

        Where the disk has room for one pass, the one with shards comes first.
        """
        numbers = range(len(self.record.passes))
        return sorted(numbers, key=lambda number: self.record.sheds and not self.state.passes[number].committed)

    def unevaluated(self) -> list[list[Job]]:
        """List the checkpoints that are still to be measured.

        They are grouped by the hooks that their SAEs reconstruct.
        """
        by_hook: dict[object, list[Job]] = {}
        for sae in self.record.saes:
            steps = self.state.saes[sae.name].checkpoints
            chosen = steps if self.every_checkpoint else steps[-1:]
            by_hook.setdefault(sae.targets or sae.inputs, []).extend(Job(sae.name, sae.root, step) for step in chosen)
        measured = [job for jobs in by_hook.values() for job in jobs if job.step in self.state.saes[job.sae].measured]
        done = read_evaluations(self.bucket, measured, self.record.evaluation_settings)
        left = [[job for job in jobs if job not in done] for jobs in by_hook.values()]
        return [jobs for jobs in left if jobs]
