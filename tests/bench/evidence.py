"""The pass over a shard for evidence: over the encoder's product on the same rows, and the bytes that many SAEs read."""

import tempfile
from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np
import torch
from measure import Figure, alternate, timed

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.making import count_shard
from scopemill.evaluator.evidence.rows import BATCH, ShardSource
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.harvester.text.packed_text import save_sequences
from scopemill.harvester.text.packing import Sequences
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae

HOOK, D, WIDTH, L0, CONTEXT, ROWS, ROUNDS = "blocks.0.hook_resid_post", 512, 8192, 48, 128, 16 * BATCH, 5


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(folder)
        rows, tokens = noise(), np.random.default_rng(0).integers(1, 1000, (ROWS // CONTEXT, CONTEXT))
        write_rows(bucket, rows, tokens, HOOK)
        sae = sae_with(rows, WIDTH, L0, HOOK)
        source = ShardSource(bucket, "bench", f"{DatasetLayout('bench').root}/packed", [])
        config = EvidenceConfig.model_validate({})
        products = torch.empty(BATCH, WIDTH)

        def whole() -> None:
            count_shard(source, 0, [sae], config, ROWS)

        def product() -> None:
            for batch in rows.split(BATCH):
                torch.mm(batch, sae.sae.W_enc.T, out=products)

        rounds = alternate({"pass": timed(whole), "product": timed(product)}, ROUNDS)
        name = f"evidence of one SAE from a shard over the encoder's product ({ROWS}, {D}, {WIDTH}), L0 {L0}"
        yield rounds.figure(name, "pass", "product", "<= 1.3")
        narrow = sae_with(rows, 64, L0, HOOK)
        one, eight = (_chunk_bytes(lambda n=n: count_shard(source, 0, [narrow] * n, config, ROWS)) for n in (1, 8))
        raw = {"one, MiB": one / 2**20, "eight, MiB": eight / 2**20}
        yield Figure("evidence of 8 SAEs of a hook: bytes of shards read over those of one SAE", eight / one, "<= 1", raw)


def _chunk_bytes(call: Callable[[], object]) -> int:
    """Return the bytes of chunks that a call reads from any bucket."""
    read, sizes = Bucket.read_into, []

    def counted(self, path, buffer, *rest):
        data = read(self, path, buffer, *rest)
        sizes.append(len(data))
        return data

    with patch.object(Bucket, "read_into", counted):
        call()
    return sum(sizes)


def noise() -> torch.Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0)) / D**0.5


def write_rows(bucket: Bucket, rows: torch.Tensor, tokens: np.ndarray, hook: str) -> None:
    """Write a dataset of one shard, as the harvester does; tokens [sequences, context]."""
    d = rows.shape[1]
    stats = HookStats(name=hook, d=d, scale=1.0, mean=pack_vector(np.zeros(d)), norm_limit=None)
    manifest = DatasetManifest(
        dataset="bench", identity={}, model="bench", context_length=tokens.shape[1], dtype="bfloat16", hooks=(stats,),
        rows_per_shard=len(rows), shards=1, seed=0, calibration_rows=1,
    )  # fmt: skip
    bucket.create(DatasetLayout("bench").manifest, checksummed_record(manifest.model_dump(mode="json")))
    document = np.zeros(tokens.shape, np.int64)
    position = np.arange(tokens.size, dtype=np.int32).reshape(tokens.shape)
    text = Sequences(tokens.astype(np.int32), document, position, np.ones(tokens.shape, bool))
    save_sequences(bucket, DatasetLayout("bench").packed(0), text)
    buffers, places = ShardBuffers(manifest), np.arange(len(rows))
    buffers.put(places, hook, buffers.scaled(hook, rows))
    for name, label in (("token_id", tokens), ("document", document), ("position", position)):
        buffers.put(places, name, label.ravel())
    write_shard(bucket, 0, buffers, 0)


def sae_with(rows: torch.Tensor, width: int, l0: int, hook: str) -> FinishedSae:
    """An SAE of random directions whose thresholds let l0 of its latents fire on a row."""
    d = rows.shape[1]
    sae = Sae(Shape.square(d), width, JumpReLU(width))
    with torch.no_grad():
        weights = torch.randn(width, d, generator=torch.Generator().manual_seed(1))
        sae.W_enc.copy_(weights / weights.norm(dim=1, keepdim=True))
        sae.W_dec.copy_(sae.W_enc)
        sae.activation.threshold.fill_(float((rows[:256] @ sae.W_enc.T).quantile(1 - l0 / width, dim=1).mean()))
    return FinishedSae(sae.requires_grad_(False), (hook,), (hook,), "bench")
