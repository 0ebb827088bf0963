"""Run a small sweep on this machine and load what it made: ``python sweep.py FOLDER``.

It takes the extra ``scopemill[mill]``. The command line does the same: ``scopemill sweep sweep.yaml``.
"""

import json
import os
import sys
from pathlib import Path

import yaml

import scopemill
from scopemill.deploy.cli.main import app
from scopemill.deploy.demo.run import MODEL  # a small language model that the package carries


def main(folder: str) -> None:
    place = Path(folder).absolute()
    place.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    (place / "text.jsonl").write_text("".join(json.dumps({"text": file.read_text()}) + "\n" for file in files))
    sweep = {
        "name": "example",
        "bucket": str(place / "bucket"),
        "model": str(MODEL),
        "corpus": {"source": str(place / "text.jsonl"), "format": "jsonl"},
        "harvest": {"layers": [3], "sites": ["resid_post"], "tokens": 6144, "rows_per_shard": 2048, "context_length": 64,
                    "calibration_rows": 1024},
        "server": {"shards_side_by_side": 2, "window_mib": 8},
        "train": {"template": "quick", "widths": [256], "sparsities": [1e-3, 1e-2], "tokens": 6144, "batch_size": 256, "log_every": 8},
        "evaluation": {"sequences": 8, "sequences_per_forward": 8},
    }  # fmt: skip
    (place / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    app(["sweep", str(place / "sweep.yaml")], standalone_mode=False)  # run again, it continues where it was

    for entry in scopemill.list_saes(sweep["bucket"]):
        print(f"{entry.hook} {entry.architecture}: L0 {entry.l0:.1f}, FVU {entry.fvu:.2f}")
        print(scopemill.load_sae(entry.path))


if __name__ == "__main__":
    main(sys.argv[1])
