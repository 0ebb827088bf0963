"""Evidence of invented latents, as the pass writes it: for tests of what reads evidence."""

import numpy as np
import pyarrow as pa

from scopemill.evaluator.evidence.reader import Evidence
from scopemill.evaluator.evidence.schema import EXAMPLES, LATENTS
from scopemill.evaluator.evidence.store import example_batches, write_evidence
from scopemill.proto.evidence import BINS, INTERVALS, TOP
from scopemill.proto.layout import EvidenceLayout
from scopemill.proto.storage.bucket import Bucket
from scopemill.proto.vocabulary import Vocabulary

HASH = "0123456789abcdef"
WORDS = ["<pad>", "<bos>", "return", " self", " the", "\n", "    ", "def", " caf", "(", "):", " import"]


def vocabulary() -> Vocabulary:
    """Words, and a character of two bytes over two tokens."""
    return Vocabulary([word.encode() for word in WORDS] + [b"\xc3", b"\xa9"], special=frozenset({0, 1}), untrained=frozenset({0}))


def write(bucket: Bucket, sae: str, width: int = 40, window: int = 16, top: int = 4, samples: int = 2, seed: int = 0) -> Evidence:
    """Write the evidence of an SAE's folder; every fifth latent never fires."""
    random = np.random.default_rng(seed)
    words, rows = vocabulary(), 100_000
    latents, examples = [], []
    for latent in range(width):
        fires = latent % 5 != 4
        scale = float(2.0 ** random.integers(-1, 4))
        listed = _examples(random, len(words), scale, window, top, samples) if fires else []
        examples.append(listed)
        fired = int(random.integers(len(listed), 5000)) if fires else 0
        histogram = np.bincount(random.integers(0, BINS, fired), minlength=BINS).tolist()
        promoted, suppressed = (random.permutation(np.arange(1, len(words)))[:5].tolist() for _ in range(2))
        values = sorted(random.normal(0, 1, 5).astype("f4").tolist(), reverse=True)
        near = random.permutation(np.delete(np.arange(width), latent))[:4].tolist()
        latents.append(
            {"latent": latent, "fired": fired, "density": fired / rows, "max": max((e["value"] for e in listed), default=0.0),
             "mean": scale / 2 * fires, "std": scale / 4 * fires, "histogram_range": scale * fires, "histogram": histogram,
             "top_token": int(random.integers(2, len(words))) if fires else None, "top_token_share": 0.5 * fires,
             "token_entropy": 2.0 * fires, "promoted_tokens": promoted, "promoted_values": values,
             "suppressed_tokens": suppressed, "suppressed_values": [-v for v in values],
             "all_promoted_tokens": [0, *promoted[:4]], "all_promoted_values": values,
             "all_suppressed_tokens": suppressed, "all_suppressed_values": [-v for v in values],
             "nearest_latents": near, "nearest_cosines": [0.9, 0.5, 0.3, 0.1],
             "cofiring_latents": near[::-1], "cofiring_phi": [0.8, 0.4, 0.2, 0.1],
             "cluster": latent - latent % 3, "encoder_decoder_cosine": float(random.uniform(0, 1)), "decoder_norm": 1.0}
        )  # fmt: skip
    facts = {
        "sae": sae, "model": "tiny", "model_place": "models/tiny",
        "inputs": ["blocks.2.hook_resid_post"], "outputs": ["blocks.2.hook_resid_post"],
        "architecture": "jumprelu", "width": width, "source": "shards", "dataset": "demo", "dtype": "bfloat16", "rows": rows,
        "sequences": 800, "context_length": 128,
        "settings": {"top": top, "samples": samples, "window": window},
    }  # fmt: skip
    layout = EvidenceLayout(sae, HASH)
    batches = example_batches(0, pa.array(examples, EXAMPLES.field("examples").type))
    write_evidence(bucket, layout, batches, lambda: pa.Table.from_pylist(latents, schema=LATENTS), words, facts)
    return Evidence.open(bucket, sae, HASH)


def _examples(random: np.random.Generator, words: int, scale: float, window: int, top: int, samples: int) -> list[dict]:
    high = np.sort(random.uniform(0.75, 1, top).astype("f4") * scale)[::-1]
    listed = [_example(random, words, TOP, value, window) for value in high]
    for interval in range(INTERVALS)[::-1]:
        for place in np.sort(random.uniform(interval, interval + 1, samples))[::-1]:
            value = np.float32(min(place * scale / INTERVALS, high[0]))
            if int(value * INTERVALS / scale) == interval and value > 0:
                listed.append(_example(random, words, interval, value, window))
    return listed


def _example(random: np.random.Generator, words: int, interval: int, value: float, window: int) -> dict:
    activations = random.uniform(0, value, window).astype("f4") * (random.random(window) < 0.2)
    peak = int(random.integers(0, window))
    activations[peak] = value
    tokens = random.integers(2, words, window).tolist()
    return {"interval": interval, "value": float(value), "peak": peak, "document": int(random.integers(0, 50)), "position": 20 + peak,
            "shard": int(random.integers(0, 3)), "sequence": int(random.integers(0, 90)), "start": 20, "tokens": tokens,
            "activations": activations.tolist()}  # fmt: skip
