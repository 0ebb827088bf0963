"""Exports read by the tools that they are for: called by run.py with the Python of requirements-readers.txt.

Evidence and SAEs are invented, and written with the functions behind ``scopemill export``. readers.py reads them in its own environment,
postgres.py imports Neuronpedia's lines into a PostgreSQL, where one is installed.
"""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from support.exported import labelled, square_transcoders, subject
from support.finished_saes import KINDS, D, F

from scopemill.evaluator.exports.circuit_tracer import write_circuit_tracer
from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.neuronpedia import write_neuronpedia
from scopemill.evaluator.exports.saebench import release_name, result_files
from scopemill.evaluator.exports.saedashboard import write_saedashboard
from scopemill.evaluator.exports.subject import Subject
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.evaluator.probes.scores import RESIDUAL, SAE, ProbeScore
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae

TOLERANCE = 1e-5
ROWS = 60
TRACED = {
    "transcoders": square_transcoders(2, "transcoder_jumprelu"),
    "relu_transcoders": square_transcoders(3, "transcoder_relu"),
    "skip_transcoders": square_transcoders(2),
    "clt": square_transcoders(3, cross="clt"),
    "per_layer_transcoder": square_transcoders(3, cross="per_layer_transcoder"),
}


def main(folder: Path, python: str) -> int:
    """Write, have read, compare; return 1 if something differs."""
    out = folder / "out"
    subjects = [subject(folder, kind) for kind in KINDS]
    names = Names(layers=6, weights="me/saes/a")
    for of in subjects:
        write_saedashboard(Bucket(str(out / "saedashboard")), of, names, lambda done: None)
        write_neuronpedia(Bucket(str(out / "neuronpedia")), of, names, lambda done: None, vectors=True)
        for path, data in result_files(
            release_name(of.folder), of.finished, evaluation(of), of.evidence, "test", datetime.now(UTC)
        ).items():
            Bucket(str(out / "saebench")).write(path, data)
    for name, saes in TRACED.items():
        write_traced(out / "circuit-tracer" / name, folder / "traced" / name, saes)
    subprocess.run([python, Path(__file__).with_name("readers.py"), out], check=True, stdout=subprocess.DEVNULL)
    imported = subprocess.run(
        [python, Path(__file__).with_name("postgres.py"), out / "neuronpedia"], check=True, capture_output=True, text=True
    )
    return told(out, len(subjects)) | told_import(json.loads(imported.stdout))


def write_traced(out: Path, folder: Path, saes: list[FinishedSae]) -> None:
    of = [labelled(folder / str(number), sae, seed=number) for number, sae in enumerate(saes)]
    write_circuit_tracer(Bucket(str(out)), saes, of, Names(weights="me/transcoders"), lambda done: None)
    layers = len(saes) if len(saes) > 1 else len(saes[0].inputs)
    x = torch.randn(layers, ROWS, D, generator=torch.Generator().manual_seed(1))
    safetensors.torch.save_file({"x": x}, out / "x.safetensors")


def evaluation(of: Subject) -> Evaluation:
    result = Result("blocks.3.hook_resid_post", 3, "resid_post", "jumprelu", F, 0.5, 10, 1000, 4.5, 0.2, 0.1, 3.0, 3.2, 10.0, 6.0, 0.2,
                    0.97, 0.93, of.folder)  # fmt: skip
    probes = tuple(ProbeScore("task", owner, k, 0.9, 0.8, 100) for owner, k in ((SAE, 1), (SAE, 5), (RESIDUAL, 0)))
    return Evaluation(result, Histogram([-1.0, 0.0], [F], 0), 4096, {}, probes=probes)


def expected(saes: list[FinishedSae], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and reconstructions [layers, rows, ...] by our own SAEs."""
    if len(saes) > 1:
        pairs = [finished.sae.reconstruct(rows) for finished, rows in zip(saes, x, strict=True)]
        return torch.stack([latents for latents, _ in pairs]), torch.stack([rebuilt for _, rebuilt in pairs])
    latents, rebuilt = saes[0].sae.reconstruct(x.transpose(0, 1).flatten(1))
    return tuple(side.unflatten(1, (len(x), -1)).transpose(0, 1) for side in (latents, rebuilt))


def told(out: Path, saes: int) -> int:
    read = json.loads((out / "read.json").read_text())
    latents = sum(F if len(of) == 1 else F * len(of) for of in TRACED.values())
    wanted = {"saedashboard": saes * F, "saebench": 2 * saes, "circuit-tracer pages": latents}
    table = Table("export", "read", "", title="read back by sae-dashboard, sae-bench and circuit-tracer")
    wrong = [name for name, count in wanted.items() if read[name] != count]
    for name, count in read.items():
        table.add_row(name, f"{count:,} of {wanted[name]:,}", "differs" if name in wrong else "")
    for name, of in TRACED.items():
        place = out / "circuit-tracer" / name
        answer, x = (safetensors.torch.load_file(place / f"{file}.safetensors") for file in ("answer", "x"))
        ours = dict(zip(("latents", "rebuilt"), expected(of, x["x"]), strict=True))
        errors = [((answer[side] - ours[side]).abs().max() / ours[side].abs().max()).item() for side in ours]
        graph = json.loads((place / "graph.json").read_text())
        if not max(errors) <= TOLERANCE or not graph["features"] or not graph["edges"]:
            wrong.append(name)
        told = f"latents {errors[0]:.1e}, rebuilt {errors[1]:.1e}; a graph of {graph['features']} latents, {graph['edges']} edges"
        table.add_row(f"circuit-tracer {name}", told, "differs" if name in wrong else "")
    Console().print(table)
    return 1 if wrong else 0


def told_import(imported: dict) -> int:
    if "skipped" in imported:
        print(f"Neuronpedia's import is not tested: {imported['skipped']}")
        return 0
    table = Table("table", "lines", "rows", "", title=f"Neuronpedia's lines in PostgreSQL {imported['version']}")
    wrong = [name for name, (lines, rows) in imported["tables"].items() if lines != rows]
    for name, (lines, rows) in imported["tables"].items():
        table.add_row(name, f"{lines:,}", f"{rows:,}", "differs" if name in wrong else "")
    Console().print(table)
    for problem in imported["problems"]:
        print(problem)
    return 1 if wrong or imported["problems"] else 0
