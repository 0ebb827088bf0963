"""SAEs in and out of a bucket in other tools' formats, as the commands do it."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.finished_saes import MLP_IN, MLP_OUT, RESID, F, finished_sae, same_bits
from support.hub_server import running_hub

from scopemill.deploy.catalog.conversion import convert, import_tree
from scopemill.deploy.catalog.pull import pull
from scopemill.deploy.progress import Reporter
from scopemill.evaluator.fidelity.results import Evaluation, Histogram, Result
from scopemill.proto.errors import Conflict, InputError, SaeFormatError
from scopemill.proto.layout import SaeLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.formats import FinishedSae, read_finished, write_finished, write_saelens

QUIET = Reporter(Console(file=io.StringIO()))
COMMAND = [sys.executable, "-m", "scopemill.deploy"]


def jumprelu(layer: int, seed: int = 0) -> FinishedSae:
    hook = (f"blocks.{layer}.hook_resid_post",)
    return replace(finished_sae("jumprelu", seed=seed), inputs=hook, outputs=hook)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of a repository: two layers, two sparsities."""
    tree = tmp_path / "gemma-scope-2b-pt-res"
    for layer in (3, 4):
        for l0 in (20, 71):
            write_finished(f"{tree}/layer_{layer}/width_30/average_l0_{l0}", "gemma-scope", jumprelu(layer, seed=l0))
    return tree


@pytest.mark.parametrize("store", ["{tmp_path}", "file://{tmp_path}", "{s3_url}"])
def test_a_tree_is_imported_whole_once_and_can_be_pulled_again(tree, tmp_path, s3_url, store):
    bucket = store.format(tmp_path=tmp_path / "bucket", s3_url=s3_url)
    roots = import_tree(str(tree), bucket, "*", QUIET)
    assert roots == [f"saes/gemma-2-2b/blocks.{layer}.hook_resid_post/width_30/jumprelu/l0-{l0}" for layer in (3, 4) for l0 in (20, 71)]
    for root, (layer, l0) in zip(roots, [(3, 20), (3, 71), (4, 20), (4, 71)], strict=True):
        read = read_finished(f"{bucket}/{root}")
        assert same_bits(read.sae, jumprelu(layer, seed=l0).sae) and read.model == "gemma-2-2b"
    written = {path: Bucket(bucket).read(path) for path in Bucket(bucket).find("saes")}
    for file in tree.rglob("params.npz"):
        file.write_bytes(b"not read again")
    assert import_tree(str(tree), bucket, "*", QUIET) == roots
    assert {path: Bucket(bucket).read(path) for path in Bucket(bucket).find("saes")} == written
    paths = pull(bucket, str(tmp_path / "out"), "*l0-71", "gemma-scope")
    assert paths == [f"gemma-scope-2b-pt-res/layer_{layer}/width_30/average_l0_71" for layer in (3, 4)]
    assert same_bits(read_finished(f"{tmp_path}/out/{paths[1]}").sae, jumprelu(4, seed=71).sae)


def test_a_tree_of_gemma_scope_2_is_imported_with_its_transcoders(tmp_path):
    tree, bucket = tmp_path / "gemma-scope-2-1b-pt", tmp_path / "bucket"
    for kind, affine in (("transcoder_jumprelu", ""), ("skip_transcoder_jumprelu", "_affine")):
        finished = replace(finished_sae(kind), inputs=(MLP_IN,), outputs=(MLP_OUT,), model="gemma-3-1b-pt")
        write_finished(f"{tree}/transcoder/layer_3_width_30_l0_small{affine}", "gemma-scope-2", finished)
    hooks = f"saes/gemma-3-1b-pt/{MLP_IN}--{MLP_OUT}/width_30"
    assert import_tree(str(tree), str(bucket), "*", QUIET) == [f"{hooks}/transcoder/l0-small", f"{hooks}/skip_transcoder/l0-small"]
    assert read_finished(f"{bucket}/{hooks}/skip_transcoder/l0-small").sae.skip is not None


@pytest.mark.parametrize(("pattern", "source", "named"), [("layer_9/*", "", "it holds 4 SAEs, such as layer_3/width_30/average_l0_20"),
                                                          ("*", "/nowhere", "no SAE in Gemma Scope's files")])  # fmt: skip
def test_a_source_without_what_is_asked_for_is_refused(tree, tmp_path, pattern, source, named):
    with pytest.raises(InputError, match=named):
        import_tree(f"{tree}{source}", str(tmp_path / "bucket"), pattern, QUIET)


def test_what_does_not_parse_clashes_or_is_broken_is_refused_and_nothing_of_it_is_written(tree, tmp_path):
    bucket = tmp_path / "bucket"
    import_tree(str(tree), str(bucket), "layer_3/*", QUIET)
    with pytest.raises(Conflict, match="holds an SAE from"):
        import_tree(str(tree.rename(tmp_path / "google--gemma-scope-2b-pt-res")), str(bucket), "*", QUIET)
    tree = tmp_path / "google--gemma-scope-2b-pt-res"
    (tree / "layer_x").mkdir()
    (tree / "layer_x" / "params.npz").write_bytes(b"")
    with pytest.raises(SaeFormatError, match="not a Gemma Scope path"):
        import_tree(str(tree), str(tmp_path / "other"), "*", QUIET)
    assert not list((tmp_path / "other").rglob("*.json"))
    np.savez(tree / "layer_4/width_30/average_l0_20/params.npz", W_enc=np.zeros((12, F), np.float32))
    with pytest.raises(SaeFormatError, match="lacks the tensor W_dec"):
        import_tree(str(tree), str(tmp_path / "other"), "layer_4/*_20", QUIET)
    assert not list((tmp_path / "other").rglob("*.json"))
    copy = tree / "copy" / "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_20"
    write_finished(str(copy), "gemma-scope", jumprelu(3))
    with pytest.raises(InputError, match="would both go to"):
        import_tree(str(tree), str(tmp_path / "other"), "*layer_3/*", QUIET)


