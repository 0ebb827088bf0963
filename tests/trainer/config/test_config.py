"""The ``train`` section: templates fill it, what is given wins, and what cannot be is refused in a sentence."""

import itertools
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.sae_reference import CROSS, ONE, PAIR, STACK, quick

from scopemill.proto.errors import TemplateError
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import LAYERED, PAIRED, Recipe, only_read, sae_config
from scopemill.trainer.config.templates import Template, load_template, parse_template, save_template, templates
from scopemill.trainer.sae.activations.base import Activation
from scopemill.trainer.sae.registry import ACTIVATIONS, ARCHITECTURES, initial_sae

LEAST = {"widths": [1024], "sparsities": [0.1]}
SHIPPED = ("anthropic-2025", "base-to-chat", "batchtopk", "gemma-scope", "gemma-scope-2", "matryoshka", "quick", "topk-openai")


@pytest.fixture(autouse=True)
def own_templates(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path / "templates"))
    return tmp_path / "templates"


def train(**changes) -> TrainConfig:
    return TrainConfig.model_validate(LEAST | changes)


def refusal(**changes) -> str:
    with pytest.raises(ValidationError) as caught:
        train(**changes)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in caught.value.errors())


def section(template: str, **changes) -> TrainConfig:
    """With sparsities that suit it."""
    counted = load_template(template).fields["architecture"] in ("topk", "batchtopk", "matryoshka") or template == "gemma-scope-2"
    return train(template=template, sparsities=[32] if counted else [0.1], **changes)


@pytest.mark.parametrize("template", SHIPPED)
def test_a_template_fills_every_field_that_is_not_given(template):
    fields, config = load_template(template).fields, section(template)
    found = {field: getattr(config, field) for field in fields}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()} == fields
    assert len(config.saes()) == 1


def test_the_templates_that_come_with_the_package_say_where_they_come_from():
    assert tuple(t.name for t in templates()) == SHIPPED
    assert all(t.source and not t.own and set(t.fields) <= set(Recipe.model_fields) for t in templates())


def test_gemma_scope_is_the_template_unless_another_is_named():
    assert train() == train(template="gemma-scope")


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", 8192), ("learning_rate", 0.5), ("adam_beta2", 0.2), ("checkpoint_every", 7), ("seed", 9)]
)
def test_a_value_that_is_given_wins_over_the_template(field, value):
    for template in SHIPPED:
        config, bare = section(template, **{field: value}), section(template)
        assert getattr(config, field) == value
        assert all(getattr(config, f) == getattr(bare, f) for f in Recipe.model_fields if f != field)


def test_an_unknown_template_is_refused_with_the_known_ones():
    sentence = refusal(template="slow")
    assert "'slow'" in sentence and ", ".join(SHIPPED) in sentence


@pytest.mark.parametrize("value", [["quick"], {"name": "quick"}, 3, None, "../quick", "Quick", "quick.yaml/.."])
def test_a_template_that_is_no_name_is_refused(value):
    assert "template" in refusal(template=value)


def test_a_template_of_ones_own_is_used_and_listed_and_not_overwritten_by_accident(own_templates):
    mine = parse_template("mine", "source: a colleague\ntokens: 4096\nlearning_rate: 0.25", "mine.yaml")
    mine.fields.update({k: v for k, v in load_template("quick").fields.items() if k not in mine.fields})
    assert save_template(mine) == own_templates / "mine.yaml"
    assert load_template("mine") == mine and templates()[-1] == mine
    assert train(template="mine").learning_rate == 0.25
    with pytest.raises(TemplateError, match="'mine' is there already"):
        save_template(mine)
    assert save_template(mine, replace=True)


@pytest.mark.parametrize("name", ["quick", "Mine", "../mine", ""])
def test_a_template_cannot_take_a_name_of_the_packages_or_leave_its_folder(own_templates, name):
    with pytest.raises(TemplateError, match="name"):
        save_template(parse_template(name, "source: me", "m.yaml"))
    assert not own_templates.exists() or not list(own_templates.iterdir())


