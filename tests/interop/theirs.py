"""The other packages' half of the exchange, run in their own environment: ``python theirs.py FOLDER``.

``ours/<name>/`` is loaded and run on its ``x``; ``theirs/<name>/`` is made by the packages and run likewise. What comes out
lies in ``answer.safetensors`` beside it: x, latents, and rebuilt, which is the decoder's work on the latents.
"""

import json
import sys
from pathlib import Path

import dictionary_learning.dictionary as dictionaries
import sae_lens
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

D, F, K, HEADS = 12, 30, 5, 3
HOOK = "blocks.3.hook_resid_post"


def main(folder: Path) -> None:
    torch.manual_seed(0)
    for place in sorted((folder / "ours").iterdir()):
        x = load_file(place / "x.safetensors")["x"]
        answer(place, load_ours(place), x)
    for name, sae in saelens_saes().items():
        place = folder / "theirs" / f"saelens_{name}"
        save = getattr(sae, "save_inference_model", sae.save_model)
        save(place)
        answer(place, sae_lens.SAE.load_from_disk(place), 3 * torch.randn(200, D))
    for name, sae in dictionary_learning_saes().items():
        place = folder / "theirs" / f"dictionary_learning_{name}"
        place.mkdir(parents=True)
        torch.save(sae.state_dict(), place / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "k": K, "layer": 3, "submodule_name": "resid_post_layer_3"}
        (place / "config.json").write_text(json.dumps({"trainer": trainer}))
        answer(place, sae, 3 * torch.randn(200, D))
    for name, sae in sparsify_saes().items():
        place = folder / "theirs" / f"sparsify_{name}" / "layers.3.mlp"
        sae.save_to_disk(place)
        x = 3 * torch.randn(200, D)
        top = sae.encode(x)
        latents = torch.zeros(len(x), F).scatter(1, top.top_indices, top.top_acts)
        save_answer(place, x, latents, sae(x).sae_out)


def load_ours(place: Path) -> torch.nn.Module:
    """A folder that SAELens loads by itself, or Gemma Scope's files by SAELens' own loaders of them."""
    if (place / "cfg.json").exists():
        return sae_lens.SAE.load_from_disk(place)
    file = next(place.rglob("params.*"))
    name, *parts = file.parent.relative_to(place).parts
    # their loaders know the widths that were published only; what overrides them says how wide it is
    repository, path = f"google/{name}", "/".join(parts).replace("width_30", "width_16k")
    loaders.hf_hub_download = instead_of_the_hub(file)
    loaders.get_safetensors_tensor_shapes = lambda *_: {name: list(t.shape) for name, t in load_file(file).items()}
    if file.suffix == ".safetensors":
        load, overrides = loaders.gemma_3_sae_huggingface_loader, {}
    elif "transcoders" in repository:
        load, overrides = loaders.gemma_2_transcoder_huggingface_loader, {"d_in": D, "d_out": D + 2, "d_sae": F}
    else:
        load, overrides = loaders.gemma_2_sae_huggingface_loader, {"d_in": D, "d_sae": F}
    config, weights, _ = load(repository, path, "cpu", cfg_overrides=overrides)
    sae = sae_lens.SAE.from_dict(loaders.handle_config_defaulting(config))
    sae.load_state_dict(weights)
    return sae


def instead_of_the_hub(file: Path):
    def download(repo_id: str, filename: str, **_) -> str:
        if filename.endswith("config.json"):
            raise loaders.EntryNotFoundError(filename)
        return str(file)

    return download


@torch.no_grad()
def answer(place: Path, sae: torch.nn.Module, x: torch.Tensor) -> None:
    heads = getattr(getattr(sae, "cfg", None), "reshape_activations", "none") == "hook_z"
    given = x.unflatten(-1, (HEADS, -1)) if heads else x
    latents, rebuilt = sae.encode(given), sae(given)
    save_answer(place, x, latents, rebuilt.flatten(start_dim=1))


def save_answer(place: Path, x: torch.Tensor, latents: torch.Tensor, rebuilt: torch.Tensor) -> None:
    tensors = {"x": x, "latents": latents, "rebuilt": rebuilt}
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, place / "answer.safetensors")


@torch.no_grad()
def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """With its own random numbers in every parameter."""
    for name, p in module.named_parameters():
        p.uniform_(0.1, 0.8) if "threshold" in name else p.normal_(0, 0.4)
    return module


def saelens_saes() -> dict[str, torch.nn.Module]:
    base = {"d_in": D, "d_sae": F, "metadata": sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, model_name="gpt2")}
    out = {"d_out": D + 2, "apply_b_dec_to_input": False} | base
    out["metadata"] = sae_lens.saes.sae.SAEMetadata(hook_name=HOOK, hook_name_out="blocks.3.hook_mlp_out", model_name="gpt2")
    made = {
        "standard": sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**base)),
        "standard_layer_norm": sae_lens.StandardSAE(sae_lens.StandardSAEConfig(normalize_activations="layer_norm", **base)),
        "gated": sae_lens.GatedSAE(sae_lens.GatedSAEConfig(**base)),
        "jumprelu": sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**base)),
        "topk": sae_lens.TopKSAE(sae_lens.TopKSAEConfig(k=K, **base)),
        "topk_by_norm": sae_lens.TopKSAE(sae_lens.TopKSAEConfig(k=K, rescale_acts_by_decoder_norm=True, **base)),
        "trained_topk": sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=K, **base)),
        "trained_batchtopk": sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=K, **base)),
        "trained_jumprelu": sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**base)),
        "transcoder": sae_lens.Transcoder(sae_lens.TranscoderConfig(**out)),
        "jumprelu_transcoder": sae_lens.JumpReLUTranscoder(sae_lens.JumpReLUTranscoderConfig(**out)),
        "skip_transcoder": sae_lens.SkipTranscoder(sae_lens.SkipTranscoderConfig(**out)),
        "jumprelu_skip_transcoder": sae_lens.JumpReLUSkipTranscoder(sae_lens.JumpReLUSkipTranscoderConfig(**out)),
    }
    for sae in made.values():
        shaken(sae)
    made["trained_batchtopk"].topk_threshold.fill_(0.7)
    return made


def dictionary_learning_saes() -> dict[str, torch.nn.Module]:
    made = {
        name: getattr(dictionaries, name)(D, F) for name in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")
    }
    made |= {cls.__name__: cls(D, F, K) for cls in (AutoEncoderTopK, BatchTopKSAE)}
    made["MatryoshkaBatchTopKSAE"] = MatryoshkaBatchTopKSAE(D, F, K, [10, 20])
    for sae in made.values():
        shaken(sae)
    for name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        made[name].threshold.fill_(0.7)
    return made


def sparsify_saes() -> dict[str, torch.nn.Module]:
    configs = {"sae": {}, "transcoder": {"transcode": True}, "skip_transcoder": {"transcode": True, "skip_connection": True}}
    return {name: shaken(SparseCoder(D, SparseCoderConfig(num_latents=F, k=K, **options))) for name, options in configs.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
