"""Show the latents of an SAE from its evidence."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scopemill.deploy.catalog.twins import twin_facts, twin_lines
from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.evaluator.matching.twins import twins_of
from scopemill.proto.errors import InputError, MissingObject
from scopemill.proto.evidence import INTERVALS, TOP, Example
from scopemill.proto.layout import short_name
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary

BARS = " ▁▂▃▄▅▆▇█"
HOT = (255, 140, 0)  # the colour of a latent's maximum; smaller activations are darker
SORTS = ("latent", "density", "max", "mean", "decoder_norm", "cluster", "label_score", "output_score")
FIGURES = ("detection", "fuzzing", "intruder")  # of a label, each with its controls


def evidence_by_name(folders: Sequence[str]) -> list[tuple[str, Evidence]]:
    """Return the evidence of the SAEs that have some, each by its folder's name.

    Raises InputError if none has.
    """
    found, reasons = [], []
    for folder in folders:
        try:
            evidence = evidence_of(Bucket(folder), "")
        except MissingObject as error:
            reasons.append(str(error))
            continue
        found.append((short_name(folder), evidence))
    if not found:
        raise InputError(reasons[0])
    return found


def facts_of(evidence: Evidence, latent: int) -> dict[str, Any]:
    """Return everything that evidence has of a latent, as one JSON object."""
    words, row = evidence.vocabulary, evidence.latent(latent)
    label = evidence.label_rows().get(latent, {})
    contexts = [asdict(example) | {"text": words.pieces(example.tokens)} for example in evidence.examples(latent)]
    named = {f"{name}_text": [words.text(id) for id in row[f"{name}_tokens"]] for name in ("promoted", "suppressed")}
    about = {"sae": evidence.record.sae, "source": evidence.record.source, "rows": evidence.record.rows}
    scores = dict(zip(("output_score", "output_score_random"), evidence.output_scores().get(latent, (None, None)), strict=True))
    figures = {name: value for name, value in label.items() if name not in ("latent", "label", "score")}
    labelled = {"label": label.get("label"), "label_score": label.get("score"), "label_figures": figures}
    twins = {"twins": twin_facts(twins_of(evidence), latent)}
    return about | row | named | labelled | scores | twins | {"examples": contexts}


def page(evidence: Evidence, latent: int, most: int) -> RenderableType:
    """Return a latent's page for a terminal, with the activation of each token as colour."""
    words, row = evidence.vocabulary, evidence.latent(latent)
    parts: list[RenderableType] = [Text(headline(evidence, row), style="bold")]
    facts = _labelled(evidence, latent) | _about(row, words) | _twins(evidence, latent)
    parts += [Text(f"{name}: {value}") for name, value in facts.items()]
    shown = evidence.examples(latent)
    for title, examples in _sections(shown, row["histogram_range"], most):
        parts.append(Text(f"\n{title}", style="bold"))
        parts += [coloured(example, words, row["max"]) for example in examples]
    if not shown:
        parts.append(Text("it never fired"))
    return Group(*parts)


def headline(evidence: Evidence, row: dict[str, Any]) -> str:
    """Return a latent's first line."""
    return f"latent {row['latent']} of {evidence.record.sae}"


def coloured(example: Example, words: Vocabulary, maximum: float) -> Text:
    """Return a context as one line; the peak is underlined."""
    line = Text(f"{example.value:9.3f}  ")
    for at, (piece, activation) in enumerate(zip(words.pieces(example.tokens), example.activations, strict=True)):
        style = ""
        if activation > 0:
            strength = 0.25 + 0.75 * min(1.0, activation / maximum)
            style = "black on rgb({},{},{})".format(*(int(strength * part) for part in HOT))
            style = style if strength > 0.5 else style.replace("black", "white")
        line.append(_visible(piece), style + (" underline" if at == example.peak else ""))
    return line


