"""The REST interface over a bucket of records, on loopback."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.studio import TOKEN, served, write_sweep
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from scopemill.deploy.plan.progress import SaeProgress, SweepProgress, write_progress
from scopemill.proto.storage.bucket import Bucket

HEAVY = ("torch", "transformers", "ray", "matplotlib", "numba", "transformer_lens", "datasets", "zarr")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Bucket:
    bucket = Bucket(str(tmp_path_factory.mktemp("studio") / "bucket"))
    write_sweep(bucket, "one", saes=3, finished=1)
    write_sweep(bucket, "two", saes=2, finished=2)
    return bucket


@pytest.fixture(scope="module")
def service(bucket):
    with served(bucket.url) as client:
        yield client


def test_trainings_are_filtered_sorted_and_given_in_pages(service):
    page = service.get("/trainings?sort=sparsity&order=descending&limit=2")
    assert page["total"] == 5 and [one["sparsity"] for one in page["items"]] == [3.0, 2.0]
    assert page["counts"] == {"pending": 1, "running": 0, "completed": 3, "failed": 0, "stopped": 1}
    assert [one["sweep"] for one in service.get("/trainings?state=completed&state=stopped&sweep=one")["items"]] == ["one", "one"]
    assert service.get("/trainings?text=TWO")["total"] == 2 and service.get("/trainings?text=nothing")["total"] == 0
    rest = service.get("/trainings?sort=fvu&limit=3&offset=3")["items"]
    assert rest[-1]["quality"] is None, "those without a value come last"


def test_a_training_has_hyperparameters_curves_and_checkpoints(service):
    id = "one:3.resid_post:256:topk:2"
    shown = service.get(f"/trainings/{id}")
    assert shown["state"] == "stopped" and shown["config"] == {"width": 256, "sparsity": 2, "seed": 0}
    curves = service.get(f"/trainings/{id}/metrics?series=loss,l0&points=4")
    assert curves["step"] == 50 and curves["rows"] == 5 and set(curves["series"]) == {"loss", "l0"}
    assert service.get(f"/trainings/{id}/metrics?since=30")["rows"] == 2
    (saved,) = service.get(f"/trainings/{id}/checkpoints")["items"]
    assert saved["step"] == 50 and saved["resumable"] and saved["quality"]["l0"] == 11.0
    status, problem, headers = service.ask("GET", f"/api/v1/trainings/{id}/metrics?series=nonsense")
    assert (status, headers["Content-Type"]) == (422, "application/problem+json") and "choose from loss" in problem["detail"]
    assert service.ask("GET", "/api/v1/trainings/none")[1]["type"] == "urn:scopemill:problem:missing-object"


def test_a_row_of_another_version_s_driver_is_drawn_with_gaps(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    sae = write_sweep(bucket, "one").saes[1]
    row = {"step": 60, "loss": 0.5, "a column of tomorrow": 1.0}
    told = SweepProgress(sweep="one", started=1.0, written=1.0, saes={sae.name: SaeProgress(state="training", step=60, row=row)})
    write_progress(bucket, told)
    with served(bucket.url) as client:
        found = client.get(f"/trainings/one:{sae.name.replace('/', ':')}/metrics?series=loss,l0")
    assert found["step"] == 60 and found["series"]["loss"]["values"][-1] == 0.5 and found["series"]["l0"]["values"][-1] is None


def test_what_nobody_expected_is_a_problem_document_too(tmp_path, monkeypatch):
    with served(str(tmp_path / "bucket")) as client:
        monkeypatch.setattr("scopemill.deploy.studio.templates.Templates.all", lambda self: 1 / 0)
        status, problem, headers = client.ask("GET", "/api/v1/training-templates")
    assert (status, headers["Content-Type"]) == (500, "application/problem+json") and "ZeroDivisionError" in problem["detail"]


def test_a_sweep_is_a_parent_with_children_and_a_frontier(service):
    assert {one["name"]: one["state"] for one in service.get("/trainings/sweep")} == {"one": "stopped", "two": "completed"}
    sweep = service.get("/trainings/sweep/two")
    assert len(sweep["children"]) == len(sweep["points"]) == 2 and sweep["aggregates"]["l0"] == {"least": 10.0, "mean": 10.5, "most": 11.0}
    assert [point["pareto_fvu"] for point in sweep["points"]] == [True, True]


def test_trainings_are_compared(service):
    ids = [f"two:3.resid_post:256:topk:{number}" for number in (1, 2)]
    found = service.get(f"/compare?id={ids[0]}&id={ids[1]}")
    assert found["differing"] == {"sparsity": [1, 2]} and [one["id"] for one in found["metrics"]] == ids


def test_finished_saes_are_browsed(service):
    found = service.get("/saes")
    assert found["total"] == 3 and found["items"][0]["training"].startswith(("one:", "two:")) and found["items"][0]["width"] == 256
    assert service.get("/saes?evidence=true")["total"] == 0
    status, problem, _ = service.ask("GET", f"/api/v1/latents?sae={found['items'][0]['path']}")
    assert status == 404 and "scopemill evidence" in problem["detail"]


def test_a_measured_metric_is_given_at_once_and_others_are_refused_by_name(service):
    id = "two:3.resid_post:256:topk:1"
    found = service.post(f"/trainings/{id}/evaluate", {"metrics": ["fvu", "l0"]}, 200)
    assert found["cached"] and found["metrics"] == {"fvu": 0.5, "l0": 10.0} and found["request"] is None
    assert "choose from" in service.post(f"/trainings/{id}/evaluate", {"metrics": ["beauty"]}, 422)["detail"]
    assert "evaluation.probes" in service.post(f"/trainings/{id}/evaluate", {"metrics": ["probes"]}, 422)["detail"]
    assert "no checkpoint" in service.post("/trainings/one:3.resid_post:256:topk:3/evaluate", {}, 422)["detail"]


def test_templates_make_a_round_trip(service):
    given = {"name": "mine", "description": "d", "config": {"train": {"widths": [1024], "template": "quick"}}}
    made = service.post("/training-templates", given, 201)
    assert made["own"] and made["uses"] == 0
    assert service.ask("PATCH", "/api/v1/training-templates/mine", {"favourite": True})[1]["favourite"]
    assert service.ask("PATCH", "/api/v1/training-templates/quick", {"favourite": True})[1]["favourite"]
    assert [one["name"] for one in service.get("/training-templates")[:2]] == ["mine", "quick"]
    copy = service.post("/training-templates/quick/duplicate", {"name": "faster"}, 201)
    assert copy["own"] and copy["config"]["train"]["architecture"]
    document = service.get("/training-templates/export?name=mine&name=faster")
    assert "already" in service.post("/training-templates/import", document, 409)["detail"]
    for name in ("mine", "faster"):
        assert service.ask("DELETE", f"/api/v1/training-templates/{name}")[0] == 204
    assert [one["name"] for one in service.post("/training-templates/import", document, 200)] == ["mine", "faster"]
    assert service.get("/training-templates/mine")["config"] == given["config"]
    for wrong, says in (
        ({"name": "w", "config": {"trains": {}}}, "no such section"),
        ({"name": "w", "config": {"train": {"colour": 1}}}, "train.colour"),
        ({"name": "../w", "config": {}}, "not a usable name"),
    ):
        assert says in service.post("/training-templates", wrong, 422)["detail"]
    assert "comes with the package" in service.ask("DELETE", "/api/v1/training-templates/quick")[1]["detail"]


def test_a_sweep_file_is_checked_field_by_field_before_anything_starts(service, bucket):
    found = service.post("/trainings/validate", {"config": {"name": "x", "train": {"widths": ["a"]}}}, 200)
    assert not found["valid"] and any("harvest" in one for one in found["problems"])
    status, problem, _ = service.ask("POST", "/api/v1/trainings", {"config": {"name": "x", "bucket": "/elsewhere"}})
    assert status == 422 and bucket.url in problem["detail"]
    assert "x" not in bucket.names("sweeps")


def test_requests_without_a_driver_are_carried_out_by_the_service(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    write_sweep(bucket, "one", saes=3, finished=1)
    with served(bucket.url) as client:
        ids = [one["id"] for one in client.get("/trainings")["items"]]
        with client.events("trainings,training/*") as messages:
            assert client.post(f"/trainings/{ids[2]}/stop")["driver"] == "this service"
            answer = client.post("/trainings/delete", {"ids": [*ids[:2], "none"]})
            assert answer["missing"] == ["none"] and answer["asked"][0]["trainings"] == ids[:2]
            removed = next(message["data"]["removed"] for _, message in messages if message["channel"] == "trainings")
        assert removed == ids[:2]
        (left,) = client.get("/trainings")["items"]
        assert left["state"] == "stopped" and "on request" in left["reason"]
    assert not bucket.find("saes")


def test_a_bucket_that_goes_away_and_comes_back_loses_nothing(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    write_sweep(bucket, "one")
    with served(bucket.url) as client, client.events("bucket") as messages:
        assert client.get("/trainings")["total"] == 3
        (tmp_path / "bucket").rename(tmp_path / "gone")
        (tmp_path / "bucket").write_text("no folder any more")
        event, data = next((message["event"], message["data"]) for _, message in messages)
        assert event == "unreachable" and data["problem"]
        assert client.get("/trainings")["total"] == 3 and not client.get("/about")["reachable"]
        (tmp_path / "bucket").unlink()
        (tmp_path / "gone").rename(tmp_path / "bucket")
        assert next(message["event"] for _, message in messages) == "reachable"
        assert client.get("/about")["reachable"]


def test_a_websocket_gets_the_same_messages_and_only_with_the_token(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    write_sweep(bucket, "one")
    with served(bucket.url) as client:
        place = client.url.replace("http", "ws") + "/api/v1/ws?channels=trainings"
        with connect(place, additional_headers={"Authorization": f"Bearer {TOKEN}"}, proxy=None) as stream:
            client.get("/trainings")
            write_sweep(bucket, "two", saes=1)
            message = json.loads(stream.recv(timeout=60))
            assert message["event"] == "changed" and message["data"]["added"] == ["two:3.resid_post:256:topk:1"] and message["id"]
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}):
            with pytest.raises(InvalidStatus), connect(place, additional_headers=headers, proxy=None):
                pass


def test_five_hundred_saes_are_listed_at_once(tmp_path):
    bucket = Bucket(str(tmp_path / "bucket"))
    write_sweep(bucket, "large", saes=500, finished=120)
    with served(bucket.url) as client:
        client.get("/trainings")
        began = time.perf_counter()
        page = client.get("/trainings?limit=500&sort=l0")
        seconds = time.perf_counter() - began
        assert len(page["items"]) == 500
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: client.get("/trainings?limit=50"), range(16)))
    assert seconds < 3, f"{seconds:.2f} s: 0.3 s on a machine that does nothing else"


def test_the_interface_describes_itself(service):
    paths = service.get("/openapi.json")["paths"]
    wanted = ["/trainings", "/trainings/{id}", "/trainings/{id}/stop", "/trainings/{id}/retry", "/trainings/{id}/metrics",
              "/trainings/{id}/checkpoints", "/trainings/{id}/evaluate", "/trainings/sweep", "/training-templates", "/saes", "/latents",
              "/search", "/steer", "/compare", "/labels", "/events"]  # fmt: skip
    assert {f"/api/v1{path}" for path in wanted} <= paths.keys()


def test_the_service_imports_nothing_heavy():
    code = f"import sys, scopemill.deploy.studio.server; print(*sorted(set(sys.modules) & set({HEAVY})))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
