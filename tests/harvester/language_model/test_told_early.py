"""What a model cannot do is told from its configuration, in one sentence; nothing is installed."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, GPT2Config, GraniteConfig, Lfm2Config, OPTConfig

from scopemill.deploy.demo.run import MODEL
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model import describe as describing
from scopemill.harvester.language_model.describe import describe, layer_kinds
from scopemill.harvester.language_model.installers import nothing_installed
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.harvester.language_model.residual import check_middle
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import Hook

SIZES = dict(vocab_size=2048, hidden_size=32, num_attention_heads=4, intermediate_size=64)


def model_of(config, folder, weights: bool = False) -> ModelConfig:
    if weights:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return ModelConfig(name=str(folder))


def test_a_hybrid_model_has_each_site_at_the_layers_that_have_it(tmp_path):
    kinds = ["conv", "conv", "full_attention", "conv", "full_attention"]
    config = Lfm2Config(**SIZES, num_key_value_heads=2, num_hidden_layers=5, layer_types=kinds, architectures=["Lfm2ForCausalLM"])
    card = describe(model_of(config, tmp_path))
    assert card.layers == 5 and card.widths["attn_z"] == 32
    assert card.hooks("all", ["attn_z"]) == [Hook(2, "attn_z"), Hook(4, "attn_z")]
    with pytest.raises(ModelError, match=r"harvest.layers: layer 1 of .* has no attn_z.*: layers 2, 4 have it"):
        card.hooks([1, 2], ["attn_z"])
    assert len(card.hooks("all", ["resid_post"])) == 5


def test_latent_attention_has_the_width_of_its_values(tmp_path):
    config = DeepseekV3Config(
        **SIZES, num_key_value_heads=4, num_hidden_layers=2, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        architectures=["DeepseekV3ForCausalLM"],
    )  # fmt: skip
    model = model_of(config, tmp_path, weights=True)
    card = describe(model)
    assert card.widths["attn_z"] == 4 * 8
    hooks = card.hooks("all", ["attn_z", "resid_post"])
    captured = LanguageModel(model).capture(torch.randint(3, 2048, (1, 8)), hooks)
    assert {h.name: captured[h.name].shape[-1] for h in hooks} == {h.name: card.widths[h.site] for h in hooks}


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(tmp_path):
    config = GPT2Config(vocab_size=1000, n_embd=32, n_layer=1, n_head=4, n_positions=64, architectures=["GPT2LMHeadModel"])
    with pytest.raises(
        ModelError, match=r"its tokenizer has \d+ tokens beyond the model's 1000 embeddings, such as .* with id 1000: use the"
    ):
        describe(model_of(config, tmp_path))


@pytest.mark.parametrize(
    ("fields", "length"), [({"n_positions": 64}, 64), ({"max_seq_len": 128}, 128), ({"max_position_embeddings": 0}, None)]
)
def test_the_context_length_is_read_by_any_of_its_names(fields, length):
    config = type("Config", (), fields)()
    assert describing._context_length(config) == length


def test_kinds_of_layers_are_what_lists_of_the_configuration_say():
    config = Lfm2Config(num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"])
    kinds = layer_kinds(config)
    assert len(kinds) == 3 and kinds[0] == kinds[2] != kinds[1]


def test_the_middle_of_the_stream_is_checked_by_identity(tmp_path):
    """What lies where a family has its middle may be the sum after the MLP: so it was with OPT and its norms behind."""
    sizes = dict(vocab_size=2048, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32)
    tokens, wanted = torch.randint(3, 2048, (1, 8)), [Hook(0, "resid_mid")]
    with pytest.raises(ModelError, match="cannot be loaded"):  # TransformerLens loads it, and cannot run it
        LanguageModel(model_of(OPTConfig(**sizes, do_layer_norm_before=False), tmp_path / "behind", weights=True))
    lm = LanguageModel(model_of(OPTConfig(**sizes), tmp_path / "before", weights=True))
    assert lm.capture(tokens, wanted)["blocks.0.hook_resid_mid"].shape == (1, 8, 32)

    def moved(hooks: list[Hook]) -> dict[str, torch.Tensor]:
        x = lm.capture(tokens, hooks)
        return x | {wanted[0].name: x[Hook(0, "resid_post").name]}

    with pytest.raises(ModelError, match="resid_mid of layer 0 is not the middle of the residual stream in this model: .* leave resid_mid"):
        check_middle(moved, 0, lambda hook: True)


def test_a_stream_to_which_multiples_are_added_has_a_middle(tmp_path):
    config = GraniteConfig(**SIZES, num_key_value_heads=2, num_hidden_layers=2, residual_multiplier=0.22)
    model = LanguageModel(model_of(config, tmp_path, weights=True))
    assert model.capture(torch.randint(3, 2048, (1, 8)), [Hook(1, "resid_mid")])["blocks.1.hook_resid_mid"].shape == (1, 8, 32)


@pytest.mark.parametrize(
    "command", [["uv", "pip", "install", "x", "-q"], [sys.executable, "-m", "pip", "install", "x"], ["/usr/bin/conda", "install", "x"]]
)
def test_an_installer_is_refused_inside_the_block_and_nothing_else_is(command):
    with nothing_installed() as refused:
        with pytest.raises(PermissionError, match="a run installs nothing"):
            subprocess.check_call(command)
        assert subprocess.run([sys.executable, "-c", "print('pip')"], capture_output=True, text=True).stdout == "pip\n"
    assert refused == [" ".join(command)]
    assert subprocess.run([sys.executable, "-c", "", "pip", "install"]).returncode == 0, "outside a block nothing is looked at"


def test_what_would_have_been_installed_is_said_when_the_model_does_not_load(tmp_path, monkeypatch):
    """As TransformerLens does it for a processor that lacks torchvision."""
    from transformer_lens.model_bridge import TransformerBridge

    def boot(*arguments, **options):
        try:
            subprocess.check_call(["uv", "pip", "install", "torchvision", "-q"])
        except Exception:
            raise ImportError("\nSomeProcessor requires the Torchvision library.\nand more") from None

    monkeypatch.setattr(TransformerBridge, "boot_transformers", boot)
    config = GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=4, architectures=["GPT2LMHeadModel"])
    with pytest.raises(
        ModelError, match=r"requires the Torchvision library. TransformerLens would have run `uv pip install torchvision -q`"
    ):
        describe(model_of(config, tmp_path))
