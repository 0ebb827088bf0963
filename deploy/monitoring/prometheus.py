"""Prometheus' configuration, and Prometheus itself for as long as a block runs."""

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
RAY_TARGETS = "/tmp/ray/prom_metrics_service_discovery.json"  # which a cluster's head node writes, where it has the dashboard
START_SECONDS = 60.0


def config(targets: str, ray_targets: str = RAY_TARGETS, scrape_seconds: float = SCRAPE_SECONDS) -> dict[str, Any]:
    """Two jobs: our processes, as drivers list them, and Ray's own, as Ray does. Both are listed at a URL, or in files: ``*`` may be in
    the path's last part."""
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
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=140)


@contextmanager
def prometheus(folder: Path, config: dict[str, Any], port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """Prometheus with our alerts, on loopback: its URL and its process. ``folder`` keeps its files and what it has stored."""
    program = shutil.which("prometheus")
    if program is None:
        raise InputError(
            "there is no program prometheus on this machine's PATH: install it (apt-get install prometheus, brew install prometheus, "
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


def _await_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    lines = log.read_text().strip().splitlines()
    raise ScopemillError(f"prometheus did not get ready at {url}; the last line of {log} reads: {lines[-1] if lines else '(it is empty)'}")
