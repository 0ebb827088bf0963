"""What holds for every format: an SAE that would not be read back is never written."""

from dataclasses import replace

import pytest
import torch
from finished_saes import F, finished_sae, rows, same_bits

from scopemill.proto.bucket import Bucket
from scopemill.proto.errors import InputError, SaeFormatError, StorageError
from scopemill.trainer.architectures import ARCHITECTURES, initial_sae
from scopemill.trainer.config import LAYERED, PAIRED, SaeConfig
from scopemill.trainer.formats import FORMATS, WRITTEN, FinishedSae, read_finished, write_finished
from scopemill.trainer.templates import load_template
from scopemill.trainer.topk import TopK
from scopemill.trainer.wiring import Shape

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
    with pytest.raises(SaeFormatError, match="without the hook that it rebuilds"):
        write_finished(str(tmp_path), "saelens", replace(finished_sae("transcoder_relu"), outputs=()))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_training_ends_with_can_be_written_and_is_read_as_the_same_function(tmp_path, architecture):
    config = SaeConfig(**load_template("quick").fields | {"architecture": architecture, "width": 16, "sparsity": 4})
    shape = Shape.square(8) if architecture not in PAIRED + LAYERED else Shape((8, 8), (8, 8), architecture == "crosscoder")
    if "transcoder" in architecture and architecture not in LAYERED:
        shape = Shape((8,), (8,), False)
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(len(shape.inputs))]
    trained = initial_sae(config, shape, torch.ones(shape.d_out)).requires_grad_(False)
    sae = trained.finished([2.0] * len(shape.inputs), [3.0] * len(shape.outputs) if not shape.autoencoder else [2.0] * len(shape.inputs))
    write_finished(str(tmp_path), "saelens", FinishedSae(sae, tuple(hooks), tuple(hooks), "m"))
    read = read_finished(str(tmp_path)).sae
    assert same_bits(read, sae) and torch.equal(read(rows(sae)), sae(rows(sae)))


@pytest.mark.parametrize("word", [*(set(FORMATS) - set(WRITTEN)), "numpy"])
def test_a_format_that_is_not_written_is_refused(tmp_path, word):
    with pytest.raises(InputError, match=f"'{word}' is not written: there are saelens, gemma-scope"):
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
