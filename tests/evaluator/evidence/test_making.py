"""The whole pass without Ray: shards to files, against a brute force, in any division, for every kind of SAE."""

import numpy as np
import pytest
import torch
from support.evidence_reference import expected
from support.evidence_world import CONFIG, CONTEXT, World, bytes_of
from support.finished_saes import KINDS, finished_sae
from support.finished_saes import rows as raw_rows

from scopemill.evaluator.evidence.encoding import Collector, Encoder
from scopemill.evaluator.evidence.ledger import Sizes
from scopemill.evaluator.evidence.logits import extremes
from scopemill.evaluator.evidence.making import count_shard
from scopemill.evaluator.evidence.parts import commit_part, committed_parts
from scopemill.proto.evidence import TOP


@pytest.mark.parametrize("kind", list(KINDS))
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


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    made: dict[tuple, World] = {}

    def world(kind: str, **options) -> World:
        key = (kind, *options.items())
        if key not in made:
            made[key] = World(tmp_path_factory.mktemp("world") / "bucket", kind, **options)
        return made[key]

    return world


@pytest.mark.parametrize("options", [{}, {"outliers": True}, {"dtype": "bfloat16"}], ids=["plain", "outliers", "bfloat16"])
@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
def test_evidence_is_the_brute_force_over_the_rows(worlds, kind, options):
    check(worlds(kind, **options))


@pytest.mark.parametrize(
    "kind", ["gated", "layer_norm", "transcoder_relu", "skip_transcoder_jumprelu", "crosscoder", "clt", "per_layer_transcoder"]
)
def test_every_kind_of_sae_has_evidence(worlds, kind):
    check(worlds(kind))


def check(world: World) -> None:
    evidence = world.make([[2, 0], [3], [1]])
    sizes = Sizes(CONFIG.top, CONFIG.samples, CONFIG.token_samples, CONFIG.window)
    tokens = {shard: text.tokens.ravel() for shard, text in world.text.items()}
    wanted = expected(world.firings, world.sae.sae.width, tokens, CONTEXT, sizes, CONFIG.seed)
    table = evidence.latents().to_pylist()
    assert evidence.record.rows == 400 and evidence.record.alive == sum(1 for of in wanted if of["fired"])
    for latent, of in enumerate(wanted):
        row, n = table[latent], of["fired"]
        assert (row["fired"], row["density"]) == (n, n / 400)
        if n:
            assert row["histogram_range"] == of["range"] and sum(row["histogram"]) == n
            assert abs(row["mean"] - of["sum"] / n) <= 1e-6 * row["mean"]
            assert row["std"] == pytest.approx(max(of["squares"] / n - (of["sum"] / n) ** 2, 0) ** 0.5, rel=1e-4, abs=1e-5)
        examples = evidence.examples(latent)
        top = [e for e in examples if e.interval == TOP]
        assert [e.value for e in top] == pytest.approx([value for value, *_ in of["top"]], rel=1e-5)
        assert len({(e.shard, e.sequence) for e in top}) == len(top), "contexts are distinct sequences"
        for e in examples:
            text = world.text[e.shard]
            inside = slice(e.start, e.start + CONFIG.window)
            assert e.tokens == text.tokens[e.sequence, inside].tolist()
            assert (e.document, e.position) == (
                text.document[e.sequence, e.start + e.peak],
                text.position[e.sequence, e.start + e.peak],
            )
            own = {f.place % CONTEXT - e.start: f.value for f in world.firings
                   if (f.latent, f.shard, f.place // CONTEXT) == (latent, e.shard, e.sequence)}  # fmt: skip
            assert e.activations == pytest.approx([own.get(i, 0.0) for i in range(CONFIG.window)], rel=1e-5, abs=1e-5)
            assert e.activations[e.peak] == e.value
            if e.interval != TOP:
                assert int(e.value * 8 / row["histogram_range"]) == e.interval


def test_any_division_over_actors_gives_the_same_bytes(worlds):
    world = worlds("jumprelu")
    one = bytes_of(world.make([[0, 1, 2, 3]]))
    for division in ([[3], [1], [0], [2]], [[2, 3], [1, 0]]):
        world.bucket.remove_tree(world.job().layout.root)
        assert bytes_of(world.make(division)) == one
    world.bucket.remove_tree(world.job().layout.root)
    assert bytes_of(world.make([[0, 1, 2, 3]], config_of_machine={"firings_at_once": 60})) == one, "in slices of latents"


def test_a_lost_part_is_the_only_work_that_is_done_again(worlds):
    world = worlds("topk")
    job = world.job()
    one = bytes_of(world.make([[0, 1], [2, 3]]))
    world.bucket.remove_tree(job.layout.root)
    (counted,), rows, sequences = count_shard(world.source(), 0, [world.sae], CONFIG, 400)
    commit_part(world.bucket, job.layout, [0], counted.ledger, counted.sample, rows, sequences)
    world.bucket.write(job.layout.ledger("00001-dead", 0), b"half a part, without a record")
    world.bucket.write(job.layout.part("00002-damaged"), b"{}")
    assert [part.shards for part in committed_parts(world.bucket, job.layout, range(4))] == [(0,)]
    assert bytes_of(world.make([[1], [3, 2]])) == one and not world.bucket.find(job.layout.work)


def test_cofiring_and_cosines_are_those_of_the_whole_matrices(worlds):
    world = worlds("jumprelu")
    evidence = world.make([[0, 1, 2, 3]])
    width = world.sae.sae.width
    fires = np.zeros((400, width))
    numbers = {key: i for i, key in enumerate(sorted({(f.shard, f.place) for f in world.firings}))}
    for f in world.firings:
        fires[numbers[f.shard, f.place], f.latent] = 1
    with np.errstate(invalid="ignore"):
        phi = np.corrcoef(fires.T)
    decoder = world.sae.sae.W_dec.double().numpy()
    cosine = (decoder @ decoder.T) / np.outer(*[np.linalg.norm(decoder, axis=1)] * 2)
    for latent, row in enumerate(evidence.latents().to_pylist()):
        for name, scores, matrix in (("cofiring_latents", "cofiring_phi", phi), ("nearest_latents", "nearest_cosines", cosine)):
            others = np.delete(matrix[latent], latent)
            best = np.sort(others[~np.isnan(others)])[::-1][: CONFIG.neighbours]
            best = best[best > 0] if name == "cofiring_latents" else best
            assert row[scores] == pytest.approx(best.tolist(), abs=1e-5) and latent not in row[name]
            assert [matrix[latent, other] for other in row[name]] == pytest.approx(row[scores], abs=1e-5)


def test_output_tokens_are_those_of_the_formula(worlds):
    world = worlds("jumprelu")
    evidence, out = world.make([[0, 1, 2, 3]]), world.readout()
    d = out.unembedding.shape[1]
    direction = torch.randn(5, d, dtype=torch.float64)
    logits = (direction * out.gain.double()) @ out.unembedding.double().T
    logits -= logits.mean(1, keepdim=True)
    promoted, suppressed, every, _ = extremes(direction.float(), out, 3)
    for row in range(5):
        order = logits[row].argsort(descending=True).tolist()
        assert every.tokens[row].tolist() == order[:3]
        assert promoted.tokens[row].tolist() == [id for id in order if id != 0][:3], "token 0 was never trained"
        assert suppressed.tokens[row].tolist() == [id for id in order[::-1] if id != 0][:3]
        assert promoted.values[row] == pytest.approx(logits[row][promoted.tokens[row]].numpy(), abs=1e-4)
    assert len(evidence.latent(0)["promoted_tokens"]) == 3
