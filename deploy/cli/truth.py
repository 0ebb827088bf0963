"""Compare architectures on planted features: the command ``scopemill truth``."""

import time
from typing import Annotated

import typer

from scopemill.deploy.cli.options import console


def truth(
    architectures: Annotated[list[str] | None, typer.Argument(help="Which ones; absent: every SAE of one hook.")] = None,
    published: Annotated[bool, typer.Option("--published", help="SynthSAEBench's world and width, for a GPU; else a small one.")] = False,
    width: Annotated[int | None, typer.Option(help="Latents; absent: a quarter of the features.")] = None,
    l0: Annotated[float | None, typer.Option(help="k, or the target of JumpReLU's penalty; absent: that of the world, rounded.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of 1,024 rows.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the world and of the SAEs.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="The same for all architectures.")] = 3e-3,
) -> None:
    """Train SAEs on a world of planted features, and score each against the truth."""
    import torch

    from scopemill.evaluator.synthetic.comparison import ARCHITECTURES, compare, true_l0
    from scopemill.evaluator.synthetic.world import SMALL, World, WorldConfig

    base = WorldConfig() if published else SMALL
    world = World(WorldConfig(**{**base.__dict__, "seed": seed}), "cuda" if torch.cuda.is_available() else "cpu")
    per_row, chosen = true_l0(world), width or base.features // 4
    console.print(
        f"{base.features:,} features in {base.d} dimensions, {per_row:.1f} per row; {chosen:,} latents, {steps:,} steps of 1,024 rows"
    )
    console.print(_HEAD)
    start = time.perf_counter()
    wanted = l0 or max(1, round(per_row))
    for one in compare(world, architectures or ARCHITECTURES, chosen, wanted, steps, 1024, seed, learning_rate=learning_rate):
        t = one.truth
        console.print(
            f"{one.architecture:12}{one.sparsity:9g}{t.l0:8.1f}{t.fvu:8.3f}{t.dead_fraction:8.1%}{t.mcc:8.3f}{t.uniqueness:12.3f}"
            f"{t.precision:11.3f}{t.recall:8.3f}{t.f1:8.3f}{time.perf_counter() - start:9.0f}"
        )
        start = time.perf_counter()


_HEAD = (
    f"{'architecture':12}{'sparsity':>9}{'L0':>8}{'FVU':>8}{'dead':>8}{'MCC':>8}{'uniqueness':>12}{'precision':>11}{'recall':>8}{'F1':>8}"
    f"{'seconds':>9}"
)
