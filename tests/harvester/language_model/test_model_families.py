"""Any model that TransformerLens' bridge knows: described without its weights, read at every site, the loss as Hugging Face's."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

from scopemill.deploy.demo.run import MODEL
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.hooks import Hook

SIZES = dict(vocab_size=2048, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=2048, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "pythia": GPTNeoXConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4),
    "opt": OPTConfig(vocab_size=2048, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32),
}
FUSED = {"gpt2", "pythia", "llama", "qwen3", "gemma3", "mixtral", "opt"}  # have attention in one call, as Gemma 2 has not


def cross_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_of_every_layer_is_read_and_the_loss_is_hugging_faces(family, tmp_path):
    folder = tmp_path / family
    AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    card = describe(ModelConfig(name=str(folder)))
    assert card.layers == 3 and card.widths["resid_post"] == 32
    assert card.widths["attn_z"] == (64 if family == "gemma3" else 32)
    assert ("resid_mid" in card.widths) == (family != "pythia"), "attention and MLP run in parallel there"
    lm = LanguageModel(ModelConfig(name=str(folder)))
    tokens = torch.randint(3, 2048, (2, 16))
    hooks = card.hooks("all", "all")
    captured = lm.capture(tokens, hooks)
    assert {h.name: tuple(captured[h.name].shape) for h in hooks} == {h.name: (2, 16, card.widths[h.site]) for h in hooks}
    assert lm._bridge.original_model.config._attn_implementation == ("sdpa" if family in FUSED else "eager")
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")  # as it is when nobody has made it faster
    expected: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        bridge.run_with_hooks(
            tokens, fwd_hooks=[(h.name, lambda x, hook, name=h.name: expected.update({name: x.flatten(2).clone()})) for h in hooks]
        )
        without = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, hook: torch.zeros_like(x))])
    for name in captured:
        torch.testing.assert_close(captured[name], expected[name], rtol=1e-4, atol=1e-5)
    edited = lm.token_losses(tokens, {Hook(1, "attn_z"): torch.zeros_like})
    torch.testing.assert_close(edited.flatten(), cross_entropy(without, tokens), rtol=1e-4, atol=1e-5)
    logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
    unedited = cross_entropy(logits, tokens)
    torch.testing.assert_close(lm.token_losses(tokens).flatten(), unedited, rtol=1e-4, atol=1e-5)
    assert (edited.flatten() - unedited).abs().max() > 1e-4
