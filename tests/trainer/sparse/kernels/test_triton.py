"""The sparse way on a GPU. Where there is none, Triton's interpreter runs the same kernels (`conftest.py` turns it on)."""

import subprocess
import sys

import pytest
import torch
from support.sparse_kinds import make

from scopemill.trainer.sparse.kernels import select as seam
from scopemill.trainer.sparse.kernels.base import Adam, Backend, Columns, Found, Moments, offsets
from scopemill.trainer.sparse.kernels.numba_backend import NumbaBackend
from scopemill.trainer.sparse.kernels.select import backend_for
from scopemill.trainer.training.history import History
from scopemill.trainer.training.loop import Loop

pytest.importorskip("triton", reason="Triton is not installed: there are wheels for Linux only")

from scopemill.trainer.sparse.kernels import triton_backend  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, F, D = 7, 45, 37  # no multiples of what programs take at once
LAYOUTS = ["usual", "empty rows", "a full row", "one latent in every row", "everything", "nothing"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)).to(DEVICE)


def layout(kind: str) -> torch.Tensor:
    """Where [B, F] there are entries."""
    places = torch.rand(B, F, generator=generator(0)) < 0.2
    if kind == "empty rows":
        places[0] = places[3] = places[B - 1] = False
    elif kind == "a full row":
        places[4] = True
    elif kind == "one latent in every row":
        places = torch.zeros(B, F, dtype=torch.bool).index_fill(1, torch.tensor(F - 1), True)
    elif kind in ("everything", "nothing"):
        places = torch.full((B, F), kind == "everything")
    return places


@pytest.fixture
def triton() -> Backend:
    return triton_backend.TritonBackend()


@pytest.fixture(params=LAYOUTS)
def found(request) -> Found:
    places = layout(request.param).to(DEVICE)
    latents = places.nonzero()[:, 1].to(torch.int32)
    return Found(offsets(places.sum(1)), latents, random(len(latents), seed=1))


def dense(found: Found, values: torch.Tensor) -> torch.Tensor:
    """The values [n] in their places [B, F], in float64."""
    rows = torch.arange(B, device=DEVICE).repeat_interleave(found.starts.diff())
    return torch.zeros(B, F, dtype=torch.float64, device=DEVICE).index_put_((rows, found.latents.long()), values.double())


def at(found: Found, matrix: torch.Tensor) -> torch.Tensor:
    """Of a matrix [B, F] what stands at the entries."""
    return matrix[torch.arange(B, device=DEVICE).repeat_interleave(found.starts.diff()), found.latents.long()]


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), wanted.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def weights(request) -> torch.Tensor:
    """What is gathered [F, d], in both precisions: sums are exact to float32 in either."""
    return random(F, D, seed=2).to(request.param)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("scanned", [64, 1024])  # several blocks a row, and one
def test_a_scan_finds_what_lies_above_in_order(triton, kind, scanned, monkeypatch):
    monkeypatch.setattr(triton_backend, "SCANNED", scanned)
    places, width = layout(kind).repeat(1, 3).to(DEVICE), 3 * F
    bias, lower = random(width, seed=3), random(width, seed=4)
    products = lower - bias + torch.where(places, 1.0, -1.0) * (0.01 + random(B, width, seed=5).abs())
    found = triton.scan(products, bias, lower, B * width)
    rows, latents = places.nonzero().T
    assert found.latents.tolist() == latents.tolist()
    assert found.starts.tolist() == offsets(places.sum(1)).tolist()
    assert found.values.tolist() == (products + bias)[rows, latents].tolist()
    if len(latents):
        assert triton.scan(products, bias, lower, len(latents) - 1) is None


def test_products_may_be_bfloat16(triton):
    products, bias, lower = random(B, F, seed=3).bfloat16(), random(F, seed=4), random(F, seed=5)
    pre = products.float()
    found = triton.scan(products, bias, lower, B * F)
    rows, latents = (pre > lower - bias).nonzero().T
    assert found.latents.tolist() == latents.tolist() and found.starts[-1] == len(latents)
    assert found.values.dtype == torch.float32 and found.values.tolist() == (pre + bias)[rows, latents].tolist()


@pytest.mark.parametrize("width", [1, 31, 32, 33])
def test_a_scan_takes_any_width(triton, width):
    pre = random(5, width, seed=6)
    pre[1] = torch.inf
    pre[2] = -torch.inf
    pre[3] = torch.nan  # above nothing
    found = triton.scan(pre, torch.zeros(width, device=DEVICE), torch.zeros(width, device=DEVICE), 10**6)
    assert found.starts.tolist() == offsets((pre > 0).sum(1)).tolist()
    assert found.latents.tolist() == (pre > 0).nonzero()[:, 1].tolist()


