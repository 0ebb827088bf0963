"""Templates of edits: what is kept is what steers, under the rules of training templates."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopemill.evaluator.steering import templates
from scopemill.evaluator.steering.edits import Edit
from scopemill.evaluator.steering.templates import edit_templates, load_edits, parse_edits, save_edits
from scopemill.proto.errors import TemplateError
from scopemill.trainer.config.templates import templates as training_templates


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path / "own"))
    return tmp_path / "own"


CALM = {"calm": (Edit(sae="s3://bucket/sae", latent=3, op="add", amount=2.0), Edit(sae="/abs/sae", latent=1, op="ablate"))}
amounts = st.floats(allow_nan=False, allow_infinity=False)
edits = st.one_of(
    st.builds(
        Edit, sae=st.sampled_from(["/a/b", "s3://c/d", "memory://e"]), latent=st.integers(0, 99), op=st.sampled_from(["add", "clamp"]),
        amount=amounts, unit=st.sampled_from(["maximum", "raw"]), where=st.sampled_from(["all", "prompt", "generated"]),
        when=st.none() | st.builds(lambda latent, above: {"latent": latent, "above": above}, st.integers(0, 9), amounts),
    ),
    st.builds(Edit, sae=st.just("/a"), latent=st.integers(0, 9), op=st.just("ablate"), amount=st.none()),
)  # fmt: skip


@given(st.dictionaries(st.text(min_size=1), st.lists(edits, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
def test_what_is_read_back_is_what_was_kept(configurations):
    text = json.dumps(templates.as_fields(configurations))
    assert parse_edits(text, "a file") == configurations


def test_a_template_lies_beside_training_templates_and_is_none_of_them(own):
    path = save_edits("calm", CALM)
    assert path == own / "steering" / "calm.json" and edit_templates() == ["calm"] and load_edits("calm") == CALM
    assert "calm" not in {template.name for template in training_templates()}
    with pytest.raises(TemplateError, match=r"'calm' is there already .*--replace"):
        save_edits("calm", {"other": CALM["calm"]})
    assert load_edits("calm") == CALM
    save_edits("calm", {"other": CALM["calm"]}, replace=True)
    assert list(load_edits("calm")) == ["other"]


def test_a_local_sae_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_edits("here", {"a": [Edit(sae="saes/one", latent=1, op="ablate"), CALM["calm"][0]]})
    monkeypatch.chdir("/")
    assert [edit.sae for edit in load_edits("here")["a"]] == [str(tmp_path / "saes/one"), "s3://bucket/sae"]


@pytest.mark.parametrize("name", ["Calm", "", "../calm", "a/b", ".calm"])
def test_a_name_that_no_template_can_have_is_refused(name, own):
    for act in (lambda: save_edits(name, CALM), lambda: load_edits(name)):
        with pytest.raises(TemplateError, match="use only small letters"):
            act()
    assert not own.exists()


def test_an_unknown_or_damaged_template_is_one_sentence(own):
    with pytest.raises(TemplateError, match="'calm' is not known: there are none yet"):
        load_edits("calm")
    path = save_edits("calm", CALM)
    with pytest.raises(TemplateError, match="'clam' is not known: there are calm"):
        load_edits("clam")
    for text, sentence in (
        ("{", "is not JSON"),
        ("[1]", "has to hold an object"),
        ("{}", "has to hold an object"),
        ('{"a": [{"sae": "s", "latent": 1}]}', r"a\.0: add needs an amount"),
        ('{"a": [{"latent": 1, "op": "ablate"}]}', r"a\.0\.sae: Field required"),
    ):
        path.write_text(text)
        with pytest.raises(TemplateError, match=sentence) as told:
            load_edits("calm")
        assert str(path) in str(told.value)
