"""``scopemill latent``, ``latents`` and ``search --words`` on written evidence, and what they say of bad input."""

import json

import pytest
from support import written_evidence
from typer.testing import CliRunner

from scopemill.deploy.catalog import latents as of
from scopemill.deploy.cli.main import app
from scopemill.proto.errors import InputError, MissingObject, ScopemillError
from scopemill.proto.storage.bucket import Bucket

SAE = "saes/tiny/blocks.2.hook_resid_post/width_40/jumprelu/0.001-abc"


@pytest.fixture(scope="module")
def sae(tmp_path_factory) -> str:
    url = str(tmp_path_factory.mktemp("bucket"))
    written_evidence.write(Bucket(url), SAE)
    return f"{url}/{SAE}"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, ScopemillError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_latents_page_shows_contexts_and_facts(sae):
    page = run("latent", sae, "7")
    for part in ("latent 7 of", "density", "promoted:", "nearest by decoder", "top contexts", "histogram: 0 |"):
        assert part in page
    facts = json.loads(run("latent", sae, "7", "--json"))
    assert facts["latent"] == 7 and len(facts["promoted_text"]) == 5
    assert all("".join(e["text"]) and len(e["text"]) == len(e["tokens"]) for e in facts["examples"])
    text = run("latent", sae, "7", "--markdown")
    assert text.startswith("# latent 7 of") and "<b>" in text and "## top contexts" in text
    assert "it never fired" in run("latent", sae, "4")


def test_activation_is_a_colour(sae):
    evidence = of.Evidence.open(Bucket(sae.removesuffix(f"/{SAE}")), SAE, written_evidence.HASH)
    example = evidence.examples(7)[0]
    line = of.coloured(example, evidence.vocabulary, evidence.latent(7)["max"])
    styles = {str(span.style) for span in line.spans}
    assert "black on rgb(255,140,0) underline" in styles, "the peak has the full colour"
    assert sum("on rgb" in str(span.style) for span in line.spans) == sum(a > 0 for a in example.activations)


def test_latents_are_listed_and_sorted(sae):
    rows = json.loads(run("latents", sae, "--json", "--sort", "max"))
    assert len(rows) == 32 and [r["max"] for r in rows] == sorted((r["max"] for r in rows), reverse=True)
    assert [r["latent"] for r in json.loads(run("latents", sae, "--json", "--sort", "latent", "--ascending", "--dead"))] == list(range(40))
    assert json.loads(run("latents", sae, "--json", "--label", "*self*")) == [], "none has a label"
    assert "density" in run("latents", sae, "--most", "3")


def test_a_word_leads_to_latents_that_fire_on_it(sae):
    hits = json.loads(run("search", sae, "SELF", "--words", "--json"))
    assert hits and all(hit["found"] for hit in hits)
    evidence = of.Evidence.open(Bucket(sae.removesuffix(f"/{SAE}")), SAE, written_evidence.HASH)
    self_token = written_evidence.WORDS.index(" self")
    for hit in hits:
        counted = sum(
            any(t == self_token and a > 0 for t, a in zip(e.tokens, e.activations, strict=True)) for e in evidence.examples(hit["latent"])
        )
        assert counted == hit["contexts"]


def test_bad_input_is_a_sentence(sae, tmp_path):
    with pytest.raises(InputError, match="latent 40 does not exist"):
        run("latent", sae, "40")
    with pytest.raises(InputError, match="--sort 'colour'"):
        run("latents", sae, "--sort", "colour")
    with pytest.raises(MissingObject, match="has no evidence yet: make it with scopemill evidence"):
        run("latent", str(tmp_path), "1")
    with pytest.raises(InputError, match="SAE folders need --model and --corpus"):
        run("evidence", sae)


def test_a_sparkline_shows_counts_in_their_logarithm():
    assert of.sparkline([0, 1, 1000, 3], bars=4) == " ▁█▂"
    assert of.sparkline([0] * 128) == " " * 32
