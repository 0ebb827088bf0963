"""Learning rate and sparsity against Gemma Scope's table and against closed forms."""

import math

import pytest

from scopemill.trainer.config.recipe import SaeConfig, sae_config
from scopemill.trainer.config.templates import load_template
from scopemill.trainer.training.schedules import learning_rate, sparsity_factor

# arXiv 2408.05147, section 3 and its appendix, each value typed from the paper; a decay and a bias at the mean are ours.
GEMMA_SCOPE = {
    "tokens": 4_000_000_000,
    "batch_size": 4096,
    "learning_rate": 7e-5,
    "lr_warmup_steps": 1000,
    "lr_decay_fraction": 0.0,
    "sparsity_warmup_steps": 10_000,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "initial_threshold": 0.001,
    "bandwidth": 0.001,
    "initial_decoder_bias": "zero",
}


def gemma_scope(**changes) -> SaeConfig:
    return sae_config(load_template("gemma-scope").fields | dict(width=16384, sparsity=6e-4) | changes)


@pytest.mark.parametrize("field", GEMMA_SCOPE)
def test_the_gemma_scope_template_is_the_papers_table(field):
    assert getattr(gemma_scope(), field) == GEMMA_SCOPE[field]


def test_steps_are_tokens_over_rows_per_batch():
    assert gemma_scope().steps == 976_563
    assert gemma_scope(tokens=16_000_000_000).steps == 3_906_250
    assert gemma_scope(tokens=4096).steps == 1
    assert gemma_scope(tokens=4096 + 1).steps == 2, "every batch is whole, so the last may bring rows beyond the tokens asked for"


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.1),
        (250, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2),
        (500, 0.55),
        (750, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        (1000, 1.0),
        (1001, 1.0),
        (500_000, 1.0),
        (976_562, 1.0),
    ],
)
def test_gemma_scopes_learning_rate_is_a_cosine_from_a_tenth_over_1000_steps_then_constant(step, share):
    assert learning_rate(gemma_scope(), step) == pytest.approx(7e-5 * share, rel=1e-12)


def test_the_warm_up_rises_all_the_way_and_joins_without_a_jump():
    config = gemma_scope()
    values = [learning_rate(config, step) for step in range(1001)]
    assert all(a < b for a, b in zip(values, values[1:], strict=False))
    assert values[1000] - values[999] < 1e-5 * values[1000]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (1, 1e-4), (2500, 0.25), (5000, 0.5), (9999, 0.9999), (10_000, 1.0), (976_562, 1.0)]
)
def test_gemma_scopes_sparsity_rises_linearly_over_10000_steps(step, factor):
    assert sparsity_factor(gemma_scope(), step) == pytest.approx(factor, rel=1e-12)


def test_the_decay_is_linear_over_the_last_part_and_would_be_zero_one_step_after_the_last():
    config = gemma_scope(tokens=4096 * 10_000, lr_decay_fraction=0.2)
    rate = config.learning_rate
    assert config.steps == 10_000
    assert learning_rate(config, 7_999) == learning_rate(config, 8_000) == rate
    assert learning_rate(config, 9_000) == pytest.approx(rate / 2)
    assert learning_rate(config, 9_500) == pytest.approx(rate / 4)
    assert learning_rate(config, 9_999) == pytest.approx(rate / 2000)
    assert learning_rate(config, 10_000) == 0
    tail = [learning_rate(config, step) for step in range(8_000, 10_001)]
    assert {round((a - b) / rate * 2000, 6) for a, b in zip(tail, tail[1:], strict=False)} == {1.0}


def test_a_schedule_without_warm_ups_is_flat():
    config = gemma_scope(lr_warmup_steps=0, sparsity_warmup_steps=0)
    assert {learning_rate(config, step) for step in (0, 1, 976_562)} == {7e-5}
    assert {sparsity_factor(config, step) for step in (0, 1, 976_562)} == {1.0}


@pytest.mark.parametrize(("steps", "fraction", "longer"), [(100, 0.5, 500), (800, 0.5, 800), (0, 1.0, 1000), (0, 0.0, 0)])
def test_of_the_two_sparsity_warm_ups_the_longer_one_counts(steps, fraction, longer):
    config = gemma_scope(tokens=4096 * 1000, sparsity_warmup_steps=steps, sparsity_warmup_fraction=fraction)
    assert [sparsity_factor(config, step) for step in range(1000)] == pytest.approx(
        [min(1, step / longer) if longer else 1 for step in range(1000)]
    )


def test_the_quick_template_warms_up_holds_and_decays():
    config = sae_config(load_template("quick").fields | dict(width=8, sparsity=1.0))
    values = [learning_rate(config, step) for step in range(config.steps)]
    assert values[0] == pytest.approx(config.learning_rate / 10) and max(values) == config.learning_rate
    assert 0 < values[-1] < config.learning_rate / 200
    assert sparsity_factor(config, config.steps - 1) == 1.0, "the sparsity asked for is reached"
