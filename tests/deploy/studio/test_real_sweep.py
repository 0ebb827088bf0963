"""A real sweep on Ray, started, watched, stopped, retried, evaluated and deleted through the service alone."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from support import tiny_sweep
from support.studio import Client, served

from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import Heartbeat

STEPS, PATIENCE = 4000, 600.0


@pytest.fixture
def on_the_sessions_cluster(ray_cluster, monkeypatch) -> None:
    """Drivers that the service starts are processes of their own; they join this session's cluster."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


def until(what: str, found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        assert time.monotonic() < deadline, f"{what} was not seen in {PATIENCE:.0f} s"
        time.sleep(0.3)
    return answer


def state(client: Client, id: str) -> dict[str, Any]:
    return client.get(f"/trainings/{id}")


def reaches(client: Client, id: str, *states: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        now = state(client, id)
        return now if now["state"] in states else None

    return until(f"{' or '.join(states)} of {id}", look)


@pytest.mark.timeout(1800)
def test_a_sweep_is_started_watched_stopped_retried_evaluated_and_deleted(tmp_path, text, on_the_sessions_cluster):
    place = str(tmp_path / "bucket")
    train = {"tokens": 256 * STEPS, "checkpoint_every": 100, "cpus": 0.1, "at_once": 2}
    evaluation = {"sequences": 4, "sequences_per_forward": 4, "checkpoints": "last"}
    data = tiny_sweep.sweep(place, text, harvest={"layers": [3]}, train=train, evaluation=evaluation)
    data["train"].pop("sparsities")
    with served(place) as client, client.events("training/*") as messages:
        started = client.post("/trainings/sweep", {"config": data, "sparsities": [1e-3, 1e-2], "template": "quick"})
        first, second = started["trainings"]
        assert next(one for one in client.get("/training-templates") if one["name"] == "quick")["uses"] == 1
        progress = next(message for _, message in messages if message["event"] == "progress" and message["data"]["loss"] is not None)
        assert progress["channel"] in (f"training/{first}", f"training/{second}") and progress["data"]["state"] == "running"

        asked = client.post(f"/trainings/{second}/stop")
        assert "process" in asked["driver"], "the driver at work carries it out"
        stopped = reaches(client, second, "stopped")
        assert 0 < stopped["progress"]["step"] < STEPS and state(client, first)["state"] in ("running", "completed")
        until("the end of the request", lambda: not state(client, second)["asked"])
        last_id, _ = next(messages)

    with served(place) as client, client.events("bucket", last_id) as messages:  # started again in mid-sweep
        assert next(messages)[1]["event"] == "resync"
        assert state(client, second)["state"] == "stopped" and state(client, first)["state"] in ("running", "completed")
        client.post(f"/trainings/{second}/retry")
        again = until("a further step", lambda: (now := state(client, second))["state"] == "running" and now)
        assert again["progress"]["step"] >= stopped["progress"]["step"], "it went on from its checkpoint"
        curve = client.get(f"/trainings/{second}/metrics?series=loss&points=50")["series"]["loss"]
        assert curve["steps"] == sorted(set(curve["steps"])) and len(curve["steps"]) > 2

        driver = _driver(place)
        os.kill(driver, signal.SIGKILL)  # it dies without a word
        lost = reaches(client, second, "stopped")
        assert "gone without a word" in lost["reason"] and lost["progress"]["step"] > 0
        client.post("/trainings/delete", {"ids": [first]})
        until("the deletion", lambda: client.get("/trainings")["total"] == 1)
        assert not [path for path in Bucket(place).find("saes") if path.startswith(_root(place, first))]

        answer = client.post(f"/trainings/{second}/evaluate", {"metrics": ["fvu"]}, 200)
        assert not answer["cached"] and answer["request"]["action"] == "evaluate", "a driver is started that evaluates alone"

        def look() -> dict[str, Any] | None:
            found = client.post(f"/trainings/{second}/evaluate", {"metrics": ["fvu"]}, 200)
            return found if found["cached"] else None

        measured = until("the evaluation", look)
        assert 0 < measured["metrics"]["fvu"] < 2
        reaches(client, second, "stopped")  # once the driver that evaluated has ended


def _driver(place: str) -> int:
    bucket = Bucket(place)
    newest = max(name for name in bucket.names("leases/sweeps/tiny") if name.endswith(".beat"))
    beat = Heartbeat.parse(bucket.read(f"leases/sweeps/tiny/{newest}"))
    assert beat and not beat.released
    return beat.holder.pid


def _root(place: str, id: str) -> str:
    from scopemill.deploy.plan.record import read_plan_of

    record = read_plan_of(Bucket(place), "tiny")
    return next(sae.root for sae in record.saes if id.endswith(sae.name.replace("/", ":")))
