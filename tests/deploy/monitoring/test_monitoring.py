"""Dashboards and alerts are complete and valid, and a real Prometheus answers each query from a real sweep."""

import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from prometheus_client.metrics import MetricWrapperBase
from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter
from rich.console import Console
from support import tiny_sweep

from scopemill.deploy.cluster.scrape_targets import Targets
from scopemill.deploy.monitoring.__main__ import FOLDER, render
from scopemill.deploy.monitoring.alerts import ALERTS
from scopemill.deploy.monitoring.dashboards import DASHBOARDS
from scopemill.deploy.monitoring.grafana import GRID_WIDTH
from scopemill.deploy.monitoring.prometheus import config, prometheus
from scopemill.deploy.monitoring.promql import name_of
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import parse_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.proto import metrics
from scopemill.proto.errors import InputError

DOCS = Path(__file__).parents[3] / "docs" / "monitoring.md"
QUERIES = [
    *(pytest.param(q.expr, id=f"{d.name}: {p.title} {q.legend}") for d in DASHBOARDS for p in d.panels for q in p.queries),
    *(pytest.param(alert.query, id=alert.name) for alert in ALERTS),
]
OURS = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
SCRAPE_SECONDS, STEPS = 0.5, 500
FINETUNING = {"tokens": 2048, "sequences_per_step": 4, "sequences_per_forward": 4, "arms": ["kl"]}
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="the programs prometheus and promtool are not installed"
)


# As checked in


def test_the_files_are_as_the_code_writes_them():
    written = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*") if path.is_file()}
    assert written == render(), "run python -m scopemill.deploy.monitoring"


