"""Scopemill's core and sae_lens in one process: ``python together.py ANSWER``, in the environment of requirements.txt.

SAEs of ours become SAELens' by ``to_saelens``, and folders of theirs are loaded by ``load_sae``. ANSWER is a JSON file of the
largest difference of latents and of the decoder's output, over the largest value, for each SAE; all is float32.
"""

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import sae_lens
import torch

import scopemill

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from support.finished_saes import KINDS, finished_sae, rows  # noqa: E402
from theirs import D, saelens_saes  # noqa: E402

from scopemill.trainer.formats.saelens import WORDS, word_of  # noqa: E402


@torch.no_grad()
def main(answer: Path) -> None:
    torch.manual_seed(0)
    told = {}
    for kind in KINDS:
        sae = finished_sae(kind).described().sae
        if word_of(sae) in WORDS:
            theirs = sae.to_saelens()
            assert isinstance(theirs, sae_lens.SAE) and theirs.cfg.metadata.hook_name == sae.cfg.inputs[0]
            assert theirs.W_dec.equal(sae.W_dec) and theirs.W_enc.equal(sae.W_enc.T)  # as docs/formats.md says
            told[f"to_saelens {kind}"] = compare(sae, theirs, rows(sae))
    for name, theirs in saelens_saes().items():
        with tempfile.TemporaryDirectory() as folder:
            getattr(theirs, "save_inference_model", theirs.save_model)(folder)
            told[f"load_sae {name}"] = compare(scopemill.load_sae(folder), sae_lens.SAE.load_from_disk(folder), 3 * torch.randn(200, D))
    x = torch.randn(512, D)
    trained = scopemill.train_sae(x, width=30, sparsity=4, steps=20)
    told["train_sae, to_saelens"] = compare(trained, trained.to_saelens(), x)
    versions = {name: metadata.version(name) for name in ("scopemill", "sae-lens", "transformer-lens", "torch")}
    answer.write_text(json.dumps({"versions": versions, "differences": told}))


def compare(ours: torch.nn.Module, theirs: torch.nn.Module, x: torch.Tensor) -> tuple[float, float]:
    latents, others = ours.encode(x), theirs.encode(x)
    return relative(latents, others), relative(ours(x), theirs(x))


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item() if one.shape == other.shape else float("inf")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
