"""Requests to the steerer and its command: columns, effects, files of edits, and everything that is refused."""

import json
import shutil

import pytest
import torch
from support import written_evidence
from support.finished_saes import finished_sae
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.steering.edits import Edit
from scopemill.evaluator.steering.maxima import Maximum
from scopemill.evaluator.steering.steerer import Steerer, SteeringRequest
from scopemill.proto.errors import InputError, SaeFormatError, SweepFileError, TemplateError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae, write_finished
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae

PROMPT = "import os\n\ndef main():\n"
SHORT = {"length": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """A finished SAE whose latent 3 fires on everything, and whose latent 4 on nothing."""
    sae = Sae(Shape.square(192), 16, TopK(16, 4))
    rows = torch.nn.functional.normalize(torch.randn(16, 192, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
        sae.b_enc[3], sae.b_enc[4] = 50.0, -1e6
    folder = str(tmp_path_factory.mktemp("saes") / "resid")
    finished = FinishedSae(sae.requires_grad_(False), ("blocks.2.hook_resid_post",), ("blocks.2.hook_resid_post",))
    write_finished(folder, "saelens", finished)
    return folder


@pytest.fixture(scope="module")
def steerer(model) -> Steerer:
    return Steerer(model)


def request(place: str, **fields) -> SteeringRequest:
    edits = (Edit(sae=place, latent=3, op="add", amount=2.0),)
    return SteeringRequest.model_validate({"prompt": PROMPT, "configurations": {"more": edits}, "sampling": SHORT} | fields)


def test_each_configuration_stands_between_the_unsteered_text_and_a_random_push(steerer, place):
    heard: dict[tuple[str, int], str] = {}

    def listen(name: str, sample: int, text: str) -> None:
        heard[name, sample] = heard.get((name, sample), "") + text

    results = steerer.steer(request(place, samples=2), listen)
    assert list(results) == ["unsteered", "more", "more: random direction"]
    assert {key: heard[key] for key in heard} == {(n, i): t for n, r in results.items() for i, t in enumerate(r.texts)}
    assert results["unsteered"].effect is None and results["more"].effect.kl > 0
    assert results["more"].effect.promoted > results["more: random direction"].effect.promoted
    assert set(results["more"].scores) == {3} and results["more: random direction"].scores is None


def test_amounts_count_in_the_largest_activation_on_the_text(steerer, place):
    texts = "\n".join(f"value = {i}" for i in range(40))
    in_maxima = steerer.steer(request(place, text=texts))
    (maximum,) = in_maxima["more"].maxima
    most = maximum.value
    assert most > 50 and maximum == Maximum(place, 3, most, "text")
    raw = {"raw": (Edit(sae=place, latent=3, op="add", amount=2 * most, unit="raw"),)}
    assert steerer.steer(request(place, text=texts, configurations=raw))["raw"].effect == in_maxima["more"].effect


def test_amounts_count_in_the_largest_activation_of_evidence_where_there_is_some(steerer, place, tmp_path):
    shutil.copytree(place, tmp_path / "sae")
    known = written_evidence.write(Bucket(str(tmp_path)), "sae", width=16).latents().to_pylist()
    assert known[3]["max"] > 0 and known[4]["max"] == 0
    own = str(tmp_path / "sae")
    clamped = (Edit(sae=own, latent=3, op="clamp", amount=0.5), Edit(sae=own, latent=0, op="ablate"))
    found = steerer.steer(request(own, configurations={"half": clamped}))["half"]
    assert found.maxima == [Maximum(own, 3, known[3]["max"], "evidence")]
    raw = (Edit(sae=own, latent=3, op="clamp", amount=0.5 * known[3]["max"], unit="raw"), clamped[1])
    assert steerer.steer(request(own, configurations={"half": raw}))["half"].effect == found.effect
    with pytest.raises(InputError, match="latent 4 does not fire on the text, nor in its evidence"):
        steerer.steer(request(own, configurations={"silent": (Edit(sae=own, latent=4, op="add", amount=1.0),)}))


def test_doses_end_where_text_collapses(steerer, place):
    edits = (Edit(sae=place, latent=3, op="add", amount=40.0, unit="raw"),)
    found = steerer.steer(request(place, configurations={"much": edits}, doses=True))["much"]
    assert [dose.dose for dose in found.doses] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert found.collapse in {dose.dose for dose in found.doses}


def test_what_cannot_act_is_refused_with_the_reason(steerer, place, tmp_path):
    silent = (Edit(sae=place, latent=4, op="add", amount=1.0),)
    with pytest.raises(InputError, match="latent 4 does not fire on the text"):
        steerer.steer(request(place, configurations={"silent": silent}))
    with pytest.raises(InputError, match="has no latent 16"):
        steerer.steer(request(place, configurations={"none": (Edit(sae=place, latent=16, op="ablate"),)}))
    other = str(tmp_path / "other")
    write_finished(other, "saelens", finished_sae("jumprelu"))
    with pytest.raises(InputError, match="with 12 columns, and gemma-2-stdlib does not fit: there resid_post is 192 wide"):
        steerer.steer(request(place, configurations={"other": (Edit(sae=other, latent=1, op="ablate"),)}))
    with pytest.raises(ValueError, match="name of another column"):
        request(place, configurations={"unsteered": silent})
    with pytest.raises(ValueError, match="has no edit"):
        request(place, configurations={"empty": ()})


def run(*arguments: str):
    return CliRunner().invoke(app, ["steer", *arguments])


def test_the_command_prints_texts_and_figures_and_keeps_its_edits(model, place, tmp_path, monkeypatch):
    short = ["--prompt", PROMPT, "--model", model.name, "--length", "4", "--temperature", "0"]
    monkeypatch.setenv("SCOPEMILL_TEMPLATES", str(tmp_path))
    shown = run(place, "--latent", "3", "--amount", "2", "--save", "mine", *short)
    assert shown.exit_code == 0, shown.output
    kept = str(tmp_path / "steering" / "mine.json")
    assert kept in shown.stderr.replace("\n", "") and "largest activation of latent 3 is" in shown.stdout
    assert "unsteered" in shown.output and "random direction" in shown.output and "output score" in shown.output
    found = [json.loads(run(*where, "--json", *short).stdout) for where in (("--file", kept), ("--template", "mine"))]
    assert list(found[0]) == ["unsteered", "steered", "steered: random direction"] and found[0]["steered"]["effect"]["kl"] > 0
    assert found[0] == found[1]
    taken = run("--file", kept, "--save", "mine", *short)
    assert isinstance(taken.exception, TemplateError) and "--replace" in str(taken.exception)
    twice = run(place, "--latent", "3", "--amount", "2", "--template", "mine", *short)
    assert isinstance(twice.exception, InputError) and "another configuration 'steered'" in str(twice.exception)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ([], InputError, "nothing to steer by"),
        (["nowhere", "--latent", "3", "--amount", "1"], SaeFormatError, "is not a finished SAE"),
        (["--latent", "3", "--amount", "1"], InputError, "--latent needs the folder of its SAE"),
        (["nowhere", "--latent", "3"], SweepFileError, "add needs an amount"),
        (["nowhere", "--latent", "3", "--amount", "nan"], SweepFileError, "finite number"),
        (["--file", "nowhere.json"], InputError, "nowhere.json cannot be read"),
        (["--template", "nothing-of-that-name"], TemplateError, "is not known"),
    ],
)
def test_bad_input_is_one_sentence(model, arguments, error, sentence):
    result = run(*arguments, "--prompt", PROMPT, "--model", model.name)
    assert isinstance(result.exception, error) and sentence in str(result.exception)


def test_a_file_that_holds_no_edits_is_named(model, tmp_path):
    file = tmp_path / "edits.json"
    for content, sentence in (
        ("[1]", "has to hold an object"),
        ("{", "is not JSON"),
        ('{"a": [{"latent": 1, "op": "ablate"}]}', "edits.json: a.0.sae: Field required"),
    ):
        file.write_text(content)
        result = run("--file", str(file), "--prompt", PROMPT, "--model", model.name)
        assert sentence in str(result.exception), result.exception
