"""A training step on a GPU, against its encoder product, a dense torch step and torch.compile: ``python tests/bench/gpu.py``.

What is timed has to be right, so that comes first: the sparse way ends with the dense way's weights, and twice with the same
bits. Then, per size and precision: medians of CUDA events, the most memory that torch held, and bytes.

``moved`` counts what our kernels read and write, every gathered row as if no cache held it. ``floor`` counts x and, for the
latents that fire, both weights and second moments, read once and written once: what no step can do without.
"""

import datetime
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from scopemill.trainer.config.grid import TrainConfig
from scopemill.trainer.config.recipe import SaeConfig
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.registry import initial_sae, objective_for
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop
from scopemill.trainer.training.schedules import learning_rate

BATCH, D, L0 = 4096, 2304, 64
WIDTHS = (16_384, 65_536, 131_072)
CASES = [("jumprelu", width) for width in WIDTHS] + [("topk", WIDTHS[0]), ("batchtopk", WIDTHS[0])]
WARM_UP, ROUNDS = 5, 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Measured:
    seconds: float
    peak: int  # bytes

    @classmethod
    def of(cls, work: Callable[[], object]) -> "Measured":
        for _ in range(WARM_UP):
            work()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(ROUNDS)]
        for start, stop in marks:
            start.record()
            work()
            stop.record()
        torch.cuda.synchronize()
        return cls(statistics.median(a.elapsed_time(b) for a, b in marks) / 1e3, torch.cuda.max_memory_allocated())


def case(architecture: str, width: int, d: int, batch: int, precision: str, device: str, **fields) -> tuple[SaeConfig, Sae, torch.Tensor]:
    """An SAE of which about L0 latents fire on white noise, and a batch of that [batch, d]."""
    recipe = dict(architecture=architecture, widths=[width], sparsities=[1e-3 if architecture == "jumprelu" else L0])
    recipe |= dict(batch_size=batch, tokens=batch * 1000, log_every=1000, precision=precision, initial_scale="as_published") | fields
    recipe |= {} if architecture == "jumprelu" else {"auxk_coefficient": 0}
    config = TrainConfig(template="gemma-scope", **recipe).saes()[0]
    sae = initial_sae(config, Shape.square(d), torch.zeros(d)).to(device)
    if architecture == "jumprelu":
        quantile = torch.distributions.Normal(0, d**-0.5).icdf(torch.tensor(1 - L0 / width, dtype=torch.float64))
        torch.nn.init.constant_(sae.activation.threshold, quantile.item())
    x = torch.randn(batch, d, generator=torch.Generator().manual_seed(0)) / d**0.5
    return config, sae, x.to(device)


def sparse_step(config: SaeConfig, sae: Sae, x: torch.Tensor) -> tuple[Loop, Callable[[], None]]:
    """The loop's own step, which begins sparse."""
    loop = Loop(sae, config, History())
    loop.sparse = True
    return loop, lambda: loop.step(x)


def dense_step(config: SaeConfig, sae: Sae, x: torch.Tensor, compiled: bool) -> Callable[[], None]:
    """The same step in plain torch: losses, backward, Adam with beta1 = 0 between a projection and a renormalisation."""
    dead, step = torch.zeros(sae.width, dtype=torch.bool, device=x.device), 0
    moments = {name: torch.zeros_like(p) for name, p in sae.named_parameters()}

    def loss(x: torch.Tensor) -> torch.Tensor:
        return objective_for(sae, config).losses(x, x, dead).total(0.0)

    def adam(w: torch.Tensor, v: torch.Tensor, g: torch.Tensor, rate: torch.Tensor, correction: torch.Tensor, unit: bool) -> None:
        if unit:
            g = g - (g * w).sum(1, keepdim=True) * w
        v.mul_(config.adam_beta2).addcmul_(g, g, value=1 - config.adam_beta2)
        w.sub_(rate * g / (v.sqrt() / correction + config.adam_epsilon))
        if unit:
            w.div_(w.norm(dim=1, keepdim=True))

    if compiled:
        loss, adam = torch.compile(loss), torch.compile(adam)

    def run() -> None:
        nonlocal step
        step += 1
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            total = loss(x)
        total.backward()
        rate = torch.tensor(learning_rate(config, 0), device=x.device)
        correction = torch.tensor((1 - config.adam_beta2**step) ** 0.5, device=x.device)
        with torch.no_grad():
            for name, p in sae.named_parameters():
                if p.grad is not None:
                    adam(p, moments[name], p.grad, rate, correction, name == "W_dec")
                p.grad = None
            sae.activation.after_update()

    return run


