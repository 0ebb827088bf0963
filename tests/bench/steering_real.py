"""Steer SmolLM2 by latents of `make real`, and measure each beside a random push.

``python tests/bench/steering_real.py candidates SAE``: latents whose contexts and promoted tokens are about the same word, to read.
``python tests/bench/steering_real.py measure SAE NAMED.json``: a table in Markdown of the latents in {latent: meaning}.
``python tests/bench/steering_real.py share SAE ...``: the share of latents whose output score beats the random direction's.

The SAEs need evidence; `share` needs ``scopemill evidence SAE --output-scores`` first.
"""

import json
import sys
from pathlib import Path
from statistics import median

from scopemill.deploy.catalog.latents import context_text
from scopemill.evaluator.evidence.reader import Evidence, evidence_of
from scopemill.evaluator.steering.steerer import CONTROL, Steered, Steerer, SteeringRequest
from scopemill.harvester.config import ModelConfig
from scopemill.proto.storage.bucket import Bucket

PREPARED = Path("real-bucket/prepared")
PROMPT, AMOUNT, LINES = "I went there and", 1.0, 6
DENSITY = (2e-5, 0.02)


def candidates(place: str, most: int = 80) -> None:
    """Print latents that are likely to have one meaning, by the share of their most frequent token or their output score."""
    evidence = evidence_of(Bucket(place), "")
    scores, words = evidence.output_scores(), evidence.vocabulary
    rows = [row for row in evidence.rows() if DENSITY[0] <= row["density"] <= DENSITY[1]]
    rows.sort(key=lambda row: scores[row["latent"]][0] if row["latent"] in scores else row["promoted_values"][0] - 1e6, reverse=True)
    for row in rows[:most]:
        promoted = " ".join(repr(words.text(token)) for token in row["promoted_tokens"][:8])
        facts = f"density {row['density']:.5f}  max {row['max']:.3g}  scores {scores.get(row['latent'])}"
        print(f"\n## {row['latent']}  {facts}\n   {promoted}")
        for example in evidence.examples(row["latent"])[:4]:
            print("   -", " ".join(context_text(example, words).split())[-160:])


def measure(place: str, named: str) -> None:
    """Print a row for each named latent: what its push and the random one of the same size do."""
    evidence = evidence_of(Bucket(place), "")
    meanings: dict[str, str] = json.loads(Path(named).read_text())
    steerer = Steerer(ModelConfig.model_validate(evidence.record.model_place))
    held_out = [json.loads(line)["text"] for line in (PREPARED / "held_out.jsonl").read_text().splitlines()[:LINES]]
    scores = evidence.output_scores()
    columns = ("latent", "its contexts are about", "it promotes", "output score (random)", "KL (random)")
    columns += ("promoted tokens: before, steered, random", "collapses at")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    texts = []
    for latent, meaning in meanings.items():
        edits = [{"sae": place, "latent": int(latent), "op": "add", "amount": AMOUNT}]
        sampling = {"length": 24, "temperature": 0.0}
        fields = {"prompt": PROMPT, "configurations": {meaning: edits}, "sampling": sampling, "text": "\n".join(held_out), "doses": True}
        found = steerer.steer(SteeringRequest.model_validate_json(json.dumps(fields)))
        print(_row(evidence, int(latent), meaning, found[meaning], found[f"{meaning}: {CONTROL}"], scores), flush=True)
        texts.append((latent, found[meaning], found["unsteered"].texts[0]))
    for latent, steered, unsteered in texts:
        collapse = f"collapses at {steered.collapse:g}" if steered.collapse else "does not collapse"
        print(f"\n{latent}: {collapse}\n  unsteered: {unsteered!r}\n  steered:   {steered.texts[0]!r}")


def _row(evidence: Evidence, latent: int, meaning: str, own: Steered, control: Steered, scores: dict[int, tuple[float, float]]) -> str:
    words, row = evidence.vocabulary, evidence.latent(latent)
    promoted = " ".join(f"`{words.text(token)}`" for token in row["promoted_tokens"][:4]).replace("|", "\\|")
    score, random = scores.get(latent, (float("nan"), float("nan")))
    shares = f"{own.effect.promoted_before:.3%}, {own.effect.promoted:.2%}, {control.effect.promoted:.3%}"
    collapse = f"{own.collapse:g}" if own.collapse else "–"
    kl = f"{own.effect.kl:.2f} ({control.effect.kl:.2f})"
    return f"| {latent} | {meaning} | {promoted} | {score:.3f} ({random:.4f}) | {kl} | {shares} | {collapse} |"


def share(*places: str) -> None:
    """Print of each SAE the share of latents that beat the random direction of their norm."""
    for place in places:
        scores = evidence_of(Bucket(place), "").output_scores()
        better = sum(own > random for own, random in scores.values())
        own, random = (median(pair[i] for pair in scores.values()) for i in (0, 1))
        print(
            f"{place}: {better:,} of {len(scores):,}, {better / len(scores):.1%}; median score {own:.2e}, of random directions {random:.2e}"
        )


if __name__ == "__main__":
    {"candidates": candidates, "measure": measure, "share": share}[sys.argv[1]](*sys.argv[2:])
