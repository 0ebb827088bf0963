"""Compare SAEs in pairs, and write each latent's twins beside its SAE's evidence.

Decoders and firings are held for two SAEs at a time; firings wait on the local disk.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scopemill.evaluator.evidence.jobs import weights_digest
from scopemill.evaluator.evidence.neighbours import Neighbours, decoder_rows
from scopemill.evaluator.evidence.rows import Source
from scopemill.evaluator.matching.cosine import nearest, space_of
from scopemill.evaluator.matching.firings import Sampled, by_phi, on_common_rows, sample_firings
from scopemill.evaluator.matching.members import Axis, Member
from scopemill.evaluator.matching.similarity import Similarity, mutual, random_cosines, similarity
from scopemill.evaluator.matching.splitting import LEAST_COSINE, LEAST_PHI, Children, children
from scopemill.evaluator.matching.twins import TWINS, TwinsRecord, relative_folder, write_twins
from scopemill.proto.errors import InputError, StorageError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import read_record
from scopemill.trainer.formats import FinishedSae, read_finished

TWINS_EACH = 3  # of a latent in another SAE, by cosine and by phi
AT_ONCE = 8  # SAEs that share a read of the rows
AXES_OF_THEIR_OWN = {"architecture", "width", "seed", "sparsity"}


@dataclass(frozen=True)
class Comparison:
    """Record how alike two SAEs are, seen from each."""

    own: str
    other: str
    axes: tuple[Axis, ...]
    forth: Similarity
    back: Similarity


def member_of(folder: str, finished: FinishedSae) -> Member:
    """Describe an SAE for comparing; its recipe is known where it was trained here.

    Raises InputError if its files name no hook.
    """
    inputs, outputs = finished.hooks(folder)
    settings: dict[str, Any] = {}
    with suppress(StorageError, ValueError, AttributeError):
        settings = dict(json.loads(Bucket(folder).read(SaeLayout("").provenance.lstrip("/")))["sae"])
    left = {name: value for name, value in settings.items() if name not in AXES_OF_THEIR_OWN}
    recipe = hashlib.sha256(json.dumps(left, sort_keys=True, default=str).encode()).hexdigest()[:16] if settings else ""
    measured: dict[str, Any] = {}
    with suppress(StorageError):
        measured = read_record(Bucket(folder), SaeLayout("").metrics.lstrip("/")).get("result", {})
    return Member(
        folder, tuple(hook.name for hook in inputs), tuple(hook.name for hook in outputs), finished.sae.architecture, finished.sae.width,
        settings.get("seed"), settings.get("sparsity"), recipe, measured.get("l0"),
    )  # fmt: skip


def check_same_model(finished: Sequence[tuple[str, FinishedSae]]) -> None:
    """Raise InputError if SAEs name different language models."""
    named = {one.model.rpartition("/")[2]: folder for folder, one in finished if one.model}
    if len(named) > 1:
        (first, a), (second, b) = list(named.items())[:2]
        raise InputError(f"{a} is of {first} and {b} of {second}: latents are matched between SAEs of one language model")


class Firings:
    """Keep the sampled firings of SAEs on the local disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scopemill-match-")

    def add(self, source: Source, shards: Sequence[int], share: float, folders: Sequence[str], device: Any) -> Iterator[tuple[str, float]]:
        """Sample the firings of SAEs, and yield each folder with its L0."""
        for start in range(0, len(folders), AT_ONCE):
            some = folders[start : start + AT_ONCE]
            saes = [read_finished(folder) for folder in some]
            for one in saes:
                one.sae.to(device)
            for folder, sampled in zip(some, sample_firings(source, shards, share, saes), strict=True):
                np.savez(self._path(folder), **vars(sampled))
                yield folder, sampled.l0

    def of(self, folder: str) -> Sampled | None:
        """Return the firings of an SAE, or None if none were sampled."""
        if not self._path(folder).exists():
            return None
        with np.load(self._path(folder)) as arrays:
            return Sampled(int(arrays["width"]), *(arrays[name] for name in ("latents", "rows", "values", "drawn")))

    def _path(self, folder: str) -> Path:
        return Path(self._folder.name) / f"{hashlib.sha256(folder.encode()).hexdigest()}.npz"


def compare(
    members: Sequence[Member],
    pairs: Sequence[tuple[int, int, tuple[Axis, ...]]],
    firings: Firings,
    device: Any = "cpu",
    on_pair: Callable[[], None] = lambda: None,
) -> list[Comparison]:
    """Compare SAEs in pairs, and write the twins of both sides.

    Raises InputError for a pair of which neither decoder rows nor firings can be compared.
    """  # fmt: skip
    for i, j, _ in pairs:
        check_comparable(members[i], members[j], all(firings.of(members[n].folder) for n in (i, j)))
    side = lru_cache(maxsize=2)(lambda index: _Side.load(members[index], firings, device))
    done = []
    for i, j, axes in pairs:
        done.append(_compared(side(i), side(j), axes))
        on_pair()
    return done


