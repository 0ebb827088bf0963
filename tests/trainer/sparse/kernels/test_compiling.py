"""What is compiled ahead is what steps call: no loop, and no loop for other types, is left for a trainer to compile."""

import os
import subprocess
import sys

import numba
import pytest
import torch
from support.sparse_kinds import KINDS, B, make

from scopemill.trainer.sparse.kernels import numba_loops
from scopemill.trainer.sparse.kernels.compiling import loops_of_training
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

LOOPS = [name for name, loop in vars(numba_loops).items() if hasattr(loop, "py_func") and not name.startswith("_")]


@pytest.fixture
def called(monkeypatch) -> set[tuple]:
    """The loops that are called, with the types of their arguments."""
    seen: set[tuple] = set()

    def watched(name, loop):
        def call(*args):
            seen.add((name, *map(numba.typeof, args)))
            return loop(*args)

        return call

    for name in LOOPS:
        monkeypatch.setattr(numba_loops, name, watched(name, getattr(numba_loops, name)))
    return seen


def test_every_loop_is_compiled_ahead(called):
    for call in loops_of_training(selects=True).values():
        call()
    assert {name for name, *_ in called} == set(LOOPS)


@pytest.mark.parametrize(("word", "activation"), KINDS)
def test_steps_call_what_was_compiled_ahead(word, activation, called):
    for name, call in loops_of_training(selects=activation == "topk").items():
        before = len(called)
        call()
        assert len(called) == before + 1, f"{name} is one loop, so that processes divide the work"
    ahead = set(called)
    config, sae = make(word, activation)
    loop = Loop(sae, config, History())
    generator = torch.Generator().manual_seed(0)
    for sparse in (False, True, True):
        loop.sparse = sparse
        x = torch.randn(B, sae.shape.d_in, generator=generator)
        loop.step(x, None if sae.shape.autoencoder else torch.randn(B, sae.shape.d_out, generator=generator))
    assert called <= ahead, called - ahead


READ_ONLY = """
import sys, numba.core.caching as caching

def refuse(self):
    raise OSError(30, "Read-only file system")

for name in vars(caching):
    if name.startswith(("InTree", "UserWide", "Zip")):
        getattr(caching, name).ensure_cache_path = refuse
from scopemill.trainer.sparse.kernels.numba_loops import _above
print(_above.stats.cache_path)
"""


@pytest.mark.parametrize("place", ["home", "nowhere"])
def test_a_package_and_a_home_that_are_read_only_stop_no_loop(tmp_path, place):
    """As in a container: numba finds no place for its code, which then lies with the user's own files, or nowhere."""
    home = tmp_path / place
    home.mkdir()
    if place == "nowhere":
        (home / f"scopemill-{os.getuid()}").write_text("in the way")
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | {"TMPDIR": str(home)}
    told = subprocess.run([sys.executable, "-c", READ_ONLY], env=environment, capture_output=True, text=True, timeout=300)
    assert told.returncode == 0, told.stderr[-2000:]
    kept = f"{home}/scopemill-{os.getuid()}/numba/"
    assert told.stdout.startswith(kept) if place == "home" else told.stdout == "None\n"