@pytest.mark.parametrize("text", ["", "[1]", "tokens: 3", "source: 3", "source: [", "source: {a: 1}"])
def test_a_file_that_is_no_template_is_refused_with_its_place(own_templates, text):
    own_templates.mkdir()
    (own_templates / "broken.yaml").write_text(text)
    sentence = refusal(template="broken")
    assert str(own_templates / "broken.yaml") in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rates", 0.1),
        ("architecture", "relu"),
        ("activation", "gelu"),
        ("precision", "float16"),
        ("normalization", "batch_norm"),
        ("penalty", "l2"),
        ("tokens", 0),
        ("tokens", "many"),
        ("tokens", 1.5),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("lr_decay_fraction", 1.01),
        ("adam_beta2", 1.0),
        ("adam_epsilon", 0.0),
        ("bandwidth", 0.0),
        ("bandwidth", float("nan")),
        ("initial_threshold", -0.1),
        ("initial_l0", 0.0),
        ("accumulate", 0),
        ("clip_gradient", 0.0),
        ("frequency_limit", 0.0),
        ("frequency_limit", 1.5),
        ("tanh_scale", 0.0),
        ("target_coefficient", 0.0),
        ("pre_activation_coefficient", -1e-6),
        ("auxk_coefficient", -0.1),
        ("auxk_latents", 0),
        ("resample_every", 0),
        ("resample_until", 1.5),
        ("skip_rank", 0),
        ("sparsity_warmup_fraction", 1.5),
        ("prefixes", []),
        ("prefixes", [0.5]),
        ("prefixes", [0.5, 0.25, 1.0]),
        ("prefixes", [0.0, 1.0]),
        ("prefixes", [0.5, 0.5, 1.0]),
        ("initial_decoder_bias", "median"),
        ("dead_after_tokens", 0),
        ("checkpoint_every", 0),
        ("log_every", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("widths", []),
        ("widths", [0]),
        ("widths", [16, 16]),
        ("widths", ["16"]),
        ("widths", [True]),
        ("widths", 16),
        ("sparsities", []),
        ("sparsities", [-0.1]),
        ("sparsities", [0.1, 0.1]),
        ("sparsities", ["0.1"]),
        ("sparsities", [float("nan")]),
        ("sparsities", [float("inf")]),
        ("at_once", 0),
        ("cpus", 0),
        ("gpus", -1),
    ],
)
def test_a_field_that_is_unknown_or_a_value_that_cannot_be_is_refused_by_name(field, value):
    kind = {"tanh_scale": {"penalty": "tanh"}, "target_coefficient": {"penalty": "target_l0"}}.get(field, {})
    kind |= {"resample_every": 10} if field == "resample_until" else {}
    for word, beginning in (("topk", "auxk"), ("skip", "skip_rank"), ("matryoshka", "prefixes")):
        kind |= {"architecture": word} if field.startswith(beginning) else {}
    sentence = refusal(**kind | {field: value})
    assert field in sentence and "has no effect" not in sentence


def test_fewer_tokens_than_one_batch_are_refused():
    sentence = refusal(tokens=1000, batch_size=1024)
    assert "tokens (1000)" in sentence and "batch_size = 1024" in sentence
    assert train(tokens=1024, batch_size=1024).steps == 1


def test_a_section_that_is_no_mapping_is_refused():
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(["quick"])


def test_widths_and_sparsities_have_no_default():
    for field in LEAST:
        with pytest.raises(ValidationError, match=field):
            TrainConfig.model_validate({k: v for k, v in LEAST.items() if k != field})


@given(
    widths=st.lists(st.integers(1, 10**6), min_size=1, max_size=5, unique=True),
    sparsities=st.lists(st.floats(0, 10), min_size=1, max_size=5, unique=True),
)
def test_there_is_one_sae_for_every_width_with_every_sparsity(widths, sparsities):
    config = train(widths=widths, sparsities=sparsities, template="quick", architecture="standard", seed=5)
    saes = config.saes()
    assert [(s.width, s.sparsity) for s in saes] == list(itertools.product(widths, sparsities))
    shared = only_read(config.filled)
    assert all(s.model_dump(exclude={"width", "sparsity"}) == shared for s in saes)


def test_a_configuration_cannot_be_changed_and_survives_pickling_and_json():
    sae = train(template="quick").saes()[0]
    with pytest.raises(ValidationError):
        sae.width = 3
    assert pickle.loads(pickle.dumps(sae)) == sae
    assert sae_config(sae.model_dump(mode="json")) == sae
    assert sae_config(json.loads(sae.model_dump_json())) == sae


