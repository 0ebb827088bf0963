"""The static page of latents: its data files against the evidence, and what a real browser shows of it."""

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from support import written_evidence
from support.browser import page_of
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.latent_page.write import CHUNK_LATENTS, STATIC, write_page
from scopemill.proto.errors import InputError
from scopemill.proto.evidence import TOP
from scopemill.proto.storage.bucket import Bucket

SAE, WIDTH = "saes/tiny/hook/width_150/jumprelu/0.001-aa", 150
NASTY = "<script>document.body.textContent='broken'</script>"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    bucket = Bucket(str(tmp_path_factory.mktemp("evidence")))
    evidence = written_evidence.write(bucket, SAE, width=WIDTH)
    labels = pa.BufferOutputStream()
    parquet.write_table(pa.table({"latent": pa.array([7], pa.int32()), "label": [NASTY], "score": pa.array([0.75], pa.float32())}), labels)
    bucket.write(f"{evidence.layout.labels}/mine.parquet", labels.getvalue().to_pybytes())
    return evidence


@pytest.fixture(scope="module")
def page(evidence, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_page(Bucket(str(folder)), [("tiny & <b>", evidence)])
    return folder


def arguments(file: Path) -> list:
    """What a data file hands to the page."""
    text = file.read_text()
    return json.loads("[" + text[text.index("(") + 1 : text.rindex(")")] + "]")


@pytest.fixture(scope="module")
def seen(browser) -> Callable[[Path, str], str]:
    """The text of the page's document once a browser has run its scripts."""

    def look(page: Path, place: str) -> str:
        with page_of(browser) as shown:
            shown.goto(f"file://{page}/index.html{place}")
            shown.locator("main > :not(p:text-is('Loading…'))").first.wait_for()
            return unescape(shown.content())

    return look


def test_data_files_hold_what_the_evidence_holds(evidence, page):
    _, table = arguments(page / "data/0/table.js")
    assert len(table["density"]) == WIDTH and table["labels"] == {"7": NASTY}
    files = sorted((page / "data/0").glob("latents-*.js"))
    latents = [latent for file in files for latent in arguments(file)[2]]
    assert len(files) == -(-WIDTH // CHUNK_LATENTS) and len(latents) == WIDTH
    words = evidence.vocabulary
    for number in (0, 4, 63, 64, WIDTH - 1):
        row, examples = evidence.latent(number), evidence.examples(number)
        shown = latents[number]
        assert shown["histogram"] == row["histogram"] and shown["fired"] == row["fired"]
        assert [text for text, _ in shown["promoted"]] == [words.text(id) for id in row["promoted_tokens"]]
        tops = [one for one in shown["contexts"] if one[0] == TOP]
        wanted = [example for example in examples if example.interval == TOP]
        assert [one[1] for one in tops] == pytest.approx([example.value for example in wanted], rel=1e-3)
        for one, example in zip(tops, wanted, strict=True):
            assert "".join(one[5]) in "".join(words.pieces(example.tokens))
            assert one[6][one[4]] == pytest.approx(example.value, rel=1e-3), "the peak is where it was before the cut"


def test_the_page_asks_nothing_of_any_other_place(page):
    for name in STATIC:
        text = (page / name).read_text()
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), name


def test_a_browser_lists_latents_from_disk(evidence, page, seen):
    text = seen(page, "#/")
    assert "tiny & <b>" in text and f"{evidence.record.alive} latents, page 1 of 2" in text
    densest = max(range(WIDTH), key=lambda latent: evidence.latent(latent)["density"])
    assert re.findall(r'href="#/0/(\d+)"', text)[0] == str(densest)


def test_a_browser_shows_a_latent_and_takes_text_as_text(evidence, page, seen):
    text = seen(page, "#/0/7")
    assert "<h2>Latent 7</h2>" in text and "Top contexts" in text and "(score 0.75)" in text and ">null<" not in text
    assert "document.body.textContent" in text and "Suppressed tokens" in text, "a label is text, and runs nothing"
    assert text.count('class="contexts"') == len({example.interval for example in evidence.examples(7)})


def test_a_browser_shows_the_map_of_clusters_and_the_latents_of_one(evidence, page, seen):
    clusters = arguments(page / "data/0/map.js")[1]
    shown = seen(page, "#/0/map")
    assert shown.count("<circle") == len(clusters) > 10 and f'href="#/0/cluster/{clusters[0]["cluster"]}"' in shown
    listed = seen(page, f"#/0/cluster/{clusters[0]['cluster']}")
    assert f"{clusters[0]['latents']} latents, page 1 of 1" in listed and "show all" in listed


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("#/0/4", "This latent never fired."),
        ("#/0/150", "its latents are 0 to 149"),
        ("#/0/x", "its latents are 0 to 149"),
        ("#/3", "no such SAE"),
    ],
)
def test_a_browser_is_told_what_is_not_there(page, seen, place, sentence):
    assert sentence in seen(page, place)


def test_a_missing_data_file_is_named(page, seen, tmp_path):
    copy = shutil.copytree(page, tmp_path / "copy")
    (copy / "data/0/latents-00001.js").unlink()
    assert "data/0/latents-00001.js is missing or damaged" in seen(copy, "#/0/70")


def test_the_command_writes_the_saes_that_have_evidence(evidence, tmp_path):
    source = evidence.bucket.place(SAE)
    result = CliRunner().invoke(app, ["page", source, str(tmp_path), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0 and str(tmp_path / "out/index.html") in result.output.replace("\n", "")
    (about,) = arguments(tmp_path / "out/data/saes.js")
    assert [one["name"] for one in about["saes"]] == [SAE.removeprefix("saes/")]
    with pytest.raises(InputError, match="has no evidence yet"):
        CliRunner().invoke(app, ["page", str(tmp_path), "--out", str(tmp_path / "none")], catch_exceptions=False)
    assert not (tmp_path / "none/index.html").exists()
