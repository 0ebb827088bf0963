"""Show what matching found: similarities, a latent's twins, its splitting tree."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from scopemill.evaluator.matching.twins import Twins, other_folder, twins_in
from scopemill.proto.errors import InputError, MissingObject
from scopemill.proto.layout import short_name
from scopemill.proto.storage.bucket import Bucket

if TYPE_CHECKING:
    from scopemill.evaluator.matching.compare import Comparison


def similarity_table(compared: "Sequence[Comparison]") -> Table:
    """Return SAEs' similarities as a table, a row for each side of a pair."""
    table = Table(box=None, pad_edge=False)
    columns = ("SAE", "in", "differs in", "max cosine", "of random", "share \u2265 0.7", "of random", "mutual", "max phi")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", overflow="fold")
    for one in compared:
        for own, other, alike in ((one.own, one.other, one.forth), (one.other, one.own, one.back)):
            numbers = (alike.mean_max_cosine, alike.random_mean_max_cosine, alike.share_alike, alike.random_share_alike, alike.mutual,
                       alike.mean_max_phi)  # fmt: skip
            table.add_row(*(Text(cell) for cell in (own, other, ", ".join(one.axes), *map(_figure, numbers))))
    return table


def stability(compared: "Sequence[Comparison]") -> dict[str, dict[str, float]]:
    """Return each SAE's mean similarity to the same SAE of other seeds."""
    found: dict[str, list[Any]] = defaultdict(list)
    for one in compared:
        if one.axes == ("seed",):
            found[one.own].append(one.forth)
            found[one.other].append(one.back)
    names = ("mean_max_cosine", "share_alike", "random_mean_max_cosine", "random_share_alike", "mutual", "mean_max_phi")
    return {
        sae: {"seeds": len(sides) + 1} | {name: sum(getattr(side, name) for side in sides) / len(sides) for name in names}
        for sae, sides in found.items()
    }


def stability_lines(compared: "Sequence[Comparison]") -> Iterator[str]:
    """Yield a line for each SAE that was matched with other seeds."""
    for sae, figures in stability(compared).items():
        yield (
            f"stability over {figures['seeds']} seeds: {_figure(figures['mean_max_cosine'])} mean max cosine (random "
            f"{_figure(figures['random_mean_max_cosine'])}), {_figure(figures['share_alike'])} of latents found again (random "
            f"{_figure(figures['random_share_alike'])})  {sae}"
        )


def twin_facts(twins: Sequence[Twins], latent: int) -> list[dict[str, Any]]:
    """Return a latent's twins as JSON objects, one for each other SAE."""
    facts = []
    for one in twins:
        row = one.of(latent)
        about = {"sae": one.record.other, "path": _path_in_bucket(one), "differs_in": list(one.record.axes), "mutual": row["mutual"]}
        for name, latents, scores in (("nearest", "nearest_latents", "nearest_cosines"), ("cofiring", "cofiring_latents", "cofiring_phi")):
            about[name] = [{"latent": other, "score": score} for other, score in zip(row[latents], row[scores], strict=True)]
        overlaps = zip(row["children"], row["children_scores"], row["children_overlap"], strict=True)
        about["children"] = [{"latent": child, "score": score, "overlap": _known(overlap)} for child, score, overlap in overlaps]
        facts.append(about)
    return facts


def _path_in_bucket(twins: Twins) -> str | None:
    """Return the other SAE's path if it is in the same bucket, as a relative folder says."""
    return None if "://" in twins.record.other_folder or twins.record.other_folder.startswith("/") else f"saes/{twins.record.other}"


def twin_lines(facts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return a latent's twins as a line of text for each other SAE, by title."""
    lines = {}
    for one in facts:
        title = f"twins in {one['sae']} ({', '.join(one['differs_in']) or 'same settings'})"
        parts = [f"{name} {_scored(one[kind])}" for kind, name in (("nearest", "cosine"), ("cofiring", "phi")) if one[kind]]
        if one["children"]:
            parts.append(f"splits into {_scored(one['children'])}")
        lines[title] = "; ".join(parts) or "none"
    return lines


def _scored(latents: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{one['latent']} {one['score']:.2f}" for one in latents)


def splitting_tree(folder: str, latent: int, least: float) -> dict[str, Any]:
    """Return a latent with its children in wider SAEs, and theirs, as nested objects.

    Raises MissingObject if the SAE was matched with no wider one, InputError for a latent that does not exist.
    """
    wider = _wider(folder)
    if not wider:
        raise MissingObject(f"{folder} was not matched with a wider SAE yet: run scopemill match on both, or on the sweep file")
    if not 0 <= latent < len(wider[0].table):
        raise InputError(f"latent {latent} does not exist: the SAE {folder} has latents 0 to {len(wider[0].table) - 1}")
    return {"sae": short_name(folder), "latent": latent, "children": list(_children(folder, latent, least))}


def _children(folder: str, latent: int, least: float) -> Iterator[dict[str, Any]]:
    for twins in _wider(folder):
        row, place = twins.of(latent), other_folder(folder, twins.record.other_folder)
        for child, score, overlap in zip(row["children"], row["children_scores"], row["children_overlap"], strict=True):
            if score >= least:
                facts = {"sae": twins.record.other, "latent": child, "score": score, "overlap": _known(overlap)}
                yield facts | {"children": list(_children(place, child, least))}


def _wider(folder: str) -> list[Twins]:
    """Return the twins of an SAE in the next wider SAEs that differ in width alone."""
    found = [twins for twins in twins_in(Bucket(folder)) if twins.record.axes == ("width",)]
    wider = [twins for twins in found if twins.record.other_width > len(twins.table)]
    return [twins for twins in wider if twins.record.other_width == min(other.record.other_width for other in wider)]


def drawn(tree: dict[str, Any]) -> Tree:
    """Return a splitting tree for the terminal."""
    root = Tree(Text(f"latent {tree['latent']} of {tree['sae']}"))
    _draw(tree["children"], root)
    return root


def _draw(children: Sequence[dict[str, Any]], branch: Tree) -> None:
    for child in children:
        overlap = "" if child["overlap"] is None else f", fires within its parent {child['overlap']:.0%}"
        _draw(child["children"], branch.add(Text(f"latent {child['latent']} of {child['sae']}: {child['score']:.2f}{overlap}")))


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