def test_every_architecture_and_activation_that_can_be_named_exists():
    assert set(Recipe.model_fields["architecture"].annotation.__args__) == set(ARCHITECTURES)
    assert {name for name in Recipe.model_fields["activation"].annotation.__args__[0].__args__} == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(architecture="topk", activation="relu", sparsities=[4]), "activation: topk has its own (topk), not relu"),
        (dict(architecture="clt", activation="gated"), "activation: clt is not trained with gated latents; take relu"),
        (dict(architecture="transcoder", normalization="layer_norm"), "normalization: layer_norm is for SAEs of one hook"),
        (dict(normalization="layer_norm", initial_decoder_bias="mean"), "initial_decoder_bias: the mean of rows under layer_norm"),
        (
            dict(architecture="transcoder", input_site="mlp_out"),
            "target_site: a transcoder reconstructs another site than the one it reads, and both are mlp_out",
        ),
        (dict(batch_size=1000, tokens=10_000, accumulate=3), "batch_size (1000) cannot be cut into accumulate = 3 equal parts"),
        (dict(architecture="topk", sparsities=[4], batch_size=8, accumulate=8), "batch_size (8): topk divides errors by the variance"),
        (dict(architecture="topk", sparsities=[0.0]), "sparsity (0) is k here: a whole number from 1 to the width (1024)"),
        (dict(architecture="topk", sparsities=[2.5]), "sparsity (2.5) is k here"),
        (dict(architecture="batchtopk", sparsities=[1025]), "sparsity (1025) is k here"),
        (dict(architecture="matryoshka", sparsities=[1e-4]), "sparsity (0.0001) is k here"),
        (dict(penalty="target_l0", sparsities=[0.0]), "sparsity (0) is the wanted L0 here: above 0, at most the width (1024)"),
        (dict(penalty="target_l0", sparsities=[2000.0]), "sparsity (2000) is the wanted L0 here"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(changes, sentence):
    found = refusal(**changes)
    assert sentence in found and "\n" not in found and ";" not in found.replace("; take", "").replace("; it is", "")


@pytest.mark.parametrize(("sparsity", "k"), [(1, 1), (32, 32), (1024, 1024), (0.5, 512), (1 / 1024, 1), (0.0147, 15)])
def test_k_is_a_count_or_a_share_of_the_width(sparsity, k):
    config = quick(architecture="topk", width=1024, sparsity=sparsity)
    assert config.k == k and config.coefficient == 0
    assert initial_sae(config, ONE, torch.zeros(ONE.d_out)).activation.k == k


def test_sparsity_is_the_coefficient_unless_it_is_a_wanted_count():
    assert quick(sparsity=0.3).coefficient == 0.3
    assert quick(sparsity=5.0, penalty="target_l0", target_coefficient=0.02).coefficient == 0.02
    assert quick(architecture="standard", sparsity=0.3).coefficient == 0.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_an_activation_unless_one_is_given(architecture):
    shape = {**dict.fromkeys(PAIRED, PAIR), **dict.fromkeys(LAYERED, CROSS), "crosscoder": STACK}.get(architecture, ONE)
    usual = {"standard": "relu", "gated": "gated", "topk": "topk", "batchtopk": "batchtopk", "matryoshka": "batchtopk"}.get(
        architecture, "jumprelu"
    )
    sae = initial_sae(quick(architecture=architecture, sparsity=1 / 4), shape, torch.zeros(shape.d_out))
    assert type(sae) is ARCHITECTURES[architecture] and sae.activation.name == usual and isinstance(sae.activation, Activation)
    if architecture not in ("standard", "gated", "jumprelu", "topk", "batchtopk"):
        config = quick(architecture=architecture, activation="topk", sparsity=1 / 4)
        assert initial_sae(config, shape, torch.zeros(shape.d_out)).activation.name == "topk"


def test_a_user_without_a_home_has_no_templates_and_can_save_none(monkeypatch):
    """As in a container whose user has neither a name nor HOME."""
    monkeypatch.delenv("SCOPEMILL_TEMPLATES", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert load_template("quick").name == "quick"
    with pytest.raises(TemplateError, match="you have no home folder: set SCOPEMILL_TEMPLATES"):
        save_template(Template("mine", "here", {}, own=True))


def test_a_template_that_is_nested_without_end_is_one_sentence():
    with pytest.raises(TemplateError, match="template here nests its values too deeply"):
        parse_template("mine", "[" * 5000, "here")
