"""The bridge's activations and losses are Hugging Face's own, found here by other means: plain forward hooks."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.card import ModelCard
from scopemill.harvester.language_model.describe import describe, load_tokenizer
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.proto.errors import ModelError
from scopemill.proto.hooks import SITES, Hook

LAYER = 3
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def plain(model) -> Gemma2ForCausalLM:
    """The same model without any bridge."""
    return AutoModelForCausalLM.from_pretrained(model.name, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokens(card) -> torch.Tensor:
    batch = torch.randint(3, 2048, (3, 20), generator=torch.Generator().manual_seed(0))
    batch[:, 0] = card.bos
    return batch


def site_of(plain: Gemma2ForCausalLM, site: str) -> tuple[torch.nn.Module, str]:
    """The module of a Gemma-2 layer whose input or output the site is."""
    layer = plain.model.layers[LAYER]
    return {
        "resid_pre": (layer, "input"),
        "resid_mid": (layer.pre_feedforward_layernorm, "input"),
        "resid_post": (layer, "output"),
        "attn_z": (layer.self_attn.o_proj, "input"),
        "attn_out": (layer.post_attention_layernorm, "output"),
        "mlp_in": (layer.mlp, "input"),
        "mlp_out": (layer.post_feedforward_layernorm, "output"),
    }[site]


def first(value):
    return value[0] if isinstance(value, tuple) else value


def run_plain(plain: Gemma2ForCausalLM, tokens: torch.Tensor, site: str, edit=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations at a site and the logits; with ``edit``, the logits that follow from the edited activations."""
    module, end = site_of(plain, site)
    seen = []

    def on_input(module, inputs):
        seen.append(inputs[0].clone())
        return (edit(inputs[0]), *inputs[1:]) if edit else None

    def on_output(module, inputs, output):
        seen.append(first(output).clone())
        if not edit:
            return None
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = module.register_forward_pre_hook(on_input) if end == "input" else module.register_forward_hook(on_output)
    try:
        with torch.inference_mode():
            logits = plain(tokens).logits
    finally:
        handle.remove()
    return seen[0], logits


