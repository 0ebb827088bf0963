"""Finished SAEs in SAELens' folders: read back bit for bit, the function that its documents give, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from support.finished_saes import KINDS, D, F, K, finished_sae, rows, same_bits

from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer import load_sae
from scopemill.trainer.formats import read_finished, write_finished

AUTOENCODERS = ("relu", "gated", "jumprelu", "topk", "centred", "layer_norm", "matryoshka")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "sae"


def write(folder: Path, kind: str = "jumprelu") -> Path:
    write_finished(str(folder), "saelens", finished_sae(kind))
    return folder


def rewrite_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def rewrite_tensors(folder: Path, change) -> None:
    tensors = dict(safetensors.numpy.load_file(folder / "sae_weights.safetensors"))
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "sae_weights.safetensors")


def refusal(folder) -> str:
    """What reading answers: one sentence that names the folder."""
    with pytest.raises(SaeFormatError) as caught:
        load_sae(str(folder))
    sentence = str(caught.value)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


@pytest.mark.parametrize("address", ["{}", "{}/", "file://{}"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_bit_for_bit(folder, kind, address):
    written = finished_sae(kind)
    write_finished(str(folder), "saelens", written)
    read = read_finished(address.format(folder))
    assert (read.inputs, read.outputs, read.model) == (written.inputs, written.outputs, written.model)
    assert written.metadata.items() <= read.metadata.items()
    assert not any(p.requires_grad for p in read.sae.parameters())
    assert (read.sae.centred, read.sae.layer_norm) == (written.sae.centred, written.sae.layer_norm)
    x = rows(written.sae)
    assert same_bits(read.sae, written.sae) and torch.equal(read.sae(x), written.sae(x))


def test_written_twice_it_is_the_same_file(folder, tmp_path):
    write(folder)
    write_finished(str(tmp_path / "again"), "saelens", read_finished(str(folder)))
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_saelens_inference_on_the_files_gives_the_same_latents_and_reconstruction(folder, kind):
    """The formulas of SAELens' documents, in numpy, on nothing but the files."""
    sae = finished_sae(kind).sae
    write(folder, kind)
    config = json.loads((folder / "cfg.json").read_text())
    t = {k: v.astype(np.float64) for k, v in safetensors.numpy.load_file(folder / "sae_weights.safetensors").items()}
    raw = rows(sae).double().numpy()
    mean, deviation = 0.0, 1.0
    if config["normalize_activations"] == "layer_norm":
        mean, deviation = raw.mean(1, keepdims=True), raw.std(1, ddof=1, keepdims=True)
    x = (raw - mean) / (deviation + (1e-5 if kind == "layer_norm" else 0)) - t["b_dec"] * config["apply_b_dec_to_input"]
    if config["architecture"] == "gated":
        latents = (x @ t["W_enc"] + t["b_gate"] > 0) * np.maximum(x @ t["W_enc"] * np.exp(t["r_mag"]) + t["b_mag"], 0)
    else:
        pre = x @ t["W_enc"] + t["b_enc"]
        latents = np.maximum(pre, 0)
        if config["architecture"] == "jumprelu":
            latents *= pre > t["threshold"]
        if config["architecture"] == "topk":
            latents *= pre >= np.sort(pre, axis=1)[:, [-config["k"]]]
    reconstruction = (latents @ t["W_dec"] + t["b_dec"]) * deviation + mean
    np.testing.assert_allclose(sae.encode(rows(sae)).numpy(), latents, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(sae(rows(sae)).numpy(), reconstruction, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "word"),
    [("relu", "standard"), ("matryoshka", "jumprelu"), ("topk", "topk"), ("transcoder_jumprelu", "jumprelu_transcoder"),
     ("skip_transcoder_relu", "skip_transcoder"), ("skip", "scopemill.skip"), ("transcoder_topk", "scopemill.transcoder"),
     ("clt", "scopemill.clt")],
)  # fmt: skip
def test_cfg_json_has_the_fields_that_saelens_reads(folder, kind, word):
    write(folder, kind)
    config = json.loads((folder / "cfg.json").read_text())
    assert config["architecture"] == word and config["d_sae"] == F
    assert config.get("k") == (K if "topk" in kind else None)
    transcodes = "transcoder" in kind or kind == "clt"
    assert ("d_out" in config) == transcodes == ("hook_name_out" in config["metadata"])
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6, "an older version would be parsed by another schema"
    size = int.from_bytes((folder / "sae_weights.safetensors").read_bytes()[:8], "little")
    assert "__metadata__" not in json.loads((folder / "sae_weights.safetensors").read_bytes()[8 : 8 + size])


