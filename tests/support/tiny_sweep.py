"""The smallest sweep that has every part: 2 hooks x 2 sparsities on the carried model, seconds of work."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from scopemill.deploy.demo.run import MODEL
from scopemill.deploy.demo.standard_library import documents
from scopemill.deploy.orchestrator.driver import SweepDriver
from scopemill.deploy.plan.planner import plan_sweep
from scopemill.deploy.plan.sweep_file import load_sweep
from scopemill.deploy.plan.sweep_plan import SweepPlan
from scopemill.deploy.progress import Reporter
from scopemill.harvester.task import HarvestTask

STEPS = 24


def write_text(folder: Path, documents_wanted: int = 40) -> Path:
    """Some files of the standard library as JSONL, the same on every call."""
    path = folder / "text.jsonl"
    texts = [text for _, text in sorted(documents(held_out=True)) if 2_000 < len(text) < 40_000][:documents_wanted]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def sweep(bucket: str, text: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A sweep file's content; ``sections`` are merged into it."""
    data: dict[str, Any] = {
        "name": "tiny",
        "bucket": bucket,
        "model": str(MODEL),
        "corpus": {"source": str(text), "format": "jsonl"},
        "harvest": {
            "layers": [1, 3], "sites": ["resid_post"], "tokens": 6144, "rows_per_shard": 2048, "context_length": 64,
            "calibration_rows": 1024,
        },
        "server": {"shards_side_by_side": 2, "window_mib": 8},
        "train": {
            "template": "quick", "widths": [256], "sparsities": [1e-3, 1e-2], "tokens": 256 * STEPS, "batch_size": 256,
            "checkpoint_every": 16, "log_every": 8, "cpus": 0.5,
        },
        "evaluation": {"sequences": 8, "sequences_per_forward": 8},
    }  # fmt: skip
    for section, fields in sections.items():
        data[section] = {**data.get(section, {}), **fields}
    return data


def planned(folder: Path, data: dict) -> SweepPlan:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(data))
    return plan_sweep(load_sweep(str(file)))


class Harvests:
    """``SweepDriver.harvest`` for plans of one pass, in folders. If the same was asked for earlier, what it made then is copied."""

    def __init__(self, folder: Path):
        self._folder, self._made = folder, list[HarvestTask]()

    def __call__(self, plan: SweepPlan) -> None:
        (part,) = plan.passes
        dataset = f"{plan.bucket.url}/{part.harvest.layout.root}"
        same = [n for n, made in enumerate(self._made) if _made_of(made) == _made_of(part.harvest)]
        if same:
            shutil.copytree(self._folder / str(same[0]), dataset)
        else:
            SweepDriver(plan, quiet()).harvest()
            shutil.copytree(dataset, self._folder / str(len(self._made)))  # a test may damage its own
            self._made.append(part.harvest)
        assert plan.read_state().passes[0].harvested


def _made_of(task: HarvestTask) -> tuple:
    return task.dataset, task.identity, task.config.rolling


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))
