"""Write and read what was measured of an SAE's absorption: ``evidence/absorption/<what>.json`` in its folder."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scopemill.evaluator.absorption.letters import Letter
from scopemill.evaluator.absorption.unlabelled import Feature
from scopemill.evaluator.evidence.jobs import weights_digest
from scopemill.proto.errors import CorruptObject
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record, read_record

FORMAT, FOLDER, LETTERS = 1, "evidence/absorption", "first letters"


@dataclass(frozen=True)
class Absorption:
    """Record an SAE's absorption: means over features, and each feature."""

    features_of: str  # LETTERS, or the narrower SAE's path
    model: str
    rows: int  # words, or sampled rows
    features: int
    full: float
    fraction: float
    main_latents: float  # of a feature, on average: above 1 features are split
    main_f1: float
    random_fraction: float | None  # of a random dictionary of the same width and L0; None where it was not measured
    weights: str  # digest of the SAE's weights
    each: tuple[dict[str, Any], ...]


def record_of(
    features_of: str, model: str, rows: int, weights: str, features: Sequence[Letter | Feature], random: Sequence[Letter] | None = None
) -> Absorption:
    """Return the record of measured features."""
    return Absorption(
        features_of, model, rows, len(features), mean([one.full for one in features]), mean([one.fraction for one in features]),
        mean([float(len(one.main)) for one in features]), mean([one.main_f1 for one in features]),
        None if random is None else mean([one.fraction for one in random]), weights, tuple(asdict(one) for one in features),
    )  # fmt: skip


def mean(values: Sequence[float]) -> float:
    """Return the mean of the numbers that are not NaN; NaN for none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def write_absorption(folder: str, name: str, record: Absorption) -> None:
    """Write a record into an SAE's folder, over an older one of the same name."""
    Bucket(folder).write(f"{FOLDER}/{name}.json", checksummed_record({"format": FORMAT, **asdict(record)}))


def read_absorption(folder: str) -> list[Absorption]:
    """Return the records of an SAE's present weights, by name."""
    bucket = Bucket(folder)
    names = [name for name in bucket.names(FOLDER) if name.endswith(".json")]
    found = [_read(bucket, f"{FOLDER}/{name}") for name in sorted(names)]
    return [record for record in found if record.weights == weights_digest(bucket, "")]


def _read(bucket: Bucket, path: str) -> Absorption:
    fields = read_record(bucket, path)
    try:
        if fields.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        return Absorption(**fields | {"each": tuple(fields["each"])})
    except (TypeError, LookupError, ValueError) as error:
        raise CorruptObject(f"{bucket.place(path)} is no record of absorption ({error}): delete it and measure again") from error
