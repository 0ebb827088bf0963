"""The report's page: complete, well-formed, self-contained, and safe whatever names it is given."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.evaluator.probes.scores import ProbeScore
from scopemill.evaluator.report.numbers import count, fraction, percent, signed
from scopemill.evaluator.report.page import inline_svg, render_report
from scopemill.trainer.training.history import Row

VOID = {"meta", "br", "link", "img", "hr", "input"}
FACTS = {"Model": "demo", "Corpus": "standard library"}


class Page(HTMLParser):
    """Checks that every element is closed where it must be; collects ids and the rows of tables by their id."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.tables, self.marked, self.text = [], [], {}, {}, []
        self._table = None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(attrs["id"], [])
        if tag == "tr" and "tbody" in self.open:
            self._table.append([])
        if tag == "td":
            self._table[-1].append("")
            if "best" in attrs.get("class", "").split():
                self.marked.setdefault(len(self._table) - 1, []).append(len(self._table[-1]) - 1)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            self._table[-1][-1] += data


def evaluation(layer=0, sparsity=0.001, step=100, l0=50.0, fvu=0.3, delta_loss=0.2, settings=None, **changes) -> Evaluation:
    fields = dict(
        hook=f"blocks.{layer}.hook_resid_post", layer=layer, site="resid_post", architecture="jumprelu", width=4096, sparsity=sparsity,
        step=step, tokens=step * 1024, l0=l0, fvu=fvu, dead_fraction=0.1, loss_clean=3.0, loss_spliced=3.0 + delta_loss,
        loss_zero_ablated=8.0, loss_mean_ablated=6.0, delta_loss=delta_loss, recovered_zero=1 - delta_loss / 5,
        recovered_mean=1 - delta_loss / 3, path=f"saes/{layer}/{sparsity}/{step:08d}",
    )  # fmt: skip
    histogram = Histogram([-4.0, -3.0, -2.0, -1.0, 0.0], [0, 5, 9, 1], 2)
    return Evaluation(Result(**(fields | changes)), histogram, 4096, settings or {"splice_special": False})


def history(coefficient=0.001) -> list[Row]:
    return [Row(i, 1024 * i, 1.0, 0.3, 50.0, 50.0, 0.3, 4, 1e-3, coefficient, 1.0, 9.0, 0.1) for i in (10, 20, 30)]


SWEEP = [
    evaluation(layer, sparsity, step, l0=l0 * 100 / step, fvu=fvu)
    for layer in (10, 2)
    for sparsity, l0, fvu in ((0.01, 10.0, 0.5), (0.005, 60.0, 0.6), (0.001, 100.0, 0.2))
    for step in (50, 100)
]


@pytest.fixture(scope="module")
def html() -> str:
    return render_report("A sweep", FACTS, SWEEP, {"one": history(), "two": history(0.01)})


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_sae_is_in_the_final_table_once_and_every_checkpoint_in_the_other(page):
    final = [e.result.path for e in SWEEP if e.result.step == 100]
    assert sorted(row[-1] for row in page.tables["final"]) == sorted(final)
    assert sorted(row[-1] for row in page.tables["all"]) == sorted(e.result.path for e in SWEEP)


def test_hooks_come_layer_by_layer(page):
    assert [row[0] for row in page.tables["final"]] == ["blocks.2.hook_resid_post"] * 3 + ["blocks.10.hook_resid_post"] * 3


def test_frontier_and_best_are_marked(page):
    by_path = {row[-1]: (row[-2].split(), i) for i, row in enumerate(page.tables["final"])}
    for layer in (2, 10):
        assert by_path[f"saes/{layer}/0.01/00000100"][0][0] == "FVU"
        assert by_path[f"saes/{layer}/0.001/00000100"][0][0] == "FVU"
        assert "FVU" not in by_path[f"saes/{layer}/0.005/00000100"][0]  # 60 latents for more error than 10 leave
    lowest_fvu = {i for i, columns in page.marked.items() if 5 in columns}
    assert lowest_fvu == {by_path[f"saes/{layer}/0.001/00000100"][1] for layer in (2, 10)}


def test_probes_stand_beside_their_baselines_and_what_beats_both_is_marked():
    def probed(sparsity: float, auc: float) -> Evaluation:
        scores = [
            ProbeScore(task, owner, k, value + change, 0.5, 100)
            for task, change in (("a", 0.1), ("b", -0.1))
            for k in (1, 5)
            for owner, value in (("sae", auc), ("random decoder", 0.7), ("random encoder", 0.6))
        ]
        dense = [ProbeScore(task, "residual", 64, 0.85, 0.5, 100) for task in "ab"]
        return replace(evaluation(0, sparsity, l0=90 * sparsity), probes=(*scores, *dense))

    page = Page(render_report("A sweep", FACTS, [probed(0.1, 0.8), probed(0.5, 0.65), evaluation(0, 0.9)], {}))
    assert [row[4:] for row in page.tables["probes"]] == [
        ["9.0", "0.800", "0.700", "0.600", "0.800", "0.700", "0.600", "0.850"],
        ["45.0", "0.650", "0.700", "0.600", "0.650", "0.700", "0.600", "0.850"],
    ]
    text = " ".join("".join(page.text).split())
    assert "over 2 binary tasks" in text and "k = 5, random encoder" in text
    assert "k-sparse" not in render_report("A sweep", FACTS, SWEEP, {}), "where none was probed, nothing is said"


