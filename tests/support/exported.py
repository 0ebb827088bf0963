"""A finished SAE of a kind with invented evidence and a label, in a folder: for tests of what exports both."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from scopemill.evaluator.exports.subject import Subject
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae, write_finished
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.registry import ACTIVATIONS
from scopemill.trainer.sae.skip import Skip
from support import written_evidence
from support.finished_saes import KINDS, D, F, K, finished_sae

NASTY = 'a \\u0000 "quoted" \x00 label\n'  # what Neuronpedia's importer would break


def labelled(folder: Path, finished: FinishedSae, seed: int = 0) -> Subject:
    """The SAE's folder with evidence, and a label of latent 1."""
    write_finished(str(folder), "saelens", finished)
    evidence = written_evidence.write(Bucket(str(folder)), "", width=F, seed=seed)
    table = pa.table({"latent": pa.array([1], pa.int32()), "label": [NASTY], "score": pa.array([0.75], pa.float32())})
    out = pa.BufferOutputStream()
    parquet.write_table(table, out)
    evidence.bucket.write(f"{evidence.layout.labels}/mine.parquet", out.getvalue().to_pybytes())
    return Subject.open(str(folder))


def subject(folder: Path, kind: str = "jumprelu") -> Subject:
    """An SAE of a kind, labelled."""
    return labelled(folder / "saes" / "tiny" / f"0.5-{kind}", finished_sae(kind, model="tiny"))


def square_transcoders(layers: int = 2, kind: str = "skip_transcoder_jumprelu", cross: str = "") -> list[FinishedSae]:
    """Transcoders of every layer, with inputs and outputs of one width, as circuit-tracer wants them."""
    names = [tuple(f"blocks.{layer}.{site}" for layer in range(layers)) for site in ("mlp.hook_in", "hook_mlp_out")]
    if cross:
        return [replace(square(cross, layers), inputs=names[0], outputs=names[1]).described()]
    made = [square(kind, 1, seed=layer) for layer in range(layers)]
    return [replace(sae, inputs=(read,), outputs=(written,)).described() for sae, read, written in zip(made, *names, strict=True)]


def square(kind: str, layers: int, seed: int = 0) -> FinishedSae:
    """An SAE of a kind whose hooks are all D wide."""
    body, latents, options = KINDS[kind]
    shape = Shape((D,) * layers, (D,) * layers, False)
    skip = {"skip": Skip(D, D)} if options.get("skip") else {}
    latents = "jumprelu" if layers > 1 else latents
    activation = TopK(F, K) if latents == "topk" else ACTIVATIONS[latents](F)
    sae = body(shape, F, activation, **(options | skip))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.uniform_(0.1, 0.8, generator=generator) if "threshold" in name else p.normal_(0, 0.4, generator=generator)
    return FinishedSae(sae.requires_grad_(False), ("blocks.0.mlp.hook_in",), ("blocks.0.hook_mlp_out",), "tiny")
