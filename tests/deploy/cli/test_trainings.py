"""The command ``scopemill trainings``: with a driver it asks, without one it does."""

import pytest
from support.studio import write_sweep
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.deploy.plan.requests import read_requests
from scopemill.deploy.plan.withdrawn import read_withdrawn
from scopemill.proto.errors import InputError
from scopemill.proto.layout import LeaseLayout
from scopemill.proto.storage.lease import Lease


def run(*words: str) -> str:
    return CliRunner().invoke(app, ["trainings", *words], catch_exceptions=False).output.replace("\n", "")


@pytest.fixture
def sweep(bucket):
    return write_sweep(bucket, "one", saes=3, finished=1)


def test_without_a_driver_it_is_done_at_once(bucket, sweep):
    finished, half_way, _ = sweep.saes
    ids = [f"one:{sae.name.replace('/', ':')}" for sae in sweep.saes]
    assert "done" in run("stop", bucket.url, *ids[1:])
    assert set(read_withdrawn(bucket, "one")) == {sae.name for sae in sweep.saes[1:]}
    assert "scopemill sweep" in run("retry", bucket.url, ids[1])
    assert set(read_withdrawn(bucket, "one")) == {sweep.saes[2].name}
    run("delete", bucket.url, ids[0])
    assert not bucket.exists(finished.layout.config) and bucket.exists(half_way.layout.history)
    assert read_requests(bucket, "one") == []


def test_a_driver_at_work_is_asked(bucket, sweep):
    lease = Lease(bucket, LeaseLayout.sweep("one"), "sweep one")
    assert lease.attempt() is None
    try:
        assert "asked its driver" in run("stop", bucket.url, f"one:{sweep.saes[1].name.replace('/', ':')}")
        (request,) = read_requests(bucket, "one")
        assert request.action == "stop" and request.saes == (sweep.saes[1].name,)
    finally:
        lease.release()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["melt", "one:x"], "choose from stop, retry, delete, evaluate"),
        (["stop", "one"], "<sweep>:<name>"),
        (["stop", "one:x"], "no training x"),
    ],
)
def test_what_cannot_be_done_is_told(bucket, sweep, words, sentence):
    with pytest.raises(InputError, match=sentence):
        run(words[0], bucket.url, *words[1:])
    assert read_requests(bucket, "one") == []
