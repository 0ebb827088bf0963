"""A real sweep on Ray, from the page's form to a deleted training: clicked, and asked through the service, which ends in mid-sweep.

Drivers that the service starts are processes of their own. One is killed, one evaluates alone, and the last goes on to the end.
"""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from support import tiny_sweep
from support.browser import page_of
from support.studio import TOKEN, Client, served

from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.heartbeat import Heartbeat

log = logging.getLogger(__name__)
STEPS, NAME = 4000, "clicked"
FIRST, SECOND = (f"{NAME}:1.resid_post:256:jumprelu:{sparsity}" for sparsity in ("0.001", "0.01"))
LONG = 600_000  # milliseconds for what Ray does on a busy machine


@pytest.fixture
def on_the_sessions_cluster(ray_cluster, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@contextmanager
def step(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    log.info("%s: %.1f s", what, time.monotonic() - began)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_sweep_is_started_watched_stopped_retried_evaluated_steered_and_deleted(browser, tmp_path, text, on_the_sessions_cluster):
    from playwright.sync_api import expect

    bucket = Bucket(str(tmp_path / "bucket"))
    with page_of(browser) as page:
        with served(bucket.url) as client, client.events("training/*") as messages:
            with step("a sweep is started by the form"):
                start_by_the_form(page, client, bucket, text)
            with step("its progress comes live"):
                last_id = watch(page, client, messages)
            with step("a training is stopped"):
                stopped = stop(page, client)
        page.get_by_text("The service does not answer; what is shown may be old.").wait_for()
        with served(bucket.url, port=int(client.url.rsplit(":", 1)[1])) as client, client.events("bucket", last_id) as messages:
            assert next(messages)[1]["event"] == "resync", "the service was started again in mid-sweep"
            page.get_by_text("The service does not answer").first.wait_for(state="detached")
            with step("it is retried, and its driver is killed"):
                retry_until_the_driver_dies(page, client, bucket, stopped)
            with step("the other is deleted without a driver"):
                client.post("/trainings/delete", {"ids": [FIRST]})
                page.goto(f"{client.url}/#/trainings?sweep={NAME}")
                expect(page.locator("article")).to_have_count(1, timeout=LONG)
                deadline = time.monotonic() + LONG / 1000
                while [path for path in bucket.find("saes") if "/0.001-" in path]:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            with step("a driver evaluates alone"):
                evaluate_alone(client)
            with step("a driver goes on to the end"):
                retry_to_the_end(page, client)
            with step("latents and steering"):
                look_and_steer(page)
            with step("it is deleted"):
                page.goto(f"{client.url}/#/trainings?sweep={NAME}")
                page.locator("article").get_by_role("checkbox").first.check()
                page.get_by_role("button", name="Delete…").click()
                page.get_by_role("dialog").get_by_role("button", name="Delete 1").click()
                page.get_by_text("No training matches these filters.").wait_for(timeout=LONG)


def start_by_the_form(page: Any, client: Client, bucket: Bucket, text: Any) -> None:
    train = {"tokens": 256 * STEPS, "checkpoint_every": 100, "cpus": 0.1, "at_once": 2}
    evaluation = {"sequences": 4, "sequences_per_forward": 4, "checkpoints": "last"}
    content = tiny_sweep.sweep(bucket.url, text, harvest={"layers": [1]}, train=train, evaluation=evaluation)
    given = {name: value for name, value in content.items() if name not in ("name", "bucket")} | {"evidence": {"cofiring_rows": 2048}}
    client.post("/training-templates", {"name": "tiny", "config": given}, status=201)
    page.goto(f"{client.url}/#token={TOKEN}")
    page.get_by_role("link", name="Start a training").click()
    page.get_by_label("Begin with a template").select_option("tiny")
    page.locator("[id='field-name']").fill(NAME)
    page.get_by_text("Every field is valid.").wait_for()
    page.locator("aside dl.figures").wait_for(timeout=LONG)
    with page.expect_request("**/api/v1/trainings/sweep", timeout=LONG) as asked:  # two sparsities are a sweep
        page.get_by_role("button", name="Start", exact=True).click()
    assert asked.value.post_data_json["sparsities"] == [1e-3, 1e-2]
    page.get_by_role("heading", name=NAME).wait_for(timeout=LONG)
    assert client.get("/training-templates/tiny")["uses"] == 1


def watch(page: Any, client: Client, messages: Iterator[tuple[str, dict[str, Any]]]) -> str:
    """The id of the last message that was heard."""
    page.get_by_role("link", name="Show as cards").click()
    card = page.locator("article", has=page.get_by_text("sparsity 0.01", exact=False))
    card.get_by_text("running", exact=True).wait_for(timeout=LONG)
    card.locator(".spark path").first.wait_for(state="attached", timeout=LONG)
    card.get_by_role("link").click()
    last_id, message = next((id, one) for id, one in messages if one["event"] == "progress" and one["data"]["loss"] is not None)
    assert message["channel"] in (f"training/{FIRST}", f"training/{SECOND}") and message["data"]["state"] == "running"
    assert "process" in client.get(f"/trainings/sweep/{NAME}")["driver"]
    return last_id


def stop(page: Any, client: Client) -> int:
    """The step at which it was stopped."""
    page.get_by_role("button", name="Stop").click()
    page.locator("h1").get_by_text("stopped", exact=True).wait_for(timeout=LONG)
    now = client.until(SECOND, "stopped", lambda now: not now["asked"])
    assert 0 < now["progress"]["step"] < STEPS and client.get(f"/trainings/{FIRST}")["state"] in ("running", "completed")
    return now["progress"]["step"]


def retry_until_the_driver_dies(page: Any, client: Client, bucket: Bucket, stopped: int) -> None:
    page.get_by_role("button", name="Retry").click()
    client.until(SECOND, "running", lambda now: now["progress"]["step"] >= stopped)  # it goes on from its checkpoint
    curve = client.get(f"/trainings/{SECOND}/metrics?series=loss&points=50")["series"]["loss"]
    assert curve["steps"] == sorted(set(curve["steps"])) and len(curve["steps"]) > 2
    os.kill(driver_of(bucket), signal.SIGKILL)
    page.locator("h1").get_by_text("stopped", exact=True).wait_for(timeout=LONG)
    page.get_by_text("gone without a word").first.wait_for(timeout=LONG)
    assert client.get(f"/trainings/{SECOND}")["progress"]["step"] > 0


def evaluate_alone(client: Client) -> None:
    asked = client.post(f"/trainings/{SECOND}/evaluate", {"metrics": ["fvu"]}, 200)
    assert not asked["cached"] and asked["request"]["action"] == "evaluate"
    client.until(SECOND, "stopped", lambda now: now["quality"] is not None)  # once that driver has ended, too
    measured = client.post(f"/trainings/{SECOND}/evaluate", {"metrics": ["fvu"]}, 200)
    assert measured["cached"] and 0 < measured["metrics"]["fvu"] < 2


def retry_to_the_end(page: Any, client: Client) -> None:
    page.locator("article").get_by_role("link").first.click()
    page.get_by_role("button", name="Retry").click()
    page.locator("h1").get_by_text("completed", exact=True).wait_for(timeout=LONG)
    assert client.get(f"/trainings/{SECOND}")["progress"]["step"] == STEPS
    page.get_by_text(f"of the checkpoint at step {STEPS:,}").wait_for(timeout=LONG)
    page.get_by_role("button", name="Evaluate").click()
    page.get_by_text("All of them were measured already.").wait_for()


def look_and_steer(page: Any) -> None:
    from playwright.sync_api import expect

    page.get_by_role("link", name="Browse latents").click(timeout=LONG)
    page.get_by_role("region", name="Latents, a table").get_by_role("link").first.click()
    page.get_by_role("heading", name="Top contexts").wait_for()
    page.get_by_role("link", name="Steer with it").click()
    page.get_by_role("textbox", name="Prompt").fill("def read(")
    page.get_by_role("textbox", name="Tokens").fill("6")
    page.get_by_role("button", name="Steer", exact=True).click()
    page.get_by_text("Steering: completed").wait_for(timeout=LONG)
    columns = page.locator(".beside section")
    expect(columns).to_have_count(3)
    assert "KL (nats a token)" in columns.nth(1).inner_text()


def driver_of(bucket: Bucket) -> int:
    newest = max(name for name in bucket.names(f"leases/sweeps/{NAME}") if name.endswith(".beat"))
    beat = Heartbeat.parse(bucket.read(f"leases/sweeps/{NAME}/{newest}"))
    assert beat and not beat.released
    return beat.holder.pid
