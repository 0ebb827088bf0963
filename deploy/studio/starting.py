"""Check what people want to start, by the models that read sweep files."""

from pathlib import Path
from typing import Any

import yaml

from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.deploy.studio.models.starting import Validation
from scopemill.proto.errors import InputError, SweepFileError
from scopemill.proto.storage.bucket import Bucket

SOURCE = "the sweep file"


def prepared(bucket: Bucket, given: dict[str, Any], sparsities: list[float] | None = None) -> dict[str, Any]:
    """Return a sweep file's content with absolute places, in this bucket.

    SweepFileError names each wrong field.
    """
    data = given | {"bucket": bucket.url}
    if (named := given.get("bucket")) not in (None, bucket.url) and _absolute(str(named)) != bucket.url:
        raise InputError(f"bucket: this service is for {bucket.url}, and not for {named}: leave the field out")
    if sparsities is not None:
        train = data.get("train")
        if not isinstance(train, dict):
            raise SweepFileError(f"{SOURCE}: train: the section is missing")
        if train.get("variants"):
            raise SweepFileError(f"{SOURCE}: train.variants: each variant has sparsities of its own: start it as trainings, not as a sweep")
        data = data | {"train": train | {"sparsities": sparsities}}
    return parse_sweep(data, SOURCE).located().model_dump(mode="json")  # so that the driver may run in any folder


def validation(bucket: Bucket, given: dict[str, Any]) -> Validation:
    """Tell every wrong field, in the command line's sentences."""
    try:
        data = prepared(bucket, given)
    except InputError as error:
        return Validation(valid=False, problems=str(error).splitlines(), yaml=None)
    return Validation(valid=True, problems=[], yaml=yaml.safe_dump(data, sort_keys=False))


def _absolute(place: str) -> str:
    return place if "://" in place or "::" in place else str(Path(place).expanduser().absolute())
