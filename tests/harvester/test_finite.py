"""Activations that are not finite stop the harvest by hook, shard and token; sinks and dropped rows are said at calibration."""

import math

import numpy as np
import pytest
import torch
from support.synthetic import fill, make_dataset

from scopemill.harvester import actor
from scopemill.harvester.actor import Harvester
from scopemill.harvester.calibration import outlier_notes
from scopemill.harvester.config import CorpusConfig, HarvestConfig
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.harvester.task import HarvestTask, identity
from scopemill.proto.dataset import committed_shards, read_manifest
from scopemill.proto.errors import ModelError, NotFinite
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import DatasetLayout

HOOKS = (Hook(1, "resid_post"), Hook(3, "mlp_out"))
CONFIG = HarvestConfig(
    layers=(1, 3), sites=("resid_post", "mlp_out"), tokens=1024, context_length=16, rows_per_shard=512, calibration_rows=64,
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 41, 63])
def test_a_shard_with_such_a_row_is_not_written(bucket, dtype, value, row):
    manifest = make_dataset(bucket, hooks={"blocks.0.hook_resid_post": 8, "blocks.1.hook_resid_post": 5}, shards=1, dtype=dtype)
    buffers, before = ShardBuffers(manifest), bucket.find("activations")
    values = {name: torch.ones(64, d) for name, d in (("blocks.0.hook_resid_post", 8), ("blocks.1.hook_resid_post", 5))}
    values["blocks.1.hook_resid_post"][row, 4] = value
    labels = {"token_id": np.arange(64, dtype=np.int32), "document": np.arange(64) // 10, "position": np.arange(64, dtype=np.int32) % 10}
    fill(buffers, np.arange(64), values, labels)
    with pytest.raises(NotFinite) as caught:
        write_shard(bucket, 7, buffers, dropped_outliers=0)
    named = f"shard 7, blocks.1.hook_resid_post: the activations of 1 tokens hold a NaN or an infinity, first those of token id {row} at "
    assert str(caught.value).startswith(f"{named}position {row % 10} of document {row // 10}:")
    assert bucket.find("activations") == before


class Poisoned:
    """The model, with a NaN at one hook wherever a token stands."""

    def __init__(self, lm, token: int, change=lambda x: x.fill_(math.nan)):
        self._lm, self._token, self._change = lm, token, change

    def __getattr__(self, name: str):
        return getattr(self._lm, name)

    def capture(self, tokens, hooks):
        captured: dict[str, torch.Tensor] = {}
        self.visit(tokens, hooks, captured.__setitem__)
        return captured

    def visit(self, tokens, hooks, visitor) -> None:
        def poisoned(name: str, x: torch.Tensor) -> None:
            x = x.clone()
            if name == HOOKS[1].name:
                x[tokens == self._token] = self._change(x[tokens == self._token])
            visitor(name, x)

        self._lm.visit(tokens, hooks, poisoned)


@pytest.fixture
def harvester(lm, card, model, bucket, tmp_path, monkeypatch):
    """Three hundred equal documents whose last word is another one in the very last."""
    text = "".join("one two three four five six seven eight nine ten\n" for _ in range(300)) + "one two three zebra\n" * 40
    (tmp_path / "text.txt").write_text(text)
    corpus = CorpusConfig(source=str(tmp_path / "text.txt"), format="lines")

    def make(outlier_norm: float | None, token: int, change=None) -> Harvester:
        config = CONFIG.model_copy(update={"outlier_norm": outlier_norm})
        poisoned = Poisoned(lm, token, *([change] if change else []))
        monkeypatch.setattr(actor, "LanguageModel", lambda model: poisoned)
        same = identity(model, card, corpus, config, HOOKS, 0)
        return Harvester(HarvestTask(bucket, "data", model, card, corpus, config, HOOKS, 0, same, "data"))

    return make


def tokens_of(lm_model, word: str) -> list[int]:
    from scopemill.harvester.language_model.describe import load_tokenizer

    return load_tokenizer(lm_model)(word, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("outlier_norm", [None, 50.0])
def test_calibration_stops_at_a_token_whose_activations_are_nan(harvester, model, outlier_norm, bucket):
    (token, *_) = tokens_of(model, " two")
    with pytest.raises(NotFinite, match=rf"^calibration, {HOOKS[1].name}: .* token id {token} at position \d+ of document \d+"):
        harvester(outlier_norm, token).prepare()
    assert not bucket.exists(DatasetLayout("data").manifest)


@pytest.mark.parametrize("outlier_norm", [None, 50.0])
def test_a_token_that_calibration_did_not_see_stops_its_shard(harvester, model, outlier_norm, bucket):
    """With the filter a NaN is no outlier to drop without a word."""
    (token, *_) = tokens_of(model, " two")
    harvester(outlier_norm, -1).prepare()
    with pytest.raises(NotFinite, match=rf"^shard 1, {HOOKS[1].name}: .* token id {token} at"):
        harvester(outlier_norm, token).harvest(1)
    assert committed_shards(bucket, "data") == set() and read_manifest(bucket, "data").shards == 2


def test_a_hook_that_is_zero_everywhere_is_named(harvester, lm):
    one = harvester(None, 0)
    one._lm = Poisoned(lm, 0)
    one._lm.visit = lambda tokens, hooks, visitor: lm.visit(tokens, hooks, lambda name, x: visitor(name, x * (name != HOOKS[1].name)))
    with pytest.raises(ModelError, match=f"^{HOOKS[1].name}: every activation of the"):
        one.prepare()


def test_what_a_filter_drops_and_sinks_without_one_are_said():
    norms = {"a": np.full(1000, 2.0, np.float32), "b": np.linspace(1, 3, 1000, dtype=np.float32)}
    assert outlier_notes(norms, None, 1000) == [] and outlier_notes(norms, 20.0, 1000) == []
    assert outlier_notes(norms, 20.0, 990)[0].startswith("harvest.outlier_norm (20) drops 10 of 1000 calibration rows")
    norms["a"][::100] = 200.0
    (note,) = outlier_notes(norms, None, 1000)
    assert "1000 calibration rows" in note and ": a (10 rows, 99%). harvest.outlier_norm: 10" in note


def test_a_harvester_tells_what_its_calibration_found(harvester, model):
    (token, *_) = tokens_of(model, " ten")
    one = harvester(None, token, lambda x: x * 1000)
    one.prepare()
    assert "activation sinks" in one.notes()[0] and HOOKS[1].name in one.notes()[0]
    assert Harvester(one._task).prepare() and Harvester(one._task).notes() == []
