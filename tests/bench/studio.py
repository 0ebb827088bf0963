"""The studio over 504 SAEs: first paint, a card's delay, 50 open pages, and what blocks the loop: ``python tests/bench/studio.py``.

With ``requests`` or ``pages`` it measures a part of it. It takes playwright and Debian's Chromium. The figures are those of
docs/studio.md; time them on a machine that does nothing else.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / ".import")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support import written_evidence  # noqa: E402
from support.browser import chromium, page_of  # noqa: E402
from support.studio import TOKEN, Client, driving, row, write_sweep  # noqa: E402

from scopemill.deploy.plan.progress import SaeProgress, SweepProgress, write_progress  # noqa: E402
from scopemill.proto.storage.bucket import Bucket  # noqa: E402

SAES, FINISHED, STEPS = 504, 252, 5000
AT_WORK, LATENTS, TREE = 20, 4096, 400
AT_ONCE, TIMES = 8, 16  # requests of one route
STREAMS, STREAM_SECONDS = 50, 20
APPEARS = """new MutationObserver((_, watcher) => { if (document.querySelector("article h2")) { globalThis.appeared = performance.now();
  watcher.disconnect(); } }).observe(document, { childList: true, subtree: true });"""


class Service(Client):
    """A service in a process of its own, whose event loop is timed."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        super().__init__(f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}")

    def timed(self) -> dict[str, Any]:
        """What the loop ran since this was asked before."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        """The most that was resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def service_of(bucket: Bucket) -> Iterator[Service]:
    command = [sys.executable, str(HERE / "studio_service.py"), bucket.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Service(process)
        finally:
            process.terminate()


def make(folder: Path) -> tuple[Bucket, Any, Path]:
    """Write 504 SAEs, half of them finished with 500 rows of history each, evidence of one, and a tree of Gemma Scope."""
    bucket, tree = Bucket(str(folder / "bucket")), folder / "gemma-scope-2b-pt-res"
    plan = write_sweep(bucket, "large", SAES, FINISHED, STEPS)
    written_evidence.write(bucket, plan.saes[0].root, LATENTS)
    for number in range(TREE):
        place = tree / f"layer_{number % 20}/width_16k/average_l0_{number // 20 + 10}"
        place.mkdir(parents=True)
        (place / "params.npz").touch()
    return bucket, plan, tree


def routes(client: Client, plan: Any, tree: Path) -> dict[str, tuple[str, str, Any]]:
    """Every kind of request but those that start processes: by name, method, path and body."""
    ids = [one["id"] for one in client.get(f"/trainings?limit={SAES}")["items"]]
    one, sae, sixteen = ids[0], plan.saes[0].root, "&".join(f"id={id}" for id in ids[:16])
    file = {"name": "x", "model": "m", "train": {"widths": [1024], "sparsities": [1e-3]}}
    gets = {
        "trainings, a page": "/trainings", "trainings, all": "/trainings?limit=2000&sort=l0&text=topk", "one training": f"/trainings/{one}",
        "metrics": f"/trainings/{one}/metrics", "checkpoints": f"/trainings/{one}/checkpoints", "sweeps": "/trainings/sweep",
        "one sweep": "/trainings/sweep/large", "schema": "/trainings/schema", "compare 16": f"/compare?{sixteen}",
        "templates": "/training-templates", "export": "/training-templates/export?name=quick", "saes": "/saes?limit=2000",
        "Gemma Scope": f"/saes/gemma-scope?source={tree}&limit=2000", "latents": f"/latents?sae={sae}&dead=true&limit=1000",
        "one latent": f"/latents/7?sae={sae}", "search": f"/search?sae={sae}&text=import", "labels": f"/labels?sae={sae}",
        "about": "/about", "OpenAPI": "/openapi.json",
    }  # fmt: skip
    posts = {
        "validate": ("/trainings/validate", {"config": file}), "evaluate": (f"/trainings/{one}/evaluate", {"metrics": ["fvu"]}),
        "stop 252": ("/trainings/stop", {"ids": ids[FINISHED:]}),
    }  # fmt: skip
    found = {name: ("GET", f"/api/v1{path}", None) for name, path in gets.items()}
    found |= {name: ("POST", f"/api/v1{path}", body) for name, (path, body) in posts.items()}
    return found | {"the page": ("GET", "/", None)}


def hammer(client: Service, request: tuple[str, str, Any]) -> tuple[list[float], dict[str, float]]:
    """Send one request again and again, eight at once: the seconds of each, and what the loop ran meanwhile."""

    def once(_: int) -> float:
        began = time.perf_counter()
        status, answer, _ = client.ask(*request)
        assert status < 300, answer
        return time.perf_counter() - began

    client.timed()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        seconds = sorted(threads.map(once, range(TIMES)))
    return seconds, client.timed()


def blocking(client: Service, requests: dict[str, tuple[str, str, Any]]) -> Table:
    table = Table("request", "median", "slowest", "longest stretch of the loop", "processor time of the longest", "of", "over 50 ms")
    for name, request in requests.items():
        seconds, told = hammer(client, request)
        table.add_row(
            name, _ms(seconds[len(seconds) // 2]), _ms(seconds[-1]), _ms(told["wall"]), _ms(told["processor"]), told["what"],
            f"{told['blocked']:.0f} of {told['callbacks']:.0f}",
        )  # fmt: skip
    return table


def first_paint(client: Service, browser: Any) -> tuple[float, float]:
    """Milliseconds until something is painted and until the first card is there; without anything cached, the median of five."""
    painted, appeared = [], []
    for _ in range(5):
        with page_of(browser) as page:
            page.add_init_script(APPEARS)
            page.goto(f"{client.url}/#token={TOKEN}")
            page.locator("article h2").first.wait_for()
            painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            appeared.append(page.evaluate("globalThis.appeared"))
    return sorted(painted)[2], sorted(appeared)[2]


class Progress:
    """What a driver at work on 20 SAEs writes every two seconds."""

    def __init__(self, bucket: Bucket, plan: Any):
        self._bucket, self._beat = bucket, 0
        self._names = [sae.name for sae in plan.saes[FINISHED : FINISHED + AT_WORK]]

    def write(self, loss: float = 0.1) -> None:
        self._beat += 1
        step = STEPS // 2 + 10 * self._beat
        saes = {name: SaeProgress(state="training", step=step, row=asdict(row(step, loss=loss))) for name in self._names}
        told = SweepProgress(sweep="large", started=1.0, written=time.time(), phase="training", saes=saes, beat=self._beat)
        write_progress(self._bucket, told)


def card_delays(client: Service, browser: Any, progress: Progress) -> list[float]:
    """Seconds from the object on the bucket to the card."""
    delays = []
    with page_of(browser) as page:
        page.goto(f"{client.url}/#token={TOKEN}")
        page.locator("h1").wait_for()
        page.goto(f"{client.url}/#/trainings?state=running")
        page.locator("article").first.wait_for()
        for number in range(8):
            loss = 0.7001 + number / 1000
            began = time.perf_counter()
            progress.write(loss)
            page.locator("article").first.get_by_text(f"{loss:.4f}", exact=True).wait_for()
            delays.append(time.perf_counter() - began)
    return sorted(delays)


def streams(client: Service, progress: Progress) -> tuple[float, float, int]:
    """Memory (MiB), share of a core and messages of 50 open pages while 20 SAEs are trained."""
    heard, ends = [0] * STREAMS, time.monotonic() + STREAM_SECONDS

    def listen(number: int) -> None:
        request = urllib.request.Request(f"{client.url}/api/v1/events", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as stream:
            for line in stream:
                heard[number] += line.startswith(b"data")
                if time.monotonic() > ends:
                    return

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(STREAMS)]
    [thread.start() for thread in threads]
    began, used = time.monotonic(), client.processor_seconds()
    while time.monotonic() < ends:
        progress.write()
        time.sleep(2)
    share = (client.processor_seconds() - used) / (time.monotonic() - began)
    progress.write()  # the last message, by which listeners end
    [thread.join() for thread in threads]
    return client.memory_mib(), share, min(heard)


def longest(told: dict[str, Any]) -> str:
    return f"the loop's longest stretch meanwhile: {_ms(told['processor'])} of processor time, in {told['what']}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def main(parts: list[str]) -> None:
    console = Console(width=140)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {datetime.date.today()}")
    with tempfile.TemporaryDirectory(prefix="scopemill-studio-") as temporary:
        bucket, plan, tree = make(Path(temporary))
        if "requests" in parts:
            with service_of(bucket) as client:
                console.print(blocking(client, routes(client, plan, tree)))
        if "pages" in parts:
            pages(console, bucket, plan)


def pages(console: Console, bucket: Bucket, plan: Any) -> None:
    with driving(bucket, "large"), service_of(bucket) as client, chromium() as browser:
        progress = Progress(bucket, plan)
        progress.write()
        client.get("/trainings")
        client.timed()  # the start
        painted, appeared = first_paint(client, browser)
        console.print(f"first paint {painted:.0f} ms, first card {appeared:.0f} ms after the address was opened")
        console.print(longest(client.timed()))
        delays = card_delays(client, browser, progress)
        console.print(f"a card shows a step {delays[len(delays) // 2]:.2f} s (at most {delays[-1]:.2f} s) after it is on the bucket")
        client.timed()
        memory, share, heard = streams(client, progress)
        console.print(f"{STREAMS} open pages: {memory:.0f} MiB, {share:.2f} of a core, {heard} messages to each in {STREAM_SECONDS} s")
        console.print(longest(client.timed()))


if __name__ == "__main__":
    main(sys.argv[1:] or ["requests", "pages"])