def test_every_metric_is_shown_or_watched_and_no_other_is_asked_for():
    ours = {name_of(metric) for metric in OURS}
    asked = {name for query in QUERIES for name in re.findall(r"scopemill_\w+", query.values[0])}
    assert asked == ours


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_a_dashboard_is_whole(dashboard):
    data = dashboard.render()
    panels = [panel for panel in data["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])
    assert all(panel["title"] and panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in data["panels"]):
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells and max(x for x, _ in cells) < GRID_WIDTH
        taken |= cells
    variables = {variable["name"] for variable in data["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) <= variables
    for panel in dashboard.panels:
        for query in panel.queries:
            assert "scopemill" not in query.expr or 'sweep=~"$sweep"' in query.expr, "the sweep can be chosen"


def test_the_page_names_every_dashboard_and_alert():
    page = DOCS.read_text()
    assert all(f"**{d.title}**" in page for d in DASHBOARDS)
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == [alert.name for alert in ALERTS]


# As Prometheus' own tool sees them


@needs_prometheus
def test_promtool_finds_nothing_wrong():
    told = subprocess.run(["promtool", "check", "config", FOLDER / "prometheus" / "prometheus.yml"], capture_output=True, text=True)
    assert told.returncode == 0 and f"SUCCESS: {len(ALERTS)} rules found" in told.stdout, told.stdout + told.stderr


TRAINER = 'sweep="s",sae="a",instance="i"'
HEALTHY = {  # two hours in Prometheus' notation, a value a minute: start+increment x times
    'up{job="scopemill",sweep="s",role="trainer",instance="i"}': "1+0x120",
    'scopemill_sweep_saes{sweep="s",state="failed"}': "0+0x120",
    f"scopemill_trainer_tokens_total{{{TRAINER}}}": "0+1000x120",
    f"scopemill_trainer_step{{{TRAINER}}}": "0+10x120",
    f"scopemill_trainer_steps{{{TRAINER}}}": "10000+0x120",
    f"scopemill_trainer_loss{{{TRAINER}}}": "0.5+0x120",
    f"scopemill_trainer_fvu{{{TRAINER}}}": "0.2+0x120",
    f"scopemill_trainer_dead_latents{{{TRAINER}}}": "10+0x120",
    f"scopemill_trainer_latents{{{TRAINER}}}": "256+0x120",
    f"scopemill_trainer_checkpoint_timestamp_seconds{{{TRAINER}}}": "0+60x120",
    f'scopemill_trainer_seconds_total{{phase="wait",{TRAINER}}}': "0+10x120",
    f'scopemill_trainer_seconds_total{{phase="step",{TRAINER}}}': "0+50x120",
    'scopemill_server_bytes_read_total{sweep="s",stream="h"}': "0+1000x120",
    'scopemill_server_detached_bytes_total{sweep="s",stream="h"}': "0+0x120",
    'scopemill_server_lost_total{sweep="s",stream="h"}': "0+0x120",
    'scopemill_store_retries_total{sweep="s",verb="get"}': "0+1x120",
    'scopemill_store_corrupt_reads_total{sweep="s"}': "0+0x120",
    'scopemill_harvest_rows_total{sweep="s",dataset="d"}': "0+1000x120",
    'scopemill_harvest_outliers_total{sweep="s",dataset="d"}': "0+1x120",
    'ray_node_mem_used{ip="n"}': "50+0x120",
    'ray_node_mem_total{ip="n"}': "100+0x120",
}
AMISS = {  # by alert that must fire, and no other: the changed series
    "ProcessSilent": {"up": "1+0x50 0+0x70"},
    "SaeFailed": {"scopemill_sweep_saes": "0+0x50 1+0x70"},
    "TrainerStalled": {"scopemill_trainer_tokens_total": "0+1000x50 50000+0x70"},
    "LossNotANumber": {"scopemill_trainer_loss": "0.5+0x50 NaN+0x70"},
    "WorseThanTheMean": {"scopemill_trainer_fvu": "1.2+0x120"},
    "LatentsDead": {"scopemill_trainer_dead_latents": "200+0x120"},
    "CheckpointOld": {"scopemill_trainer_checkpoint_timestamp_seconds": "0+0x120"},
    "TrainersStarved": {'scopemill_trainer_seconds_total{phase="wait"': "0+500x120"},
    "ReadsNotShared": {"scopemill_server_detached_bytes_total": "0+200x120"},
    "TrainerGivenUp": {"scopemill_server_lost_total": "0+0x80 1+0x40"},
    "RequestsRetried": {"scopemill_store_retries_total": "0+600x120"},
    "ReadsCorrupt": {"scopemill_store_corrupt_reads_total": "0+0x80 1+0x40"},
    "OutliersDropped": {"scopemill_harvest_outliers_total": "0+20x120"},
    "NodeMemoryShort": {"ray_node_mem_used": "95+0x120"},
}
FINISHED = {  # a trainer that stays until the others are finished
    "scopemill_trainer_tokens_total": "0+1000x50 50000+0x70",
    "scopemill_trainer_step": "10000+0x120",
    "scopemill_trainer_checkpoint": "0+0x120",
}


@needs_prometheus
@pytest.mark.parametrize("name, changed", [*AMISS.items(), (None, {}), (None, FINISHED)])
def test_each_alert_fires_when_it_should_and_only_then(name, changed, tmp_path):
    assert AMISS.keys() == {alert.name for alert in ALERTS}
    series = {}
    for of_series, values in HEALTHY.items():
        series[of_series] = next((other for start, other in changed.items() if of_series.startswith(start)), values)
    assert len(changed) == sum(series[of_series] != values for of_series, values in HEALTHY.items())
    firing = [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name else []
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "90m", "exp_samples": firing}
    test = {"interval": "1m", "input_series": [{"series": s, "values": v} for s, v in series.items()], "promql_expr_test": [asked]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FOLDER / "prometheus" / "alerts.yml")], "tests": [test]}))
    told = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


# As they run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """What Prometheus answers."""

    def __init__(self, url: str, started: float):
        self.url, self.started = url, started

    def ask(self, path: str, **parameters: Any) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def over_time(self, expr: str) -> list[dict]:
        return self.ask("query_range", query=expr, start=self.started, end=time.time(), step=SCRAPE_SECONDS)["result"]


