"""The ``train`` section: presets fill it, what is given wins, and what cannot be is refused in a sentence."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scopemill.trainer.architectures import ARCHITECTURES
from scopemill.trainer.config import PRESETS, Recipe, SaeConfig, TrainConfig

LEAST = {"widths": [1024], "sparsities": [0.1]}


def train(**changes) -> TrainConfig:
    return TrainConfig.model_validate(LEAST | changes)


def refusal(**changes) -> str:
    with pytest.raises(ValidationError) as caught:
        train(**changes)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in caught.value.errors())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_every_field_that_is_not_given(preset):
    config = train(preset=preset)
    assert {field: getattr(config, field) for field in PRESETS[preset]} == PRESETS[preset]


def test_the_presets_name_the_same_fields_and_all_are_a_recipes():
    names = [set(values) for values in PRESETS.values()]
    assert all(n == names[0] for n in names) and names[0] <= set(Recipe.model_fields)


def test_gemma_scope_is_the_preset_unless_another_is_named():
    assert train() == train(preset="gemma-scope")


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", 8192), ("learning_rate", 0.5), ("bandwidth", 0.2), ("checkpoint_every", 7), ("seed", 9)]
)
def test_a_value_that_is_given_wins_over_the_preset(field, value):
    for preset in PRESETS:
        config = train(preset=preset, **{field: value})
        assert getattr(config, field) == value
        untouched = PRESETS[preset].keys() - {field}
        assert all(getattr(config, f) == PRESETS[preset][f] for f in untouched)


def test_a_preset_is_not_changed_by_being_used():
    before = {name: dict(values) for name, values in PRESETS.items()}
    train(preset="quick", learning_rate=0.25)
    assert PRESETS == before


def test_an_unknown_preset_is_refused_with_the_known_ones():
    sentence = refusal(preset="slow")
    assert "'slow'" in sentence and "gemma-scope, quick" in sentence


@pytest.mark.parametrize("value", [["quick"], {"name": "quick"}, 3, None])
def test_a_preset_that_is_no_name_is_refused(value):
    assert "preset" in refusal(preset=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rates", 0.1),
        ("architecture", "topk"),
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
    assert field in refusal(**{field: value})


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
    config = train(widths=widths, sparsities=sparsities, preset="quick", architecture="standard", seed=5)
    saes = config.saes()
    assert [(s.width, s.sparsity) for s in saes] == list(itertools.product(widths, sparsities))
    shared = {f: getattr(config, f) for f in Recipe.model_fields}
    assert all({f: getattr(s, f) for f in Recipe.model_fields} == shared for s in saes)


def test_a_configuration_cannot_be_changed_and_survives_pickling_and_json():
    sae = train(preset="quick").saes()[0]
    with pytest.raises(ValidationError):
        sae.width = 3
    assert pickle.loads(pickle.dumps(sae)) == sae
    assert SaeConfig.model_validate(sae.model_dump(mode="json")) == sae
    assert SaeConfig.model_validate_json(sae.model_dump_json()) == sae


def test_every_architecture_that_can_be_named_exists():
    assert set(Recipe.model_fields["architecture"].annotation.__args__) == set(ARCHITECTURES)
