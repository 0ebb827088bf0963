"""Write Prometheus' configuration, and run Prometheus for the length of a block."""

import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from scopemill.deploy.monitoring.alerts import rule_file
from scopemill.proto.errors import InputError, ScopemillError

SCRAPE_SECONDS = 10.0
RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"  # written by a cluster's head node that has the dashboard
START_SECONDS = 60.0


def config(targets: str, ray_targets: str = RAY_TARGETS, scrape_seconds: float = SCRAPE_SECONDS) -> dict[str, Any]:
    """Return a configuration with two jobs: Scopemill's processes, and Ray's own metrics.

    ``targets`` and ``ray_targets`` are a URL or a file; the last part of a file's path may hold ``*``.
    """
    interval = f"{scrape_seconds * 1000:.0f}ms"

    def job(name: str, place: str) -> dict[str, Any]:
        kind, found = ("http", {"url": place}) if "://" in place else ("file", {"files": [place]})
        return {"job_name": name, f"{kind}_sd_configs": [found | {"refresh_interval": interval}]}

    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [job("scopemill", targets), job("ray", ray_targets)],
    }


def as_yaml(data: dict[str, Any]) -> str:
    """Return the data as YAML, keys in their order."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=140)
    return text


@contextmanager
def prometheus(folder: Path, config: dict[str, Any], port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run Prometheus with Scopemill's alerts on loopback, and yield its URL and its process.

    ``folder`` holds the configuration, the log and the scraped data.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise InputError(
            "the program prometheus is not on this machine's PATH: install it (apt-get install prometheus, brew install prometheus, "
            "or from https://prometheus.io/download)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(as_yaml(config))
    (folder / "alerts.yml").write_text(as_yaml(rule_file()))
    log = folder / "prometheus.log"
    address = f"127.0.0.1:{port}"
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with log.open("w") as output:
        process = subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        _await_ready(f"http://{address}", process, log)
        yield f"http://{address}", process
    finally:
        process.terminate()
        process.wait()


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    lines = log.read_text().strip().splitlines()
    last = lines[-1] if lines else "(the log is empty)"
    raise ScopemillError(
        f"prometheus did not get ready at {url}: it ended, or took longer than {START_SECONDS:.0f} s; the last line of {log}: {last}"
    )
