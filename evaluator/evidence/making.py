"""Map over shards into parts, then reduce the parts to evidence files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from scopemill.evaluator.config import EvidenceConfig
from scopemill.evaluator.evidence import loops, parts, tables
from scopemill.evaluator.evidence.encoding import Collector, Encoder, Scratch
from scopemill.evaluator.evidence.ledger import Firings, Ledger, Sizes
from scopemill.evaluator.evidence.logits import Readout, directions, extremes
from scopemill.evaluator.evidence.neighbours import by_cofiring, by_cosine, clusters, decoder_rows
from scopemill.evaluator.evidence.parts import Part, Sample
from scopemill.evaluator.evidence.rows import Rows, Source
from scopemill.evaluator.evidence.store import example_batches, write_evidence
from scopemill.proto.hooks import Hook
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary
from scopemill.trainer.formats import FinishedSae
from scopemill.trainer.sae.crosslayer import CrossLayerTranscoder

# For the memory that counting takes; they decide no byte of the evidence.
TYPICAL_L0, WINDOW_SHARE, FIRING_BYTES = 128, 0.25, 8  # the share of a context's tokens on which its latent fires


@dataclass(frozen=True)
class Counted:
    """Hold what one SAE's firings in some shards come to."""

    ledger: Ledger
    sample: Sample

    def merged(self, other: "Counted") -> "Counted":
        """Return what the shards of both come to."""
        return Counted(self.ledger.merged(other.ledger), Sample.joined([self.sample, other.sample]))


def sizes_of(config: EvidenceConfig, context_length: int) -> Sizes:
    """Return how much is kept of each latent."""
    return Sizes(config.top, config.samples, config.token_samples, min(config.window, context_length))


def bytes_held(sae: FinishedSae, config: EvidenceConfig, context_length: int, rows: int) -> int:
    """Return about how many bytes an SAE takes while it is counted.

    ``rows`` are those of a shard. Counted are its weights, its firings, collected and grouped, and three ledgers: the sum so
    far, the shard's, and both merged.
    """
    sizes = sizes_of(config, context_length)
    windows = sizes.slots * sizes.window * WINDOW_SHARE * FIRING_BYTES
    firings = min(rows * min(TYPICAL_L0, sae.sae.width), config.firings_at_once)
    ledger = sae.sae.width * (Ledger.empty(1, sizes).nbytes + windows)
    weights = sum(tensor.nbytes for tensor in sae.sae.state_dict().values())
    return int(weights + 3 * ledger + 3 * FIRING_BYTES * firings)


def count_shard(
    source: Source, shard: int, saes: Sequence[FinishedSae], config: EvidenceConfig, total_rows: int
) -> tuple[list[Counted], int, int]:
    """Count the firings of several SAEs in one read of a shard.

    The shard's rows and sequences are returned too.
    ``total_rows`` are those of all shards, about: they decide which rows are sampled for co-firing. The shard is read once more for
    each further slice of latents of an SAE with more than ``config.firings_at_once`` firings.
    """
    block = source.text(shard)
    tokens = block.tokens.ravel()
    hooks = list(dict.fromkeys(hook for sae in saes for hook in sae.inputs))
    scratch = Scratch()
    encoders = [Encoder(sae.sae, scratch) for sae in saes]
    batches = source.rows(shard, hooks)
    first_batch = next(batches)
    slices = _slices(first_batch, saes, encoders, config.firings_at_once, len(tokens))
    share = min(config.cofiring_rows / total_rows, 1)
    sampled = loops.row_keys(config.seed, shard, np.arange(len(tokens))) < np.uint64(share * (2**64 - 2**11))
    ledgers: list[list[Ledger]] = [[] for _ in saes]
    samples: list[list[Sample]] = [[] for _ in saes]
    rows = sampled_rows = 0
    for turn in range(max(map(len, slices))):
        collectors = {i: Collector(*of_sae[turn]) for i, of_sae in enumerate(slices) if turn < len(of_sae)}
        for places, raw in source.rows(shard, hooks) if turn else chain([first_batch], batches):
            for i, collector in collectors.items():
                collector.add(places, encoders[i](_input(raw, saes[i])))
            if not turn:
                rows, sampled_rows = rows + len(places), sampled_rows + int(sampled[places].sum())
        for i in list(collectors):
            firings, first = collectors.pop(i).firings(), slices[i][turn][0]
            sizes = sizes_of(config, source.context_length)
            ledgers[i].append(Ledger.of(firings, shard, tokens, source.context_length, sizes, config.seed, first))
            samples[i].append(_sampled(firings, shard, first, sampled, sampled_rows))
    counted = [Counted(Ledger.joined(ledger), _joined(sample)) for ledger, sample in zip(ledgers, samples, strict=True)]
    return counted, rows, len(block)


