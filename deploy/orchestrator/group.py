"""Call the trainers of one group of SAEs, and collect the outcome of each SAE."""

from dataclasses import dataclass, field
from typing import Any

from scopemill.activation_server.actor import Whereabouts
from scopemill.deploy.orchestrator.pool import Slot
from scopemill.deploy.plan.sweep_plan import Pass, PlannedSae
from scopemill.proto.dataset import DatasetManifest
from scopemill.proto.errors import RankLost, ScopemillError
from scopemill.trainer.worker.assignment import Assignment
from scopemill.trainer.worker.sae_trainer import Outcome


@dataclass(eq=False)
class Group:
    """Hold SAEs that train together.

    They are SAEs of one stream in one process, or one wide SAE that several processes train. The activation server knows the
    group as one consumer, by the name of the first SAE. The process of the first slot leads.
    """

    names: list[str]
    slots: list[Slot]
    settled: set[str] = field(default_factory=set)  # SAEs whose outcome the schedule knows
    calls: dict[Any, Slot] = field(default_factory=dict)  # by Ray's reference: calls that have not returned
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # as the leader's call returned them
    errors: list[ScopemillError] = field(default_factory=list)  # of failed calls, in the order of their ends

    @property
    def consumer(self) -> str:
        """Return the name by which the activation server knows the group."""
        return self.names[0]

    @property
    def leader(self) -> Slot:
        """Return the slot whose process reads the stream and reports progress."""
        return self.slots[0]

    def start(self, assignments: list[Assignment], server: Whereabouts, keys: str | None) -> None:
        """Call the processes of all slots, and note the calls."""
        leader, *followers = self.slots
        if not followers:
            self.calls[leader.actor.run.remote(assignments, server, keys)] = leader
            return
        on_one_node = len({slot.node for slot in self.slots}) == 1
        address, ranks = leader.actor.meet.remote(on_one_node), len(self.slots)
        self.calls[leader.actor.lead.remote(*assignments, server, keys, address, ranks)] = leader
        for rank, slot in enumerate(followers, 1):
            self.calls[slot.actor.follow.remote(*assignments, address, rank, ranks)] = slot

    def final_outcomes(self) -> dict[str, Outcome]:
        """Return the outcome of each SAE, once all calls have returned.

        If a rank was lost, the outcome is the first error that has another reason.
        """
        cause = next((error for error in self.errors if not isinstance(error, RankLost)), next(iter(self.errors), None))
        error = cause or ScopemillError(f"the trainer of {self.consumer} returned without an outcome")
        outcomes = {name: self.outcomes.get(name, error) for name in self.names}
        return {name: error if cause and isinstance(outcome, RankLost) else outcome for name, outcome in outcomes.items()}


def assignment_of(plan: Pass, manifest: DatasetManifest, sae: PlannedSae) -> Assignment:
    """Return what a trainer needs to know to train an SAE."""
    inputs, targets = (tuple(manifest.hook(hook.name) for hook in hooks) for hooks in (sae.inputs, sae.targets))
    metadata = {"context_size": manifest.context_length, "dataset_path": plan.harvest.identity["corpus.source"]}
    provenance = {
        "sweep": plan.config.name,
        "dataset": plan.harvest.dataset,
        "identity": plan.harvest.identity,
        "scales": {hook.name: hook.scale for hook in inputs + targets},
        "sae": sae.config.model_dump(mode="json"),
    }
    return Assignment(
        name=sae.name,
        root=sae.layout.root,
        inputs=inputs,
        targets=targets,
        stream=plan.stream(sae.hooks),
        config=sae.config,
        model=plan.card.name,
        metadata=metadata,
        provenance=provenance,
        text=manifest.text,
        monitors=plan.config.train.monitors,
    )
