"""Our step, as `step` says."""

import sys
from pathlib import Path

import torch
from step import serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from steps import SPARSE_GOALS, Size, loop_of  # noqa: E402

from scopemill.proto.memory import keep_freed_memory  # noqa: E402


def make(architecture: str):
    def made(x, weights, l0):
        loop = loop_of(architecture, Size(*x.shape, len(weights["W_enc"]), l0), l0)
        with torch.no_grad():
            for name, parameter in loop.sae.named_parameters():
                parameter.copy_(weights[name.removeprefix("activation.")])
            losses = loop.objective.losses(x, x, loop.dead)
        return {"reconstruction": losses.reconstruction.item(), "l0": losses.codes.l0.item()}, lambda: loop.step(x)

    return made


if __name__ == "__main__":
    keep_freed_memory()  # as a trainer does
    serve({architecture: make(architecture) for architecture in SPARSE_GOALS})
