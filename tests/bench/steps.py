"""One training step of ours: over the product that it cannot avoid, over a plain dense step, and the memory of its state.

On white noise, with thresholds at which so many latents fire as are wanted, or with k of them kept.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from measure import Figure, alternate, timed
from plain import PlainJumpReluSae

from scopemill.proto.memory import keep_freed_memory
from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.registry import initial_sae
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

THREADS = os.cpu_count() or 1
ROUNDS, DENSE_ROUNDS = 9, 5
SPARSE_GOALS = {"jumprelu": "<= 1.3", "topk": "<= 1.4", "batchtopk": "<= 1.4"}


@dataclass(frozen=True)
class Size:
    batch: int
    d: int
    width: int
    l0: int  # of JumpReLU

    def latents(self, architecture: str) -> int:
        """How many of a row fire."""
        return self.l0 if architecture == "jumprelu" else 64

    def __str__(self) -> str:
        return f"({self.batch}, {self.d}, {self.width})"


SIZES = (Size(2048, 512, 8192, 48), Size(4096, 768, 16384, 64))


def white_noise(size: Size) -> torch.Tensor:
    """Rows [batch, d] with E||x||^2 = 1."""
    return torch.randn(size.batch, size.d, generator=torch.Generator().manual_seed(0)) / size.d**0.5


def loop_of(architecture: str, size: Size, l0: float, **fields) -> Loop:
    """A loop before its first step; on white noise ``l0`` latents of a row fire."""
    sparsity = 1e-3 if architecture == "jumprelu" else l0
    recipe = {
        "architecture": architecture,
        "tokens": size.batch * 1000,
        "batch_size": size.batch,
        "log_every": 1000,
        "initial_scale": "as_published",
    } | fields
    config = TrainConfig(template="gemma-scope", widths=[size.width], sparsities=[sparsity], **recipe).saes()[0]
    sae = initial_sae(config, Shape.square(size.d), torch.zeros(size.d))
    if architecture == "jumprelu":
        quantile = torch.distributions.Normal(0, size.d**-0.5).icdf(torch.tensor(1 - l0 / size.width, dtype=torch.float64))
        torch.nn.init.constant_(sae.activation.threshold, quantile.item())
    return Loop(sae, config, History())


def plain_of(loop: Loop) -> PlainJumpReluSae:
    """The plain step that begins with the same weights and goes by the same settings."""
    config = loop.config
    rate = config.learning_rate  # without the warm-up, which no time depends on
    return PlainJumpReluSae(dict(loop.sae.named_parameters()), config.bandwidth, rate, config.adam_beta2, config.adam_epsilon)


def step_over_encoder(architecture: str, size: Size) -> Figure:
    """Seconds of a step over those of its one dense product that nothing can avoid, x W_enc^T."""
    loop, x = loop_of(architecture, size, size.latents(architecture)), white_noise(size)
    loop.step(x)  # dense, as nothing is known of the density yet
    weights, product = loop.sae.W_enc.detach().clone(), torch.empty(size.batch, size.width)
    works = {"step": timed(lambda: loop.step(x)), "product": timed(lambda: torch.mm(x, weights.T, out=product))}
    figure = alternate(works, ROUNDS).figure(f"{architecture} step / encoder product {size}", "step", "product", SPARSE_GOALS[architecture])
    assert loop.sparse, "the step became dense, so it is not what is to be measured"
    return figure


def dense_over_plain(size: Size) -> Figure:
    """Half of the latents fire, as at the start of a training: seconds of a step over those of a plain dense one."""
    loop, x = loop_of("jumprelu", size, size.width / 2), white_noise(size)
    plain = plain_of(loop)
    works = {"step": timed(lambda: loop.step(x)), "plain step": timed(lambda: plain.step(x, 1e-3))}
    figure = alternate(works, DENSE_ROUNDS).figure(f"jumprelu step / plain torch step, dense {size}", "step", "plain step", "<= 1.05")
    assert not loop.sparse, "the step became sparse, so it is not what is to be measured"
    return figure


def first_moments_over_none(size: Size) -> Figure:
    """Seconds of a sparse step with first moments, which moves every row, over those of a step without."""
    x, loops = white_noise(size), [loop_of("jumprelu", size, size.l0, adam_beta1=beta1) for beta1 in (0.9, 0.0)]
    for loop in loops:
        loop.step(x)  # dense, as nothing is known of the density yet
    works = {name: timed(lambda loop=loop: loop.step(x)) for name, loop in zip(("beta1 .9", "beta1 0"), loops, strict=True)}
    figure = alternate(works, ROUNDS).figure(f"jumprelu step with first moments / without {size}", "beta1 .9", "beta1 0", "")
    assert all(loop.sparse for loop in loops), "a step became dense, so it is not what is to be measured"
    return figure


def state_over_adam(size: Size, beta1: float, goal: str) -> Figure:
    """Bytes of parameters and optimiser state over those with torch's Adam, counted tensor by tensor."""
    loop, x = loop_of("jumprelu", size, size.l0, adam_beta1=beta1), white_noise(size)
    plain = plain_of(loop)
    plain.step(x, 1e-3)  # torch makes its state in the first step
    state = loop.optimizer
    ours = [*loop.sae.parameters(), *state.first_moments.values(), *state.second_moments.values(), *state.updated.values()]
    theirs = [*plain.parameters(), *(t for state in plain.optimizer.state.values() for t in state.values())]
    mib = {name: sum(t.nbytes for t in tensors) / 2**20 for name, tensors in (("ours, MiB", ours), ("torch's Adam, MiB", theirs))}
    one, other = mib.values()
    return Figure(f"parameters and optimiser state, beta1 {beta1:g} / torch's Adam {size}", one / other, goal, mib)


def check() -> None:
    """What is compared has to be the same: sparse, dense and plain step end with the same weights, but for rounding."""
    size = Size(300, 64, 512, 24)
    large = {"adam_epsilon": 1e-4, "learning_rate": 1e-2, "lr_warmup_steps": 0}  # updates that are large beside the rounding of weights
    large |= {"sparsity_warmup_steps": 0, "bandwidth": 0.05}
    x, start = white_noise(size), loop_of("jumprelu", size, size.l0, **large)
    plain = plain_of(start)
    plain.step(x, start.config.coefficient)
    for sparse in (False, True):
        loop = loop_of("jumprelu", size, size.l0, **large)
        loop.sparse = sparse
        loop.step(x)
        for name, before in start.sae.named_parameters():
            theirs, ours = plain.get_parameter(name.rsplit(".", 1)[-1]), loop.sae.get_parameter(name)
            moved, apart = (theirs - before).norm().item(), (ours - theirs).norm().item()
            if not apart <= 1e-3 * moved:
                way = "sparse" if sparse else "dense"
                sys.exit(f"the {way} step's {name} is {apart:.1e} off the plain step's, which moved it by {moved:.1e}; nothing measured")


def figures() -> Iterator[Figure]:
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as a trainer does
    check()
    for size in SIZES:
        for architecture in SPARSE_GOALS:
            yield step_over_encoder(architecture, size)
    for size in SIZES:
        yield dense_over_plain(size)
    yield first_moments_over_none(SIZES[0])
    yield state_over_adam(SIZES[0], 0.0, "<= 2/3")
    yield state_over_adam(SIZES[0], 0.9, "<= 1.01")  # and the number of each row's last update
