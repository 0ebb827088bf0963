"""A package's training step in a process of its own: ``python PACKAGE.py ARCHITECTURE L0 FOLDER THREADS``.

``batch.safetensors`` in the folder holds x [B, d] and the weights to begin with, by our names: W_enc and W_dec [F, d], b_enc [F],
b_dec [d], and of JumpReLU the threshold [F]. The process tells what it makes of them, as JSON in a line: ``reconstruction``, which
is E||x - x^||^2, and ``l0``. Then, for each line that it is sent, it takes a step on x and answers with the seconds.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

Told = dict[str, float]
Make = Callable[[torch.Tensor, Mapping[str, torch.Tensor], int], tuple[Told, Callable[[], object]]]


def serve(makes: Mapping[str, Make]) -> None:
    """``makes``, by architecture: from x, weights and L0 what is to be told, and the step."""
    architecture, l0, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    weights = load_file(Path(folder) / "batch.safetensors")
    told, step = makes[architecture](weights.pop("x"), weights, int(l0))
    print(json.dumps(told), file=answers, flush=True)
    step()  # the first makes an optimiser's state, and ours is dense as nothing is known of the density yet
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, file=answers, flush=True)