def markdown(evidence: Evidence, latent: int, most: int) -> str:
    """Return a latent's page in Markdown; tokens on which the latent fires are bold."""
    words, row = evidence.vocabulary, evidence.latent(latent)
    lines = [f"# {headline(evidence, row)}", ""]
    lines += [f"- {name}: {escaped(value)}" for name, value in _labelled(evidence, latent).items()]
    lines += [f"- {name}: {value}" for name, value in (_about(row, words) | _twins(evidence, latent)).items()]
    for title, examples in _sections(evidence.examples(latent), row["histogram_range"], most):
        lines += ["", f"## {title}", ""]
        for example in examples:
            lines.append(f"- {example.value:.3f}: {context_text(example, words)}")
    return "\n".join(lines) + "\n"


def context_text(example: Example, words: Vocabulary) -> str:
    """Return a context as Markdown; tokens on which the latent fires are bold."""
    pieces = zip(words.pieces(example.tokens), example.activations, strict=True)
    return "".join(_bold(escaped(_visible(piece))) if activation > 0 else escaped(_visible(piece)) for piece, activation in pieces)


def listed(evidence: Evidence, sort: str, label: str, ascending: bool, dead: bool) -> list[dict[str, Any]]:
    """Return the latents to list as rows, sorted; those that never fired only with ``dead``."""
    if sort not in SORTS:
        raise InputError(f"--sort {sort!r} is not a column to sort by: choose from {', '.join(SORTS)}")
    words, labels, scores = evidence.vocabulary, evidence.labels(), evidence.output_scores()
    columns = ["latent", "fired", "density", "max", "mean", "std", "cluster", "decoder_norm", "top_token", "promoted_tokens"]
    rows = []
    for row in evidence.latents(columns).to_pylist():
        name, score = labels.get(row["latent"], ("", None))
        if (row["fired"] or dead) and fnmatchcase(name, label):
            top, promoted = row.pop("top_token"), row.pop("promoted_tokens")
            text = {"top_token": "" if top is None else words.text(top), "promoted": [words.text(id) for id in promoted[:5]]}
            output, control = scores.get(row["latent"], (None, None))
            rows.append(row | text | {"label": name, "label_score": score, "output_score": output, "output_score_random": control})
    return sorted(rows, key=lambda row: ((row[sort] or 0) * (1 if ascending else -1), row["latent"]))


