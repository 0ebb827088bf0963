"""Read labels from elsewhere: CSV files, and the explanations of Neuronpedia's exports."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import fsspec

from scopemill.evaluator.labels.files import Row
from scopemill.proto.errors import InputError
from scopemill.proto.evidence import EvidenceRecord
from scopemill.proto.hooks import Hook


def read_rows(files: Sequence[str], record: EvidenceRecord) -> list[Row]:
    """Return the labels of files, each ``.csv``, ``.jsonl`` or ``.jsonl.gz``.

    A CSV has the columns latent, label and, if known, score. Raises InputError that names file and line: for a latent that the SAE lacks,
    an empty label, a second label by the same author, or a line that is none.
    """
    rows: list[Row] = []
    places: dict[tuple[int, str], str] = {}
    for file in files:
        read = _csv if file.removesuffix(".gz").lower().endswith(".csv") else _explanations
        for line, row in _lines(file, read):
            place = f"{file}, line {line}"
            checked = _checked(place, row, record)
            key = checked["latent"], checked["author"]
            if key in places:
                raise InputError(f"{place}: latent {key[0]} has a label already, at {places[key]}: keep one of them")
            places[key] = place
            rows.append(checked)
    if not rows:
        raise InputError(f"{', '.join(files)}: no label is in there; a CSV file opens with the line latent,label or latent,label,score")
    return rows


def _lines(file: str, read: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with fsspec.open(file, "rt", encoding="utf-8-sig", newline="", compression="infer") as opened:
            yield from read(file, opened)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error
    except Exception as error:  # stores and decompressors raise errors of many kinds
        raise InputError(f"{file} cannot be read: {error}") from error


def _csv(file: str, opened: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(opened)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"latent", "label"} <= set(names):
        raise InputError(f"{file}, line 1: its columns are {', '.join(names) or 'none'}; name the columns latent, label and score there")
    reader.fieldnames = names
    for row in reader:
        score = (row.get("score") or "").strip()
        yield reader.line_num, {"latent": row["latent"], "label": row["label"], "score": score or None, "author": file.rpartition("/")[2]}


def _explanations(file: str, opened: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(opened, 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            row = {"latent": fields["index"], "label": fields["description"], "layer": fields.get("layer")}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {line} is no explanation: it needs the fields index and description") from error
        author = " ".join(str(fields[name]) for name in ("typeName", "explanationModelName") if fields.get(name))
        yield line, row | {"author": author or "neuronpedia"}


def _checked(place: str, row: dict[str, Any], record: EvidenceRecord) -> Row:
    try:
        latent = int(str(row["latent"]).strip())
    except ValueError:
        latent = -1
    if not 0 <= latent < record.width:
        raise InputError(f"{place}: latent {row['latent']!r} does not exist: the SAE {record.sae} has latents 0 to {record.width - 1}")
    label = " ".join(str(row["label"] or "").split())
    if not label:
        raise InputError(f"{place}: the label of latent {latent} is empty: write one, or take the line out")
    _check_layer(place, row.get("layer"), record)
    return {"latent": latent, "label": label, "score": _score(place, row.get("score")), "author": row["author"]}


def _score(place: str, score: str | None) -> float | None:
    if score is None:
        return None
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: the score {score!r} is not a finite number: correct it, or leave it empty")
    return value


def _check_layer(place: str, source: Any, record: EvidenceRecord) -> None:
    """Refuse an explanation of another layer: the layer opens a source's id, such as 12-gemmascope-res-16k."""
    layers = {str(Hook.parse(name).layer) for name in (*record.inputs, *record.outputs)}
    layer = str(source).partition("-")[0] if source is not None else None
    if layer is not None and layer.isdigit() and layer not in layers:
        raise InputError(f"{place}: source {source!r} is of layer {layer}, but {record.sae} reads {' and '.join(record.inputs)}")
