"""Give advice on L0 from the decoder cosines of SAEs that differ in sparsity."""

import math

from scopemill.evaluator.fidelity.results import Result
from scopemill.evaluator.report.numbers import count, fraction
from scopemill.proto.layout import width_label

FEWEST = 3  # SAEs at different L0: of two, one always has the least


def advice(final: list[Result]) -> list[str]:
    """Return a sentence for each hook, architecture and width with three L0 or more."""
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for r in final:
        if math.isfinite(r.decoder_cosine) and math.isfinite(r.l0):
            groups.setdefault((r.hook, r.architecture, r.width), []).append(r)
    return [_sentence(sorted(rows, key=lambda r: r.l0)) for rows in groups.values() if len({r.l0 for r in rows}) >= FEWEST]


def _sentence(rows: list[Result]) -> str:
    """Say where the cosine is least among rows of ascending L0."""
    best = min(rows, key=lambda r: r.decoder_cosine)
    where = f"{best.place}, {width_label(best.width)} {best.architecture}: the decoder cosine is least"
    least = f"{where} ({fraction(best.decoder_cosine)}) at L0 {count(best.l0)}"
    if best.l0 == rows[-1].l0:
        return f"{least}, the highest here: the right L0 is probably higher."
    if best.l0 == rows[0].l0:
        return f"{least}, the lowest here: the right L0 is probably lower."
    below, above = max(r.l0 for r in rows if r.l0 < best.l0), min(r.l0 for r in rows if r.l0 > best.l0)
    return f"{least}: the right L0 is probably between {count(below)} and {count(above)}."
