"""A small dataset of known rows, written as the harvester writes it, and the evidence of SAEs from it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence.jobs import EvidenceJob, job_of, shard_rows
from scopemill.evaluator.evidence.logits import Readout
from scopemill.evaluator.evidence.making import Counted, count_shard, finish
from scopemill.evaluator.evidence.parts import commit_part, committed_parts
from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.evaluator.evidence.rows import ShardSource
from scopemill.harvester.shard import ShardBuffers, write_shard
from scopemill.harvester.text.packed_text import save_sequences
from scopemill.harvester.text.packing import Sequences, permutation
from scopemill.proto.dataset import DatasetManifest, HookStats, pack_vector
from scopemill.proto.layout import DatasetLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.storage.checksums import checksummed_record
from scopemill.proto.vocabulary import Vocabulary
from scopemill.trainer.formats import FinishedSae, write_finished
from support.evidence_reference import Firing
from support.finished_saes import finished_sae

CONTEXT, SEQUENCES, ROWS, SHARDS, BOS, VOCABULARY = 8, 20, 100, 4, 1, 40
CONFIG = EvidenceConfig(top=4, samples=2, window=6, token_samples=8, logits=3, neighbours=3, cofiring_rows=100_000)
WORDS = Vocabulary([f" w{id}".encode() for id in range(VOCABULARY)], frozenset({BOS}))


class World:
    """SHARDS shards of ROWS rows, and one SAE of a kind; ``firings`` are found by the SAE itself, row by row."""

    def __init__(self, folder: Path, kind: str, dtype: str = "float32", outliers: bool = False):
        self.bucket, self.kind = Bucket(str(folder)), kind
        self.sae: FinishedSae = finished_sae(kind, model="tiny")
        if len(self.sae.sae.shape.outputs) > 1 and not self.sae.sae.shape.autoencoder:  # of different widths, as only attn_z may be
            self.sae = replace(self.sae, outputs=("blocks.1.attn.hook_z", "blocks.3.attn.hook_z"))
        self.root = f"saes/tiny/{kind}"
        write_finished(self.bucket.place(self.root), "saelens", self.sae)
        limit = 9.0 if outliers else None
        widths = dict(zip((*self.sae.inputs, *self.sae.outputs), (*self.sae.sae.shape.inputs, *self.sae.sae.shape.outputs), strict=True))
        stats = tuple(HookStats(name=n, d=d, scale=2.0, mean=pack_vector(np.zeros(d)), norm_limit=limit) for n, d in widths.items())
        self.manifest = DatasetManifest(
            dataset="d", identity={"kind": kind, "dtype": dtype}, model="tiny", context_length=CONTEXT, dtype=dtype, hooks=stats,
            rows_per_shard=ROWS, shards=SHARDS, seed=3, calibration_rows=1,
        )  # fmt: skip
        self.bucket.create(DatasetLayout("d").manifest, checksummed_record(self.manifest.model_dump(mode="json")))
        self.firings: list[Firing] = []
        self.text: dict[int, Sequences] = {}
        for shard in range(SHARDS):
            self._write(shard, outliers)

    def _write(self, shard: int, outliers: bool) -> None:
        random = np.random.default_rng(shard)
        tokens = random.integers(2, VOCABULARY, (SEQUENCES, CONTEXT)).astype(np.int32)
        tokens[:, 0] = BOS
        document = np.repeat(np.arange(SEQUENCES) // 3 + 100 * shard, CONTEXT).reshape(tokens.shape).astype(np.int64)
        position = (np.arange(SEQUENCES) % 3)[:, None] * CONTEXT + np.arange(CONTEXT)[None] - 1
        text = self.text[shard] = Sequences(tokens, document, position.astype(np.int32), np.ones(tokens.shape, bool))
        save_sequences(self.bucket, DatasetLayout("d").packed(shard), text)
        kept = np.flatnonzero(tokens != BOS)
        if outliers:
            kept = kept[random.random(len(kept)) < 0.85]
        kept = kept[:ROWS]
        places, buffers, stored = permutation(3, shard, ROWS), ShardBuffers(self.manifest), {}
        for name, label in (("token_id", tokens), ("document", document), ("position", text.position)):
            buffers.put(places, name, label.ravel()[kept])
        for hook in self.manifest.hooks:
            raw = torch.from_numpy(random.integers(-4, 5, (ROWS, hook.d)).astype(np.float32)) * 0.5
            raw[ROWS // 2 :] = raw[: ROWS - ROWS // 2].clone()  # repeated rows, and so ties
            stored[hook.name] = raw
            buffers.put(places, hook.name, buffers.scaled(hook.name, raw))
        write_shard(self.bucket, shard, buffers, 0)
        latents = self.sae.sae.encode(torch.cat([stored[name] for name in self.sae.inputs], dim=1))
        for row, latent in (latents > 0).nonzero().tolist():
            self.firings.append(Firing(shard, int(kept[row]), latent, float(latents[row, latent])))

    def source(self) -> ShardSource:
        return ShardSource(self.bucket, "d", f"{DatasetLayout('d').root}/packed", [BOS])

    def job(self, config: EvidenceConfig = CONFIG) -> EvidenceJob:
        rows = shard_rows(self.bucket, "d", "d")
        assert rows is not None
        return job_of(self.bucket.url, self.root, rows, config)

    def make(self, division: list[list[int]], config: EvidenceConfig = CONFIG, config_of_machine: dict | None = None) -> Evidence:
        """The evidence from parts of these shards."""
        job, machine = self.job(config), config.model_copy(update=config_of_machine or {})
        for shards in division:
            whole: Counted | None = None
            for shard in shards:
                (counted,), rows, sequences = count_shard(self.source(), shard, [self.sae], machine, ROWS * SHARDS)
                whole = counted if whole is None else whole.merged(counted)
            assert whole is not None and rows == ROWS
            commit_part(self.bucket, job.layout, shards, whole.ledger, whole.sample, ROWS * len(shards), sequences * len(shards))
        done = committed_parts(self.bucket, job.layout, range(SHARDS))
        outputs = [*self.sae.outputs] or [*self.sae.inputs]
        facts = {
            "sae": self.root, "model": "tiny", "model_place": "tiny", "inputs": self.sae.inputs, "outputs": outputs,
            "architecture": self.sae.sae.architecture, "width": self.sae.sae.width, "source": "shards", "dataset": "d",
            "dtype": self.manifest.dtype, "context_length": CONTEXT, "settings": job.settings,
        }  # fmt: skip
        finish(self.bucket, job.layout, done, self.sae, self.source(), config, self.readout(), WORDS, facts)
        return evidence_of(self.bucket, self.root)

    def readout(self) -> Readout:
        """An invented model."""
        d = 7 if "attn" in (self.sae.outputs or self.sae.inputs)[0] else self.sae.sae.shape.outputs[-1]
        generator = torch.Generator().manual_seed(5)
        hooks = self.sae.outputs or self.sae.inputs
        projections = {h: torch.randn(n, d, generator=generator) for h, n in zip(hooks, self.sae.sae.shape.outputs, strict=True)}
        unembedding = torch.randn(VOCABULARY, d, generator=generator)
        return Readout(unembedding, torch.rand(d, generator=generator) + 0.5, False, projections, frozenset({0}))


def bytes_of(evidence: Evidence) -> dict[str, bytes]:
    """Every object of an SAE's evidence, by name."""
    names = ["latents.parquet", "examples.arrow", "tokens.parquet", "evidence.json"]
    return {name: evidence.bucket.read(f"{evidence.layout.root}/{name}") for name in names}
