"""What an SAE shows to its users: its description, its dtypes, and attention heads."""

import pytest
import torch
from support.sae_reference import CASES

from scopemill.proto.errors import InputError
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.cfg import SaeCfg
from scopemill.trainer.sae.registry import ACTIVATIONS, ARCHITECTURES


def small(d: int = 12, f: int = 20, dtype: torch.dtype = torch.float32) -> Sae:
    sae = Sae(Shape.square(d), f, JumpReLU(f))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in sae.parameters():
            p.normal_(generator=generator)
    return sae.to(dtype).requires_grad_(False)


def test_a_new_sae_knows_its_widths_and_no_hook():
    sae = small()
    assert (sae.d_in, sae.d_sae, sae.d_out, sae.hook, sae.model, sae.cfg) == (12, 20, 12, None, None, None)
    assert (sae.dtype, sae.device) == (torch.float32, torch.device("cpu"))
    assert repr(sae) == "Sae(jumprelu, 12 -> 20, jumprelu, float32, cpu)"


def test_a_description_gives_it_hook_and_model():
    sae = small()
    described = sae.with_cfg(sae.describe(["blocks.3.hook_resid_post"], model="gpt2", metadata={"context_size": 128}))
    assert described is sae
    assert (sae.hook, sae.model, sae.cfg.metadata["context_size"]) == ("blocks.3.hook_resid_post", "gpt2", 128)
    assert repr(sae) == "Sae(jumprelu at blocks.3.hook_resid_post, 12 -> 20, jumprelu, float32, cpu)"


def test_a_description_of_other_widths_is_refused():
    with pytest.raises(ValueError, match="cfg.d_sae is 21, but the SAE's d_sae is 20"):
        small().with_cfg(SaeCfg("jumprelu", "jumprelu", 12, 21, 12))


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_is_described_in_the_words_of_the_sweep_file(name: str):
    case = CASES[name]
    sae = case.sae()
    cfg = sae.describe()
    assert cfg.architecture in ARCHITECTURES and cfg.activation in ACTIVATIONS
    assert (cfg.architecture, cfg.activation) == (case.config.architecture, case.config.latents)
    assert (cfg.d_in, cfg.d_out, cfg.k) == (case.shape.d_in, case.shape.d_out, case.k)
    assert cfg.normalization == ("layer_norm" if case.config.normalization == "layer_norm" else "none")
    assert ("-> 9," in repr(sae)) == (case.shape.d_out == 9)


def test_the_hooks_label_joins_both_sides():
    cfg = SaeCfg("transcoder", "relu", 4, 8, 4, ("blocks.2.mlp.hook_in",), ("blocks.2.hook_mlp_out",))
    assert cfg.hook == "blocks.2.mlp.hook_in--blocks.2.hook_mlp_out"
    assert SaeCfg("standard", "relu", 4, 8, 4, ("model.layers.3",)).hook == "model.layers.3"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_callers_dtype_comes_back_and_the_saes_own_computes(dtype: torch.dtype):
    sae, x = small(), torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(sae.encode(x), sae.encode(x.float()).to(dtype))
    assert torch.equal(sae(x), sae(x.float()).to(dtype))
    latents = sae.encode(x)
    assert torch.equal(sae.decode(latents), sae.decode(latents.float()).to(dtype))


def test_an_attention_sae_takes_heads_and_gives_them_back():
    sae = small()
    sae.with_cfg(sae.describe(["blocks.0.attn.hook_z"]))
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    flat = x.reshape(2, 5, 12)
    assert torch.equal(sae.encode(x), sae.encode(flat))
    assert torch.equal(sae(x), sae(flat).reshape(x.shape))
    assert torch.equal(sae.decode(sae.encode(x), heads=3), sae(flat).reshape(x.shape))
    assert sae(flat).shape == flat.shape


def test_no_other_sae_takes_heads():
    sae = small()
    sae.with_cfg(sae.describe(["blocks.0.hook_resid_post"]))
    with pytest.raises(InputError, match=r"shape \[2, 5, 3, 4\], and this SAE takes floating-point rows"):
        sae(torch.zeros(2, 5, 3, 4))
