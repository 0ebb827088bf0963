"""SAEDashboard's pass over a language model for some features: ``python dashboard.py FOLDER FEATURES``.

FOLDER holds ``world.json`` (sizes and seed) and an SAE in SAELens' format, ``sae``. The model has random weights. ``rows.safetensors``
gets the tokens and the activations that the SAE reads, and ``seconds.json`` what a forward over all tokens takes, and the dashboards
for each number of features at once, with the L0 that was met.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig


def main(folder: Path, features: int) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    world = json.loads((folder / "world.json").read_text())
    model = HookedSAETransformer(HookedTransformerConfig(**world["model"], act_fn="gelu", seed=0, device="cpu"))
    tokens = torch.randint(1, world["model"]["d_vocab"], tuple(world["tokens"]), generator=torch.Generator().manual_seed(0))
    rows, seconds = [], {}
    began = time.process_time()
    for batch in tokens.split(32):
        _, cache = model.run_with_cache(batch, names_filter=world["hook"], stop_at_layer=world["layer"] + 1)
        rows.append(cache[world["hook"]].flatten(0, 1))
    seconds["forward"] = time.process_time() - began
    save_file({"tokens": tokens, "rows": torch.cat(rows).contiguous()}, folder / "rows.safetensors")
    print("rows", flush=True)
    sys.stdin.readline()  # the SAE is made from these rows
    sae = SAE.load_from_disk(folder / "sae", device="cpu")
    seconds["l0"] = (sae.encode(rows[0]) > 0).sum(-1).float().mean().item()
    for at_once in world["at_once"]:
        with tempfile.TemporaryDirectory() as cache:
            config = SaeVisConfig(hook_point=world["hook"], features=list(range(features)), minibatch_size_features=at_once,
                                  minibatch_size_tokens=64, device="cpu", cache_dir=Path(cache))  # fmt: skip
            began = time.process_time()
            SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
            seconds[f"dashboards, {at_once} at once"] = time.process_time() - began
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