def test_absorption_is_shown_where_it_was_measured():
    row = ("m/hook/width_1k", "22", "first letters", "0.131", "0.020", "0.043", "1.25", "0.700")
    page = " ".join("".join(Page(render_report("A sweep", FACTS, SWEEP, {}, absorbed=[row])).text).split())
    assert all(cell in page for cell in row) and "Absorption and splitting" in page
    assert "Absorption" not in render_report("A sweep", FACTS, SWEEP, {})


def test_each_sae_with_a_page_of_latents_leads_to_it():
    html = render_report("A sweep", FACTS, SWEEP, {}, pages={"saes/2/0.01": "../../saes/2/0.01/page/index.html", "saes/2/0.0": "no.html"})
    shown = {row[-1]: row[-2] for row in Page(html).tables["final"]}
    assert [path for path, link in shown.items() if link] == ["saes/2/0.01/00000100"], "an SAE whose name begins alike has none"
    assert '<td><a href="../../saes/2/0.01/page/index.html">browse</a></td>' in html and "no.html" not in html


def test_advice_on_l0_is_given_where_saes_differ_in_sparsity_alone():
    rows = [evaluation(0, sparsity, l0=1 / sparsity, decoder_cosine=cosine) for sparsity, cosine in ((0.1, 0.3), (0.05, 0.2), (0.01, 0.4))]
    text = " ".join("".join(Page(render_report("A sweep", FACTS, rows, {})).text).split())
    assert "the decoder cosine is least (0.200) at L0 20.0: the right L0 is probably between 10.0 and 100." in text
    assert "Advice on L0" not in render_report("A sweep", FACTS, SWEEP, {}), "those were measured before cosines were"


def test_numbers_and_facts_are_there(page):
    text = " ".join("".join(page.text).split())
    for expected in ("A sweep", "standard library", "96.0%", "0.200", "3.000", "perplexity 20.09", "any of the 4,096 evaluated tokens"):
        assert expected in text
    assert "Special positions (BOS, EOS and PAD) keep the original" in text


def test_the_page_needs_nothing_from_elsewhere(html):
    without_namespaces = re.sub(r'xmlns(:\w+)?="http://www\.w3\.org/[^"]*"', "", html)
    assert "http" not in without_namespaces.lower()
    assert not re.search(r'(src|href)="(?!#)', html) and "@import" not in html and "url(//" not in html
    assert "{{" not in html and "{%" not in html


def test_ids_are_unique_and_every_reference_has_its_target(html, page):
    assert len(page.ids) == len(set(page.ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert references and references <= set(page.ids)


def test_the_same_sweep_gives_the_same_page(html):
    assert render_report("A sweep", FACTS, SWEEP, {"one": history(), "two": history(0.01)}) == html


HOSTILE = """<script>alert("1")</script>'&amp;"""


def test_names_are_text_wherever_they_appear():
    hostile = [evaluation(hook=HOSTILE, site=HOSTILE, architecture=HOSTILE, path=HOSTILE, settings={HOSTILE: HOSTILE})]
    html = render_report(HOSTILE, {HOSTILE: HOSTILE}, hostile, {HOSTILE: history()})
    page = Page(html)
    assert "<script>alert" not in html and html.count("<script>") == 1
    (row,) = page.tables["final"]
    assert row[0] == row[1] == row[-1] == HOSTILE


def test_no_evaluations():
    html = render_report("Empty", FACTS, [], {})
    assert "No checkpoint has been evaluated yet" in html and not Page(html).tables and "<svg" not in html


def test_training_is_shown_before_anything_is_evaluated():
    html = render_report("Early", {}, [], {"one": history()})
    assert html.count("<svg") == 1 and "training tokens" in "".join(Page(html).text)


def test_measurements_that_are_no_numbers():
    broken = evaluation(fvu=math.nan, delta_loss=math.nan, l0=0.0, recovered_zero=math.inf, recovered_mean=math.nan, loss_clean=math.nan)
    page = Page(render_report("Broken", {}, [broken], {}))
    (row,) = page.tables["final"]
    assert row.count("n/a") == 5 and not page.marked  # the decoder cosine too: none was measured


def test_mixed_settings_are_said_to_be():
    html = render_report("Mixed", {}, [evaluation(), evaluation(sparsity=0.1, settings={"splice_special": True})], {})
    assert "do not compare delta losses" in " ".join(html.split())
    assert "are spliced too" in render_report("All", {}, [evaluation(settings={"splice_special": True})], {})


def test_prefix_leaves_text_alone():
    document = (
        '<?xml version="1.0"?><svg><a id="x" clip-path="url(#x)"/><use xlink:href="#x" style="fill: #0072b2"/><text>id="x" (#x</text></svg>'
    )
    expected = '<svg><a id="p-x" clip-path="url(#p-x)"/><use xlink:href="#p-x" style="fill: #0072b2"/><text>id="x" (#x</text></svg>'
    assert inline_svg(document, "p-") == expected


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (count, 53.21, "53.2"), (count, 69.04, "69.0"), (count, 0.0312, "0.031"), (count, 1234.5, "1,234"), (count, math.nan, "n/a"),
        (fraction, 0.1234, "0.123"), (fraction, 0.00123, "0.0012"), (fraction, 0.0, "0.000"),
        (percent, 0.0001, "<0.1%"), (percent, 0.0, "0.0%"), (percent, 0.99999, ">99.9%"), (percent, 1.0, "100.0%"),
        (percent, -0.051, "\u22125.1%"), (signed, 0.1234, "+0.123"), (signed, -0.00123, "\u22120.0012"),
    ],
)  # fmt: skip
def test_numbers_for_people(function, value, text):
    assert function(value) == text