def losses(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Minus the log probability of each next token."""
    return -logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


def test_a_model_is_described_without_its_weights(model, card, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model.name) / name, tmp_path)
    described = describe(ModelConfig(name=str(tmp_path)))
    assert described.widths == card.widths
    assert (described.layers, described.context_length, described.bos, described.special) == (6, 256, 2, (0, 1, 2))
    assert described.name == tmp_path.name


def test_a_gemma_2_has_every_site(card):
    assert dict(card.widths) == dict.fromkeys(SITES, 192)


def test_a_model_in_a_folder_is_called_by_the_folders_name(model, card, monkeypatch):
    assert card.name == Path(model.name).name
    monkeypatch.chdir(model.name)
    assert describe(ModelConfig(name=".")) == card


def test_the_card_agrees_with_hugging_faces_own_reading(model, card):
    config, tokenizer = AutoConfig.from_pretrained(model.name), AutoTokenizer.from_pretrained(model.name)
    assert card.layers == config.num_hidden_layers
    assert card.context_length == config.max_position_embeddings
    assert card.bos == tokenizer.bos_token_id
    assert set(card.special) == set(tokenizer.all_special_ids)
    assert load_tokenizer(model)("def f(x):\n    return x")["input_ids"] == tokenizer("def f(x):\n    return x")["input_ids"]


@pytest.fixture(scope="module")
def narrow(model, tmp_path_factory) -> ModelConfig:
    """A Gemma-2 whose heads together are wider than its residual stream, with random weights."""
    folder = tmp_path_factory.mktemp("narrow")
    config = Gemma2Config(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=64, sliding_window=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    copy_tokenizer(model, folder)
    return ModelConfig(name=str(folder))


def copy_tokenizer(model: ModelConfig, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(model.name) / name, folder)


def test_widths_are_those_of_the_tensors_that_are_captured(narrow):
    card = describe(narrow)
    assert card.widths["attn_z"] == 64
    assert {width for site, width in card.widths.items() if site != "attn_z"} == {32}
    captured = LanguageModel(narrow).capture(torch.full((1, 5), 7), card.hooks("all", "all"))
    assert {name: x.shape for name, x in captured.items()} == {h.name: (1, 5, card.widths[h.site]) for h in card.hooks("all", "all")}


def test_a_gpt_2_opens_its_sequences_with_its_one_special_token(model, tmp_path):
    config = GPT2Config(vocab_size=2048, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=1)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    copy_tokenizer(model, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for name in ("bos_token", "pad_token"):
        settings.pop(name)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    gpt2 = ModelConfig(name=str(tmp_path))
    card = describe(gpt2)
    assert (card.layers, card.context_length, card.bos, card.special) == (2, 32, 1, (1,))
    assert {card.widths[site] for site in ("resid_post", "mlp_out", "attn_z")} == {24}
    tokens = torch.randint(3, 2048, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = losses(plain(tokens).logits, tokens)
    torch.testing.assert_close(LanguageModel(gpt2).token_losses(tokens), expected, **CLOSE)


def test_a_model_is_known_again_by_its_configuration_and_weights(model, narrow, card, tmp_path):
    fingerprints = {card.fingerprint, describe(narrow).fingerprint}
    assert len(fingerprints) == 2
    shutil.copytree(narrow.name, tmp_path / "copy")
    copy = ModelConfig(name=str(tmp_path / "copy"))
    assert describe(copy).fingerprint in fingerprints

    changed = Gemma2ForCausalLM.from_pretrained(copy.name)
    with torch.no_grad():
        changed.model.embed_tokens.weight[5, 3] += 0.5
    changed.save_pretrained(copy.name)
    fingerprints.add(describe(copy).fingerprint)
    assert len(fingerprints) == 3
    settings = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-5}))
    assert describe(copy).fingerprint not in fingerprints


def test_hooks_are_given_layer_by_layer(card: ModelCard):
    assert card.hooks((4, 1), ("mlp_out", "resid_post")) == [
        Hook(1, "mlp_out"), Hook(1, "resid_post"), Hook(4, "mlp_out"), Hook(4, "resid_post"),
    ]  # fmt: skip
    assert card.hooks("all", ("attn_z",)) == [Hook(layer, "attn_z") for layer in range(6)]
    assert len(card.hooks("all", "all")) == 6 * len(SITES)


def sentence(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_layer_that_the_model_lacks_is_answered_with_those_it_has(card):
    with pytest.raises(ModelError) as caught:
        card.hooks((0, 6), ("resid_post",))
    assert sentence(caught) == f"harvest.layers: {card.name} has no layer 6: its layers are 0 to 5"


def test_a_site_that_the_model_lacks_is_answered_with_those_it_has(card):
    with pytest.raises(ModelError) as caught:
        card.hooks("all", ("resid_post", "q_proj"))
    assert f"harvest.sites: {card.name} has no site 'q_proj'" in sentence(caught)
    assert "resid_post, attn_z" in sentence(caught)


def damage_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_model_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nosuchmodel"}')


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("no tokenizer")


@pytest.mark.parametrize("damage", [damage_nothing, damage_config, damage_model_type, damage_tokenizer])
def test_a_model_that_cannot_be_described_is_one_sentence_that_names_it(narrow, tmp_path, damage):
    folder = tmp_path / "broken"
    shutil.copytree(narrow.name, folder)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        describe(ModelConfig(name=str(folder)))
    assert sentence(caught).startswith(f"model {str(folder)!r} cannot be loaded: ")


def test_weights_that_are_not_there_are_one_sentence(narrow, tmp_path):
    shutil.copytree(narrow.name, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        LanguageModel(ModelConfig(name=str(tmp_path / "broken")))
    assert sentence(caught).startswith(f"model {str(tmp_path / 'broken')!r} cannot be loaded: ")


def test_nothing_is_printed_while_a_model_loads(narrow, capfd):
    describe(narrow)
    LanguageModel(narrow)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("site", SITES)
def test_an_activation_is_the_tensor_that_the_plain_model_uses(lm, plain, tokens, site):
    hook = Hook(LAYER, site)
    captured = lm.capture(tokens, [hook])[hook.name]
    expected, _ = run_plain(plain, tokens, site)
    assert captured.dtype == torch.float32
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(captured, expected, **CLOSE)


def test_hooks_of_several_layers_are_read_in_one_pass_as_they_are_alone(lm, card, tokens):
    hooks = card.hooks((0, 4), ("resid_post", "attn_z", "mlp_out"))
    together = lm.capture(tokens, hooks)
    assert list(together) and set(together) == {hook.name for hook in hooks}
    for hook in hooks:
        alone = lm.capture(tokens, [hook])[hook.name]
        assert torch.equal(together[hook.name], alone)


@pytest.mark.parametrize(("layer", "site", "runs"), [(0, "attn_z", 0), (2, "resid_post", 3), (5, "mlp_out", 6), (5, "resid_post", 6)])
def test_the_pass_ends_at_the_last_hook_wanted(lm, tokens, layer, site, runs):
    """Not even in the last layer does the head over the vocabulary run: it is a fifth of the demo model's forward."""
    ran = []
    watched = {f"mlp {i}": block.mlp for i, block in enumerate(lm._bridge.blocks)} | {"head": lm._bridge.unembed}
    handles = [m.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, m in watched.items()]
    lm.capture(tokens, [Hook(0, "resid_pre"), Hook(layer, site)])
    [h.remove() for h in handles]
    assert ran == [f"mlp {i}" for i in range(runs)]
    lm.token_losses(tokens)  # and no hook is left behind


def test_tokens_after_it_do_not_change_an_activation(lm, tokens):
    hook = Hook(LAYER, "resid_post")
    torch.testing.assert_close(lm.capture(tokens[:, :9], [hook])[hook.name], lm.capture(tokens, [hook])[hook.name][:, :9], **CLOSE)


def test_a_model_in_bfloat16_gives_bfloat16(narrow):
    hook = Hook(1, "mlp_out")
    half = LanguageModel(narrow.model_copy(update={"dtype": "bfloat16"}))
    assert half.capture(torch.full((1, 4), 7), [hook])[hook.name].dtype == torch.bfloat16
    assert half.token_losses(torch.full((1, 4), 7)).dtype == torch.float32


def test_losses_are_the_cross_entropy_of_the_plain_model(lm, plain, tokens):
    found = lm.token_losses(tokens)
    with torch.inference_mode():
        output = plain(tokens, labels=tokens)
    assert found.shape == (3, 19)
    torch.testing.assert_close(found, losses(output.logits, tokens), **CLOSE)
    assert found.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_losses_are_of_the_model_that_was_trained_and_not_of_noise(lm, model):
    text = "def add(self, other):\n    if other is None:\n        return self\n    for name in other:\n        self.append(name)\n"
    ids = torch.tensor([[2, *load_tokenizer(model)(text, add_special_tokens=False)["input_ids"]]])
    assert lm.token_losses(ids).mean() < 5 < torch.log(torch.tensor(2048.0))


def test_an_edit_that_changes_nothing_changes_nothing(lm, card, tokens):
    edits = {hook: (lambda x: x) for hook in card.hooks((1, LAYER), "all")}
    assert torch.equal(lm.token_losses(tokens, edits), lm.token_losses(tokens))


def test_an_edit_is_gone_after_the_pass(lm, tokens):
    before = lm.token_losses(tokens)
    lm.token_losses(tokens, {Hook(LAYER, "resid_post"): torch.zeros_like})
    lm.capture(tokens, [Hook(LAYER, "resid_post")])
    assert torch.equal(lm.token_losses(tokens), before)


@pytest.mark.parametrize("site", SITES)
def test_an_edit_sees_what_capture_gives_and_replaces_what_the_plain_model_uses(lm, plain, tokens, site):
    hook = Hook(LAYER, site)
    seen = []

    def edit(x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, dims=-1) * 0.5

    def noted(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return edit(x)

    found = lm.token_losses(tokens, {hook: noted})
    _, logits = run_plain(plain, tokens, site, edit)
    torch.testing.assert_close(seen[0], lm.capture(tokens, [hook])[hook.name], rtol=0, atol=0)
    torch.testing.assert_close(found, losses(logits, tokens), **CLOSE)
    assert not torch.allclose(found, lm.token_losses(tokens), atol=1e-2), "the edit counts"


def test_several_edits_apply_together(lm, plain, tokens):
    found = lm.token_losses(tokens, {Hook(LAYER, "mlp_out"): torch.zeros_like, Hook(LAYER, "attn_out"): torch.zeros_like})
    layer = plain.model.layers[LAYER]
    kept = plain.model.layers
    plain.model.layers = torch.nn.ModuleList([each for each in kept if each is not layer])
    plain.config.num_hidden_layers -= 1
    try:
        with torch.inference_mode():
            expected = losses(plain(tokens, use_cache=False).logits, tokens)
    finally:
        plain.model.layers = kept
        plain.config.num_hidden_layers += 1
    torch.testing.assert_close(found, expected, **CLOSE)  # a layer that adds nothing is a layer left out
