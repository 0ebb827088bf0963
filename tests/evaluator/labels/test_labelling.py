"""Labels against an endpoint that knows planted features: scores, controls, budget, resume, and every way in which an endpoint fails."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
from support import label_world
from support.label_world import DEAD, ONE_DOCUMENT, PLANTED, FakeEndpoint
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.evaluator.evidence.reader import evidence_of
from scopemill.evaluator.labels.contexts import EXPLAIN, SCORE, Contexts, half_of
from scopemill.evaluator.labels.endpoint import KEY_VARIABLE
from scopemill.proto.errors import InputError, PartlyFailed, ScopemillError
from scopemill.proto.storage.bucket import Bucket

SAE = "saes/tiny/hook/width_40/jumprelu/0.001-abc"
GOOD = ("detection", "detection_nearest", "fuzzing", "fuzzing_nearest", "intruder", "intruder_nearest", "score")
KEY = "sk-a-key-that-must-stay-secret"


@pytest.fixture
def sae(tmp_path) -> str:
    label_world.write(Bucket(str(tmp_path)), SAE)
    return f"{tmp_path}/{SAE}"


@pytest.fixture
def fake() -> FakeEndpoint:
    return FakeEndpoint()


@pytest.fixture
def url(fake):
    with label_world.serving(fake) as url:
        yield url


def run(sae: str, *arguments: str) -> dict:
    result = CliRunner().invoke(app, ["label", sae, *arguments, "--json"])
    found = json.loads(result.stdout) if result.stdout.startswith("{") else {}
    if isinstance(result.exception, PartlyFailed):
        return found | {"error": str(result.exception)}
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return found


def label(sae: str, url: str, *arguments: str) -> dict:
    return run(sae, "--endpoint", url, "--model", "tiny-chat", "--patience", "5", *arguments)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_right_label_scores_high_and_another_latents_label_does_not(sae, fake, url, logprobs):
    fake.logprobs = logprobs
    found = label(sae, url, "--latents", "1,5,10-12")
    assert [row["latent"] for row in found["labels"]] == [1, 5, 10, 11, 12]
    for row in found["labels"]:
        assert row["label"] == f"the word {PLANTED[row['latent']]}" and row["basis"] == ("logprobs" if logprobs else "answers")
        assert [row[name] for name in GOOD] == [1.0] * 7 and row["author"] == "tiny-chat" and row["unread"] == 0
        assert row["detection_shuffled"] <= 0.55 and row["fuzzing_shuffled"] == 0.5
    assert evidence_of(Bucket(sae), "").labels()[5] == (f"the word {PLANTED[5]}", 1.0)


def test_a_wrong_label_scores_no_better_than_chance(sae, fake, url):
    fake.lies = True
    (row,) = label(sae, url, "--latents", "3")["labels"]
    assert row["label"] != f"the word {PLANTED[3]}" and row["score"] <= 0.55 and row["intruder"] == 1.0, "the latent itself is clear"


def test_what_explains_and_what_scores_are_of_different_documents(sae, fake, url):
    evidence = evidence_of(Bucket(sae), "")
    of = Contexts(evidence, shown=20, scored=10).of(5)
    numbers = {part: {one.sequence[1] for one in getattr(of, part)} for part in ("explain", "positives", "others", "nearest")}
    assert {half_of(number) for number in numbers["explain"]} == {EXPLAIN}
    assert {half_of(number) for part in ("positives", "others", "nearest") for number in numbers[part]} == {SCORE}
    assert {len(numbers[part]) for part in ("positives", "others", "nearest")} == {10}
    latents = {part: {number // 100 for number in of_part} for part, of_part in numbers.items()}
    assert latents["nearest"] == {6, 7, 8} and not {5, 6, 7, 8} & latents["others"]
    assert all(PLANTED[12] not in one.text for one in of.explain), "the document before the window's own is cut off"
    label(sae, url, "--latents", "5")
    shown = next(body for body in fake.requests if "Reply with the phrase alone" in body["messages"][-1]["content"])
    assert {text for text in re.split(r"\n\nText \d+:\n", shown["messages"][-1]["content"])[1:]} == {one.marked() for one in of.explain}


def test_a_second_run_sends_no_request_and_a_longer_one_only_what_is_new(sae, fake, url):
    first = label(sae, url, "--latents", "1-3")
    sent = len(fake.requests)
    assert first["requests"] == sent
    again = label(sae, url, "--latents", "1-3")
    assert again["requests"] == 0 and len(fake.requests) == sent and again["labels"] == first["labels"]
    longer = label(sae, url, "--latents", "1-4")
    assert len(fake.requests) == sent + longer["requests"] and longer["requests"] < sent / 2 and len(longer["labels"]) == 4
    Path(first["file"]).unlink()
    rebuilt = label(sae, url, "--latents", "1-3")
    assert rebuilt["requests"] == 0 and rebuilt["labels"] == first["labels"], "answers are kept apart from their table"


def test_a_budget_is_kept_and_the_next_run_goes_on(sae, fake, url):
    total = 0
    for _ in range(20):
        found = label(sae, url, "--latents", "1-3", "--budget", "20")
        total += found["requests"]
        assert found["requests"] <= 20 and len(fake.requests) == total
        if "error" not in found:
            break
        assert "the budget of requests is spent" in found["error"] and found["not_done"]
        for row in found["labels"]:
            assert row["detection"] is None or row["detection"] == 1.0, "no figure of half of its questions"
    assert not found["not_done"] and len({json.dumps(body) for body in fake.requests}) == total, "nothing was asked twice"


def test_no_more_requests_than_allowed_are_under_way(sae, fake, url):
    fake.pause = 0.03
    label(sae, url, "--latents", "1-2", "--concurrency", "3")
    assert 1 < fake.most_at_once <= 3


def test_a_service_that_works_on_one_request_after_the_other_is_not_overrun(sae, fake, url):
    fake.pause, fake.one_at_a_time = 0.05, threading.Lock()
    found = label(sae, url, "--latents", "1", "--methods", "detection", "--concurrency", "16", "--timeout", "0.4")
    assert not found["not_done"] and len(fake.requests) == found["requests"] == len({json.dumps(body) for body in fake.requests})
    assert fake.most_at_once <= 4, "no answer came late, so nothing was asked twice"


def test_a_latent_without_enough_contexts_is_told(sae, fake, url):
    found = label(sae, url, "--latents", f"{DEAD},{ONE_DOCUMENT}")
    assert found["not_done"] == {
        str(DEAD): "it never fired",
        str(ONE_DOCUMENT): "its contexts are of too few documents to explain it from some and score it on others",
    }
    assert not fake.requests


def test_the_latents_are_chosen_by_number_or_by_rank(sae, url):
    assert [row["latent"] for row in label(sae, url, "--top", "2", "--methods", "detection")["labels"]] == [37]
    with pytest.raises(InputError, match="'5-2' is neither a latent nor a range"):
        label(sae, url, "--latents", "1,5-2")
    with pytest.raises(InputError, match="latent 40 does not exist"):
        label(sae, url, "--latents", "40")
    with pytest.raises(InputError, match="by either --latents"):
        label(sae, url)
    with pytest.raises(InputError, match="--methods 'guess' is no method"):
        label(sae, url, "--latents", "1", "--methods", "guess")


def test_an_endpoint_that_is_busy_is_asked_again_when_it_says(sae, fake, url):
    fake.failing = [(429, {"Retry-After": "1"}, "slow down"), (503, {}, "")]
    start = time.monotonic()
    found = label(sae, url, "--latents", "1", "--methods", "detection", "--concurrency", "1")
    assert found["labels"][0]["detection"] == 1.0 and time.monotonic() - start >= 1
    assert len(fake.requests) == found["requests"], "retries count"


def test_fields_that_an_endpoint_refuses_are_left_out(sae, fake, url):
    fake.refuses = {"logprobs", "temperature"}
    (row,) = label(sae, url, "--latents", "1")["labels"]
    assert row["score"] == 1.0 and row["basis"] == "answers"
    assert label(sae, url, "--latents", "1")["requests"] == 0


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        ((500, {}, "oops"), "status 500, after 1 tries"),
        ((429, {"Retry-After": "3600"}, ""), "it asks to wait 3600 seconds"),
        ((401, {}, f"wrong key {KEY}"), f"it refuses the key in {KEY_VARIABLE}"),
        ((404, {}, json.dumps({"error": {"message": f"no model, {KEY}"}})), "status 404: 'no model, .key.': is this the base URL"),
        ((400, {}, json.dumps({"detail": f"pinned to {KEY}"})), "status 400: 'pinned to .key.': is this the base URL"),
        ((200, {}, "<html>"), "does not answer as chat completions do, but with '<html>'"),
        ((200, {}, json.dumps({"choices": [{"message": {"content": None}}]})), "does not answer as chat completions do"),
    ],
)
def test_an_endpoint_that_fails_is_a_sentence(sae, fake, url, monkeypatch, reply, sentence):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    fake.always = reply
    found = label(sae, url, "--latents", "1-3", "--patience", "0.1")
    assert re.search(sentence, found["error"]) and KEY not in json.dumps(found) and "0 of 3 latents" in found["error"]
    assert set(found["not_done"]) == {"1", "2", "3"} and not found["labels"]


def test_an_endpoint_that_is_not_there_or_too_slow_is_a_sentence(sae, fake, url):
    found = label(sae, "http://127.0.0.1:9/v1", "--latents", "1", "--patience", "0.1")
    assert "127.0.0.1:9/v1/chat/completions" in found["error"] and "refused" in found["error"]
    fake.pause = 0.4
    found = label(sae, url, "--latents", "1", "--patience", "0.1", "--timeout", "0.1")
    assert "no reply within 0.1 seconds" in found["error"]


def test_a_model_that_judges_one_text_at_a_time_is_asked_so(sae, fake, url):
    fake.logprobs = False
    found = label(sae, url, "--latents", "1,9", "--methods", "detection", "--texts", "1")
    assert all(row["detection"] == row["detection_nearest"] == 1.0 and not row["unread"] for row in found["labels"])
    judged = [body["messages"][-1]["content"] for body in fake.requests if "say whether the neuron" in body["messages"][-1]["content"]]
    assert len(judged) == 2 * 50 and all("There is one text." in content and "Text 2:" not in content for content in judged)


def test_marks_that_a_model_copies_are_no_part_of_its_label(sae, fake, url):
    fake.content, fake.logprobs = "<<wordav>> as a word", False
    (row,) = label(sae, url, "--latents", "1", "--budget", "1")["labels"]
    assert row["label"] == "wordav as a word"


def test_work_is_kept_when_an_endpoint_goes_down(sae, fake, url):
    whole = label(sae, url, "--latents", "1-2")
    fake.always = (500, {}, "")
    found = label(sae, url, "--latents", "1-4", "--patience", "0.1")
    assert found["labels"] == whole["labels"] and set(found["not_done"]) == {"3", "4"} and "2 of 4 latents" in found["error"]
    fake.always = None
    assert not label(sae, url, "--latents", "1-4")["not_done"]


def test_an_endpoint_of_nonsense_is_left_alone(sae, fake, url):
    fake.content, fake.logprobs = "bananas are 12 yes no maybe", False
    found = label(sae, url, "--latents", "1-30", "--concurrency", "1")
    assert "answers are neither labels nor verdicts" in found["error"] and found["requests"] < 60
    assert all(row["score"] is None for row in found["labels"])


def test_the_key_is_sent_and_never_kept_or_shown(sae, fake, url, monkeypatch, tmp_path):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    fake.content, fake.logprobs = f"it is {KEY}", False
    result = CliRunner().invoke(app, ["label", sae, "--latents", "1", "--endpoint", url, "--model", "m", "--patience", "2"])
    assert {headers["Authorization"] for headers in fake.headers} == {f"Bearer {KEY}"}
    assert KEY not in result.output + str(result.exception) and "it is [key]" in result.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(InputError, match=f"set it in the environment variable {KEY_VARIABLE}"):
        label(sae, "http://me:secret@127.0.0.1/v1", "--latents", "1")


def test_the_table_shows_labels_scores_and_what_is_left(sae, fake, url):
    result = CliRunner().invoke(app, ["label", sae, "--latents", f"1,{DEAD}", "--endpoint", url, "--model", "m"])
    assert result.exit_code == 0 and isinstance(result.exception, ScopemillError | type(None)), result.output
    assert f"the word {PLANTED[1]}" in result.output and "it never fired" in result.output and "requests sent" in result.output
