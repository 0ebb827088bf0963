"""The whole pass without Ray: shards to files, against a brute force, in any division, for every kind of SAE."""

import numpy as np
import pytest
import torch
from support.finished_saes import KINDS, finished_sae
from support.finished_saes import rows as raw_rows

from scopemill.evaluator.evidence.encoding import Collector, Encoder

FIRING_KINDS = [kind for kind in KINDS]


@pytest.mark.parametrize("kind", FIRING_KINDS)
def test_firings_are_those_of_the_sae_itself(kind):
    sae = finished_sae(kind).sae
    x = raw_rows(sae)
    latents = sae.encode(x)
    places = np.random.default_rng(0).permutation(1000)[: len(x)]
    whole = Collector(0, sae.width, room=16)
    encoder = Encoder(sae)
    for start in range(0, len(x), 64):
        whole.add(places[start : start + 64], encoder(x[start : start + 64]))
    firings = whole.firings()
    dense = torch.zeros(1000, sae.width)
    of_latent = np.repeat(np.arange(sae.width), np.diff(firings.starts))
    dense[firings.places, of_latent] = torch.from_numpy(firings.values)
    assert torch.allclose(dense[places], latents, rtol=1e-5, atol=1e-5)
    assert all(np.all(np.diff(firings.places[a:b]) > 0) for a, b in zip(firings.starts, firings.starts[1:], strict=False))
    part = Collector(7, 19)
    part.add(places, encoder(x))
    sliced = part.firings()
    assert np.array_equal(np.diff(sliced.starts), np.diff(firings.starts)[7:19])
    assert np.array_equal(sliced.places, firings.places[firings.starts[7] : firings.starts[19]])
