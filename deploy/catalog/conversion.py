"""Convert finished SAEs between formats, and import whole Gemma Scope trees into a bucket."""

import importlib.metadata
import json
from dataclasses import dataclass
from fnmatch import fnmatch

import fsspec

from scopemill.deploy.progress import Reporter
from scopemill.proto.errors import Conflict, InputError, SaeFormatError
from scopemill.proto.finished import is_finished
from scopemill.proto.layout import SaeLayout, checked_name
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FORMATS, read_finished, write_finished, write_saelens
from scopemill.trainer.formats.gemma_scope_paths import GENERATION_1, GENERATION_2, Generation, Origin

TREES: dict[str, Generation] = {FORMATS["gemma-scope"].weights: GENERATION_1, FORMATS["gemma-scope-2"].weights: GENERATION_2}


def convert(source: str, destination: str, word: str) -> None:
    """Convert one SAE's folder from one format into another.

    Raises InputError, before anything is written, if the SAE cannot be read or the format cannot hold it.
    """
    write_finished(destination, word, read_finished(source))


def import_tree(source: str, destination: str, pattern: str, reporter: Reporter) -> list[str]:
    """Import a Gemma Scope tree's SAEs that match a pattern, and return their folders.

    The folders lie in the bucket, in SAELens' format. The pattern is of their path below ``source``. SAEs that were imported
    before are skipped. InputError if nothing matches, or if two SAEs would go to the same folder; Conflict if another SAE lies
    there.
    """
    bucket = Bucket(destination)
    bucket.check_writable()
    planned = _planned(source, pattern)
    with reporter.phase(f"importing {len(planned)} SAEs", {"SAEs": len(planned)}):
        for done, (root, folder) in enumerate(planned.items(), start=1):
            if not _is_imported(bucket, SaeLayout(root), folder):
                finished = read_finished(folder)
                finished.check(bucket.place(root))
                provenance = {"scopemill": importlib.metadata.version("scopemill"), "imported_from": folder}
                write_saelens(bucket, SaeLayout(root), finished, provenance)
            reporter.update("SAEs", done)
    return list(planned)


def _planned(source: str, pattern: str) -> dict[str, str]:
    """Return the source folder of each SAE that matches, by its folder in the bucket."""
    found = _folders(source)
    planned: dict[str, str] = {}
    for below, folder, generation in found:
        if fnmatch(below, pattern):
            root = _root(folder, generation)
            if root in planned:
                raise InputError(f"{planned[root]} and {folder} would both go to {root}: choose one with --match")
            planned[root] = folder
    if not planned:
        there = f"{len(found)} SAEs, such as {found[0][0]}" if found else "no SAE in Gemma Scope's files"
        raise InputError(f"nothing in {source} matches {pattern!r}: it holds {there}")
    return planned


@dataclass(frozen=True)
class TreeEntry:
    """Describe one SAE of a Gemma Scope tree."""

    path: str  # below the tree
    model: str
    site: str  # the end of its hook's name; of a transcoder the target's
    layer: int | None  # None for the embedding
    width: str  # "16k"
    l0: float | None  # None where the path has a word
    folder: str  # its URL


def tree_entries(source: str) -> list[TreeEntry]:
    """List the SAEs of a Gemma Scope tree by what their paths say.

    Raises InputError if the tree cannot be listed.
    """
    return [_tree_entry(below, folder, *generation.parse(folder)) for below, folder, generation in _folders(source)]


def _tree_entry(below: str, folder: str, origin: Origin, l0: str) -> TreeEntry:
    parts = origin.output.split(".", 2)
    layer = int(parts[1]) if parts[0] == "blocks" else None
    return TreeEntry(below, origin.model, parts[-1], layer, origin.width, float(l0) if l0.isdigit() else None, folder)


def _folders(source: str) -> list[tuple[str, str, Generation]]:
    """List each SAE's path below the source, its folder as a URL, and its generation; sorted."""
    try:
        store, root = fsspec.core.url_to_fs(source.rstrip("/"))
        files = sorted(store.find(root))
    except Exception as error:  # stores raise errors of many kinds
        raise InputError(f"{source} cannot be listed: {type(error).__name__}: {error}") from error
    found = []
    for path in files:
        folder, _, name = path.rpartition("/")
        if name in TREES:
            below = folder.removeprefix(root.rstrip("/")).lstrip("/")
            found.append((below, store.unstrip_protocol(folder), TREES[name]))
    return found


def _root(folder: str, generation: Generation) -> str:
    origin, l0 = generation.parse(folder)
    hooks, affine = dict.fromkeys((origin.input, origin.output)), folder.endswith("_affine")
    kind = "jumprelu" if len(hooks) == 1 else "skip_transcoder" if affine else "transcoder"
    return f"saes/{checked_name('model', origin.model)}/{'--'.join(hooks)}/width_{origin.width}/{kind}/l0-{l0}"


def _is_imported(bucket: Bucket, layout: SaeLayout, folder: str) -> bool:
    if not is_finished(bucket, layout):
        return False
    try:
        imported_from = json.loads(bucket.read(layout.provenance)).get("imported_from")
    except (AttributeError, ValueError) as error:
        raise SaeFormatError(f"{bucket.place(layout.provenance)} is not a JSON object") from error
    if imported_from != folder:
        raise Conflict(f"{bucket.place(layout.root)} holds an SAE from {imported_from}, not from {folder}: import into another bucket")
    return True
