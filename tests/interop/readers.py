"""What the real readers make of exported files: ``python readers.py FOLDER``, in the environment of requirements-readers.txt.

FOLDER holds the exports (see exports.py). ``read.json`` says how much was read and what differs; for each folder of circuit-tracer's
``answer.safetensors`` has latents and reconstructions of its ``x``, and ``graph.json`` what an attribution through them found.
"""

import gzip
import json
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from circuit_tracer import attribute
from circuit_tracer.frontend.feature_models import Model as FeaturePage
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from circuit_tracer.utils.hf_utils import load_transcoders
from pydantic import TypeAdapter
from sae_bench.evals.core.eval_output import CoreEvalOutput
from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput
from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig

CORE, PROBING = TypeAdapter(CoreEvalOutput), TypeAdapter(SparseProbingEvalOutput)


def main(folder: Path) -> None:
    read = {
        "saedashboard": dashboards(folder / "saedashboard"),
        "saebench": results(folder / "saebench"),
        "circuit-tracer pages": sum(pages(place) for place in sorted((folder / "circuit-tracer").iterdir())),
    }
    for place in sorted((folder / "circuit-tracer").iterdir()):
        loaded = transcoders(place)
        answer(place, loaded)
        graph(place, loaded)
    (folder / "read.json").write_text(json.dumps(read))


def dashboards(folder: Path) -> int:
    """The number of features in all batches, each of which has to come back as it was."""
    features = 0
    for file in sorted(folder.rglob("batch-*.json")):
        written = json.loads(file.read_text())
        batch = NeuronpediaDashboardBatch(**written)
        assert batch.to_dict() == written, f"{file} comes back as another batch"
        features += len(batch.features)
    return features


def results(folder: Path) -> int:
    files = sorted(folder.rglob("*_custom_sae_eval_results.json"))
    for file in files:
        kind = {"core": CORE, "sparse_probing": PROBING}[file.parent.name]
        kind.validate_python(json.loads(file.read_text()))
    return len(files)


def pages(folder: Path) -> int:
    """The number of latents, each read by its range and checked by the page's own model."""
    index = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))
    seen = set()
    for layer, listed in enumerate(index):
        data = (folder / "features" / listed["filename"]).read_bytes()
        for latent, (start, stop) in enumerate(zip(listed["offsets"], listed["offsets"][1:], strict=False)):
            (length,) = struct.unpack("<I", data[start : start + 4])
            page = FeaturePage(**json.loads(zlib.decompress(data[start + 4 : start + 4 + length])))
            assert start + 4 + length == stop and page.index == (layer + latent) * (layer + latent + 1) // 2 + latent
            seen.add(page.index)
    return len(seen)


def transcoders(folder: Path):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if config["model_kind"] == "cross_layer_transcoder":
        hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook", "scan")}
        return load_clt(str(folder), dtype=torch.float32, **hooks)
    files = sorted(folder.glob("layer_*.safetensors"), key=lambda file: int(file.stem.removeprefix("layer_")))
    return load_transcoders(config | {"transcoders": [str(file) for file in files]}, dtype=torch.float32)


@torch.no_grad()
def answer(folder: Path, loaded) -> None:
    """Latents and reconstructions [layers, rows, ...] of the inputs."""
    x = load_file(folder / "x.safetensors")["x"]
    latents = loaded.encode(x)
    rebuilt = loaded.decode(latents, x)
    save_file({"latents": latents.contiguous(), "rebuilt": rebuilt.contiguous()}, folder / "answer.safetensors")


def graph(folder: Path, loaded) -> None:
    """Trace a prompt through a language model of random weights, with these transcoders in place of its MLPs."""
    layers, d = len(list(folder.glob("features/layer_*.bin"))), load_file(folder / "x.safetensors")["x"].shape[-1]
    cfg = HookedTransformerConfig(n_layers=layers, d_model=d, n_ctx=16, d_head=4, n_heads=2, d_vocab=50, act_fn="relu", seed=0,
                                  tokenizer_name=None, device="cpu")  # fmt: skip
    model = TransformerLensReplacementModel.from_config(cfg, loaded)
    # Ids are all that it looks at here.
    model.tokenizer = SimpleNamespace(all_special_ids=[1], decode=str, padding_side="right", vocab_size=50)
    found = attribute(torch.tensor([1, 2, 3, 4, 5]), model, max_n_logits=2, verbose=False)
    counts = {"features": len(found.selected_features), "edges": int((found.adjacency_matrix != 0).sum())}
    (folder / "graph.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
