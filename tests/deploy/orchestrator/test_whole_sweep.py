"""A whole sweep on Ray, on a local folder and on a real S3 server: both must end with the same bits."""

import io
import json
import shutil
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from support import tiny_sweep
from support.tiny_sweep import planned, quiet

from scopemill.deploy.catalog.listing import finished_entries
from scopemill.deploy.catalog.publish import publish
from scopemill.deploy.catalog.pull import pull
from scopemill.deploy.catalog.status import read_status, watch
from scopemill.deploy.cli import run
from scopemill.deploy.cli.main import main
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.results import SCHEMA, Result
from scopemill.proto.dataset import read_commit
from scopemill.proto.errors import Conflict
from scopemill.proto.layout import SweepLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer import load_sae


class Scraper:
    """Scrape, as Prometheus would, every process of the driver's `file_sd` file while a sweep runs."""

    def __init__(self, targets: Path):
        self.seen: dict[str, dict[str, float]] = {}
        self._targets, self._stop = targets, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            for group in json.loads(self._targets.read_text()):
                for address in group["targets"]:
                    try:
                        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=2).read().decode()
                    except (OSError, HTTPException):
                        continue  # ended between the two, or within its answer
                    samples = self.seen.setdefault(group["labels"]["role"], {})
                    for family in text_string_to_metric_families(text):
                        for sample in family.samples:
                            samples[sample.name] = max(samples.get(sample.name, 0.0), sample.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text, ray_cluster) -> Iterator[tuple[SweepPlan, Scraper]]:
    """Run the tiny sweep on a local folder, watched by a scraper."""
    folder = tmp_path_factory.mktemp("sweep")
    data = tiny_sweep.sweep(str(folder / "bucket"), text) | {"file_sd": str(folder / "targets.json")}
    plan = planned(folder, data)
    driver = SweepDriver(plan, quiet())
    with driver.targets, Scraper(folder / "targets.json") as scraper:
        driver.harvest()
        driver.train()
        driver.evaluate()
    publish(plan)
    yield plan, scraper


def test_every_shard_sae_and_evaluation_is_there(finished):
    plan, _ = finished
    status = read_status(plan.bucket, plan.record)
    assert status.shards == status.shards_wanted == 3
    assert len(status.saes) == 4
    for sae in status.saes:
        assert sae.finished and sae.step == sae.steps == tiny_sweep.STEPS
        assert [e.result.step for e in sae.evaluations] == [16, 24]


def test_the_table_has_one_row_per_checkpoint_and_the_columns_promised(finished):
    plan, _ = finished
    layout = SweepLayout("tiny")
    table = parquet.read_table(io.BytesIO(plan.bucket.read(layout.results)))
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert len(rows) == 8
    for row in rows:
        assert 0 < row["fvu"] < 1.5 and 0 < row["l0"] <= 256 and row["loss_zero_ablated"] > row["loss_clean"]
        assert plan.bucket.exists(f"{row['path']}/weights.safetensors")
    for path in (layout.results_csv, layout.report, f"{layout.plots}/fvu.png", f"{layout.plots}/delta_loss.svg"):
        assert len(plan.bucket.read(path)) > 500


def test_every_process_was_listed_and_exposed_its_metrics(finished):
    _, scraper = finished
    assert scraper.seen.keys() == {"driver", "harvester", "activation_server", "trainer", "evaluator"}
    assert scraper.seen["harvester"]["scopemill_harvest_rows_total"] > 0
    assert scraper.seen["activation_server"]["scopemill_server_bytes_served_total"] > 0
    assert scraper.seen["trainer"]["scopemill_trainer_step"] > 0
    assert scraper.seen["evaluator"]["scopemill_evaluations_total"] > 0


def test_the_status_of_a_finished_sweep_is_the_same_as_json_and_as_a_table(finished):
    plan, _ = finished
    told = json.loads(json.dumps(read_status(plan.bucket, plan.record).to_json()))
    assert told["finished"] and told["shards"] == 3 and len(told["saes"]) == 4
    listed = {f"saes/{entry.folder}": entry.quality for entry in finished_entries(plan.config.bucket)}
    for sae in told["saes"]:
        assert sae["seconds_left"] == 0 and sae["loss"] > 0 and sae["evaluations"] == 2
        assert listed.pop(sae["path"]) == Result(**sae["newest_evaluation"])
    assert not listed
    shown = io.StringIO()
    watch(plan.bucket, plan.record, Console(file=shown, width=200))  # ends at once
    assert shown.getvalue().count("24 / 24") == 4 and shown.getvalue().count("finished") == 4


