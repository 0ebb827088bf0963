"""How well each architecture finds features that are known: synthetic rows are sums of about 5 of 128 directions in 64 dimensions.

Run with ``PYTHONPATH=.import:tests python tests/bench/recovery.py``: every SAE gets the same number of rows and one core. A
figure is the mean over the true directions of the cosine to the nearest decoder row; nothing here is a test.
"""

import datetime
import platform
import time

import torch
from rich.console import Console
from rich.table import Table
from support.sparse_world import SparseWorld

from scopemill.trainer.config.recipe import sae_config
from scopemill.trainer.config.templates import load_template
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

D, WIDTH, ROWS, STEPS = 64, 128, 512, 1500
JUMP, COUNTED = {"sparsity": 0.01, "initial_threshold": 0.1, "bandwidth": 0.1}, {"sparsity": 6}
ONE, PAIR, STACK = Shape.square(D), Shape((D,), (D,), False), Shape((D // 2, D // 2), (D // 2, D // 2), True)
CROSS = Shape((D // 2, D // 2), (D // 2, D // 2), False)
KINDS: list[tuple[str, Shape, dict]] = [
    ("standard", ONE, {"sparsity": 0.1}),
    ("gated", ONE, {"sparsity": 0.4}),
    ("jumprelu", ONE, JUMP),
    ("jumprelu", ONE, JUMP | {"penalty": "tanh", "sparsity": 0.02}),
    ("jumprelu", ONE, JUMP | {"penalty": "target_l0", "sparsity": 5.0}),
    ("topk", ONE, COUNTED),
    ("batchtopk", ONE, COUNTED),
    ("matryoshka", ONE, COUNTED),
    ("matryoshka", ONE, JUMP | {"activation": "jumprelu", "sparsity": 0.06, "prefix_coefficients": [0.05, 0.1, 0.2, 0.4, 1.0]}),
    ("skip", ONE, JUMP),
    ("transcoder", PAIR, JUMP),
    ("transcoder", PAIR, COUNTED | {"activation": "topk"}),
    ("crosscoder", STACK, JUMP),
    ("crosscoder", STACK, COUNTED | {"activation": "batchtopk"}),
    ("clt", CROSS, JUMP),
    ("per_layer_transcoder", CROSS, JUMP | {"width": WIDTH // 2}),
    ("skip_transcoder", PAIR, COUNTED | {"activation": "topk"}),
]


def train(architecture: str, shape: Shape, options: dict, world: SparseWorld) -> Loop:
    """All are to rebuild what they read, so that for all the same directions are the truth; but a skip transcoder, whose matrix does
    that by itself, learns what is computed from them."""
    same = dict(
        architecture=architecture, width=WIDTH, tokens=ROWS * STEPS, batch_size=ROWS, learning_rate=1e-2, lr_warmup_steps=20,
        sparsity_warmup_fraction=0.25, initial_decoder_bias="zero", dead_after_tokens=20 * ROWS, log_every=100, adam_beta1=0.0,
    )  # fmt: skip
    config = sae_config(load_template("quick").fields | same | options)
    loop = Loop(initial_sae(config, shape, torch.zeros(shape.d_out)), config, History())
    while not loop.done:
        x = world.batch(loop.step_number, ROWS)
        loop.step(*(world.computed(loop.step_number, ROWS) if architecture == "skip_transcoder" else (x, x)))
    return loop


def decoder(sae: Sae) -> torch.Tensor:
    """Rows [F, d_out]; of cross-layer transcoders with zeros where a latent does not reach."""
    if isinstance(sae.W_dec, torch.Tensor):
        return sae.W_dec.detach()
    starts = [sum(sae.shape.outputs[:layer]) for layer in range(len(sae.W_dec))]
    rows = [torch.nn.functional.pad(w, (start, D - start - w.shape[1])) for start, w in zip(starts, sae.W_dec, strict=True)]
    return torch.cat(rows).detach()


def main() -> None:
    torch.set_num_threads(1)
    whole, halves = SparseWorld(D, WIDTH), SparseWorld(D, WIDTH, halves=True)
    title = f"{STEPS} steps of {ROWS} rows, {platform.machine()}, 1 core, {datetime.date.today()}"
    table = Table("architecture", "activation", "options", "mean max cosine", "L0", "FVU", "seconds", title=title, title_justify="left")
    for architecture, shape, options in KINDS:
        start = time.perf_counter()
        world = halves if architecture == "per_layer_transcoder" else whole  # its latents see one layer, so half of a row
        loop = train(architecture, shape, options, world)
        last, told = loop.history.rows[-1], ", ".join(f"{k} {v}" for k, v in options.items() if k in ("penalty", "sparsity"))
        figures = (
            f"{world.recovered(decoder(loop.sae), architecture == 'skip_transcoder'):.3f}",
            f"{last.l0:.1f}",
            f"{last.fvu:.3f}",
            f"{time.perf_counter() - start:.0f}",
        )
        table.add_row(architecture, loop.config.latents, told, *figures)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
