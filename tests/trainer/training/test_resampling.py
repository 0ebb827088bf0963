"""Dead latents drawn anew: where they point, that they fire, and that nothing else is touched."""

import numpy as np
import pytest
import torch
from support.sae_reference import CASES, B, Case

from scopemill.trainer.sae.base import Sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.optimizer import Optimizer
from scopemill.trainer.training.resampling import due, resample

NAMES = ("standard", "jumprelu l0", "jumprelu layer norm", "matryoshka jumprelu", "skip jumprelu")
EVERY = pytest.mark.parametrize("name", NAMES)


def prepared(case: Case, dead: torch.Tensor, high: float = 50.0) -> tuple[Sae, Optimizer, torch.Tensor]:
    """An SAE whose dead latents are dead for every reason there is, its optimiser with moments, and a batch with an offset."""
    sae = case.sae(torch.float32)
    with torch.no_grad():
        sae.b_enc[dead] = -high
        if case.config.latents == "jumprelu":
            sae.activation.threshold[dead] = high
    optimizer = Optimizer(sae, case.config.model_copy(update={"adam_beta1": 0.9}))
    for moments in (optimizer.first_moments, optimizer.second_moments):
        for moment in moments.values():
            moment.fill_(0.5)
    x = case.rows[0].float()
    return sae, optimizer, 5 * x + 3 if sae.layer_norm else x


def drawn(case: Case, dead: torch.Tensor, step: int = 100):
    sae, optimizer, x = prepared(case, dead)
    resample(sae, optimizer, x, dead, case.config, step)
    return sae, optimizer, x


DEAD = torch.arange(20) % 6 == 2


@EVERY
def test_living_latents_and_what_all_share_are_not_touched(name):
    case = CASES[name]
    before, _, _ = prepared(case, DEAD)
    after, optimizer, _ = drawn(case, DEAD)
    for (parameter, p), q in zip(after.named_parameters(), before.parameters(), strict=True):
        of_latents = parameter in ("W_enc", "b_enc", "W_dec", "activation.threshold")
        kept = ~DEAD if of_latents else slice(None)
        assert torch.equal(p[kept], q[kept]), parameter
        for moments in (optimizer.first_moments, optimizer.second_moments):
            assert (moments[parameter][kept] == 0.5).all() and not (of_latents and moments[parameter][DEAD].any()), parameter
        if of_latents:
            assert not torch.equal(p[DEAD], q[DEAD]), parameter


@EVERY
def test_a_drawn_latent_points_at_a_row_and_fires_on_it(name):
    case = CASES[name]
    sae, _, x = drawn(case, DEAD)
    if sae.layer_norm:
        x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    directions = (x - sae.b_dec).detach()
    directions /= directions.norm(dim=1, keepdim=True)
    cosines = sae.W_dec[DEAD].detach() @ directions.T
    np.testing.assert_allclose(cosines.max(dim=1).values, 1, rtol=1e-4)
    np.testing.assert_allclose(sae.W_dec[DEAD].detach().norm(dim=1), 1, rtol=1e-5)
    share = 0.2 * sae.W_enc[~DEAD].detach().norm(dim=1).mean()
    np.testing.assert_allclose(sae.W_enc[DEAD].detach(), share * sae.W_dec[DEAD].detach(), rtol=1e-5)
    fires = sae.encode(x)[cosines.argmax(dim=1), DEAD.nonzero()[:, 0]]
    assert (fires > 0).all()


def test_rows_are_drawn_by_the_square_of_their_loss():
    """With one row of a hundredfold loss among many, that one is taken first; with a loss in proportion it would not always be."""
    case, one_dead = CASES["standard"], torch.arange(20) == 7
    for step in range(20):
        sae, optimizer, x = prepared(case, one_dead)
        x[5] = 40 * x[5].sign()
        resample(sae, optimizer, x, one_dead, case.config, step)
        direction = (x[5] - sae.b_dec).detach()
        assert torch.cosine_similarity(sae.W_dec[7].detach(), direction, dim=0) > 0.999


def test_drawing_is_a_function_of_seed_and_step_alone():
    case = CASES["jumprelu l0"]
    one, again, later = (drawn(case, DEAD, step)[0].state_dict() for step in (100, 100, 101))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["W_dec"], later["W_dec"])


def test_more_dead_latents_than_rows_and_none_at_all_are_no_trouble():
    case, everything = CASES["jumprelu l0"], torch.ones(20, dtype=torch.bool)
    sae, optimizer, x = prepared(case, everything)
    resample(sae, optimizer, x[:4], everything, case.config, 1)
    assert all(p.isfinite().all() for p in sae.parameters())
    np.testing.assert_allclose(sae.W_dec.detach().norm(dim=1), 1, rtol=1e-5)
    before = {name: p.clone() for name, p in sae.state_dict().items()}
    resample(sae, optimizer, x, ~everything, case.config, 1)
    assert all(torch.equal(p, before[name]) for name, p in sae.state_dict().items())


def test_a_perfect_reconstruction_leaves_nothing_to_draw_from_and_is_no_trouble():
    case = CASES["standard"]
    sae, optimizer, _ = prepared(case, DEAD)
    with torch.no_grad():
        sae.W_dec.zero_()
    x = sae.b_dec.detach().expand(B, -1).clone()
    resample(sae, optimizer, x, DEAD, case.config, 1)
    assert all(p.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize(
    ("every", "until", "steps"), [(None, 0.5, []), (10, 0.5, [10, 20, 30, 40, 50]), (30, 1.0, [30, 60, 90]), (30, 0.5, [30]), (60, 0.5, [])]
)
def test_latents_are_drawn_every_so_many_steps_up_to_a_share_of_them(every, until, steps):
    config = CASES["standard"].config.model_copy(update=dict(tokens=100 * B, batch_size=B, resample_every=every, resample_until=until))
    assert [step for step in range(1, config.steps + 1) if due(config, step)] == steps


def test_the_loop_draws_what_is_dead_and_counts_its_tokens_from_there():
    config = CASES["jumprelu l0"].config.model_copy(
        update=dict(tokens=20 * B, batch_size=B, dead_after_tokens=3 * B, resample_every=4, resample_until=0.2, learning_rate=1e-9)
    )
    loop = Loop(prepared(CASES["jumprelu l0"], DEAD)[0], config, History())
    x = CASES["jumprelu l0"].rows[0].float()
    before = loop.sae.W_dec.detach() / loop.sae.W_dec.detach().norm(dim=1, keepdim=True)
    for _ in range(3):
        loop.step(x)
    assert loop.dead.tolist() == DEAD.tolist() and torch.allclose(loop.sae.W_dec, before, atol=1e-5)
    loop.step(x)
    assert not loop.tokens_since_fired[DEAD].any() and not torch.allclose(loop.sae.W_dec[DEAD], before[DEAD], atol=0.1)
    loop.step(x)
    assert not loop.tokens_since_fired[DEAD].any(), "they fire"
