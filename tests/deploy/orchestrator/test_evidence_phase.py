"""Evidence as a phase of a sweep on Ray: from shards, by any number of actors, and from text once the shards are gone."""

import pytest
from support import tiny_sweep
from support.evidence_world import bytes_of
from support.tiny_sweep import planned, quiet

from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.evaluator.evidence.reader import evidence_of, own_page
from scopemill.proto.layout import SaeLayout

SMALL = {"top": 4, "samples": 2, "window": 16, "cofiring_rows": 3000}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text, harvests):
    folder = tmp_path_factory.mktemp("evidence")
    data = tiny_sweep.sweep(str(folder / "bucket"), text, evidence=SMALL | {"actors": 2})
    plan = planned(folder, data)
    harvests(plan)
    driver = SweepDriver(plan, quiet())
    with driver.targets:
        driver.train()
    return folder, data, plan


def made(folder, data, plan, actors: int, **more) -> dict:
    again = planned(folder, data | {"evidence": SMALL | {"actors": actors} | more})
    driver = SweepDriver(again, quiet())
    with driver.targets:
        assert driver.has_work(["evidence"])
        driver.evidence()
        assert not driver.has_work(["evidence"])
    return {sae.name: evidence_of(plan.bucket, sae.layout.root) for sae in plan.saes}


def test_one_and_two_actors_make_the_same_bytes_and_text_serves_without_shards(trained):
    folder, data, plan = trained
    by_two = made(folder, data, plan, 2)
    assert len(by_two) == 4 and all(e.record.source == "shards" and e.record.rows == 6144 for e in by_two.values())
    bytes_by_two = {name: bytes_of(e) for name, e in by_two.items()}
    for e in by_two.values():
        assert e.record.alive > 0 and "".join(
            e.vocabulary.pieces(e.examples(int(e.latents(["fired"]).column(0).to_numpy().argmax()))[0].tokens)
        )
        plan.bucket.remove_tree(SaeLayout(e.record.sae).evidence)
    assert {name: bytes_of(e) for name, e in made(folder, data, plan, 1).items()} == bytes_by_two
    damaged = next(iter(by_two.values()))
    plan.bucket.write(damaged.layout.examples, b"half")
    assert {name: bytes_of(e) for name, e in made(folder, data, plan, 1).items()} == bytes_by_two, "damaged evidence is made again"
    pages(folder, data, plan)
    layout = plan.passes[0].harvest.layout
    plan.bucket.remove_tree(layout.shards)
    plan.bucket.remove_tree(layout.commits)
    live = made(folder, data, plan, 2)
    assert all(e.record.source == "model" and e.record.dtype == "float32" for e in live.values())


def pages(folder, data, plan) -> None:
    """Pages come to evidence that is there."""
    evidence = made(folder, data, plan, 2, page=True)
    assert len(evidence) == 4
    for e in evidence.values():
        assert own_page(plan.bucket, e.record.sae) == f"{e.layout.page}/index.html"
