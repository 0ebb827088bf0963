"""Write evidence as the files that Neuronpedia imports in bulk.

Below ``{model}/{layer}-{set}__{suffix}/``: a JSON line each of release, model, set and source, and batches of features, activations and
explanations. Columns are those of Neuronpedia's database. Its importer
    takes the columns of a file from the first line alone, so all lines have the same;
    lists no more than `MOST_FILES` files of a kind, so files grow with the width;
    replaces ``\\u0000`` in the file's text, also where a backslash stands before it;
    skips rows whose key is there, so ids come from the SAE and not from a clock, and an import can be repeated;
    follows foreign keys, so a model names no set of sources that does not yet exist, and explanations no unknown method.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.saedashboard import activation, statistics
from scopemill.evaluator.exports.subject import Latent, Part, Subject, blocks, short
from scopemill.proto.errors import InputError
from scopemill.proto.storage.bucket import Bucket

MOST_FILES = 1000
LEAST_LATENTS = 128  # in a file
MOST_TEXT = 2000  # letters of an explanation


def write_neuronpedia(target: Bucket, subject: Subject, names: Names, see: Callable[[int], None], vectors: bool = False) -> list[str]:
    """Write the files of each source of an SAE; return their folders.

    ``vectors`` adds each latent's decoder row, for steering without the SAE. InputError unless the model's layers are known.
    """
    if names.layers < 1:
        raise InputError("Neuronpedia asks for the number of the language model's layers: give it with --layers")
    folders = []
    for part in subject.parts:
        model, source = names.model_id(subject), names.source_id(subject, part)
        folder = f"{model}/{source}"
        for name, line in metadata(subject, part, names).items():
            target.write(f"{folder}/{name}.jsonl", _lines([line]))
        for number, block in enumerate(blocks(subject.latents(part), latents_per_file(part.width))):
            kinds = {
                "features": [feature(subject, part, latent, names, vectors) for latent in block],
                "activations": [line for latent in block for line in activations(subject, part, latent, names)],
                "explanations": [explanation(subject, part, latent, names) for latent in block if latent.label],
            }
            for kind, lines in kinds.items():
                if lines:
                    data = gzip.compress(_lines(lines), 5, mtime=0)
                    target.write(f"{folder}/{kind}/batch-{number}.jsonl.gz", data, durable=False)
            see(part.first + block[-1].index + 1)
        folders.append(folder)
    return folders


def latents_per_file(width: int) -> int:
    """Return how many latents a file holds.

    So no kind has more files than the importer lists.
    """
    return max(LEAST_LATENTS, -(-width // MOST_FILES))


def metadata(subject: Subject, part: Part, names: Names) -> dict[str, dict[str, Any]]:
    """Return the lines about a whole source by file, in the order of their import."""
    record, model, set_name = subject.evidence.record, names.model_id(subject), names.set_name(subject)
    about = names.description or f"{record.architecture} SAE of {record.width} latents at {part.input}, by Scopemill"
    repository, _, folder = _split(names.weights)
    creator = {"creatorName": names.creator, "creatorId": names.creator_id}
    return {
        "release": {
            "name": names.release_name(subject), "description": about, "descriptionShort": about,
            **creator, "creatorNameShort": names.creator, "urls": [names.url] if names.url else [], "visibility": "PUBLIC",
            "defaultSourceSetName": set_name,
        },
        "model": {
            "id": model, "displayName": record.model, "displayNameShort": record.model, "creatorId": names.creator_id,
            "layers": names.layers, "neuronsPerLayer": 0, "owner": names.creator, "instruct": model.endswith(("-it", "-instruct")),
            "tlensId": record.model_place, "visibility": "PUBLIC",
        },
        "sourceset": {
            "modelId": model, "name": set_name, "description": about, "type": record.architecture, **creator,
            "urls": [names.url] if names.url else [], "releaseName": names.release_name(subject), "visibility": "PUBLIC",
            "hasDashboards": True, "allowInferenceSearch": False, "defaultRange": 1, "defaultShowBreaks": True, "showDfa": False,
            "showCorrelated": True, "showHeadAttribution": False, "showUmap": False,
        },
        "source": {
            "id": names.source_id(subject, part), "modelId": model, "setName": set_name, "creatorId": names.creator_id,
            "hasDashboards": True, "inferenceEnabled": False, "hfRepoId": repository, "hfFolderId": folder,
            "saelensConfig": _config(subject), "saelensRelease": None, "saelensSaeId": None, "num_prompts": record.sequences,
            "num_tokens_in_prompt": record.context_length, "dataset": record.dataset, "visibility": "PUBLIC",
        },
    }  # fmt: skip


def feature(subject: Subject, part: Part, latent: Latent, names: Names, vectors: bool) -> dict[str, Any]:
    """Return a latent's line of ``features``."""
    near = [
        (other - part.first, cosine)
        for other, cosine in zip(latent.row["nearest_latents"], latent.row["nearest_cosines"], strict=True)
        if part.first <= other < part.stop
    ]
    steered = vectors and subject.single is not None
    return {
        **_key(subject, part, latent, names),
        "creatorId": names.creator_id,
        "sourceSetName": names.set_name(subject),
        "maxActApprox": latent.row["max"],
        "hasVector": steered,
        "vector": short(subject.directions([part.first + latent.index])[0].tolist()) if steered else [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": latent.row["max"],
        "hookName": part.output,
        "topkCosSimIndices": [other for other, _ in near],
        "topkCosSimValues": short([cosine for _, cosine in near]),
        **statistics(subject, part, latent),
    }


def activations(subject: Subject, part: Part, latent: Latent, names: Names) -> Iterator[dict[str, Any]]:
    """Yield a latent's lines of ``activations``, one for each context."""
    key = _key(subject, part, latent, names)
    for place, example in enumerate(latent.examples):
        shown = activation(subject, latent, example)
        values = shown["values"]
        yield {
            "id": _id(*key.values(), "activation", place),
            **key,
            "creatorId": names.creator_id,
            "tokens": shown["tokens"],
            "values": values,
            "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)),
            "minValue": min(values),
            "binMin": shown["bin_min"],
            "binMax": shown["bin_max"],
            "binContains": shown["bin_contains"],
            "qualifyingTokenIndex": shown["qualifying_token_index"],
            "dataIndex": str(example.document),
            "dataSource": subject.evidence.record.dataset,
            "lossValues": [],
        }


def explanation(subject: Subject, part: Part, latent: Latent, names: Names) -> dict[str, Any]:
    """Return a labelled latent's line of ``explanations``; the score stands in the notes."""
    assert latent.label is not None
    key = _key(subject, part, latent, names)
    return {
        "id": _id(*key.values(), "explanation", latent.label),
        **key,
        "description": latent.label[:MOST_TEXT],
        "authorId": names.creator_id,
        "typeName": None,
        "explanationModelName": None,
        "notes": None if latent.score is None else f"score {latent.score:.3f}",
    }


def _key(subject: Subject, part: Part, latent: Latent, names: Names) -> dict[str, str]:
    return {"modelId": names.model_id(subject), "layer": names.source_id(subject, part), "index": str(latent.index)}


def _id(*parts: Any) -> str:
    """Return an id of the form of Neuronpedia's, the same for the same row."""
    return "c" + hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def _config(subject: Subject) -> dict[str, Any]:
    cfg = subject.sae.cfg
    return {} if cfg is None else {
        "architecture": cfg.architecture, "activation": cfg.activation, "d_in": cfg.d_in, "d_sae": cfg.d_sae, "d_out": cfg.d_out,
        "hook_name": cfg.inputs[0], "hook_name_out": cfg.outputs[0], "k": cfg.k,
    }  # fmt: skip


def _split(place: str) -> tuple[str | None, str, str | None]:
    """Return repository and folder of ``owner/repository/folder``."""
    parts = place.split("/", 2)
    return "/".join(parts[:2]) or None, "/", parts[2] if len(parts) > 2 else None


def _lines(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(encoded(line) + "\n" for line in lines).encode()


def encoded(line: dict[str, Any]) -> str:
    """Return a line as JSON that survives the importer.

    It has no NUL, and no backslash before a ``u``.
    """
    text = json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("\\\\", "\\u005c").replace("\\u0000", "\ufffd")
