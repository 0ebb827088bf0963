"""Who gets in: other users of the machine, other sites' pages, other host names and other paths do not."""

import http.client
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.studio import TOKEN, Client, served, write_sweep
from typer.testing import CliRunner

from scopemill.deploy.cli.main import app
from scopemill.deploy.studio.access import Access, kept_token
from scopemill.proto.storage.bucket import Bucket

SECRET = "what only the machine's user may read"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("access")
    write_sweep(Bucket(str(folder / "bucket")))
    (folder / "secret.txt").write_text(SECRET)
    with served(str(folder / "bucket")) as client:
        yield client


def raw(client: Client, method: str, target: str, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Send a request line as it is: clients would normalise its path and its Host."""
    place = urlsplit(client.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    connection.putrequest(method, target, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_everything_but_the_page_asks_for_the_token(service):
    for path in ("/api/v1/about", "/api/v1/trainings", "/api/v1/openapi.json", "/api/v1/events", "/api/v1/nothing"):
        status, body, headers = service.ask("GET", path, headers={"Authorization": ""})
        assert status == 401 and headers["Content-Type"] == "application/problem+json", path
        assert "scopemill studio printed" in body["detail"] and TOKEN not in str(body)
    assert service.ask("GET", "/api/v1/about", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert service.ask("GET", "/", headers={"Authorization": ""})[0] == 200


def test_the_token_becomes_a_cookie_that_no_script_reads_and_that_does_not_tell_it(service):
    status, _, headers = service.ask("POST", "/api/v1/session", {"token": TOKEN}, {"Authorization": ""})
    cookie = headers["Set-Cookie"]
    assert status == 204 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/" in cookie and TOKEN not in cookie
    name = f"scopemill-studio-{urlsplit(service.url).port}="
    assert cookie.startswith(name), "browsers share cookies between ports"
    assert service.ask("GET", "/api/v1/about", headers={"Authorization": "", "Cookie": cookie.split(";")[0]})[0] == 200
    assert service.ask("GET", "/api/v1/about", headers={"Authorization": "", "Cookie": f"{name}0"})[0] == 401
    assert service.ask("POST", "/api/v1/session", {"token": "wrong"}, {"Authorization": ""})[0] == 401


def test_a_name_that_was_bound_to_loopback_by_another_site_is_refused(service):
    bearer = f"Bearer {TOKEN}"
    assert raw(service, "GET", "/api/v1/about", Host="evil.example:80", Authorization=bearer)[0] == 421
    assert raw(service, "GET", "/", Host="127.0.0.1.evil.example")[0] == 421
    assert raw(service, "GET", "/api/v1/about", Host="localhost:9999", Authorization=bearer)[0] == 200, "a forwarded port is another one"


def test_requests_from_other_sites_are_refused_whatever_they_carry(service):
    given = {"Authorization": f"Bearer {TOKEN}"}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for method, path in (("POST", "/api/v1/trainings/delete"), ("GET", "/api/v1/events"), ("POST", "/api/v1/session")):
            assert service.ask(method, path, {} if method == "POST" else None, given | headers)[0] == 403, (headers, path)
    own = service.url
    assert service.ask("GET", "/api/v1/about", headers=given | {"Origin": own, "Sec-Fetch-Site": "same-origin"})[0] == 200


def test_every_answer_forbids_scripts_frames_and_images_of_others(service):
    for path in ("/", "/api/v1/about", "/api/v1/nothing", "/nothing"):
        _, _, headers = service.ask("GET", path)
        assert headers["Content-Security-Policy"].startswith("default-src 'self'"), path
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert service.ask("GET", "/api/v1/about")[2]["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/....//secret.txt", "/static/../../secret.txt", "//etc/passwd",
        "/%2fetc%2fpasswd", "/..\\secret.txt", "/index.html%00.txt",
        "/api/v1/trainings/..%2f..%2fsecret.txt", "/api/v1/trainings/%2e%2e", "/api/v1/trainings/sweep/..%2f..",
        "/api/v1/training-templates/..%2f..%2fsecret", "/api/v1/latents?sae=../secret.txt", "/api/v1/latents?sae=/etc",
        "/api/v1/latents/0?sae=saes/../../..", "/api/v1/labels?sae=file:///etc", "/api/v1/jobs/..%2f",
    ],
)  # fmt: skip
def test_no_path_leaves_the_bucket_or_the_page(service, target):
    status, body, _ = raw(service, "GET", target, Authorization=f"Bearer {TOKEN}")
    assert status in (400, 404, 422), (status, body[:200])
    assert SECRET.encode() not in body and b"root:" not in body


def test_a_read_only_service_changes_nothing(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    plan = write_sweep(bucket)
    before = bucket.versions("saes") | bucket.versions("sweeps")
    with served(bucket.url, read_only=True) as client:
        id = client.get("/trainings")["items"][1]["id"]
        for method, path, body in (
            ("POST", "/trainings", {"config": {}}), ("POST", f"/trainings/{id}/stop", None), ("DELETE", f"/trainings/{id}", None),
            ("POST", "/trainings/delete", {"ids": [id]}), ("POST", "/training-templates", {"name": "x", "config": {}}),
            ("PATCH", "/training-templates/quick", {"favourite": True}), ("POST", "/saes/import", {"source": "x"}),
            ("POST", "/steer", {"prompt": "a", "configurations": {}}),
        ):  # fmt: skip
            status, answer, _ = client.ask(method, f"/api/v1{path}", body)
            assert status == 403 and "--read-only" in answer["detail"], path
        assert client.get("/about")["read_only"] and len(client.get("/trainings")["items"]) == len(plan.saes)
    assert bucket.versions("saes") | bucket.versions("sweeps") == before


def test_beyond_loopback_only_with_a_certificate_or_a_word(tmp_path):
    told = CliRunner().invoke(app, ["studio", str(tmp_path), "--host", "0.0.0.0"])
    assert told.exit_code != 0 and "--certificate" in str(told.exception)
    told = CliRunner().invoke(app, ["studio", str(tmp_path), "--certificate", "x.pem"])
    assert told.exit_code != 0 and "--key" in str(told.exception)


def test_the_token_is_the_users_own_and_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    token = kept_token("bucket")
    (file,) = Path(tmp_path).rglob("*.token")
    assert file.stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0
    assert kept_token("bucket") == token != kept_token("another") and len(token) >= 32
    assert Access(token, 1).pass_word != Access(token + "x", 1).pass_word
