"""Uploads to a real HTTP server on loopback that checks Neuronpedia's limits, and fails as servers do."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.exported import labelled
from support.finished_saes import F, finished_sae
from typer.testing import CliRunner

from scopemill.deploy.catalog.neuronpedia_client import KEY, Client, upload
from scopemill.deploy.cli.main import app
from scopemill.evaluator.exports import neuronpedia_api
from scopemill.evaluator.exports.names import Names
from scopemill.proto.errors import InputError, ScopemillError
from scopemill.proto.storage.bucket import Bucket

SECRET = "sk-np-not-to-be-seen"
NAMES = Names()


class Neuronpedia:
    """The upload's interface: what it took, and answers to give first."""

    def __init__(self):
        self.features: dict[int, dict] = {}
        self.requests = self.taken = 0
        self.largest, self.failures = 10**9, []
        self.headers: list = []

    def answer(self, path: str, headers, body: bytes) -> tuple[int, dict[str, str], dict]:
        self.requests += 1
        self.headers.append((path, headers.get("X-Api-Key")))
        if self.failures:
            return self.failures.pop(0)
        if headers.get("X-Api-Key") != SECRET:
            return 401, {}, {"message": "Unauthorized"}
        if path != "/api/feature/upload-batch":
            return 404, {}, {}
        if len(body) > self.largest:
            return 413, {}, {"message": "too large"}
        asked = json.loads(body)
        if wrong := list(broken(asked)):
            return 400, {}, {"message": wrong[0]}
        self.taken += 1
        self.features |= {feature["index"]: feature for feature in asked["features"]}
        return 200, {}, {"message": "ok"}


def broken(asked: dict):
    """The rules that a request breaks, as Neuronpedia states them."""
    if set(asked) != {"modelId", "source", "features"} or not 1 <= len(asked["features"]) <= 128:
        yield "1 to 128 features"
    for feature in asked["features"]:
        if set(feature) != {"index", "density", "topLogits", "bottomLogits", "explanations", "activations"}:
            yield "fields"
        if not feature["activations"]:
            yield "at least one activation"
        if max(len(feature["topLogits"]), len(feature["bottomLogits"])) > 20:
            yield "20 logits"
        if any(len(explanation["text"]) > 512 for explanation in feature["explanations"]):
            yield "512 letters"
        for one in feature["activations"]:
            if len(one["tokens"]) > 1024 or len(one["tokens"]) != len(one["values"]):
                yield "tokens and values"
            if one["quantileFraction"] is not None and not 0 <= one["quantileFraction"] <= 1:
                yield "fraction"


@contextmanager
def serving(state: Neuronpedia):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, data = state.answer(self.path, self.headers, body)
            if status == 0:  # hang up without an answer
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(data).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return labelled(tmp_path_factory.mktemp("saes") / "0.5-a", finished_sae("jumprelu", model="tiny"))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    state = Neuronpedia()
    with serving(state) as state.url:
        yield state


def run(server, subject, folder, slept=None) -> list[str]:
    client = Client(server.url, (slept if slept is not None else []).append)
    return upload(client, server.url, Bucket(str(folder)), subject, NAMES, lambda done: None)


def fired(subject) -> set[int]:
    return {latent for latent in range(F) if subject.evidence.latent(latent)["fired"]}


def test_every_latent_that_fired_arrives_with_its_contexts(server, subject, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia_api, "MOST_LATENTS", 7)
    (page,) = run(server, subject, tmp_path)
    assert page == f"{server.url}/tiny/3-res-jumprelu-30__0_5-a"
    assert set(server.features) == fired(subject) and server.requests == -(-len(fired(subject)) // 7)
    for index, feature in server.features.items():
        assert len(feature["activations"]) == len(subject.evidence.examples(index))
    assert server.features[1]["explanations"][0]["text"].startswith("a \\u0000")


def test_large_requests_end_at_a_bound_of_bytes(server, subject, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia_api, "MOST_BYTES", 20_000)
    server.largest = 20_200
    run(server, subject, tmp_path)
    assert set(server.features) == fired(subject) and server.requests == server.taken > 5


def test_a_server_that_takes_less_gets_less(server, subject, tmp_path):
    server.largest = 12_000
    run(server, subject, tmp_path)
    assert set(server.features) == fired(subject) and server.requests > server.taken > 3


def test_passing_failures_are_retried_as_long_as_asked(server, subject, tmp_path):
    server.failures = [(503, {}, {}), (429, {"Retry-After": "17"}, {}), (0, {}, {}), (500, {}, {})]
    slept = []
    run(server, subject, tmp_path, slept)
    assert set(server.features) == fired(subject) and len(slept) == 4 and slept[1] == 17


def test_an_upload_goes_on_where_it_ended(server, subject, tmp_path, monkeypatch):
    monkeypatch.setattr(neuronpedia_api, "MOST_LATENTS", 5)
    server.failures = []
    good = server.answer
    server.answer = lambda *request: good(*request) if server.requests < 2 else (400, {}, {"message": "no such source"})
    with pytest.raises(ScopemillError, match="no such source.*goes on there"):
        run(server, subject, tmp_path)
    first = set(server.features)
    assert len(first) == 10
    server.answer, server.features = good, {}
    run(server, subject, tmp_path)
    assert set(server.features) == fired(subject) - first
    before = server.requests
    run(server, subject, tmp_path)
    assert server.requests == before  # nothing is left to do


def test_the_record_of_another_upload_is_not_used(server, subject, tmp_path):
    run(server, subject, tmp_path)
    with serving(Neuronpedia()) as other, pytest.raises(InputError, match="another upload"):
        upload(Client(other), other, Bucket(str(tmp_path)), subject, NAMES, lambda done: None)


def test_a_wrong_key_is_one_sentence_without_the_key(server, subject, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "wrong-key")
    with pytest.raises(InputError, match=KEY) as raised:
        run(server, subject, tmp_path)
    assert "wrong-key" not in str(raised.value) and server.requests == 1


def test_a_redirect_gets_no_key(server, subject, tmp_path):
    elsewhere = Neuronpedia()
    with serving(elsewhere) as other:
        server.failures = [(302, {"Location": f"{other}/api/feature/upload-batch"}, {})]
        with pytest.raises(ScopemillError, match="302"):
            run(server, subject, tmp_path)
    assert elsewhere.requests == 0


@pytest.mark.parametrize("url", ["http://neuronpedia.example", "ftp://localhost", "neuronpedia.org", "https://me:pass@host"])
def test_addresses_that_would_show_the_key_are_refused(url, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with pytest.raises(InputError, match="--upload"):
        Client(url)


def test_a_server_that_is_not_there_is_one_sentence(subject, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    slept = []
    with pytest.raises(ScopemillError, match="cannot be reached"):
        upload(Client("http://127.0.0.1:9", slept.append), "http://127.0.0.1:9", Bucket(str(tmp_path)), subject, NAMES, lambda done: None)
    assert len(slept) == 7


def test_the_command_uploads_and_never_writes_the_key(server, subject, tmp_path):
    told = CliRunner().invoke(app, ["export", subject.folder, "--to", "neuronpedia", "--upload", server.url, "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert set(server.features) == fired(subject) and SECRET not in told.output
    assert all(SECRET not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_without_a_key_nothing_is_sent(subject, tmp_path, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(InputError, match=f"set the environment variable {KEY}"):
        Client("https://www.neuronpedia.org")
