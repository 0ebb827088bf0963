"""``import scopemill``: light, and its five names do what the README shows."""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.finished_saes import KINDS, RESID, finished_sae, rows, same_bits
from support.hub_server import running_hub
from support.sparse_world import SparseWorld

import scopemill
from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.formats import FinishedSae, read_finished, write_finished
from scopemill.trainer.formats.hub import model_card
from scopemill.trainer.training.monitors import Jsonl, Monitor, read_rows

ROOT = Path(__file__).parents[1]
WORLD = SparseWorld(d=32, directions=64, active=2.0)
QUICK = dict(width=64, sparsity=3, batch_size=256, learning_rate=2e-2, lr_warmup_steps=20, log_every=10)


def python(program: str, **environment: str) -> str:
    alone = {"OMP_NUM_THREADS": "1"}  # threads that wait for each other are slow on a busy machine
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | alone | environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The package.


def test_importing_it_takes_milliseconds_and_brings_nothing_heavy():
    program = """
import time; start = time.process_time()
import scopemill
seconds, names = time.process_time() - start, dir(scopemill)  # of the processor: others may be busy
import sys
print(seconds, [name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "pydantic", "ray", "fsspec")], names)
"""
    seconds, heavy = re.match(r"(\S+) (\[\])", python(program)).groups()
    assert float(seconds) < 0.1 and heavy == "[]"
    assert set(scopemill.__all__) <= set(dir(scopemill)) and re.fullmatch(r"\d+\.\d+\.\d+.*", scopemill.__version__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        scopemill.nothing  # noqa: B018


def test_the_core_needs_no_package_of_the_mill():
    absent = ("ray", "zmq", "msgpack", "zarr", "datasets", "transformers", "transformer_lens", "typer", "rich", "matplotlib",
              "pyarrow", "s3fs")  # fmt: skip
    program = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
import scopemill, torch
sae = scopemill.train_sae(torch.randn(64, 8), width=16, sparsity=2, steps=3)
scopemill.save_sae(sae, sys.argv[1] if len(sys.argv) > 1 else "memory://core/sae")
print(scopemill.load_sae("memory://core/sae"), scopemill.list_saes("memory://core"))
"""
    assert python(program) == "Sae(topk, 8 -> 16, topk, float32, cpu) []"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist of the files that git knows."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for path in listed.stdout.splitlines():
        if not path.startswith((".import", "tests/bench/results")) and (ROOT / path).is_file():
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / path).write_bytes((ROOT / path).read_bytes())
    (folder / "source" / ".import").mkdir()
    (folder / "source" / ".import" / "scopemill").symlink_to("..")
    build = "import setuptools.build_meta as b; b.build_wheel('../out'); b.build_sdist('../out')"
    (folder / "out").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True, timeout=120)
    return folder / "out"


def test_the_wheel_holds_the_rooms_and_the_root_module_only(built):
    (wheel,) = built.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    rooms = {"proto", "harvester", "activation_server", "trainer", "evaluator", "deploy"}
    assert {name.split("/")[1] for name in names if name.count("/") > 1} == rooms
    assert [name for name in names if name.count("/") == 1] == ["scopemill/__init__.py", "scopemill/py.typed"]
    assert all(name.startswith("scopemill/") for name in names)
    assert list(built.glob("*.tar.gz"))


# Training on a tensor, or on an iterator.


def test_three_lines_train_an_sae_that_finds_the_directions_of_raw_rows(tmp_path):
    x = 41.5 * torch.cat([WORLD.batch(k, 256) for k in range(60)]) + 3
    monitor = Jsonl(str(tmp_path), every=0)
    sae = scopemill.train_sae(x, steps=400, model="gpt2", hook=RESID, monitors=[monitor], **QUICK)
    assert WORLD.recovered(sae.W_dec) > 0.9
    assert ((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item() < 0.2  # rows with more than three directions lose some
    assert (sae.encode(x) > 0).sum(1).float().mean() <= 3
    assert (sae.cfg.architecture, sae.cfg.k, sae.model, sae.hook, sae.d_sae) == ("topk", 3, "gpt2", RESID, 64)
    assert not any(p.requires_grad for p in sae.parameters())
    told = read_rows(str(tmp_path))
    assert [row.step for row in told] == list(range(10, 401, 10)) and told[-1].fvu == sae.cfg.metadata["training"]["fvu"]
    scopemill.save_sae(sae, tmp_path / "sae")
    again = scopemill.load_sae(tmp_path / "sae")
    assert same_bits(again, sae) and replace(again.cfg, metadata=sae.cfg.metadata) == sae.cfg
    assert again.cfg.metadata.items() >= sae.cfg.metadata.items()  # SAELens' own fields are there as well


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, "numpy"])
def test_rows_may_have_any_floating_dtype(dtype):
    x = torch.randn(128, 8).numpy() if dtype == "numpy" else torch.randn(128, 8, dtype=dtype)
    sae = scopemill.train_sae(x, width=16, sparsity=2, steps=3)
    assert sae.dtype == torch.float32 and sae.b_dec.isfinite().all()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    x = WORLD.batch(0, 700)
    one, same, other = (scopemill.train_sae(x, epochs=2, **QUICK | {"seed": seed}) for seed in (1, 1, 2))
    assert same_bits(one, same) and not same_bits(one, other)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_training_goes_on_from_a_finished_sae_on_rows_of_another_scale(tmp_path, architecture):
    x = WORLD.batch(0, 2000)
    kind = QUICK | {"architecture": architecture}
    base = scopemill.train_sae(x, steps=200, **kind)
    scopemill.save_sae(base, tmp_path)
    still = {"learning_rate": 1e-9, "initial_sae": str(tmp_path)}
    again = scopemill.train_sae(torch.cat([x, 9 * x]), steps=1, **kind | still)
    if architecture == "topk":
        torch.testing.assert_close(again(x), base(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.W_dec, base.W_dec, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.b_enc, base.b_enc, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="train.initial_sae: .* has 64 latents, and train.widths asks for 32"):
        scopemill.train_sae(x, steps=1, **kind | still | {"width": 32})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(mode):
    with mode():
        x = WORLD.batch(0, 300)
        sae = scopemill.train_sae(x, steps=4, **QUICK)
    assert same_bits(sae, scopemill.train_sae(x.clone(), steps=4, **QUICK))


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    from scopemill.trainer.rows import Layout, row_source

    x = torch.arange(1.0, 24).view(-1, 1).repeat(1, 3)
    source = row_source(x, None, Layout("topk", False, False))
    order = torch.cat([side[:, 0] for (side,) in source.batches(5, 14, seed=3)])[: 3 * len(x)].view(3, -1)
    assert all(epoch.sort().values.equal(x[:, 0]) for epoch in order)
    assert not order[0].equal(order[1]) and not order[1].equal(order[2]) and not order[0].equal(x[:, 0])


def test_an_iterator_trains_to_the_bits_of_the_same_batches_whatever_its_pieces():
    x = torch.cat([WORLD.batch(k, 256) for k in range(20)])
    trained = [scopemill.train_sae(iter(x.split(size)), steps=20, **QUICK) for size in (256, 100, 5120)]
    assert same_bits(trained[0], trained[1]) and same_bits(trained[0], trained[2])


def test_the_length_is_steps_tokens_or_epochs():
    x = WORLD.batch(0, 600)
    for length, steps in ({"steps": 7}, 7), ({"tokens": 1000}, 4), ({"epochs": 2}, 5), ({"epochs": 0.5}, 2):
        assert scopemill.train_sae(x, **QUICK, **length).cfg.metadata["training"]["step"] == steps
    with pytest.raises(InputError, match="steps and epochs both say how long"):
        scopemill.train_sae(x, steps=3, epochs=1, **QUICK)
    with pytest.raises(InputError, match="epochs: an iterator has no known number of rows"):
        scopemill.train_sae(iter([x]), epochs=1, **QUICK)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("jumprelu", {"sparsity": 1e-3}), ("batchtopk", {}), ("matryoshka", {}), ("gated", {"sparsity": 0.1}), ("standard", {"sparsity": 0.1}),
     ("skip", {"sparsity": 1e-3}), ("transcoder", {"activation": "topk"}), ("skip_transcoder", {"activation": "topk"}),
     ("crosscoder", {"activation": "batchtopk"}), ("clt", {"activation": "topk"}), ("per_layer_transcoder", {"activation": "topk"}),
     ("topk", {"normalization": "layer_norm", "initial_decoder_bias": "zero"}), ("topk", {"normalization": "sqrt_d"})],
)  # fmt: skip
def test_every_architecture_trains_on_a_tensor_and_on_an_iterator(tmp_path, architecture, options):
    layered, paired = architecture in ("crosscoder", "clt", "per_layer_transcoder"), "transcoder" in architecture or architecture == "clt"
    x = 7 * torch.randn(256, *((2,) if layered else ()), 8) + 1
    y = 0.1 * torch.randn(256, *((2,) if layered else ()), 6)
    hooks = (
        ["blocks.0.mlp.hook_in", "blocks.1.mlp.hook_in"][: 1 + layered],
        ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"][: 1 + layered],
    )
    options = (
        {"width": 16, "sparsity": 4, "batch_size": 64, "steps": 4, "hook": hooks[0]} | options | ({"hook_out": hooks[1]} if paired else {})
    )
    sae = scopemill.train_sae((x, y) if paired else x, architecture, **options)
    assert sae(x.flatten(1)).shape == (256, (6 if paired else 8) * (1 + layered))
    assert sae.cfg.inputs == tuple(hooks[0]) and sae.cfg.targets == (tuple(hooks[1]) if paired else ())
    scopemill.save_sae(sae, tmp_path)
    assert same_bits(scopemill.load_sae(tmp_path), sae)
    pieces = zip(x.split(50), y.split(50), strict=True) if paired else x.split(50)
    streamed = scopemill.train_sae(iter(pieces), architecture, **options)
    assert streamed(x.flatten(1)).shape == sae(x.flatten(1)).shape
    if paired:
        assert same_bits(scopemill.train_sae(x, architecture, y=y, **options), sae)


X = torch.randn(64, 8)
BAD = torch.where(torch.arange(64)[:, None] == 41, torch.nan, X)


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (torch.randn(64), {}, r"x has the shape \[64\], and a topk takes \[rows, d\]\."),
        (torch.randn(4, 16, 8), {}, r"x has the shape \[4, 16, 8\].*takes \[rows, d\]; flatten"),
        (torch.randn(0, 8), {}, "x holds no rows"),
        (torch.randn(8, 0), {}, r"shape \[8, 0\]"),
        (BAD, {}, "x: row 41 holds a NaN or an infinity"),
        (iter([X, BAD]), {"batch_size": 32, "steps": 4}, "x: row 105 holds a NaN"),
        (torch.zeros(64, 8), {}, "every row is zero"),
        (torch.ones(64, 8, dtype=torch.int64), {}, r"x holds int64, and activations are floating-point numbers; pass x.float\(\)"),
        (torch.ones(64, 8, dtype=torch.bool), {}, "x holds bool"),
        (np.ones((64, 8), dtype=np.int32), {}, "x holds int32"),
        ("activations", {}, "x is a str; give a tensor"),
        (17, {}, "x is a int; give a tensor"),
        (["a", "b"], {}, "x is a str; give a tensor"),
        (X, {"sparsity": 17}, r"sparsity \(17\) is k here: a whole number from 1 to the width \(16\)"),
        (X, {"width": 0}, "widths? must be at least 1"),
        (X, {"width": 1.5}, "width: .*valid integer"),
        (X, {"steps": 0}, "steps is 0; give a positive whole number"),
        (X, {"tokens": 1.5}, "tokens is 1.5; give a positive whole number"),
        (X, {"learning_rate": -1.0}, r"learning_rate: .*greater than 0 \(it is -1.0\)"),
        (X, {"learnig_rate": 1.0}, "learnig_rate is not a field of a recipe"),
        (X, {"gpus": 1}, "gpus is not a field of a recipe"),
        (X, {"architecture": "topq"}, "architecture: .*'topk'"),
        (X, {"template": "nothing"}, "template 'nothing' is not known"),
        (X, {"architecture": "jumprelu", "sparsity_warmup_steps": 3, "steps": 40}, r"\(0.5\), unless it is 0, .* of 20 steps; leave"),
        (X, {"architecture": "jumprelu", "sparsity": None}, "sparsity: a jumprelu .*needs its coefficient"),
        (X, {"y": X}, "y: a topk reconstructs x itself"),
        (X, {"architecture": "transcoder", "activation": "topk"}, "y: a transcoder needs the rows that it reconstructs"),
        ((X, X[:9]), {"architecture": "transcoder", "activation": "topk"}, r"y has the shape \[9, 8\] and x \[64, 8\]"),
        (iter([X]), {"architecture": "transcoder", "activation": "topk"}, r"the iterator has to yield pairs \(x, y\)"),
        (X, {"architecture": "crosscoder", "activation": "topk"}, r"a crosscoder takes \[rows, layers, d\]"),
        (iter([X, X[:, :5]]), {"steps": 40}, "the widths of the tensor that begins with row 64"),
        (iter([X, X]), {"batch_size": 50, "steps": 9},
         "the iterator ended after 128 rows, in step 3 of 9, and training needs 450 rows; pass tokens=100"),
        (iter([]), {}, "the iterator yielded no rows"),
        (X, {"monitors": ["jsonl"]}, "Monitor jsonl needs a place"),
        (X, {"monitors": ["sparkline"]}, "Monitor 'sparkline' is not known"),
        (X, {"hook": ["a", "b"]}, "2 hooks are named, and the rows span 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(x, options, sentence):
    with pytest.raises(InputError, match=sentence):
        scopemill.train_sae(x, **{"width": 16, "sparsity": 2, "steps": 3 if not options.keys() & {"tokens", "epochs"} else None} | options)


def test_monitors_hear_the_end_of_a_training_that_fails():
    class Heard(Monitor):
        told: list[str] = []

        def on_end(self) -> None:
            self.told.append("end")

    with pytest.raises(InputError, match="ended after"):
        scopemill.train_sae(iter([X]), width=16, sparsity=2, steps=9, batch_size=50, monitors=[Heard()])
    assert Heard.told == ["end"]


# In and out.


def test_a_loaded_sae_has_the_wanted_device_and_dtype(tmp_path):
    write_finished(str(tmp_path), "saelens", finished_sae("jumprelu"))
    sae = scopemill.load_sae(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert sae.dtype == torch.bfloat16 and sae.cfg.model == "gemma-2-2b" and sae.hook == RESID
    scopemill.save_sae(sae, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "cfg.json").read_text())["dtype"] == "bfloat16"
    assert same_bits(scopemill.load_sae(tmp_path / "half", dtype=torch.bfloat16), sae)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_saved_as_it_describes_itself(tmp_path, kind):
    write_finished(str(tmp_path / "one"), "saelens", finished_sae(kind))
    sae = scopemill.load_sae(tmp_path / "one")
    scopemill.save_sae(sae, tmp_path / "two")
    assert (tmp_path / "two" / "cfg.json").read_bytes() == (tmp_path / "one" / "cfg.json").read_bytes()
    assert scopemill.load_sae(tmp_path / "two").cfg == sae.cfg


def test_a_bucket_lists_its_saes_and_what_was_measured(bucket):
    for layer, measured in ((3, True), (4, False)):
        hook = f"blocks.{layer}.hook_resid_post"
        folder = bucket.place(f"saes/gemma-2-2b/{hook}/width_30/jumprelu/l0-{layer}")
        write_finished(folder, "saelens", replace(finished_sae("jumprelu"), inputs=(hook,), outputs=(hook,)))
        if measured:
            Bucket(folder).write("metrics.json", checksummed_record({"result": {"l0": 12.5, "fvu": 0.25, "hook": hook}}))
    one, other = scopemill.list_saes(bucket.url)
    assert (one.model, one.hook, one.width, one.architecture) == ("gemma-2-2b", "blocks.3.hook_resid_post", 30, "jumprelu")
    assert (one.l0, one.fvu) == (12.5, 0.25)
    assert (other.l0, other.fvu) == (None, None)
    assert scopemill.load_sae(one.path).cfg.metadata["evaluation"] == {"l0": 12.5, "fvu": 0.25}
    assert "evaluation" not in scopemill.load_sae(other.path).cfg.metadata
    assert scopemill.list_saes(bucket.url, "*blocks.4*") == [other] and scopemill.list_saes(bucket.url, "gpt2/*") == []


def test_saes_go_to_a_hub_and_come_back_by_their_id(tmp_path):
    folder = tmp_path / "sae"
    finished = finished_sae("topk", model="google/gemma-2-2b")
    write_finished(str(folder), "saelens", finished)
    Bucket(str(folder)).write("metrics.json", checksummed_record({"result": {"l0": 5.0, "fvu": 0.125, "delta_loss": 0.03}}))
    program = f"""
import scopemill
sae = scopemill.load_sae({str(folder)!r})
print(sae.push_to_hub("owner/one"), sae.push_to_hub("owner/many", "layer_3/topk"))
for place in ("owner/one", "hf://owner/one", "owner/many/layer_3/topk", "owner/one@main"):
    again = scopemill.load_sae(place)
    scopemill.save_sae(again, {str(tmp_path)!r} + "/back/" + place.replace("/", "_").replace(":", ""))
try:
    scopemill.load_sae("owner/nothing")
except Exception as error:
    print(type(error).__name__, error)
try:
    sae.push_to_hub("not an id")
except Exception as error:
    print(type(error).__name__, error)
"""
    with running_hub(tmp_path / "hub") as address:
        told = python(program, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"), HF_TOKEN="hf_test").splitlines()
    assert told[0] == "owner/one owner/many/layer_3/topk"
    assert told[1].startswith("SaeFormatError owner/nothing is not a local folder, and no SAE could be read from Hugging Face")
    assert told[2].startswith("InputError 'not an id' is not a repository id")
    for place in (tmp_path / "back").iterdir():
        assert same_bits(read_finished(str(place)).sae, finished.sae), place
    assert len(list((tmp_path / "back").iterdir())) == 4
    card = (tmp_path / "hub" / "owner" / "one" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: scopemill\n") and "base_model: google/gemma-2-2b\n" in card
    for line in (
        'scopemill.load_sae("owner/one")',
        "| FVU (fraction of variance unexplained) | 0.125 |",
        f"| Hook | {RESID} |",
        "| k | 5 |",
    ):
        assert line in card
    assert not (tmp_path / "hub" / "owner" / "many" / "layer_3" / "topk" / "README.md").exists()


def test_a_card_that_is_there_is_kept_and_a_local_folder_comes_before_the_hub(tmp_path):
    write_finished(str(tmp_path / "owner" / "local"), "saelens", finished_sae("topk"))
    (tmp_path / "hub" / "owner" / "kept").mkdir(parents=True)
    (tmp_path / "hub" / "owner" / "kept" / "README.md").write_text("mine")
    program = """
import scopemill
sae = scopemill.load_sae("owner/local")
sae.push_to_hub("owner/kept")
print(sae)
"""
    with running_hub(tmp_path / "hub") as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_test"}
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hub" / "owner" / "kept" / "README.md").read_text() == "mine"
    assert same_bits(read_finished(str(tmp_path / "hub" / "owner" / "kept")).sae, finished_sae("topk").sae)


def test_the_card_of_an_sae_that_saelens_does_not_know_does_not_name_it():
    assert "SAELens" not in model_card(finished_sae("crosscoder").described().sae, "owner/one")
    assert "SAELens" in model_card(finished_sae("topk").described().sae, "owner/one")


def test_to_saelens_says_what_to_install_and_what_saelens_lacks(monkeypatch):
    sae = FinishedSae.described(finished_sae("topk")).sae
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(InputError, match="run `pip install sae-lens`"):
        sae.to_saelens()
    monkeypatch.setitem(sys.modules, "sae_lens", np)  # any module: it is not asked
    with pytest.raises(InputError, match="SAELens has no architecture for a crosscoder"):
        finished_sae("crosscoder").sae.to_saelens()


def test_a_folder_without_an_sae_is_refused(tmp_path):
    with pytest.raises(SaeFormatError, match="is not a finished SAE: it holds none of sae_weights.safetensors"):
        scopemill.load_sae(tmp_path)
    with pytest.raises(InputError, match="format 'npz' is not written"):
        scopemill.save_sae(finished_sae("topk").described().sae, tmp_path, "npz")
    assert rows(finished_sae("topk").sae).shape == (200, 12)


def test_the_command_line_of_the_core_alone_says_what_to_install():
    program = "import sys; sys.modules['typer'] = None; from scopemill.deploy.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the command line needs typer, which the core leaves out: pip install 'scopemill[mill]'\n",
    )