def test_the_largest_are_torchs(triton):
    products, bias = random(B, F, seed=7), random(F, seed=8)
    latents, values = triton.largest(products, bias, 9)
    pre = products + bias
    assert torch.equal(values.sort().values, pre.sort().values[:, -9:])
    assert torch.equal(pre.gather(1, latents.long()), values)


def test_entries_by_latents_are_those_of_the_cpu(triton, found):
    theirs = NumbaBackend().by_latents(found.starts.cpu(), found.latents.cpu(), F)
    for ours, wanted in zip(triton.by_latents(found.starts, found.latents, F), theirs, strict=True):
        assert ours.tolist() == wanted.tolist()


def test_sums_of_each_latent(triton, found):
    columns = triton.by_latents(found.starts, found.latents, F)
    close(triton.sum_by_latent(columns, found.values), dense(found, found.values).sum(0))


def test_decode_and_products(triton, found, weights):
    close(triton.decode(found.starts, found.latents, found.values, weights), dense(found, found.values) @ weights.double())
    rows = random(B, D, seed=9).to(weights.dtype)
    wanted = at(found, rows.double() @ weights.double().T)
    close(triton.products(found.starts, found.latents, rows, weights), wanted, tolerance=2e-5)


def test_rebuild_is_decode_error_and_products(triton, found, weights):
    target = random(B, D, seed=10)
    error, squares, out = triton.reconstruction_error(*found, weights, target)
    wanted = dense(found, found.values) @ weights.double() - target
    close(error, wanted)
    close(squares, wanted.square().sum(1))
    close(out, at(found, wanted @ weights.double().T), tolerance=5e-5)


def test_gradients_are_added_to_what_was_there(triton, found, weights):
    columns = triton.by_latents(found.starts, found.latents, F)
    total, matrix = random(F, D, seed=11), random(B, D, seed=12).to(weights.dtype)
    before = total.double()
    triton.gradient(columns, found.values, matrix, total)
    close(total, before + dense(found, found.values).T @ matrix.double())


@pytest.mark.parametrize(("unit", "beta1"), [(True, 0.0), (False, 0.0), (True, 0.9), (False, 0.9)])
def test_updates_are_those_of_the_cpu_and_rows_without_entries_are_left_alone_or_move_on(triton, found, weights, unit, beta1):
    """The CPU's are held against Adam by hand in test_sparse.py."""
    columns, matrix = triton.by_latents(found.starts, found.latents, F), random(B, D, seed=13).to(weights.dtype)
    w = torch.nn.functional.normalize(random(F, D, seed=14)) if unit else random(F, D, seed=14)
    first, second = random(F, D if beta1 else 0, seed=18), random(F, D, seed=15).square()
    updated = torch.randint(0, 40, (F,), dtype=torch.int32, generator=generator(16)).to(DEVICE)
    adam = Adam(41, 1e-2, beta1, 0.99, 1e-8, 1 - beta1**41, (1 - 0.99**41) ** 0.5, unit)
    ours = [t.clone() for t in (w, first, second, updated)]
    theirs = [t.cpu().clone() for t in (w, first, second, updated)]

    def state(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, Moments, torch.Tensor]:
        return tensors[0], Moments(*tensors[1:3]), tensors[3]

    triton.update_rows(columns, found.values, matrix, *state(ours), adam)
    on_cpu = Columns(*(t.cpu() for t in columns))
    NumbaBackend().update_rows(on_cpu, found.values.cpu(), matrix.float().cpu(), *state(theirs), adam)
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine.cpu(), wanted)
    idle = columns.starts.diff() == 0
    if beta1:
        assert (ours[0][idle] != w[idle]).any(1).all() and (ours[3] == 41).all()
    else:
        assert torch.equal(ours[0][idle], w[idle]) and torch.equal(ours[3][idle], updated[idle])

    gradients = random(F, D, seed=17)
    NumbaBackend().update_dense(gradients.cpu().clone(), *state(theirs), adam._replace(update=42))
    triton.update_dense(gradients, *state(ours), adam._replace(update=42))
    for mine, wanted in zip(ours, theirs, strict=True):
        close(mine.cpu(), wanted)


