"""Each field that a file may give changes the training, or is refused: found by changing every field of every kind in many settings."""

import hashlib

import pytest
import torch
from pydantic import ValidationError
from support import sparse_kinds

from scopemill.trainer.config.effects import switched_off
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import Recipe, kind_of, kinds
from scopemill.trainer.config.templates import templates
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

ROWS, STEPS = 16, 6
# Another value of each field than the usual one below.
OTHER = {
    "tokens": (STEPS + 2) * ROWS, "batch_size": ROWS // 2, "precision": "bfloat16", "normalization": "layer_norm", "learning_rate": 0.02,
    "lr_warmup_steps": 5, "lr_decay_fraction": 0.9, "initial_scale": "least_squares", "dead_after_tokens": ROWS * 3, "log_every": 3,
    "seed": 7, "adam_beta2": 0.5, "adam_epsilon": 1e-2, "clip_gradient": 1e-6, "sparsity_warmup_steps": 4, "sparsity_warmup_fraction":
    0.9, "pre_activation_coefficient": 0.3, "initial_threshold": 0.2, "initial_l0": 9.0, "bandwidth": 2.0, "frequency_limit": 0.05,
    "target_coefficient": 0.3, "tanh_scale": 9.0, "auxk_coefficient": 0.9, "auxk_latents": 1, "initial_decoder_bias": "mean", "prefixes":
    [0.25, 1.0], "skip_rank": 3, "resample_every": 2, "resample_until": 0.2, "adam_beta1": 0.9, "weight_decay": 0.5, "tied_weights": True,
    "prefix_coefficients": [0.1, 0.2, 0.3, 0.4, 1.0], "detached_prefixes": True,
}  # fmt: skip
# Read elsewhere: by the planner and by the checkpoints; parts of a batch are added up to the same gradient; a folder for `initial_sae`.
NOT_IN_THE_LOOP = {"architecture", "activation", "penalty", "input_site", "target_site", "checkpoint_every", "accumulate", "initial_sae"}
# Settings in which other fields may lose their effect.
SETTINGS = {
    "plain": {},
    "resampled": {"resample_every": 2},
    "no AuxK": {"auxk_coefficient": 0.0},
    "chosen L0": {"initial_l0": 5.0},
    "chosen L0, resampled": {"initial_l0": 5.0, "resample_every": 2},
    "long warm-up": {"sparsity_warmup_steps": 5},
    "long share": {"sparsity_warmup_fraction": 1.0},
}
# Each architecture with the latents that it usually has; three of them in every setting.
USUAL = {"standard": "relu", "gated": "gated", "topk": "topk", "batchtopk": "batchtopk", "matryoshka": "batchtopk"}
KINDS = {str(kind): kind for kind in kinds() if USUAL.get(kind.architecture, "jumprelu") == kind.latents and (
    kind.penalty in (None, "l0") or kind.architecture == "jumprelu")}  # fmt: skip
THOROUGH = ("standard", "topk", "jumprelu")


