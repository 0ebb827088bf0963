"""Read latents from evidence, and keep what was opened as long as it lasts."""

from typing import Any

from scopemill.deploy.catalog import latents as of
from scopemill.deploy.studio.cache import VersionedCache
from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.proto.storage.bucket import Bucket

MOST_OPEN = 4  # SAEs whose tables are kept in memory


class Latents:
    """Read the evidence of one bucket's SAEs; any thread may call it."""

    def __init__(self, bucket: Bucket):
        self._bucket, self._open = bucket, VersionedCache(MOST_OPEN)

    def listed(self, sae: str, sort: str, label: str, ascending: bool, dead: bool) -> list[dict[str, Any]]:
        """Return the latents to list as rows, sorted."""
        return of.listed(self._evidence(sae), sort, label, ascending, dead)

    def facts(self, sae: str, latent: int) -> dict[str, Any]:
        """Return everything that evidence has of a latent."""
        return of.facts_of(self._evidence(sae), latent)

    def with_word(self, sae: str, word: str) -> list[dict[str, Any]]:
        """Return the latents with a word in label, promoted tokens or contexts, the best first."""
        return sorted(of.with_word(self._evidence(sae), word), key=lambda hit: (-hit["contexts"], hit["latent"]))

    def labels(self, sae: str) -> dict[int, tuple[str, float | None]]:
        """Return the label and score of each latent that has one."""
        return self._evidence(sae).labels()

    def _evidence(self, sae: str) -> Evidence:
        newest = evidence_of(self._bucket, sae)  # a small record; the tables of one that was opened before are read already
        return self._open.get(sae, newest.layout.root, lambda: newest)
