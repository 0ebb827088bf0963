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
from score import Weights, latents

Job = dict[str, Any]
Export = Callable[[torch.Tensor], tuple[Weights, torch.Tensor]]
APART = 1e-4
NORM_BATCHES = 64  # whose mean square gives the scale of rows to packages that ask for it


def batches(job: Job):
    """The job's batches [B, d], in their order."""
    x = torch.from_numpy(np.load(job["rows"], mmap_mode="c"))
    return x[: job["steps"] * job["batch"]].split(job["batch"])


def serve(train: Callable[[Job], Export]) -> None:
    """``train`` trains, and returns what brings the weights into the one form, with the package's own reconstruction of rows x."""
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
    sample = next(iter(batches(job)))[:256]
    with torch.no_grad():
        weights, rebuilt = export(sample)
    agree(weights, sample.double().numpy(), rebuilt.double().numpy())
    np.savez(job["out"], **weights.arrays())
    print(json.dumps(seconds), file=answers, flush=True)


def agree(weights: Weights, x: np.ndarray, theirs: np.ndarray) -> None:
    """The exported weights have to do what the package's SAE does; what lies within rounding of a threshold may differ."""
    ours = latents(weights, x) @ weights.W_dec + weights.b_dec
    apart = np.square(ours - theirs).sum() / np.square(x).sum()
    if not apart < APART:
        sys.exit(f"the exported weights reconstruct rows otherwise than the package itself: apart by {apart:.3g} of the rows' squares")