def check(architecture: str, precision: str, device: str, width: int = 4096, d: int = 200, batch: int = 300) -> None:
    """One step of either way from the same start: the same weights, but for rounding; and the sparse way's bits, again."""

    large_steps = dict(adam_epsilon=1e-4, learning_rate=1e-2, lr_warmup_steps=0)  # large beside the rounding of weights

    def after(run: Callable[[SaeConfig, Sae, torch.Tensor], Callable[[], None]]) -> dict[str, torch.Tensor]:
        config, sae, x = case(architecture, width, d, batch, precision, device, **large_steps)
        run(config, sae, x)()
        return {name: p.detach().clone() for name, p in sae.named_parameters()}

    _, start, _ = case(architecture, width, d, batch, precision, device)
    ours, again = (after(lambda *given: sparse_step(*given)[1]) for _ in range(2))
    plain, tolerance = after(lambda *given: dense_step(*given, compiled=False)), {"float32": 1e-3, "bfloat16": 3e-2}[precision]
    for name, p in start.named_parameters():
        moved, apart = (plain[name] - p).norm().item(), (ours[name] - plain[name]).norm().item()
        if apart > tolerance * moved or not torch.equal(ours[name], again[name]):
            sys.exit(f"{architecture}, {precision}: {name} is {apart:.1e} off where it moved by {moved:.1e}, or differs from run to run")


def encoder_product(x: torch.Tensor, weights: torch.Tensor) -> Measured:
    out = x.new_empty(len(x), len(weights))
    return Measured.of(lambda: torch.mm(x, weights.T, out=out))


def bandwidth() -> float:
    """Bytes/s that this GPU copies, each counted as read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    return 2 * source.numel() / Measured.of(lambda: copy.copy_(source)).seconds


def traffic(n: int, firing: int, width: int, precision: str) -> tuple[int, int]:
    """Bytes that a sparse step moves and that it cannot do without, for n entries in ``firing`` latents."""
    size, rows, pre = DTYPES[precision].itemsize, BATCH * D, BATCH * width
    state = 2 * 4 * 4 * firing * D  # of two matrices weights and moments, read and written
    cast = 0 if size == 4 else 2 * 6 * width * D  # of two matrices
    product = size * (rows + width * D) + size * pre
    scan = size * pre + pre // 4 + (size + 8) * n
    entries = 4 * size * n * D + 24 * n  # the decoder twice, rows of x and of the error; by latents
    return cast + product + scan + entries + 4 * 4 * rows + state, 4 * rows + state


def measure(architecture: str, width: int, precision: str, copied: float) -> list[str]:
    torch.cuda.empty_cache()
    config, sae, x = case(architecture, width, D, BATCH, precision, "cuda")
    product = encoder_product(x.to(DTYPES[precision]), sae.W_enc.detach().to(DTYPES[precision]))
    loop, step = sparse_step(config, sae, x)
    ours = Measured.of(step)
    assert loop.sparse, "the step became dense, so nothing is compared"
    with torch.no_grad():
        latents = sae.encode(x)
        moved, floor = traffic(int(latents.count_nonzero()), int(latents.any(0).sum()), width, precision)
    del loop, step, sae, latents
    others = []
    for compiled in (False, True):
        torch.cuda.empty_cache()
        others.append(Measured.of(dense_step(*case(architecture, width, D, BATCH, precision, "cuda"), compiled)))
    rest = ours.seconds - product.seconds
    return [
        f"{architecture} {width:,} {precision}", f"{1e3 * product.seconds:.2f}", f"{1e3 * ours.seconds:.2f}",
        f"{ours.seconds / product.seconds:.2f}", *(f"{other.seconds / ours.seconds:.2f}" for other in others),
        f"{moved / floor:.2f}", f"{moved / rest / copied:.2f}", *(f"{m.peak / 2**30:.1f}" for m in (ours, *others)),
    ]  # fmt: skip


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("tests/bench/gpu.py measures on a GPU, and torch finds none here")
    for architecture in ("jumprelu", "topk", "batchtopk"):
        check(architecture, "float32", "cuda")
    for architecture in ("jumprelu", "batchtopk"):  # of equals, of which bfloat16 makes many, TopK may keep either
        check(architecture, "bfloat16", "cuda")
    copied = bandwidth()
    title = f"{torch.cuda.get_device_name()}, copies {copied / 1e12:.2f} TB/s, torch {torch.__version__}, {datetime.date.today()}"
    table = Table(title=f"{title}; {BATCH} x {D}, L0 {L0}", title_justify="left")
    figures = ["SAE", "x W_enc^T, ms", "step, ms", "step / product", "dense / step", "torch.compile / step", "moved / floor"]
    for name in (*figures, "rest's share of copying", "peak GiB", "dense GiB", "compile GiB"):
        table.add_column(name)
    for architecture, width in CASES:
        for precision in DTYPES:
            table.add_row(*measure(architecture, width, precision, copied))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
