"""Gemma Scope's files: what their paths say, the same bits both ways, and what they cannot hold."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.finished_saes import MLP_IN, MLP_OUT, RESID, D, F, finished_sae, rows, same_bits

from scopemill.proto.errors import SaeFormatError
from scopemill.trainer.formats import FinishedSae, read_finished, write_finished
from scopemill.trainer.formats.gemma_scope_paths import GENERATION_1, GENERATION_2

Z, EMBED = "blocks.3.attn.hook_z", "hook_embed"
PATH_1, PATH_2 = "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_71", "gemma-scope-2-1b-pt/resid_post/layer_3_width_30_l0_small"


def at(inputs: str, outputs: str, kind: str = "jumprelu", model: str = "gemma-2-2b") -> FinishedSae:
    return replace(finished_sae(kind), inputs=(inputs,), outputs=(outputs,), model=model)


def rewrite(folder: Path, **changes: np.ndarray) -> None:
    """Change arrays of a ``params.npz``; None takes one out."""
    with np.load(folder / "params.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files} | changes
    np.savez(folder / "params.npz", **{name: array for name, array in changed.items() if array is not None})


def refusal(action) -> str:
    with pytest.raises(SaeFormatError) as caught:
        action()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "model", "inputs", "outputs", "l0"),
    [
        ("hf://google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "gemma-2-2b", "blocks.20.hook_resid_post", None, "71"),
        ("s3://b/gemma-scope-9b-it-res@main/layer_9/width_131k/average_l0_22/", "gemma-2-9b-it", "blocks.9.hook_resid_post", None, "22"),
        ("/x/gemma-scope-27b-pt-mlp/layer_0/width_1m/average_l0_9", "gemma-2-27b", "blocks.0.hook_mlp_out", None, "9"),
        ("s3://b/gemma-scope-2b-pt-att/layer_7/width_65k/average_l0_19", "gemma-2-2b", "blocks.7.attn.hook_z", None, "19"),
        ("/c/models--google--gemma-scope-2b-pt-transcoders/snapshots/0af/layer_2/width_16k/average_l0_6", "gemma-2-2b",
         "blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out", "6"),
        ("/x/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44", "gemma-2-2b", "hook_embed", None, "44"),
        ("/x/gemma-scope-pythia-70m-res/layer_2/width_30/average_l0_6", "pythia-70m", "blocks.2.hook_resid_post", None, "6"),
    ],
)  # fmt: skip
def test_a_path_of_gemma_scope_1_says_what_the_sae_is(path, model, inputs, outputs, l0):
    origin, found = GENERATION_1.parse(path)
    assert (origin.model, origin.input, origin.output, found) == (model, inputs, outputs or inputs, l0)


@pytest.mark.parametrize(
    ("path", "model", "inputs", "outputs", "l0"),
    [
        ("s3://b/gemma-scope-2-1b-pt/resid_post_all/layer_0_width_262k_l0_big", "gemma-3-1b-pt", "blocks.0.hook_resid_post", None, "big"),
        ("/x/gemma-scope-2-270m-pt/attn_out/layer_5_width_16k_l0_medium", "gemma-3-270m", "blocks.5.attn.hook_z", None, "medium"),
        ("/x/gemma-scope-2-4b-it/mlp_out/layer_9_width_1m_l0_big_seed_2", "gemma-3-4b-it", "blocks.9.hook_mlp_out", None, "big_seed_2"),
        ("/x/gemma-scope-2-4b-it/transcoder_all/layer_9_width_16k_l0_small_affine", "gemma-3-4b-it", "blocks.9.mlp.hook_in",
         "blocks.9.hook_mlp_out", "small"),
    ],
)  # fmt: skip
def test_a_path_of_gemma_scope_2_says_what_the_sae_is(path, model, inputs, outputs, l0):
    origin, found = GENERATION_2.parse(path)
    assert (origin.model, origin.input, origin.output, found) == (model, inputs, outputs or inputs, l0)


@pytest.mark.parametrize("generation", [GENERATION_1, GENERATION_2])
@given(model=st.sampled_from(["gemma-2-2b", "gemma-2-9b-it", "gemma-3-1b-pt", "gemma-3-270m", "gemma-3-270m-it", "gpt2", "pythia-70m-res"]),
       kind=st.integers(0, 3), layer=st.integers(0, 99), l0=st.integers(0, 9999))  # fmt: skip
def test_every_path_that_is_made_says_the_same_when_it_is_read(generation, model, kind, layer, l0):
    one, other = (f"blocks.{layer}.{side}" for side in list(generation.kinds.values())[kind])
    path = generation.path_of(at(one, other, model=model), str(l0))
    origin, found = generation.parse(f"hf://google/{path}")
    assert (origin.model, origin.input, origin.output, origin.width, found) == (model, one, other, "30", str(l0))


@pytest.mark.parametrize(
    ("word", "path", "finished"),
    [
        ("gemma-scope", PATH_1, at(RESID, RESID)),
        ("gemma-scope", PATH_1, at(RESID, RESID, "matryoshka")),
        ("gemma-scope", "gemma-scope-9b-it-mlp/layer_3/width_30/average_l0_9", at(MLP_OUT, MLP_OUT, model="gemma-2-9b-it")),
        ("gemma-scope", "gemma-scope-gpt2-att/layer_3/width_30/average_l0_9", at(Z, Z, model="gpt2")),
        ("gemma-scope", "gemma-scope-2b-pt-transcoders/layer_3/width_30/average_l0_9",
         at("blocks.3.ln2.hook_normalized", MLP_OUT, "transcoder_jumprelu")),
        ("gemma-scope-2", PATH_2, at(RESID, RESID, model="gemma-3-1b-pt")),
        ("gemma-scope-2", "gemma-scope-2-270m-it/attn_out/layer_3_width_30_l0_big", at(Z, Z, model="gemma-3-270m-it")),
        ("gemma-scope-2", "gemma-scope-2-4b-pt/transcoder/layer_3_width_30_l0_big",
         at(MLP_IN, MLP_OUT, "transcoder_jumprelu", "gemma-3-4b-pt")),
        ("gemma-scope-2", "gemma-scope-2-4b-pt/transcoder/layer_3_width_30_l0_big_affine",
         at(MLP_IN, MLP_OUT, "skip_transcoder_jumprelu", "gemma-3-4b-pt")),
    ],
)  # fmt: skip
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, word, path, finished):
    write_finished(f"{tmp_path}/{path}", word, finished)
    read = read_finished(f"{tmp_path}/{path}")
    assert (read.inputs, read.outputs, read.model) == (finished.inputs, finished.outputs, finished.model)
    assert same_bits(read.sae, finished.sae) and torch.equal(read.sae(rows(read.sae)), finished.sae(rows(finished.sae)))


def test_the_files_are_gemma_scopes(tmp_path):
    sae = at(RESID, RESID).sae
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", at(RESID, RESID))
    with np.load(tmp_path / PATH_1 / "params.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == {
            "W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,),
        }  # fmt: skip
        pre = rows(sae).numpy() @ arrays["W_enc"] + arrays["b_enc"]
        rebuilt = np.maximum(pre * (pre > arrays["threshold"]), 0) @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(sae(rows(sae)).numpy(), rebuilt, rtol=1e-4, atol=1e-4)
    finished = at(MLP_IN, MLP_OUT, "skip_transcoder_jumprelu", "gemma-3-1b-pt")
    folder = tmp_path / "gemma-scope-2-1b-pt/transcoder/layer_3_width_30_l0_big_affine"
    write_finished(str(folder), "gemma-scope-2", finished)
    assert {name: t.shape for name, t in safetensors.numpy.load_file(folder / "params.safetensors").items()} == {
        "w_enc": (D, F), "w_dec": (F, D + 2), "b_enc": (F,), "b_dec": (D + 2,), "threshold": (F,), "affine_skip_connection": (D + 2, D),
    }  # fmt: skip


def test_a_scaling_factor_is_multiplied_into_the_decoder(tmp_path):
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", at(RESID, RESID))
    factors = np.linspace(0.5, 2, F, dtype=np.float32)
    rewrite(tmp_path / PATH_1, scaling_factor=factors)
    expected = at(RESID, RESID).sae.W_dec * torch.from_numpy(factors)[:, None]
    assert torch.equal(read_finished(f"{tmp_path}/{PATH_1}").sae.W_dec, expected)
    rewrite(tmp_path / PATH_1, scaling_factor=factors[:-1])
    assert "scaling_factor" in refusal(lambda: read_finished(f"{tmp_path}/{PATH_1}"))


def test_a_pre_encoder_bias_is_folded(tmp_path):
    finished = at(RESID, RESID, "centred")
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", finished)
    read = read_finished(f"{tmp_path}/{PATH_1}").sae
    assert not read.centred and torch.allclose(read(rows(read)), finished.sae(rows(read)), rtol=1e-5, atol=1e-4)


def test_an_embedding_sae_takes_the_hooks_rows_and_the_file_those_of_the_matrix(tmp_path):
    finished = at(EMBED, EMBED)
    path = f"{tmp_path}/gemma-scope-2b-pt-res/embedding/width_30/average_l0_44"
    write_finished(path, "gemma-scope", finished)
    with np.load(f"{path}/params.npz") as arrays:
        x = rows(finished.sae).numpy() / D**0.5
        pre = x @ arrays["W_enc"] + arrays["b_enc"]
        rebuilt = np.where(pre > arrays["threshold"], pre, 0) @ arrays["W_dec"] + arrays["b_dec"]
    read = read_finished(path)
    assert read.inputs == (EMBED,)
    np.testing.assert_allclose(finished.sae(rows(read.sae)).numpy(), rebuilt * D**0.5, rtol=1e-4, atol=1e-3)
    assert torch.allclose(read.sae(rows(read.sae)), finished.sae(rows(read.sae)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("word", "path", "finished", "named"),
    [
        ("gemma-scope", PATH_1, at(RESID, RESID, "topk"), "JumpReLU"),
        ("gemma-scope", PATH_1, at(RESID, RESID, "relu"), "JumpReLU"),
        ("gemma-scope", PATH_1, at(RESID, RESID, "layer_norm"), "layer_norm"),
        ("gemma-scope", PATH_1, at(RESID, RESID, "skip"), "skip"),
        ("gemma-scope", PATH_1, finished_sae("crosscoder"), "Crosscoder"),
        ("gemma-scope", PATH_1, at(RESID, RESID, "skip_transcoder_jumprelu"), "SkipTranscoder"),
        ("gemma-scope", "somewhere/else", at(RESID, RESID), "not a Gemma Scope path"),
        ("gemma-scope", PATH_1.replace("layer_3", "layer_4"), at(RESID, RESID), PATH_1),
        ("gemma-scope", PATH_1.replace("width_30", "width_16k"), at(RESID, RESID), PATH_1),
        ("gemma-scope", PATH_1, at(RESID, RESID, model="gemma-2-9b"), "gemma-scope-9b-pt-res"),
        ("gemma-scope", PATH_1, at(MLP_IN, MLP_OUT, "transcoder_jumprelu"), "no place for an SAE from blocks.3.mlp.hook_in"),
        ("gemma-scope", PATH_1, replace(at(RESID, RESID), model=None), "model None"),
        ("gemma-scope", PATH_1, replace(at(RESID, RESID, "transcoder_jumprelu"), outputs=()), "needs the hook that it reconstructs"),
        ("gemma-scope-2", PATH_2, at(RESID, RESID, "topk", "gemma-3-1b-pt"), "JumpReLU"),
    ],
)
def test_what_the_files_cannot_hold_is_refused_and_nothing_is_written(tmp_path, word, path, finished, named):
    assert named in refusal(lambda: write_finished(f"{tmp_path}/{path}", word, finished))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("path", ["params", "layer_3/width_30/average_l0_71", "gemma-scope-2b-pt-res/layer_x/width_30/average_l0_71",
                                  "gemma-scope-2b-pt-res/layer_3/width_30", "gemma-scope-2b-pt-xxx/layer_3/width_30/average_l0_71",
                                  "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_71/more"])  # fmt: skip
def test_a_path_that_does_not_parse_is_refused(tmp_path, path):
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", at(RESID, RESID))
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    (tmp_path / PATH_1 / "params.npz").rename(tmp_path / path / "params.npz")
    assert "not a Gemma Scope path" in refusal(lambda: read_finished(f"{tmp_path}/{path}"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"W_enc": None}, "lacks the tensor W_enc"),
        ({"threshold": None}, "lacks the tensor threshold"),
        ({"W_dec": np.zeros(3, np.float32)}, "W_dec"),
        ({"W_enc": np.zeros((D, F + 1), np.float32)}, "31 latents, and its path says width_30"),
        ({"b_dec": np.zeros(D + 1, np.float32)}, "b_dec"),
        ({"b_enc": np.full(F, np.nan, np.float32)}, "finite"),
        ({"threshold": np.full(F, -0.1, np.float32)}, "negative"),
        ({"more": np.zeros(1)}, "more"),
        ({"W_enc": np.array([abs, len], dtype=object)}, "W_enc.npy holds object"),
    ],
)
def test_arrays_that_are_wrong_are_refused(tmp_path, changes, named):
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", at(RESID, RESID))
    rewrite(tmp_path / PATH_1, **changes)
    assert named in refusal(lambda: read_finished(f"{tmp_path}/{PATH_1}"))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\xff" * 100, lambda data: data[:400]])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    write_finished(f"{tmp_path}/{PATH_1}", "gemma-scope", at(RESID, RESID))
    file = tmp_path / PATH_1 / "params.npz"
    file.write_bytes(damage(file.read_bytes()))
    assert "params.npz cannot be read" in refusal(lambda: read_finished(f"{tmp_path}/{PATH_1}"))


def test_a_lone_array_is_no_archive(tmp_path):
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    (tmp_path / PATH_1).mkdir(parents=True)
    (tmp_path / PATH_1 / "params.npz").write_bytes(data.getvalue())
    assert "params.npz" in refusal(lambda: read_finished(f"{tmp_path}/{PATH_1}"))
