"""circuit-tracer's files, read as its page and its loaders read them; `make test-interop` loads them with the package."""

import gzip
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from support.exported import labelled, square_transcoders, subject
from support.finished_saes import D, F, finished_sae

from scopemill.evaluator.exports.circuit_tracer import cantor_pair, quantiles, write_circuit_tracer
from scopemill.evaluator.exports.circuit_tracer_weights import weights_of
from scopemill.evaluator.exports.names import Names
from scopemill.evaluator.exports.subject import Subject
from scopemill.proto.errors import InputError, SaeFormatError
from scopemill.proto.evidence import BINS
from scopemill.proto.storage.bucket import Bucket
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.sae.activations.topk import TopK
from scopemill.trainer.sae.base import Sae


def cantor_unpair(z: int) -> tuple[int, int]:
    w = int((np.sqrt(8 * z + 1) - 1) // 2)
    return w - (z - w * (w + 1) // 2), z - w * (w + 1) // 2


def page_of(folder, layer: int, index: int) -> dict:
    """A latent as the page asks for it: by range, one byte too many, cut by the length in front."""
    listed = json.loads(gzip.decompress((folder / "features/index.json.gz").read_bytes()))[layer]
    start, stop = listed["offsets"][index : index + 2]
    data = (folder / "features" / listed["filename"]).read_bytes()[start : stop + 1]
    (length,) = struct.unpack("<I", data[:4])
    return json.loads(zlib.decompress(data[4 : 4 + length]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Transcoders of two layers, the first with evidence."""
    folder, out = tmp_path_factory.mktemp("saes"), tmp_path_factory.mktemp("out")
    saes = square_transcoders()
    of, seen = labelled(folder / "a", saes[0]), []
    write_circuit_tracer(Bucket(str(out)), saes, [of], Names(weights="me/transcoders"), seen.append)
    return of, saes, out, seen


def test_a_latent_is_one_range_of_its_layers_file(exported):
    of, _, out, seen = exported
    words = of.evidence.vocabulary
    for index in range(F):
        page, row = page_of(out, 0, index), of.evidence.latent(index)
        assert cantor_unpair(page["index"]) == (0, index)
        assert page["top_logits"] == [words.text(id) for id in row["promoted_tokens"]] and page["act_max"] == row["max"]
        examples = [one for group in page["examples_quantiles"] for one in group["examples"]]
        assert ["".join(one["tokens"]) for one in examples] == ["".join(words.pieces(e.tokens)) for e in of.evidence.examples(index)]
        assert [one["train_token_ind"] for one in examples] == [example.peak for example in of.evidence.examples(index)]
        assert sum(page["histogram"]) == row["fired"]
    assert seen[-1] == F


def test_pairs_are_unpaired_by_the_page():
    for layer, index in [(0, 0), (0, 7), (25, 0), (25, 2**17 - 1), (61, 2**20 - 1)]:
        assert cantor_unpair(cantor_pair(layer, index)) == (layer, index)


def test_quantiles_are_those_of_the_values():
    values = np.sort(np.random.default_rng(0).gamma(2, 1, 5000).astype("f4"))
    limit = 2.0 ** np.ceil(np.log2(values.max()))
    row = {
        "fired": len(values), "histogram": np.histogram(values, BINS, (0, limit))[0].tolist(), "histogram_range": limit,
        "max": float(values[-1]),
    }  # fmt: skip
    exact = np.quantile(values, np.arange(1, 101) / 100, method="inverted_cdf")
    np.testing.assert_allclose(quantiles(row), exact, atol=limit / BINS)
    assert quantiles(row)[-1] == row["max"] and quantiles({"fired": 0}) == []


def test_the_layers_files_compute_what_the_transcoders_do(exported):
    _, saes, out, _ = exported
    x = torch.randn(50, D)
    for layer, finished in enumerate(saes):
        t = safetensors.torch.load_file(out / f"layer_{layer}.safetensors")
        pre = x @ t["W_enc"].T + t["b_enc"]
        latents = pre * (pre > t["activation_function.threshold"])
        torch.testing.assert_close(latents @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T, finished.sae(x))
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config == {
        "model_name": "tiny", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out",
        "scan": "me/transcoders",
    }  # fmt: skip


@pytest.mark.parametrize("cross", ["clt", "per_layer_transcoder"])
def test_the_files_of_several_layers_compute_what_the_sae_does(cross):
    (finished,) = square_transcoders(3, cross=cross)
    config, files = weights_of([finished])
    made = {name: safetensors.torch.load(make()) for name, make in files.items()}
    layers, wide = 3, F // 3
    x = torch.randn(20, layers, D)
    rebuilt, latents = torch.zeros(20, layers, D), []
    for layer in range(layers):
        if cross == "clt":
            t = made[f"W_enc_{layer}.safetensors"]
            pre = x[:, layer] @ t[f"W_enc_{layer}"].T + t[f"b_enc_{layer}"]
            latents.append(pre * (pre > t[f"threshold_{layer}"]))
            decoder = made[f"W_dec_{layer}.safetensors"][f"W_dec_{layer}"]
            assert decoder.shape == (wide, layers - layer, D)
            rebuilt[:, layer:] += torch.einsum("bf,fld->bld", latents[-1], decoder)
            rebuilt[:, layer] += t[f"b_dec_{layer}"]
        else:
            t = made[f"layer_{layer}.safetensors"]
            pre = x[:, layer] @ t["W_enc"].T + t["b_enc"]
            latents.append(pre * (pre > t["activation_function.threshold"]))
            rebuilt[:, layer] = latents[-1] @ t["W_dec"] + t["b_dec"]
    ours, out = finished.sae.reconstruct(x.flatten(1))
    torch.testing.assert_close(torch.cat(latents, dim=1), ours)
    torch.testing.assert_close(rebuilt.flatten(1), out)
    assert config["model_kind"] == ("cross_layer_transcoder" if cross == "clt" else "transcoder_set")


def test_what_it_cannot_load_is_refused():
    first, second = square_transcoders()
    refused = {
        "reconstructs the hook that it reads": [finished_sae("jumprelu")],
        "one width": [finished_sae("transcoder_jumprelu")],
        "from 0 on": [second],
        "is a topk": square_transcoders(1, "transcoder_topk"),
        "alone": [*square_transcoders(2, cross="clt"), first],
    }
    for reason, saes in refused.items():
        with pytest.raises(SaeFormatError, match=reason):
            weights_of(saes)


def test_two_saes_of_one_layer_are_refused(exported, tmp_path):
    of, saes, _, _ = exported
    with pytest.raises(InputError, match="same layer"):
        write_circuit_tracer(Bucket(str(tmp_path)), saes, [of, of], Names(), lambda done: None)


def test_evidence_of_another_sae_is_refused(tmp_path):
    of = subject(tmp_path)
    other = replace(of.finished, sae=Sae(Shape.square(D), 8, TopK(8, 2)))
    with pytest.raises(InputError, match="make it again"):
        Subject(of.folder, of.evidence, other)
