"""The studio's page in a real browser: what it shows of a bucket, and what its buttons do there."""

import csv
import json
import re
from importlib.resources import files
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from support import written_evidence
from support.browser import page_of, tab_of
from support.studio import TOKEN, driving, served, write_sweep

from scopemill.deploy.plan.progress import SaeProgress, SweepProgress, write_progress
from scopemill.deploy.plan.requests import read_requests
from scopemill.evaluator.matching.twins import TWINS, TwinsRecord, relative_folder, write_twins
from scopemill.proto.evidence import INTERVALS
from scopemill.proto.storage.bucket import Bucket

STATIC = files("scopemill.deploy.studio") / "static"
WIDTH = 40
PLACES = [
    "trainings", "training/one%3A3.resid_post%3A256%3Atopk%3A1", "sweeps", "sweep/one", "new", "templates", "saes", "latents", "steer",
    "compare?ids=one%3A3.resid_post%3A256%3Atopk%3A1,one%3A3.resid_post%3A256%3Atopk%3A2", "nowhere",
]  # fmt: skip


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Bucket:
    """A sweep of six SAEs: three finished, one half-way, two that never began; and one of 600 that never began."""
    bucket = Bucket(str(tmp_path_factory.mktemp("bucket")))
    plan = write_sweep(bucket, "one", saes=6, finished=3)
    write_sweep(bucket, "wide", saes=600, finished=0)
    written_evidence.write(bucket, plan.saes[0].root, width=WIDTH)
    return bucket


@pytest.fixture(scope="module")
def service(bucket):
    with served(bucket.url) as client:
        yield client


@pytest.fixture(scope="module")
def profile(browser, service):
    """A browser's profile with the cookie that the token in the address was exchanged for."""
    with page_of(browser) as page:
        page.goto(f"{service.url}/#token={TOKEN}")
        page.get_by_role("heading", name="Trainings").wait_for()
        assert page.url.endswith("/#/"), "the token does not stay in the address"
        yield page.context


@pytest.fixture
def page(profile):
    with tab_of(profile) as page:
        yield page


@pytest.fixture
def at(page, service):
    """Go to a place of the page."""

    def go(place: str):
        page.goto(f"{service.url}/#/{place}")
        page.locator("main h1").wait_for()
        page.locator("main .loading").wait_for(state="detached")
        return page

    return go


def test_without_the_token_the_page_says_what_to_do(browser, service):
    with page_of(browser) as page:
        page.goto(service.url)
        page.get_by_text("open the address that scopemill studio printed").wait_for()


def test_scripts_are_modules_of_readable_lines_and_name_nothing_that_a_policy_refuses():
    for file in STATIC.iterdir():
        if file.name.endswith((".js", ".css", ".html")):
            assert all(len(line) <= 140 for line in file.read_text().splitlines()), file.name
            text = file.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http" not in text and ' style="' not in text and "innerHTML" not in text and "<script>" not in text, file.name


def test_each_page_is_for_keyboard_and_screen_reader_and_narrow_and_asks_nothing_of_any_other_place(at, page, service):
    from playwright.sync_api import expect

    asked = set[str]()
    page.on("request", lambda request: asked.add(request.url))
    for place in PLACES:
        page.set_viewport_size({"width": 1280, "height": 900})
        before = page.title()
        at(place)
        expect(page).not_to_have_title(before)  # no reload: what was shown before is gone
        page.locator("main .loading").wait_for(state="detached")
        is_for_everybody(page)
    assert asked and all(url.startswith((service.url, "data:", "blob:")) for url in asked)


