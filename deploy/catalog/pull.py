"""Copy finished SAEs out of a bucket, in a format."""

import json

from scopemill.deploy.catalog.evidence_copy import copy_evidence
from scopemill.deploy.catalog.listing import finished_folders
from scopemill.evaluator.fidelity.results import Evaluation
from scopemill.proto.errors import CorruptObject, InputError, MissingObject, ScopemillError
from scopemill.proto.finished import read_weights
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket


def pull(source: str, destination: str, pattern: str = "*", word: str = "saelens", with_evidence: bool = False) -> list[str]:
    """Copy the finished SAEs that match a pattern, in a format.

    Returns their folders at the destination. The pattern is of their path below ``saes/``. SAELens' folders are copied as they
    are, with their metrics; equal files at the destination are not written again. InputError if nothing matches, or if the format
    cannot hold an SAE. An SAE whose weights are missing or damaged is not copied: the others are, and ScopemillError names it.
    ``with_evidence`` copies the evidence of those SAEs that have some.
    """
    bucket, target = Bucket(source), Bucket(destination)
    chosen = finished_folders(bucket, pattern)
    target.check_writable()
    if word == "saelens":
        return _copied(bucket, chosen, target, with_evidence)
    if word == "gemma-scope":
        return _converted(bucket, chosen, target, with_evidence)
    raise InputError(f"--format {word!r} cannot be pulled: choose saelens or gemma-scope")


def _copied(bucket: Bucket, folders: list[str], target: Bucket, with_evidence: bool) -> list[str]:
    damaged = []
    for folder in folders:
        try:
            _copy(bucket, SaeLayout(folder), target)
            if with_evidence:
                copy_evidence(bucket, folder, target, folder.removeprefix("saes/"))
        except (CorruptObject, MissingObject) as error:
            damaged.append(f"  {error}")
    if damaged:
        listed = "\n".join(damaged)
        raise ScopemillError(f"{len(damaged)} of {len(folders)} SAEs are damaged and were not copied; the others were:\n{listed}")
    return [folder.removeprefix("saes/") for folder in folders]


def _copy(bucket: Bucket, layout: SaeLayout, target: Bucket) -> None:
    files = {layout.weights: read_weights(bucket, layout)}
    for path in (layout.metrics, layout.provenance, layout.history, layout.config):  # cfg.json last: it marks a whole SAE
        if bucket.exists(path):
            files[path] = bucket.read(path)
    for path, data in files.items():
        copy = path.removeprefix("saes/")
        if not target.exists(copy) or target.read(copy) != data:
            target.write(copy, data)


def _converted(bucket: Bucket, folders: list[str], target: Bucket, with_evidence: bool) -> list[str]:
    """Write Gemma Scope's files. L0 names their paths, so each SAE needs a measured L0, and two of one hook may not have the same."""
    from scopemill.trainer.formats import read_finished, write_finished  # torch: a copy as it is does without
    from scopemill.trainer.formats.gemma_scope_paths import GENERATION_1

    l0s = [_l0(bucket, SaeLayout(folder)) for folder in folders]
    paths: dict[str, str] = {}
    for folder, l0 in zip(folders, l0s, strict=True):
        finished = read_finished(bucket.place(folder))
        path = GENERATION_1.path_of(finished, l0)
        if path in paths:
            raise InputError(f"{paths[path]} and {folder} would both go to {path}: choose one with --match")
        write_finished(target.place(path), "gemma-scope", finished)
        if with_evidence:
            copy_evidence(bucket, folder, target, path)
        paths[path] = folder
    return list(paths)


def _l0(bucket: Bucket, layout: SaeLayout) -> str:
    """Return the measured L0, or the one that an imported SAE came with."""
    if bucket.exists(layout.metrics):
        return str(round(Evaluation.read(bucket, layout.metrics).result.l0))
    l0 = json.loads(bucket.read(layout.config)).get("metadata", {}).get("l0")
    if l0 is None:
        raise InputError(f"{bucket.place(layout.root)} has no metrics.json: evaluate it first, Gemma Scope's paths are named by L0")
    return str(l0)