class Patient(Reporter):
    """Lets work begin, and processes end, when Prometheus has seen them."""

    def __init__(self, asked: Prometheus, targets: Path):
        super().__init__(Console(file=io.StringIO()))
        self._asked, self._targets = asked, targets

    def phase(self, title, totals):
        self._await_two_scrapes()
        return super().phase(title, totals)

    def update(self, name: str, done: int, note: str = "") -> None:
        self._await_two_scrapes()

    def _await_two_scrapes(self) -> None:
        listed = {address for group in json.loads(self._targets.read_text()) for address in group["targets"]}
        begun, deadline = time.time(), time.monotonic() + 60
        while time.monotonic() < deadline:
            scraped = self._asked.ask("query", query='timestamp(up{job="scopemill"} == 1)')["result"]
            fresh = {s["metric"]["instance"] for s in scraped if float(s["value"][1]) > begun + SCRAPE_SECONDS}
            if listed <= fresh:
                return
            time.sleep(0.1)
        raise AssertionError(f"Prometheus does not see {listed - fresh}")


@pytest.fixture(scope="module")
def watched(tmp_path_factory, ray_cluster) -> Iterator[tuple[Prometheus, SweepPlan]]:
    """Run a tiny sweep from its first shard to its last evaluation, scraped by a real Prometheus, which scrapes Ray too."""
    for metric in OURS:
        metric.clear()  # other tests ran in this process, which is the driver's
    folder = tmp_path_factory.mktemp("watched")
    data = tiny_sweep.sweep(
        str(folder / "bucket"),
        tiny_sweep.write_text(folder),
        train={"tokens": 256 * STEPS, "checkpoint_every": 250, "log_every": 20, "finetune": {"kl": FINETUNING}},
        evaluation={"checkpoints": "last"},
    )
    plan = plan_sweep(parse_sweep(data | {"file_sd": str(folder / "targets.json")}, "sweep.yaml"))
    # Ray's dashboard writes this file; a local cluster has no dashboard, so Ray's own code runs here.
    discovery = PrometheusServiceDiscoveryWriter(ray.get_runtime_context().gcs_address, str(folder))
    discovery.write()
    scraping = config(str(folder / "targets.json"), discovery.get_target_file_name(), SCRAPE_SECONDS)
    with prometheus(folder / "prometheus", scraping, free_port()) as (url, _):
        asked = Prometheus(url, time.time())
        driver = SweepDriver(plan, Patient(asked, folder / "targets.json"))
        with driver.targets:
            driver.harvest()
            driver.train()
            driver.finetune()
            driver.evaluate()
        yield asked, plan


@needs_prometheus
@pytest.mark.parametrize("expr", QUERIES)
def test_every_query_returns_data(watched, expr):
    asked, plan = watched
    values = {"sweep": "tiny", "stream": ".*", "sae": plan.saes[0].name, "__rate_interval": "4s"}
    answer = asked.over_time(re.sub(r"\$(\w+)", lambda variable: values[variable[1]], expr))
    assert any(math.isfinite(float(value)) for series in answer for _, value in series["values"]), answer


@needs_prometheus
def test_the_variables_offer_all_values(watched):
    asked, plan = watched
    offered = {
        variable.name: asked.ask(f"label/{variable.name}/values", **{"match[]": variable.query.replace("$sweep", "tiny")})
        for dashboard in DASHBOARDS
        for variable in dashboard.variables
    }
    streams = sorted({plan.passes[0].stream(sae.hooks).label for sae in plan.saes})
    assert offered == {"sweep": ["tiny"], "stream": streams, "sae": sorted(sae.name for sae in plan.saes)}