def latents_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return listed latents as a table."""
    table = Table(box=None, pad_edge=False)
    measured = [name for name in ("output_score", "label_score") if any(row[name] is not None for row in rows)]
    texts = ("top token", "promotes", "label")
    for column in ("latent", "density", "max", "cluster", *measured, *texts):
        table.add_column(column.replace("_", " "), justify="left" if column in texts else "right", no_wrap=column != "label")
    for row in rows:
        cells = [str(row["latent"]), f"{row['density']:.2e}", f"{row['max']:.3f}", str(row["cluster"])]
        cells += ["" if row[name] is None else f"{row[name]:.3f}" for name in measured]
        cells += [quoted(row["top_token"]), " ".join(map(quoted, row["promoted"])), row["label"]]
        table.add_row(*map(Text, cells))
    return table


def with_word(evidence: Evidence, word: str) -> Iterator[dict[str, Any]]:
    """Yield the latents with a word in their label, promoted tokens or contexts.

    Case does not count.
    """
    words, labels, wanted = evidence.vocabulary, evidence.labels(), word.casefold()
    promoted = evidence.latents(["promoted_tokens"]).column("promoted_tokens").to_pylist()
    for latent, examples in evidence.all_examples():
        found = []
        if wanted in labels.get(latent, ("", None))[0].casefold():
            found.append("label")
        if any(wanted in words.text(id).casefold() for id in promoted[latent]):
            found.append("promoted tokens")
        hits = sum(_fires_on(example, words, wanted) for example in examples)
        if hits:
            found.append(f"{hits} of {len(examples)} contexts")
        if found:
            yield {"latent": latent, "found": found, "contexts": hits}


def _fires_on(example: Example, words: Vocabulary, wanted: str) -> bool:
    """Return True if the latent fires on a token of the word where the context has it."""
    pieces = [piece.casefold() for piece in words.pieces(example.tokens)]
    text, starts = "".join(pieces), [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    at = text.find(wanted)
    while at >= 0:
        overlaps = (start < at + len(wanted) and stop > at for start, stop in zip(starts, starts[1:], strict=False))
        if any(over and activation > 0 for over, activation in zip(overlaps, example.activations, strict=True)):
            return True
        at = text.find(wanted, at + 1)
    return False


def _labelled(evidence: Evidence, latent: int) -> dict[str, str]:
    """Return label, its figures and the output score, each if there is one."""
    facts: dict[str, str] = {}
    if row := evidence.label_rows().get(latent):
        facts["label"] = row["label"] + (f" ({row['score']:.2f})" if row["score"] is not None else "")
        if figures := [text for name in FIGURES if (text := _figure(row, name))]:
            facts["label's scores (AUC)"] = "; ".join(figures)
    if scores := evidence.output_scores().get(latent):
        facts["output score"] = f"{scores[0]:.3f}, of a random direction of its norm {scores[1]:.3f}"
    return facts


def _figure(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    controls = (("nearest", "against the nearest latents"), ("shuffled", "of another latent's label"))
    beside = [f"{row[f'{name}_{key}']:.2f} {text}" for key, text in controls if row.get(f"{name}_{key}") is not None]
    return f"{name} {row[name]:.2f}" + (f" ({', '.join(beside)})" if beside else "")


def _about(row: dict[str, Any], words: Vocabulary) -> dict[str, str]:
    top = row["top_token"]
    facts = {
        "fires on": f"{row['fired']:,} rows, density {row['density']:.2e}",
        "activation": f"max {row['max']:.4g}, mean {row['mean']:.4g}, std {row['std']:.4g}",
        "histogram": f"0 |{sparkline(row['histogram'])}| {row['histogram_range']:g}",
    }
    if top is not None:
        facts["most frequent token"] = (
            f"{quoted(words.text(top))}, share {row['top_token_share']:.2f}, entropy {row['token_entropy']:.2f} bits"
        )
    for name in ("promoted", "suppressed"):
        values = zip(row[f"{name}_tokens"], row[f"{name}_values"], strict=True)
        facts[name] = ", ".join(f"{quoted(words.text(id))} {value:+.2f}" for id, value in values)
    for title, ids, scores in (
        ("nearest by decoder", "nearest_latents", "nearest_cosines"),
        ("fires together with", "cofiring_latents", "cofiring_phi"),
    ):
        facts[title] = ", ".join(f"{other} {score:.2f}" for other, score in zip(row[ids], row[scores], strict=True)) or "none"
    facts["cluster"] = str(row["cluster"])
    if row["encoder_decoder_cosine"] is not None:
        facts["encoder-decoder cosine"] = f"{row['encoder_decoder_cosine']:.3f}"
    return facts


def _twins(evidence: Evidence, latent: int) -> dict[str, str]:
    return twin_lines(twin_facts(twins_of(evidence), latent))


def sparkline(counts: Sequence[int], bars: int = 32) -> str:
    """Return a histogram as bars of letters, in the logarithm of the counts."""
    size = max(1, len(counts) // bars)
    sums = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
    most = max(sums).bit_length() if any(sums) else 1
    return "".join(BARS[-(-count.bit_length() * (len(BARS) - 1) // most)] for count in sums)


def _sections(examples: Sequence[Example], limit: float, most: int) -> Iterator[tuple[str, list[Example]]]:
    for interval in (TOP, *range(INTERVALS - 1, -1, -1)):
        chosen = [example for example in examples if example.interval == interval][:most]
        if chosen:
            low, high = (limit * i / INTERVALS for i in (interval, interval + 1))
            yield ("top contexts" if interval == TOP else f"sampled from [{low:g}, {high:g})"), chosen


def _visible(piece: str) -> str:
    return piece.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)


def _bold(text: str) -> str:
    inner = text.strip()
    if not inner:
        return f"<b>{text}</b>"
    return text.replace(inner, f"<b>{inner}</b>", 1)


def quoted(text: str) -> str:
    """Return a token's text so that its spaces and line ends are seen."""
    return json.dumps(text, ensure_ascii=False)
