"""Finished SAEs exchanged with the packages whose formats they are in: ``python tests/interop/run.py PYTHON READERS``.

PYTHON is that of an environment with what requirements.txt names, READERS of one with requirements-readers.txt: it reads what
``scopemill export`` writes (exports.py). Folders of every kind are written here and loaded there, and the
other way round; latents and reconstructions of the same activations have to agree to 1e-5 of the largest. Then one process
of that environment imports our core and sae_lens together (together.py), and its ``transformers serve`` labels latents (serving.py).
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import exports  # noqa: E402
import serving  # noqa: E402
from support.finished_saes import KINDS, finished_sae, rows  # noqa: E402

from scopemill.trainer.formats import FinishedSae, read_finished, write_finished  # noqa: E402
from scopemill.trainer.formats.gemma_scope_paths import GENERATION_1, GENERATION_2  # noqa: E402

TOLERANCE = 1e-5
Z, OUT = "blocks.3.attn.hook_z", "blocks.3.hook_mlp_out"
# Ours alone: SAELens has no word for them.
NOT_THEIRS = ("skip", "transcoder_topk", "skip_transcoder_topk", "crosscoder", "clt", "per_layer_transcoder")


def main(python: str, readers: str) -> int:
    with tempfile.TemporaryDirectory() as exchange:
        folder = Path(exchange)
        ours = write_ours(folder / "ours")
        subprocess.run([python, Path(__file__).with_name("theirs.py"), folder], check=True, stdout=subprocess.DEVNULL)
        compared = {f"ours {name}": compare(folder / "ours" / name, finished) for name, finished in ours.items()}
        for answer in sorted((folder / "theirs").rglob("answer.safetensors")):
            name = answer.parent.relative_to(folder / "theirs").parts[0]
            compared[f"theirs {name}"] = compare(answer.parent, read_finished(str(answer.parent)))
        subprocess.run([python, Path(__file__).with_name("together.py"), folder / "together.json"], check=True, stdout=subprocess.DEVNULL)
        together = json.loads((folder / "together.json").read_text())
        subprocess.run([python, Path(__file__).with_name("worlds.py"), folder / "worlds.json"], check=True, stdout=subprocess.DEVNULL)
        worlds = json.loads((folder / "worlds.json").read_text())
    compared |= {f"together {name}": tuple(errors) for name, errors in together["differences"].items()}
    print("in one process:", ", ".join(f"{name} {version}" for name, version in together["versions"].items()))
    with tempfile.TemporaryDirectory() as folder:
        exported = exports.main(Path(folder), readers)
    with tempfile.TemporaryDirectory() as folder:
        labelled = serving.main(Path(folder), python)
    return told(compared) | told_worlds(worlds) | exported | labelled


def write_ours(folder: Path) -> dict[str, FinishedSae]:
    """In SAELens' folders what it has a word for, and in Gemma Scope's files what they hold."""
    made = {name: finished_sae(name) for name in KINDS if name not in NOT_THEIRS}
    made["attention"] = replace(made["jumprelu"], inputs=(Z,), outputs=(Z,))
    places = {name: ("saelens", name) for name in made}
    transcoder = replace(finished_sae("transcoder_jumprelu"), inputs=("blocks.3.ln2.hook_normalized",))
    skips = finished_sae("skip_transcoder_jumprelu")
    scopes = {
        "": finished_sae("jumprelu"),
        "_mlp": replace(finished_sae("jumprelu"), inputs=(OUT,), outputs=(OUT,)),
        "_transcoder": transcoder,
    }
    for name, finished in scopes.items():
        made[f"gemma_scope{name}"] = finished
        places[f"gemma_scope{name}"] = ("gemma-scope", f"gemma_scope{name}/{GENERATION_1.path_of(finished, '71')}")
    for name, finished in {"": made["jumprelu"], "_transcoder": finished_sae("transcoder_jumprelu"), "_skip_transcoder": skips}.items():
        finished = replace(finished, model="gemma-3-1b-pt")
        made[f"gemma_scope_2{name}"] = finished
        places[f"gemma_scope_2{name}"] = ("gemma-scope-2", f"gemma_scope_2{name}/{GENERATION_2.path_of(finished, 'small')}")
    for name, (word, place) in places.items():
        write_finished(str(folder / place), word, made[name])
        safetensors.torch.save_file({"x": rows(made[name].sae)}, folder / name / "x.safetensors")
    return made


def compare(place: Path, finished: FinishedSae) -> tuple[float, float]:
    """The largest difference of latents and of reconstructions, over the largest value."""
    answer = safetensors.torch.load_file(place / "answer.safetensors")
    latents, rebuilt = finished.sae.reconstruct(answer["x"])
    return relative(latents, answer["latents"]), relative(rebuilt, answer["rebuilt"])


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return ((one - other).abs().max() / other.abs().max()).item()


def told(compared: dict[str, tuple[float, float]]) -> int:
    table = Table("exchanged", "latents", "rebuilt", "", title=f"largest difference over the largest value (at most {TOLERANCE:g})")
    wrong = [name for name, errors in compared.items() if not max(errors) <= TOLERANCE]
    for name, (latents, rebuilt) in compared.items():
        table.add_row(name, f"{latents:.1e}", f"{rebuilt:.1e}", "differs" if name in wrong else "")
    Console().print(table)
    return 1 if wrong else 0


def told_worlds(statistics: dict[str, tuple[float, float, float]]) -> int:
    """The planted world of sae_lens and ours, by what of them can be compared."""
    table = Table("statistic of the planted world", "ours", "theirs", "within", "", title="evaluator/synthetic beside sae_lens.synthetic")
    wrong = [name for name, (ours, theirs, tolerance) in statistics.items() if not abs(ours - theirs) <= tolerance]
    for name, (ours, theirs, tolerance) in statistics.items():
        table.add_row(name, f"{ours:.4f}", f"{theirs:.4f}", f"{tolerance:g}", "differs" if name in wrong else "")
    Console().print(table)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
