"""Label latents in groups, and keep what is done.

Each is explained from one half of the documents, and scored on the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.labels import prompts
from scopemill.evaluator.labels.answers import label_in
from scopemill.evaluator.labels.asking import Asker
from scopemill.evaluator.labels.contexts import Contexts, LatentContexts
from scopemill.evaluator.labels.endpoint import BudgetSpent
from scopemill.evaluator.labels.files import Row, label_file, read_labels, whole_row, write_labels
from scopemill.evaluator.labels.scoring import TEXTS, Asked, Method, figures, questions
from scopemill.proto.errors import EndpointError

GROUP = 16  # latents whose questions are asked together; each serves the others as a wrong label
LEAST = 2  # contexts in a half, below which a latent is not labelled


@dataclass(frozen=True)
class LabelSettings:
    """Describe how labels are made; the file of labels is named by it."""

    model: str
    methods: tuple[Method, ...]
    shown: int = 20  # contexts that a label is written from
    scored: int = 10  # contexts of each kind that it is scored on
    texts: int = TEXTS  # of one request to judge

    @property
    def fields(self) -> dict[str, Any]:
        """Return everything that decides the labels, but for the evidence."""
        own = {"model": self.model, "methods": list(self.methods), "shown": self.shown, "scored": self.scored}
        return own | {"texts": self.texts, "prompts": prompts.VERSION}


@dataclass
class Labelled:
    """Hold what a run has labelled, and why it did not label the rest."""

    rows: dict[int, Row] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  # latents without a label or a score
    stopped: str | None = None  # why the run ended early
    place: str | None = None


class Labeller:
    """Label the latents of one SAE's evidence."""

    def __init__(self, evidence: Evidence, asker: Asker, settings: LabelSettings):
        self._evidence, self._asker, self._settings = evidence, asker, settings
        self._contexts = Contexts(evidence, settings.shown, settings.scored)
        self._name = label_file(settings.fields)
        self._known = read_labels(evidence, self._name)

    def label(self, latents: Sequence[int], on_group: Callable[[int], None] = lambda done: None) -> Labelled:
        """Label latents, and write what is labelled after each group.

        ``on_group`` gets the number of latents that are done. Latents that the file has whole are not asked about again.
        """
        result = Labelled()
        for start in range(0, len(latents), GROUP):
            group = latents[start : start + GROUP]
            if result.stopped is None:
                self._label_group(group, result)
                on_group(start + len(group))
            for latent in group:
                if latent in self._known:
                    result.rows[latent] = self._known[latent]
                if latent not in result.reasons and not self._is_whole(latent):
                    result.reasons[latent] = result.stopped or "its texts or the answers did not suffice for every score"
        return result

    def _is_whole(self, latent: int) -> bool:
        row = self._known.get(latent)
        return row is not None and all(row.get(method) is not None for method in self._settings.methods)

    def _label_group(self, group: Sequence[int], result: Labelled) -> None:
        contexts: dict[int, LatentContexts] = {}
        for latent in group:
            if not self._is_whole(latent):
                found = self._contexts.of(latent)
                if why := _too_few(found):
                    result.reasons[latent] = why
                else:
                    contexts[latent] = found
        if not contexts:
            return
        labels = self._explain(contexts, result)
        asked = {latent: self._questions(contexts[latent], labels, group) for latent in labels}
        answers, reason = self._asker.ask([one.question for of_latent in asked.values() for one in of_latent])
        left = iter(answers)
        for latent, of_latent in asked.items():
            told = figures(of_latent, [next(left) for _ in of_latent])
            facts = {"latent": latent, "label": labels[latent], "score": told.score, "basis": told.basis, "unread": told.unread}
            self._known[latent] = whole_row(facts | {"author": self._settings.model} | told.values)
        self._stop(result, reason)
        if labels:
            result.place = write_labels(
                self._evidence, self._name, (self._known[one] for one in sorted(self._known)), self._settings.fields
            )

    def _explain(self, contexts: dict[int, LatentContexts], result: Labelled) -> dict[int, str]:
        answers, reason = self._asker.ask([prompts.explanation(one.explain) for one in contexts.values()])
        labels: dict[int, str] = {}
        for latent, answer in zip(contexts, answers, strict=True):
            if answer is not None and (label := label_in(answer)):
                labels[latent] = label
            elif answer is not None:
                result.reasons[latent] = "the answer holds no label"
        self._stop(result, reason)
        return labels

    def _questions(self, contexts: LatentContexts, labels: dict[int, str], group: Sequence[int]) -> list[Asked]:
        """Return the questions about a latent; the wrong label is the next one of its group that is of no neighbour."""
        known = {latent: self._known[latent]["label"] for latent in group if latent in self._known} | labels
        at, near = group.index(contexts.latent), self._contexts.neighbours(contexts.latent)
        others = [known[one] for one in (*group[at + 1 :], *group[:at]) if one in known and one not in near]
        other = next((label for label in others if label != known[contexts.latent]), None)
        return questions(contexts, labels[contexts.latent], other, self._settings.methods, self._settings.texts)

    @staticmethod
    def _stop(result: Labelled, reason: EndpointError | BudgetSpent | None) -> None:
        if reason is not None and result.stopped is None:
            result.stopped = "the budget of requests is spent" if isinstance(reason, BudgetSpent) else str(reason)


def _too_few(contexts: LatentContexts) -> str | None:
    if not contexts.explain and not contexts.positives:
        return "it never fired"
    if min(len(contexts.explain), len(contexts.positives)) < LEAST:
        return "its contexts are of too few documents to explain it from some and score it on others"
    return None
