"""Evidence beside SAEDashboard, for each latent and token: ``python tests/bench/dashboards.py PYTHON``.

PYTHON is that of an environment with what tests/interop/requirements-readers.txt names. Both look at the same rows of a language
model of random weights through the same SAE, one thread each; seconds are of the processor. SAEDashboard makes some features, at its
better number of features at once; ours makes all latents from shards, and the forward that made the rows counts as ours as well.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from evidence import sae_with, write_rows
from history import report
from measure import Figure
from safetensors.torch import load_file

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.compiling import compile_loops
from scopemill.evaluator.evidence.logits import Readout
from scopemill.evaluator.evidence.making import count_shard, finish
from scopemill.evaluator.evidence.parts import commit_part, committed_parts
from scopemill.evaluator.evidence.rows import ShardSource
from scopemill.proto.layout import DatasetLayout, EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary
from scopemill.trainer.formats import write_finished

D, LAYERS, VOCABULARY, CONTEXT, SEQUENCES, WIDTH, L0, FEATURES = 256, 4, 2048, 128, 512, 4096, 32, 256
HOOK, LAYER = "blocks.2.hook_resid_post", 2
THEIRS = Path(__file__).parent / "peers" / "dashboard.py"


def figures(python: str, folder: Path) -> Figure:
    model = {"n_layers": LAYERS, "d_model": D, "n_ctx": CONTEXT, "d_head": 32, "n_heads": 8, "d_vocab": VOCABULARY}
    world = {"model": model, "hook": HOOK, "layer": LAYER, "tokens": [SEQUENCES, CONTEXT], "at_once": [64, FEATURES]}
    (folder / "world.json").write_text(json.dumps(world))
    with subprocess.Popen([python, THEIRS, folder, str(FEATURES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as theirs:
        assert theirs.stdin and theirs.stdout
        if theirs.stdout.readline() != "rows\n":
            sys.exit("SAEDashboard's process ended; what it said last stands above")
        found = load_file(folder / "rows.safetensors")
        sae = sae_with(found["rows"], WIDTH, L0, HOOK)
        write_finished(str(folder / "sae"), "saelens", sae)
        ours = _ours(folder, found["tokens"].numpy(), found["rows"], sae)
        theirs.communicate("\n")
    if theirs.returncode:
        sys.exit(f"SAEDashboard's process ended with exit status {theirs.returncode}")
    seconds = json.loads((folder / "seconds.json").read_text())
    best = min(value for name, value in seconds.items() if name.startswith("dashboards"))
    raw = {f"{name}, s": value for name, value in seconds.items() if name != "l0"} | {"ours, s": ours, "L0, latents": seconds["l0"]}
    ratio = best / FEATURES / ((ours + seconds["forward"]) / WIDTH)
    return Figure(f"SAEDashboard's seconds a latent and token over ours ({SEQUENCES * CONTEXT}, {D}, {WIDTH})", ratio, ">= 50", raw)


def _ours(folder: Path, tokens: np.ndarray, rows: torch.Tensor, sae) -> float:
    """Return the seconds that all evidence of the SAE takes from a shard, everything compiled."""
    torch.set_num_threads(1)
    bucket, config, layout = Bucket(str(folder / "bucket")), EvidenceConfig.model_validate({}), EvidenceLayout("saes/one", "0" * 16)
    write_rows(bucket, rows, tokens, HOOK)
    source = ShardSource(bucket, "bench", f"{DatasetLayout('bench').root}/packed", [])
    words = Vocabulary([f" {id}".encode() for id in range(VOCABULARY)], frozenset({0}))
    out = Readout(torch.randn(VOCABULARY, D, generator=torch.Generator().manual_seed(2)), torch.ones(D), True, {}, frozenset({0}))
    compile_loops()
    began = time.process_time()
    (counted,), seen, sequences = count_shard(source, 0, [sae], config, len(rows))
    commit_part(bucket, layout, (0,), counted.ledger, counted.sample, seen, sequences)
    about = {"sae": "saes/one", "model": "bench", "model_place": "bench", "inputs": (HOOK,), "outputs": (HOOK,)}
    rest = {"architecture": "jumprelu", "width": WIDTH, "source": "shards", "dataset": "bench", "dtype": "bfloat16"}
    facts = about | rest | {"context_length": CONTEXT, "settings": {}}
    finish(bucket, layout, committed_parts(bucket, layout, (0,)), sae, source, config, out, words, facts)
    return time.process_time() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report([figures(sys.argv[1], Path(folder))])


if __name__ == "__main__":
    main()
