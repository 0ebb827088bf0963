"""The studio's page over a real sweep on Ray: everything from the form to a deleted training, by clicking."""

import pytest
from support.browser import page_of
from support.studio import TOKEN, served
from support.tiny_sweep import sweep

from scopemill.proto.storage.bucket import Bucket

STEPS = 1000
LONG = 600_000  # milliseconds for what Ray does on a busy machine


@pytest.mark.services
@pytest.mark.timeout(1800)
def test_a_sweep_is_started_watched_stopped_retried_evaluated_steered_and_deleted(browser, tmp_path, text):
    from playwright.sync_api import expect

    bucket = Bucket(str(tmp_path / "bucket"))
    content = sweep(
        bucket.url, text, harvest={"layers": [1]}, train={"tokens": 256 * STEPS, "sparsities": [1e-3, 1e-2], "checkpoint_every": 100}
    )
    given = {name: value for name, value in content.items() if name not in ("name", "bucket")} | {"evidence": {"cofiring_rows": 2048}}
    with served(bucket.url) as client, page_of(browser) as page:
        client.post("/training-templates", {"name": "tiny", "config": given}, status=201)
        page.goto(f"{client.url}/#token={TOKEN}")
        page.get_by_role("link", name="Start a training").click()
        page.get_by_label("Begin with a template").select_option("tiny")
        page.locator("[id='field-name']").fill("clicked")
        page.get_by_text("Every field is valid.").wait_for()
        page.locator("aside dl.figures").wait_for(timeout=LONG)
        page.get_by_role("button", name="Start", exact=True).click()

        page.get_by_role("heading", name="clicked").wait_for(timeout=LONG)
        page.get_by_role("link", name="Show as cards").click()
        card = page.locator("article", has=page.get_by_text("sparsity 0.001", exact=False))
        card.get_by_text("running", exact=True).wait_for(timeout=LONG)
        card.locator(".spark path").first.wait_for(state="attached", timeout=LONG)
        card.get_by_role("link").click()
        page.get_by_role("button", name="Stop").click()
        page.locator("h1").get_by_text("stopped", exact=True).wait_for(timeout=LONG)

        page.get_by_role("button", name="Retry").click()
        page.locator("h1").get_by_text("completed", exact=True).wait_for(timeout=LONG)
        assert client.get("/trainings?sweep=clicked&state=completed&text=0.001")["items"][0]["progress"]["step"] == STEPS
        page.get_by_text(f"of the checkpoint at step {STEPS:,}").wait_for(timeout=LONG)
        page.get_by_role("button", name="Evaluate").click()
        page.get_by_text("All of them were measured already.").wait_for()

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

        page.goto(f"{client.url}/#/trainings?sweep=clicked")
        page.locator("article").get_by_role("checkbox").first.check()
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete 1").click()
        expect(page.locator("article")).to_have_count(1, timeout=LONG)