def is_for_everybody(page) -> None:
    assert page.locator("h1").count() == 1 and page.get_by_role("banner").count() == 1 and page.get_by_role("main").count() == 1
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a[href], input:not([type=hidden]):not([hidden]), select, textarea")].filter(one =>
        !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length)).map(one => one.outerHTML)"""
    )
    assert unnamed == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out of a narrow screen"


def test_trainings_are_filtered_sorted_and_searched_and_the_address_keeps_it(at):
    from playwright.sync_api import expect

    page = at("trainings?sweep=one")
    expect(page.locator("article")).to_have_count(6)
    page.get_by_role("button", name=re.compile("^completed")).click()
    expect(page.locator("article")).to_have_count(3)
    assert "state=completed" in page.url
    page.get_by_label("Sort by").select_option("l0")
    page.get_by_role("button", name="Order: ascending").click()
    page.locator("article").first.get_by_text("sparsity 3").wait_for()
    page.get_by_label("Find").fill("topk/2")
    expect(page.locator("article")).to_have_count(1)
    page.reload()
    page.locator("article").get_by_text("sparsity 2").wait_for()
    expect(page.locator("article")).to_have_count(1)
    assert page.get_by_label("Find").input_value() == "topk/2"


def test_of_hundreds_only_those_in_sight_are_mounted_and_keys_reach_all(at):
    from playwright.sync_api import expect

    page = at("trainings?sweep=wide")
    page.locator("article a").first.focus()
    assert 0 < page.locator("article").count() < 60
    page.keyboard.press("End")
    last = page.locator("[data-index='599'] a")
    expect(last).to_be_focused()
    assert page.locator("article").count() < 60
    page.keyboard.press("ArrowUp")
    page.locator("[data-index='599'] a:not(:focus)").wait_for()


def test_selected_trainings_are_deleted_after_a_question(at, bucket, page):
    write_sweep(bucket, "doomed", saes=2, finished=1)
    at("trainings?sweep=doomed")
    page.locator("article").nth(1).wait_for()
    page.get_by_role("button", name="Select all 2").click()
    page.get_by_text("2 selected").wait_for()
    page.get_by_role("button", name="Delete…").click()
    question = page.get_by_role("dialog")
    assert "cannot be brought back" in question.inner_text() and "scopemill" in question.inner_text()
    page.keyboard.press("Escape")
    question.wait_for(state="detached")
    assert read_requests(bucket, "doomed") == [] and page.locator("article").count() == 2
    page.get_by_role("button", name="Delete…").click()
    question.get_by_role("button", name="Delete 2").click()
    page.locator("article").first.wait_for(state="detached")
    page.get_by_text("No training matches these filters.").wait_for()


def test_a_training_shows_curves_checkpoints_and_hyperparameters(at, page):
    at("training/one%3A3.resid_post%3A256%3Atopk%3A1")
    page.locator("figure canvas").first.wait_for()
    titles = page.locator("figcaption").all_inner_texts()
    assert {"Loss", "L0", "Dead latents", "Learning rate"} <= set(titles)
    page.get_by_label("every column").check()
    page.locator("figcaption").nth(len(titles)).wait_for()
    table = page.get_by_role("region", name="Checkpoints, a table").inner_text()
    assert "100" in table and "0.5" in table
    page.get_by_label("Find").fill("spars")
    assert page.locator("dl.pairs dt").all_inner_texts() == ["sparsity"]
    page.get_by_role("button", name="Evaluate").click()
    page.get_by_text("All of them were measured already.").wait_for()


def test_a_step_is_on_the_page_within_three_seconds(at, bucket, page):
    from playwright.sync_api import expect

    plan = write_sweep(bucket, "live", saes=1, finished=0)
    name = plan.saes[0].name
    progress = SweepProgress(sweep="live", started=1.0, written=1.0, phase="training", saes={name: SaeProgress(state="training", step=50)})
    write_progress(bucket, progress)
    with driving(bucket, "live"):
        at("trainings?sweep=live")
        page.locator("article").get_by_text("running", exact=True).wait_for()
        page.locator(".spark path").first.wait_for(state="attached")
        drawn = page.locator(".spark path").first.get_attribute("d")
        row = {
            "step": 60,
            "tokens": 60,
            "loss": 0.123,
            "l0": 17.5,
            "fvu": 0.25,
            "dead_latents": 3,
            "learning_rate": 0.1,
            "steps_per_second": 4.0,
        }
        write_progress(bucket, progress.model_copy(update={"beat": 1, "saes": {name: SaeProgress(state="training", step=60, row=row)}}))
        page.locator("article").get_by_text("17.5").wait_for(timeout=3000)
        page.locator("article").get_by_text("10 s left").wait_for(timeout=1000)
        expect(page.locator(".spark path").first).not_to_have_attribute("d", drawn)  # the curve grows


def test_points_of_the_scatter_are_links_for_the_keyboard_too(at, page):
    at("sweep/one")
    points = page.locator("svg.scatter a")
    assert points.count() == 4 and "on the Pareto line" in points.first.get_attribute("aria-label")
    page.get_by_role("combobox", name="Quality").select_option("delta_loss")
    page.get_by_role("heading", name="L0 against delta loss").wait_for()
    points.nth(1).focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="3.resid_post/256/topk/2").wait_for()


def test_the_scatter_is_downloaded_as_csv_svg_and_png(at, page, service):
    at("sweep/one")

    def saved(name: str) -> bytes:
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        return download.value.path().read_bytes()

    rows = list(csv.DictReader(saved("CSV").decode().splitlines()))
    points = service.get("/trainings/sweep/one")["points"]
    assert [row["id"] for row in rows] == [point["id"] for point in points]
    assert [float(row["l0"]) for row in rows if row["l0"]] == [point["l0"] for point in points if point["l0"] is not None]
    picture = ElementTree.fromstring(saved("SVG").decode())
    drawn = [one for one in picture.iter("{http://www.w3.org/2000/svg}path") if one.find("{http://www.w3.org/2000/svg}title") is not None]
    assert len(drawn) == 4 and all(one.get("fill", "").startswith("rgb") for one in drawn)
    assert saved("PNG").startswith(b"\x89PNG")


def test_runs_are_compared(at, page):
    at("trainings?sweep=one")
    page.locator("article").nth(5).wait_for()
    for box in page.locator("article input[type=checkbox]").all()[:2]:
        box.check()
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("heading", name="Compare 2 trainings").wait_for()
    page.locator("figure canvas").nth(3).wait_for()
    differing = page.locator("tbody tr", has=page.get_by_text("sparsity", exact=True)).inner_text()
    assert differing.split() == ["sparsity", "1", "2"]


def test_latents_are_listed_searched_and_shown_one_by_one(at, page, bucket):
    at("trainings?sweep=one&state=completed&sort=sparsity")
    page.locator("article a").first.click()
    page.get_by_role("link", name="Browse latents").click()
    page.get_by_role("region", name="Latents, a table").wait_for()
    page.get_by_text(f"{WIDTH - WIDTH // 5} latents, page 1 of 1").wait_for()
    page.get_by_label("also those that never fired").check()
    page.get_by_text(f"{WIDTH} latents, page 1 of 1").wait_for()
    page.get_by_label("Find a word").fill("import")
    page.keyboard.press("Enter")
    page.locator("ol.hits a").first.wait_for()
    page.get_by_label("Latent", exact=True).fill("7")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Latent 7").wait_for()
    page.get_by_role("heading", name="Top contexts").wait_for()
    hot = page.locator(".text span").first.evaluate("one => getComputedStyle(one).backgroundColor")
    assert hot.startswith("rgba(255, 140, 0"), "activations colour their tokens under the page's policy"
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 8").wait_for()
    assert f"INTERVALS = {INTERVALS};" in (STATIC / "latent.js").read_text()


def test_a_latent_s_twins_in_another_sae_are_links(at, page, bucket):
    one, other, *_ = (path for path in sorted(bucket.find("saes")) if path.endswith("one/cfg.json"))
    roots = [path.removesuffix("/cfg.json") for path in (one, other)]
    nothing = {"cofiring_latents": [], "cofiring_phi": [], "children": [], "children_scores": [], "children_overlap": []}
    rows = [{"latent": n, "nearest_latents": [WIDTH - 1 - n], "nearest_cosines": [0.875], "mutual": True} | nothing for n in range(WIDTH)]
    places = [bucket.place(root) for root in roots]
    record = TwinsRecord(
        weights="1", other=roots[1].removeprefix("saes/"), other_folder=relative_folder(*places), other_weights="2", other_hooks=(),
        other_architecture="topk", other_width=WIDTH, axes=("sparsity",), rows=0, similarity={},
    )  # fmt: skip
    write_twins(places[0], record, pa.Table.from_pylist(rows, schema=TWINS))
    at(f"latent/7?sae={roots[0]}")
    page.get_by_role("heading", name="Twins in other SAEs").wait_for()
    twin = page.locator(".twins")
    assert f"sparsity: {roots[1].removeprefix('saes/')}" in twin.inner_text() and "0.875" in twin.inner_text()
    twin.get_by_role("link", name=f"latent {WIDTH - 8}").click()
    page.get_by_role("heading", name=f"Latent {WIDTH - 8}").wait_for()
    page.get_by_text(roots[1], exact=True).wait_for()


def test_the_form_says_what_is_wrong_at_the_field_and_keeps_what_was_typed(at, page):
    at("new")
    page.get_by_label("learning rate").fill("-1")
    field = page.locator(".field", has=page.get_by_label("learning rate"))
    field.get_by_text("should be greater than 0, not -1").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator("[aria-invalid=true]").first.wait_for()
    page.get_by_text("Some fields are not right yet").wait_for()
    page.locator("[id='field-name'][aria-invalid=true]").wait_for()
    page.reload()
    page.get_by_text("should be greater than 0, not -1").wait_for()


def test_a_template_goes_the_whole_way_round(at, page, service, tmp_path):
    at("new")
    page.get_by_label("Begin with a template").select_option("quick")
    page.get_by_text("Loaded template quick").wait_for()
    page.get_by_label("widths").fill("512, 1_024")
    page.get_by_label("sparsities").fill("1e-3")
    page.get_by_role("button", name="Save as template…").click()
    page.get_by_label("Name", exact=True).last.fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("Saved template mine.").wait_for()
    kept = service.get("/training-templates/mine")["config"]["train"]
    assert kept["widths"] == [512, 1024] and kept["sparsities"] == [0.001] and kept["template"] == "quick"
    at("templates")
    mine = page.locator("li.card", has=page.get_by_role("heading", name="mine", exact=True))
    mine.get_by_role("button", name="mine is a favourite").click()
    page.locator("li.card").first.get_by_role("heading", name="mine", exact=True).wait_for()
    with page.expect_download() as download:
        mine.get_by_role("button", name="Export").click()
    file = tmp_path / "mine.json"
    download.value.save_as(file)
    mine.get_by_role("button", name="Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    mine.wait_for(state="detached")
    page.get_by_label("A file of templates").set_input_files(file)
    mine.wait_for()
    mine.get_by_role("link", name="Use").click()
    page.get_by_role("heading", name="Start trainings").wait_for()
    from playwright.sync_api import expect

    expect(page.get_by_label("widths")).to_have_value("512, 1024")
    assert json.loads(file.read_text())["templates"][0]["config"]["train"] == kept


def test_what_is_not_there_is_told_in_the_service_s_sentence(at, page):
    at("training/one%3Anone")
    assert "one:none" in page.get_by_role("alert").inner_text()


def test_a_page_that_only_shows_offers_nothing_else(browser, bucket):
    with served(bucket.url, read_only=True) as client, page_of(browser) as page:
        page.goto(f"{client.url}/#token={TOKEN}")
        page.locator("article").first.wait_for()
        page.get_by_text("read only").wait_for()
        assert page.get_by_role("link", name="Start").count() == 0
        page.goto(f"{client.url}/#/training/one%3A3.resid_post%3A256%3Atopk%3A4")
        page.locator("figure canvas").first.wait_for()
        assert page.get_by_role("button", name=re.compile("Stop|Retry|Delete|Evaluate")).count() == 0


def test_a_service_that_ends_is_told_and_its_return_is_noticed(browser, bucket):
    with page_of(browser) as page:
        with served(bucket.url) as client:
            page.goto(f"{client.url}/#token={TOKEN}")
            page.locator("article").first.wait_for()
            port = int(client.url.rsplit(":", 1)[1])
        page.get_by_text("The service does not answer; what is shown may be old.").wait_for()
        assert page.locator("article").count() > 0
        with served(bucket.url, port=port):
            page.get_by_text("The service does not answer").wait_for(state="detached")
