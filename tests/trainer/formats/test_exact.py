"""Foreign files are read exactly or refused by the field's name; conversions hold the function or are refused; archives are limited."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.finished_saes import KINDS, MLP_IN, MLP_OUT, RESID, D, F, K, finished_sae, rows

from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.trainer import load_sae
from scopemill.trainer.formats import WRITTEN, archives, read_finished, write_finished
from scopemill.trainer.formats.config_fields import DICTIONARY_LEARNING_TRAINING, SAELENS_TRAINING, SPARSIFY_TRAINING

PATH_2 = "gemma-scope-2-1b-pt/{kind}/layer_3_width_30_l0_small{affine}"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_finished(str(tmp_path / "sae"), "saelens", finished_sae("jumprelu"))
    return tmp_path / "sae"


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps(config))


def refusal(folder: Path | str) -> str:
    with pytest.raises(SaeFormatError) as caught:
        read_finished(str(folder))
    sentence = str(caught.value)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 400
    return sentence


def legacy(folder: Path, **fields) -> None:
    """A flat cfg.json of before version 6, with the training fields that such files have."""
    flat = {
        "d_in": D,
        "d_sae": F,
        "hook_point": RESID,
        "lr": 1e-3,
        "l1_coefficient": 5.0,
        "use_ghost_grads": False,
        "activation_fn_str": "relu",
    }
    (folder / "cfg.json").write_text(json.dumps({"architecture": "jumprelu"} | flat | fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
        ({"activation_fn": "gelu"}, "activation_fn is 'gelu'"),
        ({"activation_fn_str": ["relu"]}, "activation_fn is ['relu']"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
            "activation_fn is 'topk' in a jumprelu SAE",
        ),  # over the thresholds of a JumpReLU
        ({"activation_fn_kwargs": {"slope": 0.1}}, "activation_fn_kwargs {'slope': 0.1} are not known for relu"),
        ({"architecture": "standard", "activation_fn_str": "topk"}, "'topk'"),
        ({"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "postact_fn": "gelu"}}, "postact_fn"),
        ({"normalize_activations": True}, "normalize_activations True"),
        ({"finetuning_scaling_factor": True}, "lacks the tensor scaling_factor"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false'"),
        ({"rotate_input": True}, "'rotate_input'"),
    ],
)
def test_an_old_file_of_another_function_is_refused_by_the_field(folder, fields, named):
    legacy(folder)
    assert read_finished(str(folder)).sae.centred
    legacy(folder, **fields)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false'; it has to be true or false"),
        ({"apply_b_dec_to_input": "true"}, "apply_b_dec_to_input is 'true'"),
        ({"apply_b_dec_to_input": 0}, "apply_b_dec_to_input is 0"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None"),
        ({"rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm is 'false'"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        ({"reshape_activations": True}, "reshape_activations is True"),
        ({"reshape_activations": "hook_z"}, "whose rows have no heads"),
        ({"activation_fn": "tanh-relu"}, "the field 'activation_fn'"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is true"),
        ({"residual_threshold": 0.1}, "the field 'residual_threshold' (0.1) is not known"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"architecture": "jumprelu_transcoder", "d_out": D, "apply_b_dec_to_input": True}, "apply_b_dec_to_input is true"),
    ],
)
def test_a_file_of_today_that_is_not_understood_is_refused_by_the_field(folder, fields, named):
    rewrite(folder, **fields)
    assert named in refusal(folder)


NAMES = st.text(st.characters(categories=["Ll", "Nd"], include_characters="_"), min_size=1, max_size=20) | st.sampled_from(
    ["hook_name", "activation_fn", "activation_fn_str", "hook_head_index", "n_heads", "activation", "inputs", "outputs"]
)


@given(name=NAMES, value=st.sampled_from([0, "x", True, {}]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_field_is_passed_over_unless_it_is_known_to_change_nothing(folder, name, value):
    config = json.loads((folder / "cfg.json").read_text())
    if name in config or name in SAELENS_TRAINING:
        return
    (folder / "cfg.json").write_text(json.dumps(config | {name: value}))
    try:
        assert name in refusal(folder)
    finally:
        (folder / "cfg.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(folder, dtype):
    tensors = safetensors.torch.load_file(folder / "sae_weights.safetensors")
    safetensors.torch.save_file(tensors | {"W_enc": tensors["W_enc"].to(dtype)}, folder / "sae_weights.safetensors")
    assert f"tensor W_enc holds {str(dtype).removeprefix('torch.')}" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_are_read_as_their_values(folder, dtype):
    tensors = {name: t.to(dtype) for name, t in safetensors.torch.load_file(folder / "sae_weights.safetensors").items()}
    safetensors.torch.save_file(tensors, folder / "sae_weights.safetensors")
    assert torch.equal(load_sae(str(folder)).W_enc, tensors["W_enc"].T.float())


@pytest.mark.parametrize(
    ("kind", "hooks", "path", "named"),
    [
        ("transcoder_jumprelu", (MLP_IN, MLP_OUT), PATH_2.format(kind="transcoder", affine="_affine"), "lacks the tensor affine"),
        ("skip_transcoder_jumprelu", (MLP_IN, MLP_OUT), PATH_2.format(kind="transcoder", affine=""), "does not end in _affine"),
        ("skip_transcoder_jumprelu", (MLP_IN, MLP_OUT), PATH_2.format(kind="resid_post", affine=""), "does not end in _affine"),
        ("skip_transcoder_jumprelu", (MLP_IN, MLP_OUT), PATH_2.format(kind="resid_post", affine="_affine"), "only transcoders have"),
    ],
)
def test_gemma_scope_2s_path_and_tensors_have_to_agree(tmp_path, kind, hooks, path, named):
    right = PATH_2.format(kind="transcoder", affine="_affine" if "skip" in kind else "")
    finished = replace(finished_sae(kind), inputs=(hooks[0],), outputs=(hooks[1],), model="gemma-3-1b-pt")
    write_finished(f"{tmp_path}/{right}", "gemma-scope-2", finished)
    (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / right).rename(tmp_path / path)
    assert named in refusal(f"{tmp_path}/{path}")


CHANGES = st.fixed_dictionaries({}, optional={
    "hook_head_index": st.sampled_from([None, 0, 3]), "prepend_bos": st.booleans(), "context_size": st.integers(1, 9),
    "seqpos_slice": st.sampled_from([[None], [1, None], None]),
    "model_from_pretrained_kwargs": st.sampled_from([{}, {"center_writing_weights": True}]),
    "exclude_special_tokens": st.booleans(), "dataset_path": st.just("x"),
})  # fmt: skip
DECIDE_ROWS = ("hook_head_index", "prepend_bos", "seqpos_slice", "model_from_pretrained_kwargs")  # which rows, or of which model
USUAL = {"hook_head_index": None, "prepend_bos": True, "seqpos_slice": None, "model_from_pretrained_kwargs": {}}


def paths(kind: str) -> dict[str, str]:
    transcodes, skips = "transcoder" in kind, "skip_transcoder" in kind
    return {
        "saelens": "sae",
        "gemma-scope": "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_9",
        "gemma-scope-2": PATH_2.format(kind="transcoder" if transcodes else "resid_post", affine="_affine" if skips else ""),
    }


@given(kind=st.sampled_from(sorted(KINDS)), word=st.sampled_from(WRITTEN), dtype=st.sampled_from(["float32", "bfloat16"]), changes=CHANGES)
@settings(max_examples=150, deadline=None)
def test_what_is_written_in_any_format_is_the_same_function_on_the_same_rows_or_is_refused(tmp_path_factory, kind, word, dtype, changes):
    finished = finished_sae(kind, model="gemma-3-1b-pt" if word == "gemma-scope-2" else "gemma-2-2b")
    finished = replace(finished, metadata=finished.metadata | changes, sae=finished.sae.to(getattr(torch, dtype)))
    place = str(tmp_path_factory.mktemp("written") / paths(kind)[word])
    try:
        write_finished(place, word, finished)
    except SaeFormatError:
        assert word != "saelens" and not Path(place).exists()
        return
    read = read_finished(place)
    assert (read.inputs, read.outputs, read.model) == (finished.inputs, finished.outputs, finished.model)
    for field in DECIDE_ROWS:
        given = finished.metadata.get(field, USUAL[field])
        assert read.metadata.get(field, USUAL[field]) in (given, [None] if given is None else given, None if given == [None] else given)
    x, exact = rows(finished.sae), finished.sae.float()
    torch.testing.assert_close(read.sae(x), exact(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(read.sae.encode(x), exact.encode(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("field", "value"), [("hook_head_index", 3), ("prepend_bos", False), ("seqpos_slice", [1, None]),
                                              ("model_from_pretrained_kwargs", {"fold_ln": True})])  # fmt: skip
def test_gemma_scopes_files_refuse_what_they_cannot_hold_by_its_name(tmp_path, field, value):
    finished = finished_sae("jumprelu")
    with pytest.raises(SaeFormatError, match=f"cannot hold {field} = "):
        write_finished(f"{tmp_path}/{paths('jumprelu')['gemma-scope']}", "gemma-scope", replace(finished, metadata={field: value}))


# Archives


@pytest.fixture
def npz(tmp_path) -> Path:
    place = tmp_path / "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_9"
    write_finished(str(place), "gemma-scope", finished_sae("jumprelu"))
    return place


def rewritten(npz: Path, **arrays: np.ndarray) -> Path:
    with np.load(npz / "params.npz") as old:
        np.savez(npz / "params.npz", **{name: old[name] for name in old.files} | arrays)
    return npz


def test_a_small_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**16)
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("unpacked"))
    np.savez_compressed(npz / "params.npz", W_enc=np.zeros((2**20,), np.float32))
    assert (npz / "params.npz").stat().st_size < 2**14
    assert f"would unpack to {4 * 2**20 + 128}" in refusal(npz)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "SMALL", 2**16)
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("unpacked"))
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D, "dict_size": F}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    with zipfile.ZipFile(tmp_path / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**22))
    assert "would unpack to" in refusal(tmp_path)


def test_an_array_that_claims_more_than_its_bytes_is_refused(npz, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**3)})
    with zipfile.ZipFile(npz / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue() + bytes(64))
    assert "array W_enc.npy claims the shape [1000000000000, 1000]" in refusal(npz)
    trainer = {"dict_class": "AutoEncoder", "activation_dim": D, "dict_size": F}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save({"encoder.weight": torch.zeros(1).expand(10**9, 10**6)}, tmp_path / "ae.pt")
    assert "tensor encoder.weight claims the shape [1000000000, 1000000]" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["u2", "i1", "c8", "U3", "longdouble", "datetime64[s]"])
def test_arrays_of_odd_dtypes_are_refused_in_one_sentence(npz, dtype):
    assert "array b_dec.npy holds" in refusal(rewritten(npz, b_dec=np.zeros(D, dtype)))


def test_arrays_of_other_byte_orders_and_sizes_are_read_as_their_values(npz):
    before = read_finished(str(npz)).sae.b_dec
    rewritten(npz, b_dec=before.numpy().astype(">f8"))
    assert torch.equal(read_finished(str(npz)).sae.b_dec, before)


def test_a_configuration_of_many_megabytes_is_refused(folder):
    (folder / "cfg.json").write_text(json.dumps({"architecture": "jumprelu", "notes": "x" * 2**22}))
    assert "a configuration has at most" in refusal(folder)


# Rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_heads_and_of_any_floating_point_dtype_are_taken(tmp_path, dtype):
    z = replace(finished_sae("jumprelu"), inputs=("blocks.3.attn.hook_z",), outputs=("blocks.3.attn.hook_z",))
    write_finished(str(tmp_path), "saelens", z)
    sae = load_sae(str(tmp_path))
    x = torch.randn(2, 5, 3, D // 3).to(dtype)
    flat = sae(x.flatten(-2).float())
    assert sae(x).shape == x.shape and sae(x).dtype == sae.encode(x).dtype == dtype
    assert torch.equal(sae(x), flat.reshape(x.shape).to(dtype)) and torch.equal(sae.encode(x), sae.encode(x.flatten(-2)))


@pytest.mark.parametrize("x", [torch.zeros(4, D + 1), torch.zeros(2, 3, D // 3), torch.zeros(()), torch.zeros(4, D, dtype=torch.int64)])
def test_rows_that_no_sae_takes_are_answered_with_both_shapes(x):
    for take in (finished_sae("jumprelu").sae, finished_sae("layer_norm").sae.encode):
        with pytest.raises(InputError) as caught:
            take(x)
        assert f"of the shape {list(x.shape)}, and this SAE takes floating-point rows [..., {D}]" in str(caught.value)


def test_what_is_ignored_is_no_field_that_is_read():
    from scopemill.trainer.formats import dictionary_learning, saelens, sparsify

    for ignored, read in ((SAELENS_TRAINING, saelens._READ), (DICTIONARY_LEARNING_TRAINING, dictionary_learning._READ)):
        assert not ignored & set(read)
    assert set(SPARSIFY_TRAINING) & set(sparsify._READ) == set()
