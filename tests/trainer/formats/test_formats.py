"""What holds for every format: an SAE that would not be read back is never written."""

from dataclasses import replace

import pytest
import torch
from support.finished_saes import F, finished_sae, rows, same_bits

from scopemill.proto.errors import InputError, SaeFormatError, StorageError
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.recipe import LAYERED, PAIRED, sae_config
from scopemill.trainer.config.templates import load_template
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FORMATS, WRITTEN, FinishedSae, read_finished, write_finished
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae
from scopemill.trainer.sae.folding import fold
from scopemill.trainer.sae.registry import ARCHITECTURES, initial_sae

PLACES = {
    "saelens": "sae",
    "gemma-scope": "gemma-scope-2b-pt-res/layer_3/width_30/average_l0_71",
    "gemma-scope-2": "gemma-scope-2-gemma-2-2b/resid_post/layer_3_width_30_l0_71",
}


@pytest.mark.parametrize("word", WRITTEN)
@pytest.mark.parametrize(("name", "value", "named"), [("W_dec", torch.nan, "finite"), ("b_enc", torch.inf, "finite"),
                                                      ("activation.threshold", -1.0, "negative")])  # fmt: skip
def test_unsound_weights_are_not_written(tmp_path, word, name, value, named):
    finished = finished_sae("jumprelu")
    finished.sae.get_parameter(name).flatten()[3] = value
    with pytest.raises(SaeFormatError, match=named):
        write_finished(f"{tmp_path}/{PLACES[word]}", word, finished)
    assert not list(tmp_path.rglob("*"))


def test_k_above_the_width_and_a_transcoder_without_a_target_are_not_written(tmp_path):
    finished = finished_sae("topk")
    finished.sae.activation = TopK(F, F + 1)
    with pytest.raises(SaeFormatError, match=f"k is {F + 1}"):
        write_finished(str(tmp_path), "saelens", finished)
    with pytest.raises(SaeFormatError, match="needs the hook that it reconstructs"):
        write_finished(str(tmp_path), "saelens", replace(finished_sae("transcoder_relu"), outputs=()))
    assert not list(tmp_path.rglob("*"))


def trained_sae(architecture: str) -> tuple[Sae, list[float], list[float]]:
    """In training's units, each parameter its own random numbers; and the scales of its inputs and outputs."""
    config = sae_config(load_template("quick").fields | {"architecture": architecture, "width": 16, "sparsity": 4})
    widths = (8, 6) if architecture in LAYERED else (8,)
    shape = Shape(widths, widths, architecture not in PAIRED)
    sae = initial_sae(config, shape, torch.ones(shape.d_out)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in sae.named_parameters():
        p.uniform_(0.1, 0.8, generator=generator) if "threshold" in name else p.normal_(0, 0.4, generator=generator)
    if architecture in ("batchtopk", "matryoshka"):
        sae.activation.threshold.fill_(0.3)
    scales = [37.25, 2.5][: len(widths)]
    return sae, scales, scales if shape.autoencoder else [scale / 3 for scale in scales]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_training_ends_with_is_the_trained_sae_on_raw_activations_also_once_written_and_read(tmp_path, architecture):
    trained, inputs, outputs = trained_sae(architecture)
    units = [torch.cat([torch.full((d,), s) for d, s in zip(side, scales, strict=True)])
             for side, scales in ((trained.shape.inputs, inputs), (trained.shape.outputs, outputs))]  # fmt: skip
    finished = fold(trained, inputs, outputs)
    x = rows(trained)
    assert (trained.encode(x) > 0).any() and not finished.centred
    torch.testing.assert_close(finished.encode(x * units[0]), trained.encode(x) * inputs[0], rtol=1e-4, atol=inputs[0] * 1e-5)
    torch.testing.assert_close(finished(x * units[0]), trained(x) * units[1], rtol=1e-4, atol=outputs[0] * 1e-4)
    hooks = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(len(inputs)))
    write_finished(str(tmp_path), "saelens", FinishedSae(finished, hooks, hooks, "m"))
    read = read_finished(str(tmp_path)).sae
    assert same_bits(read, finished) and torch.equal(read(x * units[0]), finished(x * units[0]))


@pytest.mark.parametrize("word", [*sorted(set(FORMATS) - set(WRITTEN)), "numpy"])
def test_a_format_that_is_not_written_is_refused(tmp_path, word):
    with pytest.raises(InputError, match=f"'{word}' is not written; choose from saelens, gemma-scope"):
        write_finished(str(tmp_path), word, finished_sae("jumprelu"))


def test_a_training_checkpoint_is_no_finished_sae(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SaeFormatError, match="not a finished SAE: it holds none of sae_weights.safetensors, params.npz"):
        read_finished(str(tmp_path))


def test_what_is_written_over_another_sae_is_never_a_mixture(tmp_path, monkeypatch):
    write_finished(str(tmp_path), "saelens", finished_sae("jumprelu"))
    write_one = Bucket.write

    def write(self, path, *parts):
        if path == "cfg.json":
            raise StorageError("the disk is full")
        write_one(self, path, *parts)

    monkeypatch.setattr(Bucket, "write", write)
    with pytest.raises(StorageError):
        write_finished(str(tmp_path), "saelens", finished_sae("relu"))
    with pytest.raises(SaeFormatError, match="cfg.json is not there"):
        read_finished(str(tmp_path))


@pytest.mark.parametrize("word", WRITTEN)
def test_a_folder_in_a_store_is_read_and_written_like_a_local_one(s3_url, word):
    place = f"{s3_url}/{PLACES[word]}"
    write_finished(place, word, finished_sae("jumprelu"))
    assert torch.equal(read_finished(place).sae.W_enc, finished_sae("jumprelu").sae.W_enc)
