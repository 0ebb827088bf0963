"""The planner's arithmetic: Gemma Scope's own (arXiv 2408.05147), and operations as torch counts them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support import tiny_sweep
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from scopemill.deploy.cost.estimate import HARDWARE, Cost, Hardware, cost_of, forward_flops, named_hardware, step_flops
from scopemill.deploy.cost.memory import peaks
from scopemill.deploy.cost.sizes import model_size, sae_weights
from scopemill.deploy.demo.run import MODEL
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.harvester.config import ModelConfig
from scopemill.proto.errors import InputError
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae, objective_for

TIB, PIB = 2**40, 2**50
GEMMA_2 = {
    "2b": {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 9216},
    "9b": {"hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 14336},
    "27b": {
        "hidden_size": 4608, "num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16, "intermediate_size": 36864,
        "head_dim": 128,
    },
}  # fmt: skip


def config_only(folder: Path, size: str) -> str:
    """A Gemma 2 model's folder as the planner needs it: config.json and a tokenizer, no weights."""
    place = folder / f"gemma-2-{size}"
    if not place.exists():
        place.mkdir()
        config = json.loads((MODEL / "config.json").read_text())
        del config["layer_types"]
        config |= {"head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192, "sliding_window": 4096} | GEMMA_2[size]
        (place / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(MODEL / name, place)
    return str(place)


def cost(folder: Path, size: str, layers, sites: list[str], hardware: Hardware = HARDWARE["h100"], dtype="bfloat16", **train) -> Cost:
    text = tiny_sweep.write_text(folder, documents_wanted=1)
    data = tiny_sweep.sweep(str(folder / "bucket"), text) | {"model": config_only(folder, size), "server": {}, "evaluation": {}}
    data["harvest"] = {"layers": layers, "sites": sites, "tokens": 8_000_000_000, "dtype": dtype}
    data["train"] = {"template": "gemma-scope", "tokens": 8_000_000_000, "widths": [131072], "sparsities": [6e-4]} | train
    plan = plan_sweep(parse_sweep(data, "sweep.yaml"))
    return cost_of(plan, model_size(plan.config.model), hardware)


def test_one_site_of_9b_takes_104_tib_in_float32_and_this_design_a_few(tmp_path):
    as_published, shared, rolling = cost(tmp_path, "9b", [20], ["resid_post"], sparsities=[1e-4, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3]).paths
    assert as_published.on_disk / TIB == pytest.approx(104.3, abs=0.3)
    assert as_published.read / TIB == pytest.approx(6 * 104.3, abs=1)
    assert shared.on_disk == pytest.approx(as_published.on_disk / 2, rel=0.002)  # the labels are as large as ever
    assert shared.read * 12 == as_published.read and shared.served == shared.read * 6
    assert rolling.on_disk == 2 * 8 * 2**20 * (3584 * 2 + 16) < 0.12 * TIB
    assert rolling.read == shared.read


def test_an_sae_of_9b_at_45_ms_a_batch_takes_more_than_a_gibibyte_a_second(tmp_path):
    flops = step_flops(2 * 3584 * 131072, 4096)
    as_fast_as_published = Hardware(1.0, flops / 0.045 / 1e12, bandwidth=1e9, price=0, utilisation=1)
    as_published, shared, _ = cost(tmp_path, "9b", [20], ["resid_post"], as_fast_as_published).paths
    assert as_published.per_second / 2**30 == pytest.approx(4096 * 3584 * 4 / 0.045 / 2**30) == pytest.approx(1.215, abs=0.001)
    assert shared.per_second * 2 == as_published.per_second


def test_all_of_gemma_scope_takes_17_to_20_pib(tmp_path):
    sites = ["attn_z", "mlp_out", "resid_post"]
    parts = [("2b", "all", sites), ("9b", "all", sites), ("27b", [10, 22, 34], ["resid_post"])]
    stored = [cost(tmp_path, *part, dtype="float32").stages[0].kept / PIB for part in parts]
    assert 17 < sum(stored) < 20
    assert stored[0] == pytest.approx(26 * (2048 + 2304 + 2304) * 8e9 * 4 / PIB, rel=0.002)


@pytest.mark.parametrize("size, parameters", [("2b", 2.614e9), ("9b", 9.242e9), ("27b", 27.227e9)])
def test_a_model_is_measured_by_its_configuration_alone(tmp_path, size, parameters):
    measured = model_size(ModelConfig(name=config_only(tmp_path, size)))
    assert measured.layer * GEMMA_2[size]["num_hidden_layers"] + measured.head == pytest.approx(parameters, rel=0.001)


def test_a_forward_pass_has_the_operations_that_torch_counts(model):
    network = AutoModelForCausalLM.from_pretrained(model.name, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randint(3, 2000, (2, 128)))
    ours = 2 * 128 * forward_flops(model_size(model), layers=6, context=128, attention=6 * 32, head=True)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("architecture, shape", [("jumprelu", Shape.square(96)), ("transcoder", Shape((64,), (64,), False))])
def test_a_training_step_has_the_operations_that_torch_counts(architecture, shape):
    fields = {"template": "quick", "architecture": architecture, "tokens": 2048, "batch_size": 256, "widths": [512], "sparsities": [1e-3]}
    (config,) = TrainConfig.model_validate(fields).saes()
    sae = initial_sae(config, shape, torch.zeros(shape.d_out))
    rows = [torch.randn(256, d) for d in (shape.d_in, shape.d_out)]
    with FlopCounterMode(display=False) as counter:
        losses = objective_for(sae, config).losses(rows[0], rows[0] if shape.autoencoder else rows[1], torch.zeros(512, dtype=torch.bool))
        losses.total(config.sparsity).backward()
    weights = sae_weights(config, shape)
    assert weights == 512 * (shape.d_in + shape.d_out)
    # that of b_dec through the encoder is one vector's worth more for an SAE that subtracts it
    assert step_flops(weights, 256) == pytest.approx(counter.get_total_flops(), rel=0.21 if shape.autoencoder else 0.01)


def test_a_filter_of_outliers_doubles_the_evaluation(tmp_path):
    """With it FVU, L0 and delta loss are measured twice, and the rows that it keeps are found in a pass up to the last hook."""
    text = tiny_sweep.write_text(tmp_path, documents_wanted=1)

    def evaluation(**harvest):
        data = tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest=harvest, evaluation={"actors": 2})
        plan = plan_sweep(parse_sweep(data, "sweep.yaml"))
        return cost_of(plan, model_size(plan.config.model), HARDWARE["h100"]).stages[-1]

    plain, filtered = evaluation(), evaluation(outlier_norm=20.0)
    assert plain.tokens == (3 * 2 + 2 * 4 * 2) * 8 * 64 and filtered.tokens == 2 * plain.tokens + 2 * 8 * 64
    of_a_pass = plain.flops / (3 * 2 + 2 * 4 * 2)
    assert 2 * plain.flops < filtered.flops < 2 * plain.flops + 2 * of_a_pass


def test_a_stream_is_read_again_for_those_that_did_not_fit_into_one_turn(tmp_path):
    _, together, _ = cost(tmp_path, "2b", [5], ["mlp_out"], sparsities=[1e-4, 2e-4, 4e-4, 6e-4]).paths
    _, in_turns, _ = cost(tmp_path, "2b", [5], ["mlp_out"], sparsities=[1e-4, 2e-4, 4e-4, 6e-4], at_once=3).paths
    assert in_turns.read == 2 * together.read and in_turns.served == together.served


def test_a_group_takes_one_copy_and_makes_fewer_turns(tmp_path):
    sparsities = [1e-4, 2e-4, 4e-4, 6e-4, 1e-3]
    alone, together, _ = cost(tmp_path, "2b", [5], ["mlp_out"], sparsities=sparsities).paths
    _, in_groups, _ = cost(tmp_path, "2b", [5], ["mlp_out"], sparsities=sparsities, at_once=2, group=2).paths
    assert in_groups.read == 2 * together.read, "four of them, then the last"
    assert 5 * in_groups.served == 3 * together.served and alone.served == 2 * together.served


def test_hardware_is_of_the_table_or_as_given_and_sensible():
    assert named_hardware("h100", {"price": 2.5, "utilisation": None}) == Hardware(989, 67, 3.35, 2.5)
    with pytest.raises(InputError, match="--hardware 'abacus' is not known: choose one of l4, l40s, a100, h100, h200"):
        named_hardware("abacus", {})
    for field, value in (("utilisation", 1.5), ("bandwidth", 0), ("price", -1), ("float32_tflops", float("nan"))):
        with pytest.raises(InputError, match=f"--{field.replace('_', '-')} .* is impossible"):
            named_hardware("h100", {field: value})


def test_the_memory_of_each_process_is_told_and_an_evaluators_is_bounded_at_any_width(tmp_path):
    """At the defaults, 2^20 latents take under 2 GiB beside model, logits and SAE; 2^21 take no more."""
    text = tiny_sweep.write_text(tmp_path, documents_wanted=1)
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text) | {"model": config_only(tmp_path, "2b"), "server": {}, "evaluation": {}}
    data["harvest"] = {"layers": [12], "sites": ["resid_post"], "tokens": 2**23}
    data["train"] = {"template": "gemma-scope", "tokens": 2**23, "widths": [2**20], "sparsities": [6e-4]}
    plan = plan_sweep(parse_sweep(data, "sweep.yaml"))
    size = model_size(plan.config.model)
    told = {peak.process: peak for peak in peaks(plan, size)}
    assert list(told) == ["harvester", "server", "trainer", "evaluator"]
    assert told["harvester"].parts["shards"] == 2 * 2**20 * (2304 * 2 + 16)
    assert told["server"].bytes == 2**30
    assert told["trainer"].parts["SAEs"] == 3 * 4 * 2 * 2304 * 2**20
    evaluator = told["evaluator"].parts
    assert evaluator["SAE"] == 2 * 4 * 2 * 2304 * 2**20 and 2.5e9 * 4 < evaluator["model"] < 2.7e9 * 4
    assert evaluator["latents"] + evaluator["rows"] < 2 * 2**30
    data["train"]["widths"] = [2**21]
    wider = peaks(plan_sweep(parse_sweep(data, "sweep.yaml")), size)[-1].parts
    assert wider["latents"] <= evaluator["latents"] and wider["SAE"] == 2 * evaluator["SAE"]