def test_a_second_run_finds_nothing_to_do(finished):
    plan, _ = finished
    driver = SweepDriver(plan, quiet())
    assert not driver.has_work(("harvest", "train", "evaluate"))
    before = {path: plan.bucket.read(path) for path in plan.bucket.find("saes") + plan.bucket.find("activations")}
    driver.harvest()
    driver.train()
    driver.evaluate()
    assert {path: plan.bucket.read(path) for path in before} == before


def test_a_sweep_on_s3_ends_with_the_same_bits_as_one_on_a_folder(finished, text, tmp_path, s3_url):
    local, _ = finished
    two = {"at_once": 2}  # one stream after the other: that must not show
    plan = planned(tmp_path, tiny_sweep.sweep(f"{s3_url}/prefix", text, train=two) | {"file_sd": str(tmp_path / "targets.json")})
    driver = SweepDriver(plan, quiet())
    driver.harvest()
    driver.train()
    driver.evaluate()
    publish(plan)
    assert [s.layout.root for s in plan.saes] == [s.layout.root for s in local.saes]
    for sae in plan.saes:
        assert plan.bucket.read(sae.layout.weights) == local.bucket.read(sae.layout.weights)
    for shard in range(3):
        assert read_commit(plan.bucket, "tiny", shard) == read_commit(local.bucket, "tiny", shard)
    copied = pull(plan.config.bucket, str(tmp_path / "pulled"), "*blocks.3.*")
    assert len(copied) == 2
    sae = load_sae(str(tmp_path / "pulled" / copied[0].removeprefix("saes/")))
    assert sae.shape.d_in == 192 and sae.width == 256


def copy_shards(plan: SweepPlan, to: Bucket) -> None:
    for path in plan.bucket.find("activations"):
        to.write(path, plan.bucket.read(path))


def test_a_sweep_whose_training_was_stopped_ends_with_the_same_bits(finished, text, tmp_path):
    local, _ = finished
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), text) | {"file_sd": str(tmp_path / "targets.json")}
    plan = planned(tmp_path, data)
    copy_shards(local, plan.bucket)

    class Interrupt(Reporter):
        def update(self, name: str, done: int, note: str = "") -> None:
            if "resid_post" in name and done >= 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SweepDriver(plan, Interrupt(Console(file=io.StringIO()))).train()
    SweepDriver(plan, quiet()).train()
    for sae in plan.saes:
        assert plan.bucket.read(sae.layout.weights) == local.bucket.read(sae.layout.weights)


def test_a_corrupt_shard_is_made_again_and_its_trainers_end_with_the_same_bits(finished, text, tmp_path):
    local, _ = finished
    bucket = Bucket(str(tmp_path / "bucket"))
    copy_shards(local, bucket)
    chunk = "activations/tiny/shards/00001.zarr/blocks.1.hook_resid_post/c/0/0"
    whole = bucket.read(chunk)
    bucket.write(chunk, bytes([whole[0] ^ 1]) + whole[1:])
    plan = planned(tmp_path, tiny_sweep.sweep(bucket.url, text) | {"file_sd": str(tmp_path / "targets.json")})
    SweepDriver(plan, quiet()).train()
    assert [s.finished for s in read_status(plan.bucket, plan.record).saes] == [True] * 4
    assert bucket.read(chunk) == whole
    for mine, theirs in zip(plan.saes, local.saes, strict=True):
        assert plan.bucket.read(mine.layout.weights) == local.bucket.read(theirs.layout.weights), mine.name


