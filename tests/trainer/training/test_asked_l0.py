"""L0 is what was asked for: measured on rows that no step has seen, by the finished SAE."""

import pytest
import torch
from support.sae_reference import quick
from support.sparse_world import SparseWorld

from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

WORLD = SparseWorld(d=32, directions=64, active=3.0)


def held_out_l0(steps: int, **fields) -> float:
    fixed = dict(width=64, batch_size=256, tokens=256 * steps, initial_scale="least_squares", learning_rate=1e-2, dead_after_tokens=20_000)
    config = quick(**fixed | fields)
    loop = Loop(initial_sae(config, Shape.square(32), torch.zeros(32)), config, History())
    while not loop.done:
        loop.step(WORLD.batch(loop.step_number, 256))
    with torch.no_grad():
        latents = fold(loop.sae, [1.0], [1.0]).encode(WORLD.batch(10**6, 20_000))
    return (latents > 0).sum(1).float().mean().item()


@pytest.mark.parametrize(("architecture", "decay"), [("batchtopk", 0.3), ("batchtopk", 0.0), ("matryoshka", 0.3)])
def test_the_threshold_of_a_finished_batchtopk_lets_k_latents_fire(architecture, decay):
    assert held_out_l0(200, architecture=architecture, sparsity=4, lr_decay_fraction=decay) == pytest.approx(4, rel=0.03)


@pytest.mark.parametrize("wanted", [3.0, 6.0])
def test_target_l0_is_reached(wanted):
    thresholds = {"initial_threshold": 0.1, "bandwidth": 0.1, "sparsity_warmup_steps": 50}
    fields = {"architecture": "jumprelu", "penalty": "target_l0", "sparsity": wanted} | thresholds
    assert held_out_l0(400, **fields) == pytest.approx(wanted, rel=0.05)