@needs_prometheus
def test_counters_agree_with_the_work_done(watched):
    asked, plan = watched
    most = {
        s["metric"]["sae"]: float(s["value"][1]) for s in asked.ask("query", query="max_over_time(scopemill_trainer_step[1h])")["result"]
    }
    assert most == {sae.name: STEPS for sae in plan.saes}
    served = asked.ask("query", query="max_over_time(scopemill_server_bytes_served_total[1h])")["result"]
    # 4 SAEs, at 2 hooks: each stream serves two trainers all batches, of 256 rows of 192 float32 or bfloat16 values
    itemsize = {"float32": 4, "bfloat16": 2}[plan.config.harvest.dtype]
    assert [float(s["value"][1]) for s in served] == [2 * STEPS * 256 * 192 * itemsize] * 2


@needs_prometheus
def test_rays_own_metrics_come_in_as_a_second_job(watched):
    asked, _ = watched
    seen = asked.ask("query", query="max_over_time(up[1h]) == 1")["result"]
    assert {series["metric"]["job"] for series in seen} == {"scopemill", "ray"}


@needs_prometheus
def test_the_series_of_a_trainer_are_few(watched):
    asked, _ = watched
    counts = asked.over_time('count by (instance) ({__name__=~"scopemill_.*",role="trainer"})')
    assert max(int(value) for series in counts for _, value in series["values"]) <= 20


@needs_prometheus
def test_beyond_this_machine_prometheus_asks_the_driver_and_hears_its_last_word(tmp_path, ray_cluster):
    host, port = ray.util.get_node_ip_address(), free_port()
    targets = Targets(tmp_path / "targets.json", "far", port)
    with prometheus(tmp_path, config(f"http://{host}:{port}/targets", scrape_seconds=SCRAPE_SECONDS), free_port()) as (url, _):
        prom = Prometheus(url, time.time())

        def scraped() -> dict[str, str]:
            active = prom.ask("targets")["activeTargets"]
            return {t["labels"]["role"]: t["health"] for t in active if t["labels"]["job"] == "scopemill"}

        with targets:
            assert targets.places.endswith(f"and at http://{host}:{port}/targets")
            targets.set("trainer", ["127.0.0.1:9"])
            await_that(lambda: scraped() == {"driver": "up", "trainer": "down"})
            targets.set("trainer", [])
            with pytest.raises(InputError, match=f"metrics_port: port {port} of {host} cannot be listened on, Address already in use"):
                Targets(tmp_path / "other.json", "second", port).__enter__()
        await_that(lambda: scraped() == {})  # though the driver no longer answers


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_driver_serves_its_list_and_nothing_else(ray_cluster, tmp_path):
    host, port = ray.util.get_node_ip_address(), free_port()
    with Targets(tmp_path / "targets.json", "far", port):
        for path in ("/metrics", "/", "/targets/../targets"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10)


MONITOR = [sys.executable, "-m", "scopemill.deploy", "monitor"]


@needs_prometheus
def test_one_command_brings_prometheus_up_and_ctrl_c_ends_it(tmp_path):
    port = free_port()
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([*MONITOR, "--port", str(port)], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().split() == ["Prometheus", f"http://127.0.0.1:{port}"]
        asked = Prometheus(f"http://127.0.0.1:{port}", time.time())
        assert f"{tmp_path}/scopemill-{os.getuid()}/targets/*.json" in asked.ask("status/config")["yaml"]
        assert [rule["name"] for rule in asked.ask("rules")["groups"][0]["rules"]] == [alert.name for alert in ALERTS]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    with pytest.raises(OSError):
        asked.ask("rules")


@needs_prometheus
def test_a_taken_port_is_an_error_with_the_reason(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [*MONITOR, "--port", str(taken.getsockname()[1])]
        told = subprocess.run(arguments, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=100)
    assert told.returncode == 1 and "did not get ready" in told.stderr and "address already in use" in told.stderr


def test_without_prometheus_the_command_says_how_to_get_it(tmp_path):
    told = subprocess.run(MONITOR, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=100)
    assert told.returncode == 2 and "apt-get install prometheus" in told.stderr and told.stderr.count("\n") == 1
