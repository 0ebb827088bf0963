"""Hook names are TransformerLens', each with one spelling."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopemill.proto.errors import InputError
from scopemill.proto.hooks import SITES, Hook

NAMES = {
    "resid_pre": "blocks.12.hook_resid_pre",
    "resid_mid": "blocks.12.hook_resid_mid",
    "resid_post": "blocks.12.hook_resid_post",
    "attn_z": "blocks.12.attn.hook_z",
    "mlp_in": "blocks.12.mlp.hook_in",
    "mlp_out": "blocks.12.hook_mlp_out",
    "attn_out": "blocks.12.hook_attn_out",
}


def test_every_site_has_the_name_that_transformer_lens_gives_it():
    assert {site: Hook(12, site).name for site in SITES} == NAMES


@given(st.integers(0, 10_000), st.sampled_from(sorted(SITES)))
def test_a_name_gives_its_hook_again(layer, site):
    hook = Hook(layer, site)
    assert Hook.parse(hook.name) == hook


@pytest.mark.parametrize(
    "name",
    ["", "blocks.12", "blocks.12.", "blocks..hook_resid_post", "blocks.-1.hook_resid_post", "blocks.x.hook_resid_post", "blocks.12.hook_q",
     "blocks.12.hook_resid_post ", "blocks.12.hook_resid_post\n", " blocks.12.hook_resid_post", "block.12.hook_resid_post", "resid_post",
     "blocks.1.2.hook_resid_post", "BLOCKS.12.hook_resid_post", "blocks.12.resid_post", "blocks.12.hook_z", "hook_embed"],
)  # fmt: skip
def test_any_other_text_is_refused_with_a_sentence_that_shows_it(name):
    with pytest.raises(InputError) as caught:
        Hook.parse(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", ["01", "007", "\u0661\u0662", "\u00b2", "1_0", "+1", "1e1", "0x1"])
def test_a_layer_has_one_spelling(layer):
    with pytest.raises(InputError):
        Hook.parse(f"blocks.{layer}.hook_resid_post")


@settings(deadline=None)
@given(st.from_regex(r"blocks\.\d{1,3}\.(hook|attn|mlp)[._a-z]{1,12}", fullmatch=True) | st.text(max_size=30))
def test_whatever_is_accepted_is_the_name_of_its_hook(name):
    try:
        hook = Hook.parse(name)
    except InputError:
        return
    assert hook.name == name


def test_hooks_sort_by_layer_as_a_number():
    hooks = [Hook(2, "resid_post"), Hook(10, "attn_z"), Hook(2, "mlp_out")]
    assert sorted(hooks) == [Hook(2, "mlp_out"), Hook(2, "resid_post"), Hook(10, "attn_z")]
