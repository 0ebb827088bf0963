"""A studio's service on loopback, and a bucket with the records of a sweep that was never trained."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from scopemill.deploy.plan.record import PassRecord, PlanRecord, SaeRecord, write_plan
from scopemill.deploy.plan.submission import Submission
from scopemill.deploy.studio.access import Access
from scopemill.deploy.studio.application import application
from scopemill.deploy.studio.server import StudioServer
from scopemill.deploy.studio.service import Settings
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.proto.layout import LeaseLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.training.history import History, Row

TOKEN = "a token of more than sixteen letters"
SETTINGS = {"sequences": 8}


class Client:
    """Ask a service, with the token as a bearer's."""

    def __init__(self, url: str):
        self.url = url

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        """Status, parsed body and headers."""
        given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | (headers or {})
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}{path}", data, {k: v for k, v in given.items() if v}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text, found = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, text, found = error.code, error.read(), error.headers
        is_json = "json" in (found.get("Content-Type") or "")
        return status, json.loads(text) if is_json and text else text, found

    def get(self, path: str) -> Any:
        status, body, _ = self.ask("GET", f"/api/v1{path}")
        assert status == 200, body
        return body

    def post(self, path: str, body: Any = None, status: int = 202) -> Any:
        found, answer, _ = self.ask("POST", f"/api/v1{path}", body)
        assert found == status, answer
        return answer

    def until(
        self, id: str, state: str, holds: Callable[[dict[str, Any]], bool] = lambda now: True, seconds: float = 600
    ) -> dict[str, Any]:
        """The training, once it is in a state and the rest holds."""
        deadline = time.monotonic() + seconds
        while (now := self.get(f"/trainings/{id}"))["state"] != state or not holds(now):
            assert time.monotonic() < deadline, f"{id} was not {state} in {seconds:.0f} s: {now['state']}, {now['reason']}"
            time.sleep(0.2)
        return now

    @contextmanager
    def events(self, channels: str = "", last: str | None = None) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """Ids and messages of the stream."""
        headers = {"Authorization": f"Bearer {TOKEN}"} | ({"Last-Event-ID": last} if last else {})
        request = urllib.request.Request(f"{self.url}/api/v1/events?channels={channels}", headers=headers)
        with urllib.request.urlopen(request, timeout=120) as stream:
            assert stream.readline().startswith(b"retry:")

            def messages() -> Iterator[tuple[str, dict[str, Any]]]:
                id = ""
                for line in stream:
                    if line.startswith(b"id: "):
                        id = line[4:].decode().strip()
                    elif line.startswith(b"data: "):
                        yield id, json.loads(line[6:])

            yield messages()


@contextmanager
def served(bucket: str, read_only: bool = False, port: int = 0) -> Iterator[Client]:
    """Serve a bucket for the length of the block."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    port = listening.getsockname()[1]
    app = application(Settings(bucket, Access(TOKEN, port, read_only=read_only)))
    server = StudioServer(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1), app.state.studio.hub)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive(), "the service did not start"
        yield Client(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def driving(bucket: Bucket, sweep: str) -> Iterator[None]:
    """Another process that holds the sweep's lease: the service takes one of its own process for itself."""
    script = (
        "import sys; from scopemill.proto.storage.bucket import Bucket; from scopemill.proto.storage.lease import Lease;"
        f"print(Lease(Bucket({bucket.url!r}), {LeaseLayout.sweep(sweep)!r}, 'it').attempt(), flush=True); sys.stdin.read()"
    )
    command, known = [sys.executable, "-c", script], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=known) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"None\n"
        yield
        driver.communicate()


def row(step: int, **fields: float) -> Row:
    """A history's row of plausible numbers."""
    numbers = dict.fromkeys(
        ("reconstruction", "sparsity", "learning_rate", "sparsity_coefficient", "sparsity_factor", "waiting_share"), 0.1
    )
    given = {"step": step, "tokens": 64 * step, "loss": 1 / step, "l0": 30.0, "fvu": 0.3, "dead_latents": 2, "steps_per_second": 10.0}
    return Row(**(numbers | given | fields))  # type: ignore[arg-type]


def record(name: str, saes: int, steps: int = 100) -> PlanRecord:
    """The plan of a sweep whose SAEs differ in their sparsity."""
    made = tuple(
        SaeRecord(
            name=f"3.resid_post/256/topk/{number + 1}",
            root=f"saes/m/blocks.3.hook_resid_post/width_256/topk/{number + 1}-{name}",
            steps=steps, inputs=("blocks.3.hook_resid_post",), targets=(),
        )
        for number in range(saes)
    )  # fmt: skip
    part = PassRecord(dataset=name, shards=3, saes=made)
    return PlanRecord(
        digest="d", name=name, text=name, rolling=False, sheds=False, halving=False, evaluation_settings=SETTINGS, passes=(part,)
    )


def write_sweep(bucket: Bucket, name: str = "one", saes: int = 3, finished: int = 1, steps: int = 100) -> PlanRecord:
    """Write a sweep of which some SAEs are finished, one is half-way, and the others never began."""
    plan = record(name, saes, steps)
    write_plan(bucket, plan)
    file = {"name": name, "model": "m", "train": {"widths": [256], "sparsities": [1], "template": "quick"}}
    bucket.write(plan.layout.submission, checksummed_record(Submission(sweep=file, folder="/").model_dump()))
    for number, sae in enumerate(plan.saes[: finished + 1]):
        whole = number < finished
        step = steps if whole else steps // 2
        place = sae.layout.checkpoint(step)
        History([row(at, l0=20.0 + number) for at in range(10, step + 1, 10)]).save(bucket, sae.layout.history)
        bucket.write(place.weights, b"w")
        bucket.write(place.optimizer, b"o")
        bucket.write(place.record, checksummed_record({"step": step, "config": {"width": 256, "sparsity": number + 1, "seed": 0}}))
        evaluation = Evaluation(result(place.root, step, number), Histogram([0.0, 1.0], [256], 0), 8, SETTINGS).to_record()
        bucket.write(place.metrics, evaluation)
        if whole:
            bucket.write(sae.layout.weights, b"w")
            bucket.write(sae.layout.metrics, evaluation)
            bucket.write(sae.layout.config, b"{}")
    return plan


def result(path: str, step: int, number: int) -> Result:
    """What an evaluation found of the SAE of this number: the more it fires, the less is left over."""
    numbers = dict.fromkeys(
        ("loss_clean", "loss_spliced", "loss_zero_ablated", "loss_mean_ablated", "recovered_zero", "recovered_mean"), 0.5
    )
    place = {"hook": "blocks.3.hook_resid_post", "layer": 3, "site": "resid_post", "architecture": "topk", "width": 256}
    quality = {"l0": 10.0 + number, "fvu": 1 / (number + 2), "delta_loss": 0.1 * (number + 1), "dead_fraction": 0.0}
    return Result(sparsity=number + 1.0, step=step, tokens=1, path=path, **place, **quality, **numbers)  # type: ignore[arg-type]