def check_comparable(own: Member, other: Member, rows: bool) -> None:
    """Raise InputError if two SAEs have nothing that can be compared."""
    a, b = space_of(own.outputs), space_of(other.outputs)
    if a != b and not rows:
        raise InputError(
            f"{own.folder} writes to {', '.join(a)} and {other.folder} to {', '.join(b)}: their decoder rows are not comparable; give "
            "--model and --corpus to match them by firing on the same rows"
        )


@dataclass(frozen=True)
class _Side:
    member: Member
    rows: Any  # decoder rows [F, d]
    sampled: Sampled | None
    weights: str

    @staticmethod
    def load(member: Member, firings: Firings, device: Any) -> "_Side":
        decoder = decoder_rows(read_finished(member.folder).sae).to(device)
        return _Side(member, decoder, firings.of(member.folder), weights_digest(Bucket(member.folder), ""))

    @property
    def alive(self) -> np.ndarray:
        alive: np.ndarray = (self.rows.norm(dim=1) > 0).cpu().numpy()
        return alive & (self.sampled.fired > 0) if self.sampled else alive


def _compared(own: _Side, other: _Side, axes: tuple[Axis, ...]) -> Comparison:
    """Compare two SAEs and write the twins of both."""
    if own.sampled and other.sampled:
        first, second = on_common_rows(own.sampled, other.sampled)
        own, other = replace(own, sampled=first), replace(other, sampled=second)
    comparable = space_of(own.member.outputs) == space_of(other.member.outputs)
    sides = (own, other), (other, own)
    cosines = [nearest(a.rows, b.rows, TWINS_EACH) if comparable else None for a, b in sides]
    phis = [by_phi(a.sampled, b.sampled, TWINS_EACH) if a.sampled and b.sampled else None for a, b in sides]
    found = []
    for (a, b), forth, back, phi, phi_back in zip(sides, cosines, cosines[::-1], phis, phis[::-1], strict=True):
        alive = a.alive
        random = random_cosines(a.rows[np.flatnonzero(alive)], b.rows) if comparable and alive.any() else None
        alike = similarity(alive, forth, back, phi, random)
        split = None
        if "width" in axes and a.member.width < b.member.width:
            split = children(back, LEAST_COSINE, a.sampled, b.sampled) if back else None
            split = children(phi_back, LEAST_PHI, a.sampled, b.sampled) if phi_back and not back else split
        record = TwinsRecord(
            a.weights, b.member.name, relative_folder(a.member.folder, b.member.folder), b.weights, b.member.outputs,
            b.member.architecture, b.member.width, axes, len(a.sampled.drawn) if a.sampled and b.sampled else 0, asdict(alike),
        )  # fmt: skip
        write_twins(a.member.folder, record, _table(a.member.width, forth, back, phi, split))
        found.append(alike)
    return Comparison(own.member.name, other.member.name, axes, *found)


def _table(width: int, forth: Neighbours | None, back: Neighbours | None, phi: Neighbours | None, split: Children | None) -> pa.Table:
    """Return the rows of `TWINS`."""
    columns: dict[str, Any] = {"latent": pa.array(np.arange(width, dtype=np.int32))}
    columns["mutual"] = pa.array(mutual(forth, back)) if forth and back else pa.nulls(width, pa.bool_())
    for latents, scores, near in (("nearest_latents", "nearest_cosines", forth), ("cofiring_latents", "cofiring_phi", phi)):
        kept = near.latents >= 0 if near else np.zeros((width, 0), bool)
        columns[latents] = _lists(near.latents[kept] if near else np.empty(0, np.int32), kept.sum(1))
        columns[scores] = _lists(near.scores[kept] if near else np.empty(0, np.float32), kept.sum(1))
    counts = np.bincount(split.parents, minlength=width) if split else np.zeros(width, np.int64)
    empty, none = np.empty(0, np.float32), np.empty(0, np.int32)
    columns["children"] = _lists(split.children if split else none, counts)
    columns["children_scores"] = _lists(split.scores if split else empty, counts)
    columns["children_overlap"] = _lists(split.overlap if split else empty, counts)
    return pa.table([columns[name] for name in TWINS.names], schema=TWINS)


def _lists(values: np.ndarray, counts: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32)), pa.array(values))