def test_one_checkpoint_that_is_broken_ends_nothing_but_itself(finished, tmp_path, monkeypatch, capsys):
    """Evaluation and report go on, and the command ends with a table and exit code 1; what was damaged beside it is made again."""
    local, _ = finished
    shutil.copytree(local.config.bucket, tmp_path / "bucket")
    text = local.passes[0].harvest.corpus.source
    data = tiny_sweep.sweep(str(tmp_path / "bucket"), Path(text)) | {"file_sd": str(tmp_path / "targets.json")}
    plan = planned(tmp_path, data)
    bad, other = plan.saes[0].layout, plan.saes[-1].layout
    weights = bad.checkpoint(16).weights
    plan.bucket.write(weights, plan.bucket.read(weights)[:-40])
    before = plan.bucket.read(other.checkpoint(24).metrics)
    for path in (bad.checkpoint(16).metrics, other.checkpoint(24).metrics):
        plan.bucket.write(path, b"damaged")
    plan.bucket.write(other.history, b"damaged")
    monkeypatch.setattr(run, "heed_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["scopemill", "evaluate", str(tmp_path / "sweep.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1 and "1 checkpoints not evaluated" in said.out and plan.saes[0].name in said.out
    assert f"1 of 2 checkpoints could not be evaluated; the others are evaluated:\n  {plan.saes[0].name}: " in said.err
    assert weights in said.err
    assert plan.bucket.read(other.checkpoint(24).metrics) == before
    assert sum(len(sae.evaluations) for sae in read_status(plan.bucket, plan.record).saes) == 7
    assert other.checkpoint(24).root in plan.bucket.read(SweepLayout("tiny").report).decode()


def test_another_seed_at_the_same_place_is_refused(finished, text, tmp_path):
    plan, _ = finished
    with pytest.raises(Conflict, match=r"dataset.json was made with harvest.seed = 0, and this run asks for 1"):
        planned(tmp_path, tiny_sweep.sweep(plan.config.bucket, text, harvest={"seed": 1}))


def test_a_sweep_in_two_passes_ends_with_the_same_bits_and_no_more_on_disk_than_one(finished, text, tmp_path):
    whole, _ = finished
    room = {"disk_gib": 3 * 2**-10}  # a hook's shards take 2.4 MiB
    plan = planned(tmp_path, tiny_sweep.sweep(str(tmp_path / "bucket"), text, harvest=room) | {"file_sd": str(tmp_path / "targets.json")})
    _, second = plan.passes
    driver = SweepDriver(plan, quiet())
    driver.harvest()
    one, two = plan.read_state().passes
    assert one.harvested and not two.manifest, "the second has no room yet"
    seen: list[str] = []

    class Watch(Reporter):
        def say(self, text: str) -> None:
            seen.append(text)
            assert not all(part.committed for part in plan.read_state().passes)

    SweepDriver(plan, Watch(Console(file=io.StringIO()))).train()
    assert [line for line in seen if "tiny-pass" in line] == [
        "tiny-pass-1: 1 hooks, 2 SAEs to train", "deleting the shards of tiny-pass-1: its SAEs are finished",
        "tiny-pass-2: 1 hooks, 2 SAEs to train", "deleting the shards of tiny-pass-2: its SAEs are finished",
    ]  # fmt: skip
    driver.evaluate()
    status, before = read_status(plan.bucket, plan.record), read_status(whole.bucket, whole.record)
    assert [sae.layout.root for sae in plan.saes] == [sae.layout.root for sae in whole.saes]
    for sae, here, there in zip(plan.saes, status.saes, before.saes, strict=True):
        assert plan.bucket.read(sae.layout.weights) == whole.bucket.read(sae.layout.weights)
        assert [e.result for e in here.evaluations] == [e.result for e in there.evaluations]
    assert not [path for path in plan.bucket.find("activations") if "/shards/" in path or "/commits/" in path]
    assert [part.spent for part in status.passes] == [True, True] and status.finished
    assert not driver.has_work(("harvest", "train", "evaluate"))
    publish(plan)
    lost = second.saes[0]
    plan.bucket.remove_tree(lost.layout.root)
    driver.harvest()
    one, two = plan.read_state().passes
    assert two.harvested and not one.committed, "what is finished is not harvested again"
    driver.train()
    assert plan.bucket.read(lost.layout.weights) == whole.bucket.read(lost.layout.weights) and not plan.read_state().passes[1].committed