def section(kind, **changes) -> dict:
    counted = kind.latents in ("topk", "batchtopk")
    given = {
        "template": "quick", "architecture": kind.architecture, "activation": kind.latents, "widths": [32],
        "sparsities": [4 if counted else 6.0 if kind.penalty == "target_l0" else 0.3], "tokens": STEPS * ROWS, "batch_size": ROWS,
        "learning_rate": 0.01, "lr_warmup_steps": 1, "lr_decay_fraction": 0.2, "dead_after_tokens": ROWS, "checkpoint_every": 5,
        "log_every": 2, "initial_scale": "as_published", "initial_decoder_bias": "zero", "initial_threshold": 0.05, "bandwidth": 0.5,
        "sparsity_warmup_steps": 0, "sparsity_warmup_fraction": 0.0, "adam_beta1": 0.0,
    } | ({"penalty": kind.penalty} if kind.penalty else {})  # fmt: skip
    return {field: value for field, value in given.items() if field not in Recipe.model_fields or field in kind.reads} | changes


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(given: dict) -> str:
    """A digest of the weights, the optimizer's state and the history; ValidationError for what is refused."""
    (config,) = TrainConfig.model_validate(given).saes()
    shape = sparse_kinds.shape_of(config.architecture)
    generator = torch.Generator().manual_seed(1)
    mean = torch.full((shape.d_out,), 0.3)
    loop = Loop(initial_sae(config, shape, mean), config, History())
    with torch.no_grad():
        for name, parameter in loop.sae.named_parameters():
            if name in ("b_enc", "activation.b_gate"):
                parameter[: len(parameter) // 4] = -1.5 if config.counts_latents else -3.0  # a quarter of the latents is dead
    pool = torch.randn(STEPS * ROWS * 2, shape.d_in + shape.d_out, generator=generator) + 0.3
    for step in range(config.steps):
        rows = pool[step * config.batch_size :][: config.batch_size]
        loop.step(rows[:, : shape.d_in], None if shape.autoencoder else rows[:, shape.d_in :])
    digest = hashlib.sha256(repr([{**vars(row), "steps_per_second": 0, "waiting_share": 0} for row in loop.history.rows]).encode())
    for tensor in (*loop.sae.state_dict().values(), *loop.state().values()):
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", KINDS)
def test_every_field_changes_the_training_or_is_refused(name):
    kind, silent = KINDS[name], []
    for setting, options in SETTINGS.items():
        if not options.keys() <= kind.reads or (options and (kind.architecture not in THOROUGH or kind.penalty in ("tanh", "target_l0"))):
            continue
        base = section(kind, **options)
        base = {field: value for field, value in base.items() if field in options or field not in switched_off(base)}
        plain = trained(base)
        for field in sorted(kind.reads - NOT_IN_THE_LOOP - options.keys()):
            try:
                if trained(base | {field: OTHER[field]}) == plain:
                    silent.append((setting, field))
            except ValidationError:
                continue
    assert not silent


def test_the_table_of_other_values_is_complete():
    assert OTHER.keys() | NOT_IN_THE_LOOP == Recipe.model_fields.keys()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"resample_until": 0.3},
            r"resample_until \(0.3\) has no effect: without resample_every .*; leave resample_until out",
        ),
        (
            {"architecture": "topk", "sparsities": [4], "auxk_coefficient": 0, "auxk_latents": 9},
            r"auxk_latents \(9\) .*is 0",
        ),
        ({"initial_l0": 9.0, "initial_threshold": 0.1}, r"initial_threshold \(0.1\) has no effect: initial_l0 chooses"),
        ({"template": "anthropic-2025", "sparsity_warmup_steps": 1000}, r"sparsity_warmup_steps \(1000\) .*sparsity_warmup_fraction \(1\)"),
        ({"sparsity_warmup_fraction": 0.01, "sparsity_warmup_steps": 300}, r"sparsity_warmup_fraction \(0.01\) .*warmup_steps \(300\) is"),
        ({"initial_sae": "/sae", "initial_scale": "least_squares"}, r"initial_scale \('least_squares'\) .*initial_sae"),
        ({"initial_sae": "/sae", "seed": 3}, r"seed \(3\) has no effect: training starts from"),
        ({"variants": [{"resample_until": 0.3}, {}]}, r"variants\[0\].resample_until"),
        ({"resample_until": 0.3, "variants": [{}, {}]}, r"resample_until"),
    ],
)
def test_what_another_field_switches_off_is_refused_with_the_reason(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TrainConfig.model_validate({"template": "quick", "widths": [64], "sparsities": [0.1]} | given)


@pytest.mark.parametrize(
    "given",
    [
        {"resample_every": 9, "resample_until": 0.3},
        {"resample_until": 0.3, "variants": [{"resample_every": 9}, {}]},
        {"template": "anthropic-2025", "sparsity_warmup_fraction": 0.0, "sparsity_warmup_steps": 1000},
        {"template": "gemma-scope", "initial_l0": 40.0},
        {"initial_l0": 40.0, "initial_threshold": 0.1, "resample_every": 9},
        {"resample_until": None},
    ],
)
def test_what_has_an_effect_is_taken_and_what_is_written_out_is_read_again(given):
    config = TrainConfig.model_validate(
        {"template": "quick", "widths": [64], "sparsities": [0.1]} | {k: v for k, v in given.items() if v is not None}
    )
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert [grid.saes() for grid in again.grids.values()] == [grid.saes() for grid in config.grids.values()]


def test_every_template_with_every_kind_is_read_again_after_it_is_written_out():
    for template in templates():
        for kind in KINDS.values():
            fields = {"architecture": kind.architecture, "activation": kind.latents, "widths": [64], "sparsities": [4]}
            config = TrainConfig.model_validate({"template": template.name} | fields | ({"penalty": kind.penalty} if kind.penalty else {}))
            assert kind_of(config.filled) == kind
            assert TrainConfig.model_validate_json(config.model_dump_json()).saes() == config.saes()