def _sampled(firings: Firings, shard: int, first: int, sampled: np.ndarray, rows: int) -> Sample:
    """Return the firings at sampled places."""
    keep = sampled[firings.places]
    latents = np.repeat(np.arange(len(firings.starts) - 1, dtype=np.int32), np.diff(firings.starts))[keep]
    return Sample(np.int32(first) + latents, np.int64(shard << 32) + firings.places[keep], rows)


def _joined(slices: Sequence[Sample]) -> Sample:
    """Return the sample of all latents from those of slices, which are of the same rows."""
    latents, rows = (np.concatenate([vars(sample)[name] for sample in slices]) for name in ("latents", "rows"))
    return Sample(latents, rows, slices[0].sampled)


def _input(raw: dict[str, torch.Tensor], sae: FinishedSae) -> torch.Tensor:
    """Return the rows [B, d_in] that an SAE reads, its hooks side by side."""
    return raw[sae.inputs[0]] if len(sae.inputs) == 1 else torch.cat([raw[hook] for hook in sae.inputs], dim=1)


def _slices(batch: Rows, saes: Sequence[FinishedSae], encoders: Sequence[Encoder], at_once: int, rows: int) -> list[list[tuple[int, int]]]:
    """Return each SAE's slices of latents, so that a slice of the shard has about ``at_once`` firings, by those of its first rows."""
    places, raw = batch
    slices = []
    for sae, encoder in zip(saes, encoders, strict=True):
        expected = int(encoder(_input(raw, sae)).starts[-1]) / max(1, len(places)) * rows
        step = -(-sae.sae.width // max(1, min(sae.sae.width, round(expected / at_once + 0.5))))
        slices.append([(start, min(start + step, sae.sae.width)) for start in range(0, sae.sae.width, step)])
    return slices


def finish(
    bucket: Bucket, layout: EvidenceLayout, done: Sequence[Part], sae: FinishedSae, source: Source, config: EvidenceConfig, out: Readout,
    words: Vocabulary, facts: dict[str, Any],
) -> None:  # fmt: skip
    """Reduce parts by ranges of latents, and write the evidence of an SAE.

    ``facts`` are the record's, but those counted here.
    """
    window, context = sizes_of(config, source.context_length).window, source.context_length
    weights, rows = sae.sae, sum(part.rows for part in done)
    decoder = decoder_rows(weights)
    nearest = by_cosine(decoder, config.neighbours)
    sample = parts.read_sample(bucket, layout, done)
    cofiring = by_cofiring(sample.latents, sample.rows, sample.sampled, weights.width, config.neighbours)
    named = clusters(nearest, cofiring)
    outputs = [Hook.parse(name) for name in sae.outputs or sae.inputs]
    direction = directions(decoder.to(out.gain), outputs, weights.shape.outputs, out)
    norms = decoder.norm(dim=1).cpu().numpy()
    aligned = _alignment(weights, decoder)
    made: list[pa.Table] = []
    text = _remembered(source.text)

    def batches() -> Iterator[pa.RecordBatch]:
        for first, ledger in parts.ledgers(bucket, layout, done, weights.width):
            own = slice(first, first + len(ledger.fired))
            near, firing = (type(x)(x.latents[own], x.scores[own]) for x in (nearest, cofiring))
            logits = extremes(direction[own], out, config.logits)
            columns = tables.statistics(ledger, rows)
            cosines = None if aligned is None else aligned[own]
            made.append(tables.latents_table(first, columns, logits, near, firing, named[own], cosines, norms[own]))
            yield from example_batches(first, tables.examples(ledger, context, window, text))

    counted = {"rows": rows, "sequences": sum(part.sequences for part in done)}
    write_evidence(bucket, layout, batches(), lambda: pa.concat_tables(made).combine_chunks(), words, facts | counted)
    bucket.remove_tree(layout.work)


def _alignment(sae: Any, decoder: torch.Tensor) -> np.ndarray | None:
    if not sae.shape.autoencoder or isinstance(sae, CrossLayerTranscoder):
        return None
    return tables.alignment(sae.W_enc.detach().cpu().numpy(), decoder.cpu().numpy())


def _remembered(text: Callable[[int], Any], most: int = 4) -> Callable[[int], Any]:
    """Keep the texts that were asked for last: every range of latents asks for the same shards."""
    kept: dict[int, Any] = {}

    def ask(shard: int) -> Any:
        if shard not in kept:
            if len(kept) >= most:
                del kept[next(iter(kept))]
            kept[shard] = text(shard)
        return kept[shard]

    return ask
