"""An actor counts many SAEs in the memory it is given, and reads shards once for all that fit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.evidence_world import BOS, CONFIG, CONTEXT, SHARDS, World, bytes_of
from support.finished_saes import rows as raw_rows

from scopemill.evaluator.evidence import actor
from scopemill.evaluator.evidence.actor import EvidenceMaker
from scopemill.evaluator.evidence.encoding import Encoder, Scratch
from scopemill.evaluator.evidence.jobs import job_of, shard_rows
from scopemill.evaluator.evidence.making import bytes_held
from scopemill.evaluator.evidence.reader import Evidence
from scopemill.proto.storage.bucket import Bucket


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path / "bucket", "jumprelu")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The chunks of rows that were read, and the ranges of evidence."""
    seen: list[str] = []
    into, ranged = Bucket.read_into, Bucket.read_range

    def read_into(self, path, *rest):
        seen.append(path)
        return into(self, path, *rest)

    def read_range(self, path, *rest):
        seen.append(path)
        return ranged(self, path, *rest)

    monkeypatch.setattr(Bucket, "read_into", read_into)
    monkeypatch.setattr(Bucket, "read_range", read_range)
    return seen


def counted(world: World, monkeypatch, saes: int, memory_gib: float) -> list:
    """Count shards for jobs of one SAE under several settings, as for several SAEs of a hook."""
    monkeypatch.setattr(actor, "load", lambda job, card: world.sae)
    rows = shard_rows(world.bucket, "d", "d")
    assert rows is not None
    jobs = [job_of(world.bucket.url, world.root, rows, CONFIG.model_copy(update={"seed": seed})) for seed in range(saes)]
    config = CONFIG.model_copy(update={"memory_gib": memory_gib})
    maker = EvidenceMaker(rows, None, SimpleNamespace(special=[BOS]), config)
    assert maker.count((tuple(jobs), (2, 0, 3, 1))) == SHARDS
    return jobs


@pytest.mark.parametrize(("fit", "reads"), [(8, 1), (3, 3), (1, 8), (0, 8)])
def test_shards_are_read_once_for_all_saes_that_fit(world, monkeypatch, read, fit, reads):
    held = bytes_held(world.sae, CONFIG, CONTEXT, 100)
    jobs = counted(world, monkeypatch, 8, (fit + 0.5) * held / 2**30)
    chunks = [path for path in read if world.sae.inputs[0] in path]
    assert len(set(chunks)) == SHARDS and len(chunks) == reads * SHARDS
    assert all(world.bucket.names(job.layout.parts) for job in jobs)


def test_a_budget_for_one_sae_at_a_time_changes_no_byte(world, monkeypatch):
    one = bytes_of(world.make([[0, 1, 2, 3]]))
    world.bucket.remove_tree(world.job().layout.root)
    counted(world, monkeypatch, 2, 1e-6)
    assert bytes_of(world.make([])) == one


def test_saes_of_any_width_share_the_memory_of_products(world):
    """A narrow SAE after a wide one finds what it finds alone."""
    sae = world.sae.sae
    scratch = Scratch()
    wide, shared, alone = scratch.matrix(64, 10 * sae.width, sae.b_dec).fill_(7), Encoder(sae, scratch), Encoder(sae)
    x = raw_rows(sae)[:64]
    assert all(np.array_equal(a, b) for a, b in zip(shared(x), alone(x), strict=True))
    assert scratch.matrix(8, 8, sae.b_dec).data_ptr() == wide.data_ptr()


def test_memory_does_not_grow_with_tokens(world):
    """A ledger of ten times the shards takes no more than its slots hold: what grows is bounded by them."""
    from scopemill.evaluator.evidence.making import count_shard

    (of_shard,), _, _ = count_shard(world.source(), 0, [world.sae], CONFIG, 400)
    whole = of_shard.ledger
    sizes = [whole.nbytes]
    for shard in range(1, 40):
        again = replace(of_shard.ledger, shards=np.where(of_shard.ledger.shards >= 0, shard, -1).astype(np.int32))
        whole = whole.merged(again)
        sizes.append(whole.nbytes)
    assert sizes[39] <= 1.05 * sizes[3]


def test_a_latents_page_is_one_request_after_the_record(world, read):
    world.make([[0, 1, 2, 3]])
    evidence = Evidence.open(world.bucket, world.root, world.job().layout.root.rsplit("/", 1)[1])
    latent = int(evidence.latents(["fired"]).column(0).to_numpy().argmax())
    read.clear()
    assert evidence.examples(latent)
    assert [path.rsplit("/", 1)[1] for path in read] == ["examples.arrow"]
