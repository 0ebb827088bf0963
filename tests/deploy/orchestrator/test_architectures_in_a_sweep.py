"""Every kind of wiring through a whole sweep: SAEs of one hook, transcoders, crosscoders and cross-layer transcoders."""

import numpy as np
import pytest
from support import tiny_sweep
from support.tiny_sweep import planned, quiet

from scopemill.deploy.catalog.status import read_status
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.proto.errors import InputError, SweepFileError
from scopemill.trainer import load_sae

SITES = {"sites": ["mlp_in", "mlp_out"], "dataset": "paired"}
KINDS = {
    "batchtopk": ({"sparsities": [8]}, 4),
    "skip_transcoder": ({"activation": "topk", "sparsities": [8]}, 2),
    "crosscoder": ({"sparsities": [1e-3]}, 2),
    "clt": ({"sparsities": [1e-3]}, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One bucket, so that the activations are harvested once for all of the sweeps."""
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.parametrize("architecture", KINDS)
def test_a_sweep_of_each_kind_ends_with_saes_that_load(ray_cluster, folder, text, architecture):
    changes, count = KINDS[architecture]
    train = {"architecture": architecture} | changes
    plan = planned(folder, tiny_sweep.sweep(str(folder / "bucket"), text, harvest=SITES, train=train))
    driver = SweepDriver(plan, quiet())
    driver.harvest()
    driver.train()
    driver.evaluate()
    status = read_status(plan.bucket, plan.record)
    assert len(status.saes) == count and not driver.has_work(("harvest", "train", "evaluate"))
    for planned_sae, state in zip(plan.saes, status.saes, strict=True):
        results = [e.result for e in state.evaluations]
        assert [r.step for r in results] == [16, 24]
        assert results[-1].fvu < 1.5 and results[-1].architecture == architecture  # after 24 steps; unscaled or crossed hooks give far more
        assert np.isfinite(results[-1].delta_loss) and 0 < results[-1].l0 < 256 * len(planned_sae.inputs)
        sae = load_sae(plan.bucket.place(planned_sae.layout.root))
        assert (sae.shape.d_in, sae.shape.d_out) == (192 * len(planned_sae.inputs), 192 * len(planned_sae.targets or planned_sae.inputs))


@pytest.mark.parametrize(
    ("harvest", "train", "sentence"),
    [
        ({"sites": ["mlp_in"]}, {"architecture": "transcoder"}, "train.target_site: a transcoder needs the site 'mlp_out'"),
        ({"sites": ["resid_post"]}, {"architecture": "clt"}, "train.input_site: a clt needs the site 'mlp_in'"),
        (
            {"layers": [1]},
            {"architecture": "crosscoder"},
            "train.architecture: a crosscoder spans layers, and resid_post is harvested at one",
        ),
        ({}, {"architecture": "topk", "sparsities": [300]}, "k here: a whole number from 1 to the width .256."),
        ({}, {"architecture": "topk", "sparsities": [2.5]}, "k here: a whole number from 1 to the width .256."),
        ({}, {"architecture": "jumprelu", "activation": "topk"}, "activation: jumprelu has its own"),
        ({}, {"architecture": "transcoder", "target_site": "mlp_in"}, "reconstructs another site than the one it reads"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_starts(tmp_path, text, harvest, train, sentence):
    with pytest.raises((InputError, SweepFileError), match=sentence):
        planned(tmp_path, tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest=harvest, train=train))
    assert not (tmp_path / "bucket" / "activations").exists()
