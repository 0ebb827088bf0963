"""A package's process trains one SAE: ``python PACKAGE.py JOB.json``, with what the job says in JSON.

The job names the rows' file, the shape of the training, the package's settings, and ``out``: the .npz file for the weights, in the
one form of `score`. What the process prints last is its seconds, as JSON in a line: of the clock and of the processor, of training
alone, without imports and warm-up.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from score import Weights

Job = dict[str, Any]
NORM_BATCHES = 64  # whose mean square gives the scale of rows to packages that ask for it


def batches(job: Job):
    """The job's batches [B, d], in their order."""
    x = torch.from_numpy(np.load(job["rows"], mmap_mode="c"))
    return x[: job["steps"] * job["batch"]].split(job["batch"])


def serve(train: Callable[[Job], Callable[[], Weights]]) -> None:
    """``train`` trains, and returns what brings the weights into the one form."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    answers, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    for batch in batches(job):
        batch.sum()  # read from the disk before the clock starts
    train(job | {"steps": job["warm_up"]})
    clock, processor = time.perf_counter(), time.process_time()
    export = train(job)
    seconds = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    np.savez(job["out"], **export().arrays())
    print(json.dumps(seconds), file=answers, flush=True)
