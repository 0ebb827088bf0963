"""Finished SAEs on disk: the same function as the trained ones, in SAELens' format, and read back bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.layout import SaeLayout
from scopemill.trainer import load_sae
from scopemill.trainer.architectures import ARCHITECTURES
from scopemill.trainer.export import write_sae
from scopemill.trainer.sae import Sae

D, F, SCALE = 12, 30, 37.25
HOOK = "blocks.3.hook_resid_post"
LAYOUT = SaeLayout("saes/m/blocks.3.hook_resid_post/width_30/a/0")
METADATA = {"model_name": "gemma-2-2b", "hook_name": HOOK, "context_size": 1024}


def make_trained(architecture: str) -> Sae:
    """An SAE for scaled activations with every parameter its own random numbers."""
    generator = torch.Generator().manual_seed(0)
    sae = ARCHITECTURES[architecture](D, F, centred=True)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.uniform_(0.1, 0.8, generator=generator) if name == "threshold" else p.normal_(0, 0.4, generator=generator)
    return sae


def make_rows() -> torch.Tensor:
    return torch.randn(500, D, generator=torch.Generator().manual_seed(1))


def write(bucket: Bucket, architecture: str = "jumprelu", **metadata) -> Path:
    """A finished SAE in the bucket; returns its folder."""
    write_sae(bucket, LAYOUT, make_trained(architecture).folded(SCALE), METADATA | metadata, {"sweep": "s"})
    return Path(bucket.url) / LAYOUT.root


def rewrite_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def rewrite_tensors(folder: Path, change) -> None:
    tensors = dict(safetensors.numpy.load_file(folder / "sae_weights.safetensors"))
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "sae_weights.safetensors")


def refusal(folder) -> str:
    """What load_sae answers: one sentence that names the folder."""
    with pytest.raises(SaeFormatError) as caught:
        load_sae(str(folder))
    sentence = str(caught.value)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 500
    return sentence


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folded_sae_on_raw_activations_is_the_trained_one_on_scaled_ones(architecture):
    trained, rows = make_trained(architecture).double(), make_rows().double()
    folded = make_trained(architecture).folded(SCALE).double()
    # In float64 from the same float32 parameters, so folded parameters are off by float32 rounding alone.
    np.testing.assert_allclose(folded(rows * SCALE).detach().numpy(), SCALE * trained(rows).detach().numpy(), rtol=0, atol=SCALE * 2e-6)
    np.testing.assert_allclose(
        folded.encode(rows * SCALE).detach().numpy(), SCALE * trained.encode(rows).detach().numpy(), rtol=0, atol=SCALE * 2e-6
    )
    assert not folded.centred and trained.centred


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_is_the_algebra_of_the_paper(architecture):
    """b_enc' = C (b_enc - W_enc b_dec), b_dec' = C b_dec, theta' = C theta, weights unchanged; here in float64 by hand."""
    trained, rows = make_trained(architecture), make_rows().double().numpy()
    p = {name: value.detach().double().numpy() for name, value in trained.named_parameters()}
    theta = p.get("threshold", np.zeros(F))
    z = (rows - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    f = np.where(z > theta, z, 0)
    raw = SCALE * rows
    z_raw = raw @ p["W_enc"].T + SCALE * (p["b_enc"] - p["W_enc"] @ p["b_dec"])
    f_raw = np.where(z_raw > SCALE * theta, z_raw, 0)
    np.testing.assert_allclose(f_raw, SCALE * f, rtol=0, atol=1e-11)
    np.testing.assert_allclose(f_raw @ p["W_dec"] + SCALE * p["b_dec"], SCALE * (f @ p["W_dec"] + p["b_dec"]), rtol=0, atol=1e-11)

    folded = dict(trained.folded(SCALE).named_parameters())
    assert torch.equal(folded["W_enc"], trained.W_enc) and torch.equal(folded["W_dec"], trained.W_dec)
    np.testing.assert_allclose(folded["b_enc"].detach().numpy(), SCALE * (p["b_enc"] - p["W_enc"] @ p["b_dec"]), rtol=0, atol=SCALE * 1e-6)
    np.testing.assert_allclose(folded["b_dec"].detach().numpy(), SCALE * p["b_dec"], rtol=1e-6)
    if architecture == "jumprelu":
        np.testing.assert_allclose(folded["threshold"].detach().numpy(), SCALE * theta, rtol=1e-6)


def test_folding_leaves_the_trained_sae_alone_and_twice_multiplies_scales():
    trained = make_trained("jumprelu")
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    folded = trained.folded(4.0)
    with torch.no_grad():
        folded.W_enc.zero_()
    assert all(torch.equal(p, before[name]) for name, p in trained.named_parameters())
    twice, once = trained.folded(4.0).folded(2.0), trained.folded(8.0)
    assert all(torch.equal(p, q) for p, q in zip(twice.parameters(), once.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("address", ["{}", "{}/", "file://{}"])
def test_what_is_written_is_read_back_bit_for_bit(bucket, architecture, address):
    folder, written = write(bucket, architecture), make_trained(architecture).folded(SCALE)
    loaded = load_sae(address.format(folder))
    assert type(loaded) is type(written) and not loaded.centred and not any(p.requires_grad for p in loaded.parameters())
    for (name, p), q in zip(loaded.named_parameters(), written.parameters(), strict=True):
        assert p.dtype == torch.float32 and p.is_contiguous() and torch.equal(p, q), name
    rows = SCALE * make_rows()
    assert torch.equal(loaded(rows), written(rows).detach())


def test_a_relative_folder_is_read_too(bucket, monkeypatch):
    folder = write(bucket)
    monkeypatch.chdir(folder.parent)
    assert load_sae(folder.name).width == F
    monkeypatch.chdir(folder)
    assert load_sae(".").width == F


@pytest.mark.parametrize(("hook", "reshape"), [(HOOK, "none"), ("blocks.0.attn.hook_z", "hook_z"), ("blocks.5.hook_mlp_out", "none")])
def test_cfg_json_has_the_fields_that_saelens_reads(bucket, hook, reshape):
    folder = write(bucket, hook_name=hook, dataset_path="corpus")
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config.pop("metadata")
    assert config == {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": reshape,
    }
    expected = {
        "model_name": "gemma-2-2b",
        "hook_name": hook,
        "hook_head_index": None,
        "context_size": 1024,
        "prepend_bos": True,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": True,
        "dataset_path": "corpus",
    }
    assert {k: metadata[k] for k in expected} == expected
    major, *_ = metadata["sae_lens_version"].split(".")
    assert int(major) >= 6, "an older version would have the file parsed by another schema"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_on_disk_have_saelens_names_and_orientation(bucket, architecture):
    path = write(bucket, architecture) / "sae_weights.safetensors"
    tensors = safetensors.numpy.load_file(path)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    assert {n: t.shape for n, t in tensors.items()} == (shapes | {"threshold": (F,)} if architecture == "jumprelu" else shapes)
    assert all(t.dtype == np.float32 for t in tensors.values())
    folded = make_trained(architecture).folded(SCALE)
    assert np.array_equal(tensors["W_enc"], folded.W_enc.detach().numpy().T)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert "__metadata__" not in json.loads(path.read_bytes()[8 : 8 + size])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_inference_on_the_files_gives_the_same_latents_and_reconstruction(bucket, architecture):
    folder, rows = write(bucket, architecture), SCALE * make_rows()
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    x = rows.numpy()
    pre = x @ t["W_enc"] + t["b_enc"]  # apply_b_dec_to_input is false
    latents = np.maximum(pre, 0)
    if architecture == "jumprelu":
        latents = latents * (pre > t["threshold"])
    reconstruction = latents @ t["W_dec"] + t["b_dec"]
    loaded = load_sae(str(folder))
    assert np.array_equal(latents > 0, (loaded.encode(rows) > 0).numpy())
    np.testing.assert_allclose(loaded.encode(rows).numpy(), latents, rtol=0, atol=SCALE * 2e-6)
    np.testing.assert_allclose(loaded(rows).numpy(), reconstruction, rtol=0, atol=SCALE * 1e-5)
    scaled = make_trained(architecture)(rows / SCALE).detach().numpy()
    np.testing.assert_allclose(reconstruction, SCALE * scaled, rtol=0, atol=SCALE * 1e-5)


def test_an_sae_that_centres_its_input_is_not_exported(bucket):
    with pytest.raises(ValueError, match="fold"):
        write_sae(bucket, LAYOUT, make_trained("jumprelu"), METADATA, {})
    assert not bucket.exists(LAYOUT.config)


def test_one_that_another_tool_wrote_with_a_pre_encoder_bias_is_read_as_such(bucket):
    folder, rows = write(bucket), SCALE * make_rows()
    rewrite_config(folder, apply_b_dec_to_input=True)
    loaded = load_sae(str(folder))
    t = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    pre = (rows.numpy() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    np.testing.assert_allclose(loaded.encode(rows).numpy(), np.where(pre > t["threshold"], pre, 0), rtol=0, atol=SCALE * 2e-6)


def test_cfg_json_is_written_last(bucket, monkeypatch):
    order = []
    write_one = Bucket.write
    monkeypatch.setattr(Bucket, "write", lambda self, path, *parts: (order.append(path), write_one(self, path, *parts)))
    write(bucket)
    assert set(order) == {LAYOUT.weights, LAYOUT.provenance, LAYOUT.config} and order[-1] == LAYOUT.config
    provenance = json.loads(bucket.read(LAYOUT.provenance))
    assert provenance["sweep"] == "s" and provenance["scopemill"]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "not a finished SAE" in refusal(tmp_path / "nowhere")


def test_a_folder_without_an_sae_is_refused(tmp_path):
    assert "not a finished SAE" in refusal(tmp_path)


def test_a_file_is_no_folder(bucket):
    assert "not a finished SAE" in refusal(write(bucket) / "cfg.json")


def test_a_folder_without_weights_is_refused(bucket):
    folder = write(bucket)
    (folder / "sae_weights.safetensors").unlink()
    assert "sae_weights.safetensors" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "no json", "\x00\x01", "[1, 2]", "3", "null", '"jumprelu"'])
def test_a_cfg_json_that_is_no_json_object_is_refused(bucket, text):
    folder = write(bucket)
    (folder / "cfg.json").write_text(text)
    assert "cfg.json" in refusal(folder)


def test_a_cfg_json_that_is_no_text_is_refused(bucket):
    folder = write(bucket)
    (folder / "cfg.json").write_bytes(b"\xff\xfe\x80")
    assert "cfg.json" in refusal(folder)


@pytest.mark.parametrize("value", ["topk", "gated", None, 3, ["jumprelu"], "absent"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(bucket, value):
    folder = write(bucket)
    rewrite_config(folder, architecture=value)
    sentence = refusal(folder)
    assert repr(None if value == "absent" else value) in sentence and "jumprelu, standard" in sentence


@pytest.mark.parametrize("value", ["expected_average_only_in", "layer_norm", "constant_norm_rescale"])
def test_an_sae_that_wants_normalised_activations_is_refused(bucket, value):
    folder = write(bucket)
    rewrite_config(folder, normalize_activations=value)
    assert value in refusal(folder)


@pytest.mark.parametrize("field", ["d_in", "d_sae"])
@pytest.mark.parametrize("value", ["absent", None, "12", 12.0, -1, 0, True, [12]])
def test_a_width_that_is_missing_or_no_count_is_refused_by_name(bucket, field, value):
    folder = write(bucket)
    rewrite_config(folder, **{field: value})
    assert field in refusal(folder)


@pytest.mark.parametrize(("field", "value"), [("d_in", D + 1), ("d_sae", F - 1), ("d_sae", 10**15)])
def test_weights_of_another_width_than_cfg_json_says_are_refused(bucket, field, value):
    folder = write(bucket)
    rewrite_config(folder, **{field: value})
    refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_a_missing_tensor_is_refused_by_name(bucket, name):
    folder = write(bucket)
    rewrite_tensors(folder, lambda tensors: tensors.pop(name))
    assert name in refusal(folder)


def test_a_tensor_that_does_not_belong_is_refused_by_name(bucket):
    folder = write(bucket)
    rewrite_tensors(folder, lambda tensors: tensors.update(W_skip=np.zeros((D, D), np.float32)))
    assert "W_skip" in refusal(folder)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "threshold"])
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[None], lambda t: t.ravel()[:1], lambda t: t.ravel()[0:0]])
def test_a_tensor_of_the_wrong_shape_is_refused_with_both_shapes_as_on_disk(bucket, name, change):
    folder = write(bucket)
    rewrite_tensors(folder, lambda tensors: tensors.update({name: np.ascontiguousarray(change(tensors[name]))}))
    sentence = refusal(folder)
    wrong = list(safetensors.numpy.load_file(folder / "sae_weights.safetensors")[name].shape)
    right = {"W_enc": [D, F], "W_dec": [F, D], "b_enc": [F], "threshold": [F]}[name]
    assert name in sentence and str(wrong) in sentence and str(right) in sentence


def test_an_encoder_saved_in_the_other_orientation_is_refused(bucket):
    folder = write(bucket)
    rewrite_tensors(folder, lambda tensors: tensors.update(W_enc=np.ascontiguousarray(tensors["W_enc"].T)))
    assert "W_enc" in refusal(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_dec", "threshold"])
def test_a_weight_that_is_no_finite_number_is_refused(bucket, name, value):
    folder = write(bucket)

    def spoil(tensors: dict) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[3] = value

    rewrite_tensors(folder, spoil)
    assert "finite" in refusal(folder)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"\xff" * 100, lambda data: data[:40]])
def test_weights_that_are_damaged_are_refused(bucket, damage):
    path = write(bucket) / "sae_weights.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert "sae_weights.safetensors" in refusal(path.parent)


def test_an_address_that_is_none_is_an_input_error():
    with pytest.raises(InputError):
        load_sae("nosuchscheme://bucket/sae")
