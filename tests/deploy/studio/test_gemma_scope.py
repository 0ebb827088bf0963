"""Gemma Scope's SAEs come into a bucket by clicking: a real hub client against a hub on loopback, and a real browser."""

from pathlib import Path

import numpy as np
import pytest
from support import written_evidence
from support.browser import page_of
from support.hub_server import running_hub
from support.studio import TOKEN, served

from scopemill.deploy.demo.run import MODEL
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import read_finished

D, LATENTS = 192, 16_384  # D of the carried model
TREE, SECOND = "hf://google/gemma-scope-2b-pt-res", "hf://google/gemma-scope-2-1b-pt"
CHOSEN = "layer_1/width_16k/average_l0_71"
LONG = 120_000  # milliseconds for a process that imports torch, on a busy machine


def write_params(folder: Path) -> None:
    """Write the file of a JumpReLU SAE as Gemma Scope 1 has it."""
    decoder = np.random.default_rng(0).normal(0, D**-0.5, (LATENTS, D)).astype("f4")
    zeros, threshold = np.zeros, np.full(LATENTS, 0.1, "f4")
    params = {"W_enc": decoder.T, "W_dec": decoder, "b_enc": zeros(LATENTS, "f4"), "b_dec": zeros(D, "f4"), "threshold": threshold}
    np.savez(folder / "params.npz", **params)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Two trees: one of Gemma Scope 1 with two layers, widths and sparsities, and one of Gemma Scope 2 with two sites."""
    root = tmp_path_factory.mktemp("hub")
    first = [f"layer_{layer}/width_16k/average_l0_{l0}/params.npz" for layer in (1, 2) for l0 in (20, 71)]
    second = [f"{site}/layer_1_width_16k_l0_small/params.safetensors" for site in ("resid_post", "mlp_out")]
    paths = {"gemma-scope-2b-pt-res": [*first, "layer_2/width_1k/average_l0_9/params.npz"], "gemma-scope-2-1b-pt": second}
    for name, files in paths.items():
        for path in files:
            file = root / "google" / name / path
            file.parent.mkdir(parents=True)
            file.write_bytes(b"only listed")
    write_params(root / "google/gemma-scope-2b-pt-res" / CHOSEN)
    return root


@pytest.fixture
def service(hub, tmp_path, monkeypatch):
    with running_hub(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        with served(str(tmp_path / "bucket")) as client:
            yield client


def test_a_tree_is_filtered_and_one_of_its_saes_is_imported_and_looked_into(browser, service, hub, tmp_path):
    from playwright.sync_api import expect

    bucket = Bucket(str(tmp_path / "bucket"))
    with page_of(browser) as page:
        page.goto(f"{service.url}/#token={TOKEN}")
        page.get_by_role("link", name="SAEs").click()
        page.get_by_text("No SAE of this bucket is finished yet.").wait_for()

        section, tree = page.get_by_role("region", name="Gemma Scope"), page.get_by_role("search", name="Filter the tree")
        rows = page.get_by_role("region", name="SAEs of the tree, a table").locator("tbody tr")
        section.get_by_label("Tree", exact=True).fill(SECOND)
        section.get_by_role("button", name="Browse").click()
        tree.wait_for(timeout=LONG)
        expect(rows).to_have_count(2)
        tree.get_by_label("Site").select_option("hook_mlp_out")
        expect(rows).to_have_count(1)
        assert "mlp_out/layer_1" in rows.inner_text()

        section.get_by_label("Tree", exact=True).fill(TREE)
        section.get_by_role("button", name="Browse").click()
        expect(rows).to_have_count(5)
        for name, value, left in (("Model", "gemma-2-2b", 5), ("Site", "hook_resid_post", 5), ("Width", "16k", 4), ("Layer", "1", 2)):
            tree.get_by_label(name).select_option(value)
            expect(rows).to_have_count(left)
        tree.get_by_label("L0 from").fill("50")
        tree.get_by_label("L0 from").press("Enter")
        expect(rows).to_have_count(1)
        assert CHOSEN in rows.inner_text()
        rows.get_by_role("button", name=f"Import {CHOSEN}").click()
        rows.get_by_text("in the bucket").wait_for(timeout=LONG)

        mine = page.get_by_role("region", name="SAEs, a table").locator("tbody tr")
        expect(mine).to_have_count(1)
        assert f"{TREE}/{CHOSEN}" in mine.inner_text() and "16,384" in mine.inner_text()
        root = "saes/gemma-2-2b/blocks.1.hook_resid_post/width_16k/jumprelu/l0-71"
        with np.load(hub / "google/gemma-scope-2b-pt-res" / CHOSEN / "params.npz") as params:
            assert np.array_equal(read_finished(bucket.place(root)).sae.W_dec.detach().numpy(), params["W_dec"])

        mine.get_by_role("link", name="latents").click()
        page.get_by_text("has no evidence yet").wait_for()
        assert f"scopemill evidence {bucket.place(root)}" in page.get_by_role("group", name="Its evidence").inner_text()
        page.get_by_label("Fires on a text").fill("import os")
        page.get_by_label("Language model").fill(str(MODEL))
        page.get_by_label("Language model").press("Enter")
        page.locator("ol.hits a").first.wait_for(timeout=LONG)
        assert "--model" in page.get_by_role("region", name="What was found").inner_text()
        written_evidence.write(bucket, root)  # as scopemill evidence does
        page.get_by_role("button", name="Show all latents").click()
        page.get_by_role("region", name="Latents, a table").get_by_role("link").first.click()
        page.get_by_role("heading", name="Top contexts").wait_for()


def test_what_a_hub_does_not_have_is_told_in_a_sentence(service):
    status, problem, _ = service.ask("GET", "/api/v1/saes/gemma-scope?source=hf://google/gemma-scope-9b-pt-res")
    assert status == 422 and "hf://google/gemma-scope-9b-pt-res" in problem["detail"], problem