def trained(architecture: str, backend: Backend | None, monkeypatch, **fields) -> tuple[Loop, list[bool]]:
    """Two steps, and whether each was sparse."""
    monkeypatch.setattr(seam, "_backend_on", lambda device: backend)
    activation = {"matryoshka": "batchtopk"}.get(architecture, architecture)
    recipe = dict(widths=[F], batch_size=B, adam_epsilon=1e-3, learning_rate=1e-2, lr_warmup_steps=0)
    config, sae = make(architecture, activation, **recipe, **fields)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        if activation == "jumprelu":
            sae.activation.threshold.fill_(2.0)
    loop, ways = Loop(sae.to(DEVICE), config, History()), []
    monkeypatch.setattr("scopemill.trainer.training.loop.SPARSE_BELOW", 1.0)
    monkeypatch.setattr("scopemill.trainer.training.loop.DENSE_ABOVE", 1.0)
    for step in range(2):
        loop.sparse = backend is not None
        loop.tokens_since_fired[: F // 3] = 10**6  # so that AuxK has latents to revive
        loop.step(random(B, sae.shape.d_in, seed=20 + step))
        ways.append(loop.sparse)
    return loop, ways


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("jumprelu", {"bandwidth": 0.5}), ("topk", {"auxk_coefficient": 0.1}), ("batchtopk", {}), ("matryoshka", {}), ("gated", {}),
        ("jumprelu", {"bandwidth": 0.5, "precision": "bfloat16"}), ("jumprelu", {"bandwidth": 0.5, "adam_beta1": 0.9}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("precision", ""),
)  # fmt: skip
def test_training_ends_with_the_weights_of_dense_training(triton, architecture, fields, monkeypatch):
    sparse, ways = trained(architecture, triton, monkeypatch, **fields)
    plain, _ = trained(architecture, None, monkeypatch, **fields)
    start = make(architecture, "batchtopk" if architecture == "matryoshka" else architecture, widths=[F])[1]
    assert all(ways) and sparse.optimizer.updated and not plain.optimizer.updated
    tolerance = 2e-2 if "precision" in fields else 2e-5
    for (name, ours), wanted in zip(sparse.sae.named_parameters(), plain.sae.parameters(), strict=True):
        close(ours.detach(), wanted.detach(), tolerance)
        assert not torch.equal(ours.detach().cpu(), dict(start.named_parameters())[name].detach()), "it was trained"


def test_training_again_gives_the_same_bits(triton, monkeypatch):
    one, other = (trained("jumprelu", triton, monkeypatch, bandwidth=0.5)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.sae.parameters(), other.sae.parameters(), strict=True))


def test_a_device_has_its_backend_where_the_library_is_there(monkeypatch):
    assert isinstance(backend_for(torch.zeros(1)), NumbaBackend)
    assert isinstance(seam._backend_on("cuda"), triton_backend.TritonBackend)
    assert backend_for(torch.zeros(1, dtype=torch.float64)) is None and backend_for(torch.zeros(1, device="meta")) is None
    monkeypatch.setattr(seam, "find_spec", lambda name: None)
    for device in ("cpu", "cuda"):
        assert seam._backend_on.__wrapped__(device) is None


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from scopemill.trainer.sparse.kernels import triton_kernels
types = dict.fromkeys(["starts", "order"], "*i64") | dict.fromkeys(["latents", "marks", "counts", "updated"], "*i32")
types |= dict.fromkeys(["rate", "beta1", "beta2", "epsilon", "first_correction", "correction"], "fp32")
types |= {"update": "i32", "d": "i32", "F": "i32"}
sizes = {"BLOCK": 1024, "BLOCK_D": 4096, "AT_ONCE": 2, "UNIT": True, "FIRST": True}
either = dict.fromkeys(["mark", "compact"], "products") | dict.fromkeys(["decode", "reconstruction_error", "products"], "weights")
either |= dict.fromkeys(["gradient", "update_rows"], "matrix")
for name, kernel in vars(triton_kernels).items():
    if isinstance(kernel, JITFunction) and not name.startswith("_"):
        signature = {a: "constexpr" if a in sizes else types.get(a, "*fp32") for a in kernel.arg_names}
        if name in ("gradient", "update_rows"):
            signature["rows"] = "*i32"
        for precision in ("*fp32", "*bf16") if name in either else ("*fp32",):
            if name in either:
                signature[either[name]] = precision
            constants = {a: sizes[a] for a in kernel.arg_names if a in sizes}
            made = triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", 90, 32), {"num_warps": 8})
            print(name, precision, len(made.asm["cubin"]))
"""


def test_every_kernel_compiles_for_an_h100(tmp_path, monkeypatch):
    """The interpreter takes more than the compiler does. No GPU is needed for this."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9 + 7  # seven read what may be of either precision
