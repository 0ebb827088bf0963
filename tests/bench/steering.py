"""Steered generation over plain generation, token by token, with the same model in turn: ``python tests/bench/steering.py``.

The demo's language model, and SmolLM2 where `make real` has prepared it. Times are of the process's CPU, so other work on the machine
counts little; tokens are few and models are small, so what steering adds is seen at its largest.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from history import report
from measure import Figure, alternate

from scopemill.evaluator.steering.edits import Edit
from scopemill.evaluator.steering.generation import Sampling, generate
from scopemill.evaluator.steering.steering import SteeredSae, Steering
from scopemill.harvester.config import ModelConfig
from scopemill.harvester.language_model.describe import describe
from scopemill.harvester.language_model.model import LanguageModel
from scopemill.trainer.config.wiring import Shape
from scopemill.trainer.formats import FinishedSae
from scopemill.trainer.sae.activations.jumprelu import JumpReLU
from scopemill.trainer.sae.base import Sae

ROOT = Path(__file__).parents[2]
MODELS = {"demo": (ROOT / "deploy/demo/gemma-2-stdlib", 1024), "SmolLM2-135M": (ROOT / "real-bucket/prepared/SmolLM2-135M-Instruct", 4096)}
LENGTH, ROUNDS, PROMPT = 48, 7, 12
EDITS = {
    "add": Edit(sae="bench", latent=3, op="add", amount=1e-3, unit="raw"),
    "clamp": Edit(sae="bench", latent=3, op="clamp", amount=1e-3, unit="raw"),
}


def figures() -> Iterator[Figure]:
    for name, (place, width) in MODELS.items():
        if place.exists():
            yield from of_model(name, ModelConfig.model_validate(str(place)), width)


def of_model(name: str, model: ModelConfig, width: int) -> Iterator[Figure]:
    lm, card = LanguageModel(model), describe(model)
    layer = card.layers // 2
    hook, d = f"blocks.{layer}.hook_resid_post", card.widths["resid_post"]
    sae = Sae(Shape.square(d), width, JumpReLU(width)).requires_grad_(False)
    finished = FinishedSae(sae, (hook,), (hook,))
    prompt = torch.randint(10, 1000, (PROMPT,), generator=torch.Generator().manual_seed(0))
    sampling = Sampling(length=LENGTH, temperature=0.7, seed=0)

    def writing(steering: Steering | None) -> Callable[[], float]:
        def work() -> float:
            start = time.process_time()
            tokens = list(generate(lm, prompt, frozenset(), sampling, steering))
            assert len(tokens) == LENGTH
            return time.process_time() - start

        return work

    works = {"plain": writing(None)} | {op: writing(Steering((SteeredSae.of(finished, "bench", [edit]),))) for op, edit in EDITS.items()}
    rounds = alternate(works, ROUNDS)
    for op in EDITS:
        title = f"{name}, width {width}: {LENGTH} tokens steered by {op} over plain generation (CPU time)"
        yield rounds.figure(title, op, "plain", "<= 1.1")


if __name__ == "__main__":
    report(figures())