def put(bucket: Bucket, root: str, finished: FinishedSae, l0: float | None) -> None:
    """An SAE as a sweep leaves it, with what was measured."""
    write_saelens(bucket, SaeLayout(root), finished, {})
    if l0 is not None:
        result = Result(RESID, 3, "resid_post", "jumprelu", F, 1e-3, 10, 100, l0, 0.1, 0.0, *[1.0] * 7, root)
        bucket.write(f"{root}/metrics.json", Evaluation(result, Histogram([0, 1], [3], 0), 10, {}).to_record())


def test_a_pulled_gemma_scope_path_has_the_l0_that_was_measured(bucket, tmp_path):
    root = "saes/gemma-2-2b/blocks.3.hook_resid_post/width_30/jumprelu/"
    put(bucket, root + "a", jumprelu(3), l0=53.4)
    paths = pull(bucket.url, str(tmp_path / "out"), "*", "gemma-scope")
    assert paths == ["gemma-scope-2b-pt-res/layer_3/width_30/average_l0_53"]
    assert same_bits(read_finished(f"{tmp_path}/out/{paths[0]}").sae, jumprelu(3).sae)
    assert pull(bucket.url, str(tmp_path / "folders")) == ["gemma-2-2b/blocks.3.hook_resid_post/width_30/jumprelu/a"]
    put(bucket, root + "b", jumprelu(3), l0=52.6)
    with pytest.raises(InputError, match="would both go to"):
        pull(bucket.url, str(tmp_path / "out"), "*", "gemma-scope")
    put(bucket, root + "c", jumprelu(3), l0=None)
    with pytest.raises(InputError, match="evaluate it first"):
        pull(bucket.url, str(tmp_path / "none"), "*", "gemma-scope")
    assert not list((tmp_path / "none").rglob("*"))
    put(bucket, root + "d", finished_sae("topk"), l0=5)
    with pytest.raises(SaeFormatError, match="topk"):
        pull(bucket.url, str(tmp_path / "none"), "*/d", "gemma-scope")
    assert not list((tmp_path / "none").rglob("*.npz"))


def test_converting_there_and_back_gives_the_same_file(tree, tmp_path):
    first = tree / "layer_3/width_30/average_l0_71"
    convert(str(first), str(tmp_path / "sae"), "saelens")
    again = tmp_path / "again" / "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_71"
    convert(str(tmp_path / "sae"), str(again), "gemma-scope")
    with np.load(first / "params.npz") as one, np.load(again / "params.npz") as other:
        assert sorted(one.files) == sorted(other.files) and all(np.array_equal(one[name], other[name]) for name in one.files)


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, env=os.environ | environment)


def test_a_tree_is_imported_from_the_hub(tree, tmp_path):
    (tmp_path / "hub").mkdir()
    tree.parent.joinpath("hub/google").symlink_to(tree.parent)
    with running_hub(tmp_path / "hub") as address:
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        told = run(tmp_path, "import", "hf://google/gemma-scope-2b-pt-res@main", "bucket", "--match", "layer_4/*", **hub)
        assert told.returncode == 0, told.stderr
        refused = run(tmp_path, "import", "hf://google/gemma-scope-9b-pt-res", "bucket", **hub)
    read = read_finished(f"{tmp_path}/bucket/saes/gemma-2-2b/blocks.4.hook_resid_post/width_30/jumprelu/l0-20")
    assert same_bits(read.sae, jumprelu(4, seed=20).sae)
    assert len(list((tmp_path / "bucket").rglob("cfg.json"))) == 2
    assert refused.returncode == 2 and refused.stderr.startswith("error hf://google/gemma-scope-9b-pt-res cannot be listed")


def test_the_commands_say_what_they_wrote_or_one_sentence(tree, tmp_path):
    told = run(tmp_path, "import", "gemma-scope-2b-pt-res", "bucket", "--match", "layer_3/*_71")
    assert told.returncode == 0, told.stderr
    root = "bucket/saes/gemma-2-2b/blocks.3.hook_resid_post/width_30/jumprelu/l0-71"
    assert told.stdout.endswith(f"\n{root}\n")
    told = run(tmp_path, "pull", "bucket", "out", "--format", "gemma-scope")
    assert told.stdout == "out/gemma-scope-2b-pt-res/layer_3/width_30/average_l0_71\n"
    told = run(tmp_path, "convert", root, "somewhere", "--to", "gemma-scope")
    assert (told.returncode, told.stdout) == (2, "") and "somewhere is not a Gemma Scope path" in told.stderr
    assert not (tmp_path / "somewhere").exists()
    told = run(tmp_path, "convert", root, "somewhere", "--to", "numpy")
    assert told.returncode == 2 and "format 'numpy' is not written; choose from saelens" in told.stderr