def test_a_folder_of_before_version_6_is_read(folder):
    """A flat cfg.json, in which the decoder's bias is subtracted unless it says otherwise."""
    sae = finished_sae("centred_topk").sae
    write(folder, "centred_topk")
    legacy = {
        "d_in": D, "d_sae": F, "hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K}, "normalize_activations": False, "context_size": 128, "lr": 1e-3,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(legacy))
    read = read_finished(str(folder))
    assert same_bits(read.sae, sae) and read.sae.centred
    assert (read.model, read.inputs, read.metadata) == ("gpt2-small", ("blocks.8.hook_resid_pre",), {"context_size": 128})


def test_the_decoders_bias_is_subtracted_where_cfg_json_does_not_say(folder):
    write(folder)
    rewrite_config(folder, apply_b_dec_to_input="absent")
    assert load_sae(str(folder)).centred


def test_norms_and_factors_that_count_at_decoding_are_folded(folder):
    write(folder, "topk")
    factors = np.linspace(0.5, 2, F, dtype=np.float32)
    rewrite_config(folder, rescale_acts_by_decoder_norm=True)
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    rewrite_tensors(folder, lambda tensors: tensors.update(scaling_factor=factors))
    x = rows(finished_sae("topk").sae).numpy().astype(np.float64)
    rows_of = t["W_dec"] * factors[:, None]
    norms = np.linalg.norm(rows_of, axis=1)
    pre = (x @ t["W_enc"] + t["b_enc"]) * norms
    latents = np.maximum(pre, 0) * (pre >= np.sort(pre, axis=1)[:, [-K]])
    read = load_sae(str(folder))
    np.testing.assert_allclose(read.encode(torch.tensor(x).float()).numpy(), latents, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(read(torch.tensor(x).float()).numpy(), latents / norms @ rows_of + t["b_dec"], rtol=1e-4, atol=1e-4)


def test_cfg_json_is_written_last(folder, monkeypatch):
    order = []
    write_one = Bucket.write
    monkeypatch.setattr(Bucket, "write", lambda self, path, *parts: (order.append(path), write_one(self, path, *parts)))
    write(folder)
    assert order == ["sae_weights.safetensors", "cfg.json"]


def test_a_relative_folder_is_read_too(folder, monkeypatch):
    write(folder)
    monkeypatch.chdir(folder.parent)
    assert load_sae(folder.name).width == F
    monkeypatch.chdir(folder)
    assert load_sae(".").width == F


def test_what_is_no_folder_of_an_sae_is_refused(folder, tmp_path):
    assert "not a finished SAE" in refusal(tmp_path / "nowhere")
    assert "not a finished SAE" in refusal(tmp_path)
    assert "not a finished SAE" in refusal(write(folder) / "cfg.json")
    (folder / "cfg.json").unlink()
    assert "not a finished SAE" in refusal(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"no json", b"\x00\x01", b"\xff\xfe\x80", b"[1, 2]", b"null", b'"jumprelu"', b"[" * 100_000])
def test_a_cfg_json_that_is_no_json_object_is_refused(folder, text):
    write(folder)
    (folder / "cfg.json").write_bytes(text)
    assert "cfg.json" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": "vanilla"}, "'vanilla' is not known; known are standard, gated"),
        ({"architecture": None}, "None"),
        ({"architecture": ["jumprelu"]}, "['jumprelu']"),
        ({"architecture": "scopemill.skip", "activation": "batchtopk"}, "activation 'batchtopk' is not known"),
        ({"architecture": "scopemill.crosscoder", "activation": "jumprelu", "inputs": [-1]}, "scopemill.crosscoder"),
        ({"architecture": "scopemill.clt", "activation": "jumprelu", "inputs": "twelve", "d_out": 12}, "scopemill.clt"),
        ({"architecture": "topk", "k": F + 1}, f"k is {F + 1}, more than the {F} latents"),
        ({"architecture": "topk"}, "k is None"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"d_in": D + 1}, "shape"),
        ({"d_sae": F - 1}, "shape"),
        ({"d_sae": 10**15}, "shape"),
        ({"d_sae": 10**30}, "cfg.json"),
        ({"d_in": True}, "d_in is True"),
        ({"d_sae": "absent"}, "d_sae is None"),
        ({"architecture": "jumprelu_transcoder"}, "d_out"),
        ({"architecture": "jumprelu_transcoder", "d_out": D}, "needs metadata.hook_name_out"),
        ({"metadata": {"hook_name": 3}}, "metadata.hook_name is 3"),
        ({"metadata": {"hook_name": ["a", "b"]}}, "metadata.hook_name"),
    ],
)
def test_a_config_that_is_wrong_is_refused_by_the_field(folder, changes, named):
    write(folder)
    rewrite_config(folder, **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused_with_the_shapes_on_disk(folder, name):
    write(folder)
    right = list(safetensors.numpy.load_file(folder / "sae_weights.safetensors")[name].shape)
    rewrite_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:-1].copy()}))
    sentence = refusal(folder)
    assert name in sentence and str(right) in sentence and str([right[0] - 1, *right[1:]]) in sentence
    rewrite_tensors(folder, lambda tensors: tensors.pop(name))
    assert f"lacks the tensor {name}" in refusal(folder)


def test_a_tensor_that_does_not_belong_and_a_turned_one_are_refused(folder):
    write(folder)
    rewrite_tensors(folder, lambda tensors: tensors.update(W_skip=np.zeros((D, D), np.float32)))
    assert "W_skip" in refusal(folder)
    write(folder)
    rewrite_tensors(folder, lambda tensors: tensors.update(W_enc=np.ascontiguousarray(tensors["W_enc"].T)))
    assert "W_enc" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value", "named"), [("W_enc", np.nan, "finite"), ("b_dec", -np.inf, "finite"), ("threshold", -1e-3, "negative")]
)
def test_an_unsound_value_is_refused(folder, name, value, named):
    write(folder)
    rewrite_tensors(folder, lambda tensors: tensors[name].flat.__setitem__(3, value))
    assert named in refusal(folder)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\xff" * 100, lambda data: data[:40]])
def test_weights_that_are_damaged_are_refused(folder, damage):
    path = write(folder) / "sae_weights.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "sae_weights.safetensors" in refusal(folder)


def test_an_address_that_is_none_is_an_input_error():
    with pytest.raises(InputError):
        load_sae("nosuchscheme://bucket/sae")
