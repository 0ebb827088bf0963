"""SAEDashboard's batches against the evidence, number by number; `make test-interop` has them read by sae_dashboard itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.exported import subject

from scopemill.evaluator.exports import saedashboard
from scopemill.evaluator.exports.names import Names
from scopemill.proto.evidence import BINS, INTERVALS, TOP
from scopemill.proto.storage.bucket import Bucket

# The fields of NeuronpediaDashboardFeature and NeuronpediaDashboardActivation in sae_dashboard 0.8.0: another one is a TypeError there.
FEATURE = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt",
    "dataset", "activations", "decoder_weights_dist", "vector",
}  # fmt: skip
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    of = subject(tmp_path_factory.mktemp("sae"))
    folder = tmp_path_factory.mktemp("out")
    seen = []
    (source,) = saedashboard.write_saedashboard(Bucket(str(folder)), of, Names(), seen.append)
    return of, folder / source, seen


def batches(folder: Path) -> list[dict]:
    files = sorted(folder.glob("batch-*.json"), key=lambda file: int(file.stem.removeprefix("batch-")))
    return [json.loads(file.read_text()) for file in files]


def test_every_latent_is_there_once_with_the_fields_of_the_reader(exported):
    of, folder, seen = exported
    (batch,) = batches(folder)
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 3, "res-jumprelu-30")
    assert batch["sae_id_suffix"] == "0_5-jumprelu" and folder.name == "3-res-jumprelu-30__0_5-jumprelu"
    assert [feature["feature_index"] for feature in batch["features"]] == list(range(of.sae.width)) and seen == [of.sae.width]
    assert all(feature.keys() == FEATURE for feature in batch["features"])
    assert all(one.keys() == ACTIVATION for feature in batch["features"] for one in feature["activations"])


def test_numbers_are_those_of_the_evidence(exported):
    of, folder, _ = exported
    (batch,) = batches(folder)
    words, decoder = of.evidence.vocabulary, of.sae.W_dec.double().numpy()
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    for feature in batch["features"]:
        latent = feature["feature_index"]
        row, examples = of.evidence.latent(latent), of.evidence.examples(latent)
        assert feature["frac_nonzero"] == row["density"]
        assert feature["pos_str"] == [words.text(id) for id in row["promoted_tokens"]]
        np.testing.assert_allclose(feature["neg_values"], row["suppressed_values"], rtol=1e-5)
        assert sum(feature["freq_hist_data_bar_heights"]) == row["fired"] and len(feature["freq_hist_data_bar_values"]) <= BINS
        assert feature["correlated_features_indices"] == row["cofiring_latents"]
        np.testing.assert_allclose(feature["correlated_features_l1"], unit[row["cofiring_latents"]] @ unit[latent], atol=1e-5)
        at = np.argsort(-decoder[latent])[:3]
        assert feature["neuron_alignment_indices"] == at.tolist()
        np.testing.assert_allclose(feature["neuron_alignment_l1"], abs(decoder[latent][at]) / abs(decoder[latent]).sum(), rtol=1e-4)
        assert len(feature["activations"]) == len(examples)
        for shown, example in zip(feature["activations"], examples, strict=True):
            assert "".join(shown["tokens"]) == "".join(words.pieces(example.tokens))
            np.testing.assert_allclose(shown["values"], example.activations, rtol=1e-5)
            assert shown["qualifying_token_index"] == example.peak
            if example.interval == TOP:
                assert (shown["bin_min"], shown["bin_contains"]) == (-1, -1) and shown["bin_max"] == row["max"]
            else:
                assert shown["bin_min"] <= example.value < shown["bin_max"]
                counts = np.array(row["histogram"]).reshape(INTERVALS, -1).sum(1)
                assert shown["bin_contains"] == counts[example.interval] / row["fired"]


def test_batches_hold_a_fixed_number_of_latents(exported, monkeypatch, tmp_path):
    of, _, _ = exported
    monkeypatch.setattr(saedashboard, "BATCH", 16)
    (source,) = saedashboard.write_saedashboard(Bucket(str(tmp_path)), of, Names(), lambda done: None)
    listed = batches(tmp_path / source)
    assert [len(batch["features"]) for batch in listed] == [16, 14]
    assert [feature["feature_index"] for batch in listed for feature in batch["features"]] == list(range(30))


def test_each_layer_of_a_cross_layer_transcoder_is_a_source(tmp_path):
    of = subject(tmp_path / "sae", "clt")
    sources = saedashboard.write_saedashboard(Bucket(str(tmp_path / "out")), of, Names(suffix=""), lambda done: None)
    assert [source.split("/")[1] for source in sources] == ["1-mlp-in-mlp-jumprelu-15", "3-mlp-in-mlp-jumprelu-15"]
    for layer, source in enumerate(sources):
        (batch,) = batches(tmp_path / "out" / source)
        assert [feature["feature_index"] for feature in batch["features"]] == list(range(15))
        for feature in batch["features"]:
            row = of.evidence.latent(15 * layer + feature["feature_index"])
            assert feature["frac_nonzero"] == row["density"]
            own = [other - 15 * layer for other in row["cofiring_latents"] if other // 15 == layer]
            assert feature["correlated_features_indices"] == own and feature["neuron_alignment_indices"] == []
